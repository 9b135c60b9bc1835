"""Seconds that a pipeline takes, and that its stages stand idle.

m micro-batches pass p stages; a stage's forward pass takes F, the gradient of its input B, that of its weights W. Even
stages wait (p-1)(F+B+W) under GPipe and 1F1B; v stages a process divide that by v (Narayanan et al., 2021). Zero bubble
fills gaps with W: ZB-H1 waits (p-1)(F+B-W), at the memory of 1F1B (Qi et al., 2023).

Uneven stages, 1F1B. The busiest stage s works for m(F+B+W). It waits while its first micro-batch comes down through the
stages before it, and at the end while the last gradient goes back through them. To those after it, it has sent p-1-s
micro-batches ahead before it needs the first gradient, and at the end it takes in as many gradients, no faster than the
next stages send them. GPipe is two flow shops, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence


def span_seconds(
    forward: Sequence[float],
    backward: Sequence[float],
    weights: Sequence[float],
    micro_batches: int,
    schedule: str,
    chunks: int = 1,
) -> tuple[float, int]:
    """Seconds from the first forward to the last backward pass, and the busiest stage.

    One figure a process in each sequence. schedule: `gpipe`, `1f1b`, `interleaved` (of `chunks` stages a process) or
    `zero-bubble`.
    """
    back = [b + w for b, w in zip(backward, weights, strict=True)]
    whole = [f + b for f, b in zip(forward, back, strict=True)]
    slowest = max(range(len(whole)), key=lambda s: whole[s])
    if schedule == "gpipe":
        span = sum(whole) + (micro_batches - 1) * (max(forward) + max(back))
        return span, slowest
    idle = _idle_seconds(forward, back, whole, slowest)
    if schedule == "interleaved":
        idle /= max(1, chunks)
    elif schedule == "zero-bubble":
        idle = max(0.0, idle - 2 * sum(w for s, w in enumerate(weights) if s != slowest))
    return micro_batches * whole[slowest] + idle, slowest


def _idle_seconds(forward: Sequence[float], back: Sequence[float], whole: Sequence[float], s: int) -> float:
    """Seconds that stage s waits under 1F1B.

    Of the last gradients, the j-th from the end comes from stages of which the last j still do forward passes between.
    """
    p = len(whole)
    first = max(0.0, sum(whole[s + 1 :]) - (p - 1 - s) * forward[s])
    last = 0.0
    for j in range(1, p - s):
        pace = max([*whole[p - j :], *back[s + 1 : p - j]])
        last += max(0.0, pace - back[s])
    return sum(whole[:s]) + first + last
