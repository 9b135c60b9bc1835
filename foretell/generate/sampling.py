"""From logits to the next token: repetition penalty, temperature, top-k, top-p, min-p, in this order.

The order and the meaning of each are those of transformers: repetition penalty (Keskar et al., 2019, CTRL) over prompt
and completion, then temperature, top-k (Fan et al., 2018), top-p (Holtzman et al., 2020), min-p (Nguyen et al., 2024).
A row draws by inverting its cumulative distribution at a uniform number of its own, so its tokens do not depend on
which other rows are sampled beside it. Not handled: beams, penalties by count, grammars.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foretell.errors import ConfigError

_COLDEST = 1e-30  # below it the quotient leaves float32
_HEAD = 128  # top-p looks at this many likeliest tokens before it sorts the whole vocabulary


@dataclass(frozen=True)
class Sampling:
    """temperature 0 takes the likeliest token; top_k 0, top_p 1, min_p 0 and repetition_penalty 1 change nothing."""

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        allowed = {
            "temperature": (0.0 <= self.temperature < math.inf, "0 or more"),
            "top_k": (self.top_k >= 0, "0 or more"),
            "top_p": (0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            "min_p": (0.0 <= self.min_p <= 1.0, "0 to 1"),
            "repetition_penalty": (0.01 <= self.repetition_penalty <= 100.0, "0.01 to 100"),
        }
        for name, (good, range_) in allowed.items():
            if not good:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be {range_}")


def next_tokens(logits: Tensor, seen: Tensor | None, uniform: Tensor, s: Sampling) -> Tensor:
    """(B,) ids from logits (B, V) in float32, changed in place. seen: (B, V), True for tokens of the row's text so far.

    uniform: (B,) in [0, 1), float64.
    """
    if seen is not None and s.repetition_penalty != 1.0:
        r = s.repetition_penalty
        logits = torch.where(seen, torch.where(logits > 0, logits / r, logits * r), logits)
    if s.temperature == 0.0:
        return logits.argmax(-1)
    values, ids = kept(logits / max(s.temperature, _COLDEST), s)
    cumulative = torch.softmax(values.double(), -1).cumsum(-1)
    # Where rounding leaves the sum below the uniform number, and never on a token that was filtered out.
    target = uniform[:, None] * cumulative[:, -1:]
    position = torch.searchsorted(cumulative, target, right=True).clamp_max_(values.shape[-1] - 1)
    return position.squeeze(1) if ids is None else ids.gather(1, position).squeeze(1)


def kept(logits: Tensor, s: Sampling) -> tuple[Tensor, Tensor | None]:
    """Logits (B, n) of the tokens that may be drawn, -inf for others, and their ids; None when they are 0..V-1."""
    ids: Tensor | None = None
    V = logits.shape[-1]
    if s.top_k or s.top_p < 1.0:
        logits, ids = _descending(logits, s.top_k or V, s.top_p)
    if s.top_p < 1.0:
        probabilities = torch.softmax(logits, -1) if s.top_k else torch.exp(logits)
        # A token goes when those before it already reach p; the first always stays.
        before = probabilities.cumsum(-1) - probabilities
        logits = logits.masked_fill(
            (before >= s.top_p).index_fill(1, torch.zeros(1, dtype=torch.long), False), -torch.inf
        )
    if s.min_p:
        least = logits.amax(-1, keepdim=True) + math.log(s.min_p)
        logits = logits.masked_fill(logits < least, -torch.inf)
    return logits, ids


def _descending(logits: Tensor, k: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The k likeliest in order; for top-p alone, log-probabilities of as many as hold the mass top_p in every row."""
    V = logits.shape[-1]
    if k < V:
        values, ids = logits.topk(k, dim=-1)
        return values, ids
    logits = torch.log_softmax(logits, -1)
    if V > 4 * _HEAD:
        values, ids = logits.topk(_HEAD, dim=-1)
        if bool((values.exp().sum(-1) >= top_p).all()):
            return values, ids
    values, ids = logits.sort(dim=-1, descending=True)
    return values, ids
