"""Learning-rate schedules as pure functions of the step, so that a resumed run cannot disagree with an unbroken one.

`wsd`: linear warm-up, stable, then decay to zero, linear or as 1 - sqrt (Hu et al., 2024; Haegele et al., 2024).
`cosine`: linear warm-up, then half a cosine to a tenth of the peak (Radford et al.; Hoffmann et al., 2022).
With `warmup_steps`, runs of different lengths under `wsd` are the same run until the shorter one decays: a longer one
may go on from its checkpoint, which is how a ladder gets several lengths out of one trunk (`foretell.ladder`).
"""

from __future__ import annotations

import math

from foretell.config import TrainConfig


def lr_factor(step: int, steps: int, c: TrainConfig) -> float:
    """The share of the peak learning rate at optimiser step `step` (0-based) of `steps`. In (0, 1]."""
    warmup = round(c.warmup_fraction * steps) if c.warmup_steps is None else min(c.warmup_steps, steps)
    if step < warmup:
        return (step + 1) / warmup
    if c.schedule == "constant":
        return 1.0
    if c.schedule == "cosine":
        progress = (step - warmup) / max(1, steps - warmup)
        return 0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * progress))
    decay = max(1, min(round(c.decay_fraction * steps), steps - warmup))
    if c.decay_shape == "sqrt":
        return 1.0 - math.sqrt(max(0.0, decay - (steps - step)) / decay)
    return min(1.0, (steps - step) / decay)
