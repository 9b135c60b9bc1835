"""Complete prompts: many at once, or one as a stream. Both run the same steps and give the same text.

Prompts of a batch are padded on the left, so that all of them go on at the same place of one KV cache; padding is
masked and positions count from each prompt's own first token. Rows that are done leave the batch. Every prompt draws
from a generator of its own, seeded by (seed, its number in the list), so what stands beside it does not matter, up to
the rounding of the products (about 1e-6 of a logit), which can only tip a choice that was a tie.

A completion ends at <|endoftext|> (finish_reason "end"), at a stop string ("stop"), or after max_new_tokens or where
the model's context is full ("length"). Beams are in `beam.py`. Not handled: speculative decoding, requests that arrive
meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foretell.errors import ConfigError
from foretell.generate.cache import KVCache
from foretell.generate.sampling import Sampling, next_tokens
from foretell.generate.text import Text
from foretell.models.decoder import Decoder
from foretell.tokenizer import Tokenizer

# What one batch may hold: rows, positions of its cache, and cells of the mask of its prompts.
_ROWS, _POSITIONS, _MASK_CELLS = 64, 1 << 17, 1 << 26


@dataclass
class _Row:
    """One prompt on its way."""

    number: int
    prompt: str
    ids: list[int]
    room: int  # tokens it may still get
    cut: int  # prompt tokens that did not fit
    random: np.random.Generator
    text: Text
    tokens: int = 0
    finish_reason: str = ""
    pieces: list[str] = field(default_factory=list)
    seconds: float = 0.0


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | Sequence[int] = 128,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Complete every prompt. One dictionary a prompt, in order: prompt, completion, tokens, seconds, tokens_per_second,
    finish_reason, prompt_tokens, prompt_tokens_cut. max_new_tokens: of all, or one for each prompt.

    `seconds` runs from the start of the prompt's batch to its own last token. Raises ConfigError for an option out of
    its range, and DataError for a prompt that is no Unicode text.
    """
    if isinstance(prompts, str):
        raise ConfigError("prompts is a list of strings; put the one prompt into a list")
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    rows = _rows(model, tokenizer, prompts, max_new_tokens, tuple(stop), seed)
    for group in _groups(rows):
        for row, piece in _completed(model, tokenizer, group, sampling, tokenizer.eot_id):
            row.pieces.append(piece)
    return [_result(row) for row in rows]


def stream(
    model: Decoder,
    tokenizer: Tokenizer,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.8,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: Sequence[str] = (),
    seed: int = 0,
    end: int | None = None,
) -> Iterator[str]:
    """Text pieces of the one completion that `generate([prompt])` would give, as soon as each is certain.

    A prompt may be ids, which are taken as they are. end: the token that ends it; that of a text by default.
    """
    sampling = Sampling(temperature, top_k, top_p, min_p, repetition_penalty)
    rows = _rows(model, tokenizer, [prompt], max_new_tokens, tuple(stop), seed)
    end = tokenizer.eot_id if end is None else end
    return (piece for _, piece in _completed(model, tokenizer, rows, sampling, end) if piece)


def tokens_cut(model: Decoder, tokenizer: Tokenizer, prompt: str) -> int:
    """Tokens at the beginning of a prompt that do not fit the model's context, and that it would not see."""
    return _rows(model, tokenizer, [prompt], 1, (), 0)[0].cut


def _result(row: _Row) -> dict[str, Any]:
    return {
        "prompt": row.prompt,
        "completion": "".join(row.pieces),
        "tokens": row.tokens,
        "seconds": row.seconds,
        "tokens_per_second": row.tokens / row.seconds if row.seconds else 0.0,
        "finish_reason": row.finish_reason,
        "prompt_tokens": len(row.ids),
        "prompt_tokens_cut": row.cut,
    }


def _rows(
    model: Decoder,
    tokenizer: Tokenizer,
    prompts: Sequence[str | Sequence[int]],
    max_new_tokens: int | Sequence[int],
    stop: tuple[str, ...],
    seed: int,
) -> list[_Row]:
    rooms = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(rooms) != len(prompts):
        raise ConfigError(f"max_new_tokens has {len(rooms)} entries for {len(prompts)} prompts; give one for each")
    if min(rooms, default=1) < 1:
        raise ConfigError(f"max_new_tokens is {min(rooms)}; it must be at least 1")
    if seed < 0:
        raise ConfigError(f"seed is {seed}; it must be 0 or more")
    context = model.config.max_position_embeddings or 1
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    texts = [p if isinstance(p, str) else "" for p in prompts]
    rows = []
    for n, (prompt, text, encoded) in enumerate(zip(prompts, texts, tokenizer.encode_batch(texts), strict=True)):
        ids = [*first, *encoded.tolist()] if isinstance(prompt, str) else list(prompt)
        ids = ids or ([] if tokenizer.eot_id is None else [tokenizer.eot_id])
        if not ids:
            raise ConfigError("an empty prompt, and a tokenizer without a token to begin with; give a prompt")
        # A prompt that leaves no room keeps its last half context, so that something can follow it.
        used = ids if len(ids) < context else ids[-max(1, context // 2) :]
        room = min(rooms[n], context - len(used) + 1)
        random = np.random.default_rng([seed, n])
        rows.append(_Row(n, text, used, room, len(ids) - len(used), random, Text(stop)))
    return rows


def _groups(rows: list[_Row]) -> Iterator[list[_Row]]:
    """Rows of similar length together, as many as memory allows."""
    group: list[_Row] = []
    for row in sorted(rows, key=lambda r: len(r.ids)):
        count, prompt = len(group) + 1, len(row.ids)  # the longest so far
        longest = prompt + max(r.room for r in [*group, row])
        too_many = count > _ROWS or count * longest > _POSITIONS or count * prompt**2 > _MASK_CELLS
        if group and too_many:
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _completed(
    model: Decoder, tokenizer: Tokenizer, rows: list[_Row], sampling: Sampling, end: int | None
) -> Iterator[tuple[_Row, str]]:
    """Run the rows to their ends; yields each row's text piece by piece."""
    training = model.training
    model.eval()
    started = time.perf_counter()
    try:
        for batch, tokens in _steps(model, rows, sampling):
            for row, token in zip(batch, tokens, strict=True):
                piece = _take(row, token, tokenizer, end)
                row.seconds = time.perf_counter() - started
                if piece:
                    yield row, piece
    finally:
        model.train(training)


def _take(row: _Row, token: int, tokenizer: Tokenizer, end: int | None) -> str:
    """Add a token to its row: text that became certain, and the row's end where this is it."""
    if token in (end, tokenizer.eot_id):
        row.finish_reason = "end"
        return row.text.end()
    row.tokens += 1
    row.room -= 1
    piece = row.text.feed(tokenizer.token_bytes(token))
    if row.text.stopped:
        row.finish_reason = "stop"
    elif not row.room:
        row.finish_reason = "length"
        piece += row.text.end()
    return piece


@torch.no_grad()
def _steps(model: Decoder, rows: list[_Row], sampling: Sampling) -> Iterator[tuple[list[_Row], list[int]]]:
    """The rows in progress and a new token of each, until every row has its finish_reason."""
    device = model.lm_head.weight.device
    T = max(len(r.ids) for r in rows)
    longest = T + max(r.room for r in rows)
    padding = torch.tensor([T - len(r.ids) for r in rows], device=device)
    ids = torch.tensor([[0] * (T - len(r.ids)) + r.ids for r in rows], device=device)
    cache = KVCache(model.config, len(rows), longest, model.lm_head.weight.dtype, device)
    padded = len(rows) > 1 and bool(padding.any())
    seen = _seen(rows, model.config.vocab_size or 0, device) if sampling.repetition_penalty != 1.0 else None
    hidden = _prompts(model, ids, padding if padded else None, cache)
    while True:
        logits = model.lm_head(hidden[:, -1]).float()
        uniform = torch.tensor([r.random.random() for r in rows], dtype=torch.float64, device=device)
        chosen = next_tokens(logits, seen, uniform, sampling)
        yield rows, chosen.tolist()
        going = [i for i, r in enumerate(rows) if not r.finish_reason]
        if not going:
            return
        if len(going) < len(rows):
            rows, index = [rows[i] for i in going], torch.tensor(going, device=device)
            cache.keep(index)
            chosen, padding = chosen[index], padding[index]
            seen = None if seen is None else seen[index]
        if seen is not None:
            seen.scatter_(1, chosen[:, None], True)
        position, mask = None, None
        if padded:
            place = torch.arange(cache.length + 1, device=device)
            position, mask = (cache.length - padding)[:, None], (place >= padding[:, None])[:, None, None]
        hidden = model.hidden(chosen[:, None], position, mask, cache)


def _prompts(model: Decoder, ids: Tensor, padding: Tensor | None, cache: KVCache) -> Tensor:
    """Hidden states of the prompts, which fill the cache. padding: (B,), tokens on the left of each that are none."""
    if padding is None:
        return model.hidden(ids, cache=cache)
    T = ids.shape[1]
    place = torch.arange(T, device=ids.device)
    real = place >= padding[:, None]
    # Padding sees itself, because a softmax over nothing is not a number.
    mask = (place[:, None] >= place) & real[:, None] | torch.eye(T, dtype=torch.bool, device=ids.device)
    return model.hidden(ids, (place - padding[:, None]).clamp_min(0), mask[:, None], cache)


def _seen(rows: list[_Row], vocab_size: int, device: torch.device) -> Tensor:
    """(B, V), True for the tokens of each prompt."""
    seen = torch.zeros(len(rows), vocab_size, dtype=torch.bool, device=device)
    for n, row in enumerate(rows):
        seen[n, torch.tensor(row.ids, device=device)] = True
    return seen
