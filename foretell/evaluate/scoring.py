"""Log-likelihoods of windows of tokens, in float32, at the speed of the forward pass.

Windows are sorted by length and run in batches of about equal numbers of tokens, padded on the right, where a causal
model cannot see it: so ten thousand short documents cost what their tokens cost. Hidden states of scored positions
alone go through the head, some thousand at a time, so logits never take more than `_LOGITS` numbers. What a window
scores depends on its batch only by the rounding of the products (below 1e-6 of the loss).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from foretell.models.decoder import Decoder
from foretell.models.model import Given

_LOGITS = 1 << 21  # 8 MB of float32: larger chunks fall out of the processor's cache
_BATCH_TOKENS = 1 << 14
_SORTED_TOKENS = 1 << 20


class Window(NamedTuple):
    """Inputs and the target after each, equally long; targets before `first` are context only. Of which document.

    asked: which of the targets are scored, from `first` on; None: all.
    """

    document: int
    inputs: np.ndarray
    targets: np.ndarray
    first: int
    asked: np.ndarray | None = None


class Sums:
    """Of every document, the negative log-likelihood in nats, the tokens scored and those predicted first."""

    def __init__(self, crew: Crew | None = None) -> None:
        self._parts: list[np.ndarray] = []
        self._crew = crew

    def add(self, document: list[int], nll: list[float], tokens: list[int], correct: list[int]) -> None:
        self._parts.append(np.array([document, nll, tokens, correct], np.float64))

    def of_documents(self, documents: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Three (documents,) float64 arrays."""
        index, *values = np.concatenate([np.empty((4, 0)), *self._parts], axis=1)
        sums = np.stack([np.bincount(index.astype(np.int64), v, documents) for v in values])
        nll, tokens, correct = sums if self._crew is None else self._crew.summed(sums)
        return nll, tokens, correct


def windows(document: int, tokens: np.ndarray, before: int | None, context: int, stride: int) -> Iterator[Window]:
    """The windows of one document. before: the token that stands in front of its first, or None where there is none.

    With it, every token is scored: a window's first input is the token before its first target. Without, windows are
    stretches of `context` tokens, and the first token of a window has nothing before it. A window after the first
    scores only what the one before it did not hold.
    """
    line = tokens.astype(np.int64)
    if before is not None:
        line = np.concatenate([np.array([before], np.int64), line])
    span = context if before is not None else context - 1  # targets a window holds
    start = done = 0  # `done`: targets so far, counted on `line` without its first
    while done < len(line) - 1 and start < len(line) - 1:
        end = min(start + span, len(line) - 1)
        yield Window(document, line[start:end], line[start + 1 : end + 1], max(0, done - start))
        start, done = start + stride, end


class Crew(Protocol):
    """Processes that hold one model together, as `distributed.placed.Placed` is: each scores its part of the tokens."""

    length: int  # of the windows it takes
    dp: int  # batches at once, and which of them is this process's
    dp_rank: int
    dtype: torch.dtype  # that it computes in

    @property
    def chunks(self) -> nn.Module:
        """What this process holds of the model."""
        ...

    def token_scores(
        self,
        inputs: Tensor,
        targets: Tensor,
        scored: Tensor,
        segments: Tensor | None = None,
        given: Given | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of this process's scored positions: the row of each, what `token_scores` says of it."""
        ...

    def hidden(self, inputs: Tensor, segments: Tensor | None, given: Given | None = None) -> Tensor:
        """What the head takes, of inputs (B, T)."""
        ...

    def summed(self, sums: np.ndarray) -> np.ndarray:
        """The sum over the processes."""
        ...


@torch.no_grad()
def score(model: Decoder, source: Iterable[Window], batch_tokens: int, crew: Crew | None = None) -> Sums:
    """Score every window. batch_tokens: about as many in one forward pass; at most 16,384, at least one window.

    crew: those that hold the model together; all of them must call this with the same windows.
    """
    own = model if crew is None else crew.chunks
    training = own.training
    own.eval()
    sums = Sums(crew)
    try:
        batches = _batches(source, min(batch_tokens, _BATCH_TOKENS))
        for batch in batches if crew is None else _own(batches, crew):
            _score_batch(model, batch, sums, crew)
    finally:
        own.train(training)
    return sums


def _own(batches: Iterator[list[Window]], crew: Crew) -> Iterator[list[Window]]:
    """This process's of each round of batches; where there are none left, one again with nothing to score."""
    while round_ := list(itertools.islice(batches, crew.dp)):
        if crew.dp_rank < len(round_):
            yield round_[crew.dp_rank]
        else:
            yield [w._replace(first=len(w.inputs)) for w in round_[0]]


def _batches(source: Iterable[Window], batch_tokens: int) -> Iterator[list[Window]]:
    """Windows of similar length together. Looks at about a million tokens at a time."""
    held: list[Window] = []
    size = 0
    for window in source:
        held.append(window)
        size += len(window.inputs)
        if size >= _SORTED_TOKENS:
            yield from _of_like_length(held, batch_tokens)
            held, size = [], 0
    yield from _of_like_length(held, batch_tokens)


def _of_like_length(held: list[Window], batch_tokens: int) -> Iterator[list[Window]]:
    held.sort(key=lambda w: len(w.inputs), reverse=True)
    start = 0
    while start < len(held):
        rows = max(1, batch_tokens // len(held[start].inputs))
        yield held[start : start + rows]
        start += rows


def _score_batch(model: Decoder, batch: list[Window], sums: Sums, crew: Crew | None) -> None:
    device = next(model.parameters()).device
    B, T = len(batch), len(batch[0].inputs) if crew is None else crew.length
    inputs, targets = np.zeros((B, T), np.int64), np.zeros((B, T), np.int64)
    scored = np.zeros((B, T), bool)
    for row, w in enumerate(batch):
        n = len(w.inputs)
        inputs[row, :n], targets[row, :n] = w.inputs, w.targets
        scored[row, w.first : n] = True if w.asked is None else w.asked[w.first :]
    x, y, asked = [torch.from_numpy(a).to(device) for a in (inputs, targets, scored)]
    rows, nll, correct = _token_scores(model, x, y, asked) if crew is None else crew.token_scores(x, y, asked)
    row_of = rows.cpu().numpy()
    sums.add(
        [w.document for w in batch],
        np.bincount(row_of, nll.double().cpu().numpy(), B).tolist(),
        np.bincount(row_of, minlength=B).tolist(),
        np.bincount(row_of, correct.cpu().numpy(), B).tolist(),
    )


def _token_scores(model: Decoder, inputs: Tensor, targets: Tensor, scored: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    nll, correct = token_scores(model.hidden(inputs)[scored], model.lm_head.weight, targets[scored])
    return scored.nonzero()[:, 0], nll, correct


def token_scores(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (N,) in float32 and whether the target is the likeliest token, of hidden (N, D)."""
    nll, correct = [], []
    chunk = max(1, _LOGITS // weight.shape[0])
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logits = (h @ weight.T).float()
        top, of_target = logits.amax(1), logits.gather(1, t[:, None]).squeeze(1)
        # argmax is slow, so it only decides where the target is among the largest: of equals the first counts.
        first = of_target == top
        first[first.clone()] = logits[first].argmax(1) == t[first]
        correct.append(first)
        nll.append(top - of_target + logits.sub_(top[:, None]).exp_().sum(1).log())
    return torch.cat(nll), torch.cat(correct)
