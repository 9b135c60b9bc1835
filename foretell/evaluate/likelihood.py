"""How likely a model holds each continuation of a context, at the speed of the tokens that differ.

What a hundred questions with four answers each cost is the tokens of a hundred questions and four hundred answers:
continuations of one context stand behind it in one row, each at the positions that follow the context, and a mask keeps
them from seeing one another. Rows of like length run together, padded on the right, where no token can see it. Only
hidden states that a scored token is predicted from go through the head. So a score depends on what it was computed
beside only by the rounding of the products (measured: `docs/lm-eval.md`).

Not handled: encoders and encoder-decoders; contexts that begin alike but are not the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foretell.errors import DataError, ModelError
from foretell.models import products
from foretell.models.decoder import Decoder
from foretell.models.model import layers

_BATCH_TOKENS = 1 << 9  # more fall out of the processor's cache
_PACKED_TOKENS = 1 << 10  # a longer row would spend its time on attention that the mask throws away
_LOGITS = 1 << 23  # 32 MB of float32

Pair = tuple[Sequence[int], Sequence[int]]


@dataclass
class _Row:
    """A context and continuations of it. asked: places in the row, a token after each, the pair it belongs to."""

    context: list[int]
    tails: list[list[int]] = field(default_factory=list)  # inputs of each continuation: all but its last token
    asked: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.context) + sum(map(len, self.tails))

    def add(self, continuation: Sequence[int], number: int) -> None:
        at = self.length
        places = [len(self.context) - 1, *range(at, at + len(continuation) - 1)]
        self.asked += [(place, token, number) for place, token in zip(places, continuation, strict=True)]
        if len(continuation) > 1:
            self.tails.append(list(continuation[:-1]))


@torch.no_grad()
def loglikelihoods(model: Decoder, pairs: Sequence[Pair], *, batch_size: int | None = None) -> list[tuple[float, bool]]:
    """Of every (context, continuation), two lists of token ids that are not empty, the log-likelihood of the
    continuation in nats, in float64 from float32 logits, and whether each token of it is the likeliest.

    Where both together are longer than the model's context allows, the beginning of the context is left out.
    batch_size: rows at once; about 512 tokens when None. It does not move a score. Leaves the training mode as it was.
    Raises DataError for an empty context or continuation or one that does not fit, ModelError for logits that are no
    numbers.
    """
    rows = _rows(pairs, model.config.max_position_embeddings or 1, _reach(model))
    sums, greedy = [0.0] * len(pairs), [True] * len(pairs)
    training = model.training
    model.eval()
    try:
        with products.fast():
            for batch in _batches(rows, batch_size):
                for number, score, first in _scores(model, batch):
                    sums[number] += score
                    greedy[number] &= first
    finally:
        model.train(training)
    if not torch.tensor(sums).isfinite().all():
        raise ModelError("the model's predictions are not numbers (NaN or infinite): its weights are damaged")
    return list(zip(sums, greedy, strict=True))


def _reach(model: Decoder) -> int:
    """Tokens that a row with a mask may have: a layer that sees so far only counts them by their place in the row."""
    windows = [layer.self_attn.window for layer in layers(model)]
    return min([_PACKED_TOKENS, *(w for w in windows if w is not None)])


def _rows(pairs: Sequence[Pair], longest: int, reach: int) -> list[_Row]:
    """Rows of at most `longest` tokens; those with several continuations of at most `reach`."""
    open_rows: dict[tuple[int, ...], _Row] = {}
    rows = []
    for number, (context, continuation) in enumerate(pairs):
        if not len(context) or not 0 < len(continuation) <= longest:
            raise DataError(
                f"pair {number}: a context of {len(context):,} and a continuation of {len(continuation):,} tokens; it "
                f"takes at least one of each, and a continuation of at most {longest:,}, the model's context"
            )
        kept = tuple(map(int, context[-(longest + 1 - len(continuation)) :]))
        row = open_rows.get(kept)
        if row is None or row.length + len(continuation) - 1 > min(longest, reach):
            row = open_rows[kept] = _Row(list(kept))
            rows.append(row)
        row.add([int(t) for t in continuation], number)
    return rows


def _batches(rows: list[_Row], batch_size: int | None) -> Iterator[list[_Row]]:
    """Rows of like length, the longest first; those that need a mask by themselves, as it costs the others time."""
    for masked in (False, True):
        held = sorted((r for r in rows if (len(r.tails) > 1) == masked), key=lambda r: -r.length)
        start = 0
        while start < len(held):
            count = batch_size or max(1, _BATCH_TOKENS // held[start].length)
            yield held[start : start + count]
            start += count


def _scores(model: Decoder, batch: list[_Row]) -> Iterator[tuple[int, float, bool]]:
    """Of every token asked for: whose it is, its log-likelihood, whether none is likelier."""
    device = model.lm_head.weight.device
    B, T = len(batch), batch[0].length
    ids = torch.zeros(B, T, dtype=torch.long)
    for i, row in enumerate(batch):
        ids[i, : row.length] = torch.tensor([*row.context, *(t for tail in row.tails for t in tail)])
    positions, mask = _apart(batch, T) if len(batch[0].tails) > 1 else (None, None)
    hidden = model.hidden(
        ids.to(device), None if positions is None else positions.to(device), None if mask is None else mask.to(device)
    )
    asked = sorted((i * T + place, token, number) for i, row in enumerate(batch) for place, token, number in row.asked)
    at, tokens = (torch.tensor([a[n] for a in asked], device=device) for n in (0, 1))
    places, which = torch.unique_consecutive(at, return_inverse=True)
    scores, first = _token_scores(model, hidden.flatten(0, 1)[places], which, tokens)
    return zip((a[2] for a in asked), scores.tolist(), first.tolist(), strict=True)


def _apart(batch: list[_Row], T: int) -> tuple[Tensor, Tensor]:
    """Positions (B, T) and mask (B, 1, T, T) of rows whose continuations see their context and themselves."""
    positions, part = torch.zeros(len(batch), T, dtype=torch.long), torch.zeros(len(batch), T, dtype=torch.long)
    for i, row in enumerate(batch):
        at = n = len(row.context)
        positions[i, :n] = torch.arange(n)
        for number, tail in enumerate(row.tails, 1):
            positions[i, at : at + len(tail)] = torch.arange(n, n + len(tail))
            part[i, at : at + len(tail)] = number
            at += len(tail)
    seen = (part[:, None] == 0) | (part[:, None] == part[:, :, None])  # padding comes last: no token sees it
    return positions, (seen & torch.ones(T, T, dtype=torch.bool).tril())[:, None]


def _token_scores(model: Decoder, hidden: Tensor, which: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Log-likelihood (N,) in float64, and whether it is the largest, of tokens (N,), each after hidden[which].

    which: ascending. Of equal logits the first counts as the largest, as argmax has it.
    """
    chunk = max(1, _LOGITS // model.lm_head.weight.shape[0])
    scores, first = [], []
    for start in range(0, len(hidden), chunk):
        logits = model.lm_head(hidden[start : start + chunk]).float()
        mine = (which >= start) & (which < start + chunk)
        row, token = which[mine] - start, tokens[mine]
        scores.append(logits[row, token].double() - logits.logsumexp(1)[row].double())
        first.append(logits.argmax(1)[row] == token)
    return torch.cat(scores), torch.cat(first)
