"""Targets of sources, by an encoder-decoder: the source is read once, the target written token by token.

Each source draws from a generator of its own, seeded by (seed, its number). A target ends at the token that ends a
text, or after max_new_tokens. Not handled: stop strings; beams are in `beam.py`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foretell.errors import ConfigError
from foretell.generate.cache import SourceCache
from foretell.generate.sampling import Sampling, next_tokens
from foretell.models.seq2seq import Seq2Seq
from foretell.tokenizer import Tokenizer

_ROWS = 64


def answer(
    model: Seq2Seq,
    tokenizer: Tokenizer,
    sources: Sequence[str],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One dictionary a source, in order: prompt, completion, tokens, seconds, tokens_per_second, finish_reason.

    temperature 0 takes the likeliest token. Raises ConfigError for an option out of its range.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"max_new_tokens is {max_new_tokens}; it must be at least 1")
    sampling = Sampling(temperature, top_k, top_p, min_p)
    rows = [source_ids(tokenizer, s) for s in sources]
    found: list[dict[str, Any]] = [{}] * len(rows)
    order = sorted(range(len(rows)), key=lambda n: len(rows[n]))
    training = model.training
    model.eval()
    try:
        for i in range(0, len(order), _ROWS):
            group = order[i : i + _ROWS]
            started = time.perf_counter()
            randoms = [np.random.default_rng([seed, n]) for n in group]
            targets = written(model, [rows[n] for n in group], tokenizer.eot_id, max_new_tokens, sampling, randoms)
            seconds = time.perf_counter() - started
            for n, ids in zip(group, targets, strict=True):
                ended = len(ids) < max_new_tokens
                found[n] = {
                    "prompt": sources[n],
                    "completion": tokenizer.decode(ids),
                    "tokens": len(ids),
                    "seconds": seconds,
                    "tokens_per_second": len(ids) / seconds,
                    "finish_reason": "end" if ended else "length",
                }
    finally:
        model.train(training)
    return found


def source_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A source as the model was trained on it: what the tokenizer puts around a text, or, with ours, its end behind."""
    if tokenizer.kind != "other":
        return [*tokenizer.encode(text), *([] if tokenizer.eot_id is None else [tokenizer.eot_id])]
    inner = tokenizer.inner
    return inner.post_process(inner.encode(text, add_special_tokens=False), None, True).ids


@torch.no_grad()
def written(
    model: Seq2Seq,
    sources: list[list[int]],
    end: int | None,
    longest: int,
    sampling: Sampling,
    randoms: list[np.random.Generator],
) -> list[list[int]]:
    """The target's ids of each source, without the end; at most `longest`. Rows that are done leave the batch."""
    device, S = model.lm_head.weight.device, max(map(len, sources))
    ids = torch.tensor([[*row, *[0] * (S - len(row))] for row in sources], device=device)
    mask: Tensor = torch.arange(S, device=device) < torch.tensor([len(r) for r in sources], device=device)[:, None]
    start = model.config.decoder_start_token_id
    start = end if start is None else start
    if start is None:
        raise ConfigError("the model says not what a target begins with: set decoder_start_token_id in its config.json")
    memory = model.encode(ids, mask)
    cache = SourceCache(model.config, len(sources), longest, memory.dtype, device)
    found: list[list[int]] = [[] for _ in sources]
    going = list(range(len(sources)))
    last = torch.full((len(sources),), start, device=device)
    for _ in range(longest):
        hidden = model.scaled(model.decode(last[:, None], memory, mask, cache))
        logits = model.lm_head(hidden[:, -1]).float()
        uniform = torch.tensor([randoms[n].random() for n in going], dtype=torch.float64, device=device)
        last = next_tokens(logits, None, uniform, sampling)
        kept = [i for i, token in enumerate(last.tolist()) if token != end]
        for i in kept:
            found[going[i]].append(int(last[i]))
        if not kept:
            break
        if len(kept) < len(going):
            index = torch.tensor(kept, device=device)
            cache.keep(index)
            last, memory, mask = last[index], memory[index], mask[index]
            going = [going[i] for i in kept]
    return found
