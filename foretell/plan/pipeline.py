"""Seconds that the stages of a pipeline stand idle.

m micro-batches pass p stages; a stage's forward pass takes F, the gradient of its input B, that of its weights W. GPipe
and 1F1B wait (p-1)(F+B+W); v stages a process divide that by v (Narayanan et al., 2021). Zero bubble (Qi et al., 2023)
fills the gaps with W: ZB-H1 waits (p-1)(F+B-W), at the memory of 1F1B. Stages of unequal length: the pipeline runs at
the pace of the slowest, and fills and drains through all of them.
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
) -> float:
    """Seconds from the first forward to the last backward pass. One figure a process in each sequence."""
    stages = [f + b + w for f, b, w in zip(forward, backward, weights, strict=True)]
    slowest = max(range(len(stages)), key=lambda s: stages[s])
    steady = micro_batches * stages[slowest]
    others = sum(stages) - stages[slowest]
    if schedule == "interleaved":
        return steady + others / max(1, chunks)
    if schedule == "zero-bubble":
        hidden = sum(min(2 * weights[s], stages[s]) for s in range(len(stages)) if s != slowest)
        return steady + others - hidden
    return steady + others
