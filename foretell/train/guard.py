"""Catches a bad step before the optimiser applies it: NaN, infinity, or a loss or gradient far above the recent ones.

The rule for the loss is OLMo's (OLMo-core, skip-step optimiser): more than 6 standard deviations above the mean of the
last 128. Gradient norms have no such mean; one 100 times the largest of the last 128 is what a flipped bit of an
exponent leaves. A bad step is skipped and counted; several in a row end the run with its last checkpoint whole.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

HISTORY = 128
LEAST_HISTORY = 32
SIGMAS = 6.0
NORM_FACTOR = 100.0
MOST_IN_A_ROW = 8


@dataclass
class Guard:
    """Losses and norms of the last good steps, how many in a row were bad. Saved with every checkpoint."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    bad_in_a_row: int = 0

    def record(self, loss: float, grad_norm: float, good: bool) -> None:
        """Remember a step that was applied, or count one that was not."""
        if good:
            self.bad_in_a_row = 0
            self.losses = [*self.losses, loss][-HISTORY:]
            self.norms = [*self.norms, grad_norm][-HISTORY:]
        else:
            self.bad_in_a_row += 1

    def reason(self, loss: float, grad_norm: float) -> str | None:
        """Why this step must not be applied, or None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm}"
        if len(self.losses) >= LEAST_HISTORY:
            mean, deviation = statistics.fmean(self.losses), statistics.pstdev(self.losses)
            # Losses that scarcely differ give a deviation near zero; a hundredth of the mean is never called a spike.
            if loss > mean + max(SIGMAS * deviation, 0.01 * mean):
                return (
                    f"the loss {loss:.4f} is over {SIGMAS:g} deviations above the last {len(self.losses)} ({mean:.4f})"
                )
        if len(self.norms) >= LEAST_HISTORY and grad_norm > NORM_FACTOR * max(self.norms):
            return f"the gradient norm {grad_norm:.3g} is {NORM_FACTOR:g} times the last {len(self.norms)} or more"
        return None
