"""Catches a bad step before the optimiser applies it: NaN, infinity, or a loss far above the recent ones.

The spike rule is OLMo's (OLMo-core, skip-step optimiser): more than 6 standard deviations above the mean of the last
128 losses. A bad step is skipped and counted; several in a row end the run with its last checkpoint whole.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass, field

HISTORY = 128
LEAST_HISTORY = 32
SIGMAS = 6.0
MOST_IN_A_ROW = 8


@dataclass
class Guard:
    """The losses of the last good steps and how many steps in a row were bad. Saved with every checkpoint."""

    losses: list[float] = field(default_factory=list)
    bad_in_a_row: int = 0

    def check(self, loss: float, grad_norm: float) -> str | None:
        """Why this step must not be applied, or None. Records the loss."""
        reason = self._reason(loss, grad_norm)
        if reason is None:
            self.bad_in_a_row = 0
            self.losses = [*self.losses, loss][-HISTORY:]
        else:
            self.bad_in_a_row += 1
        return reason

    def _reason(self, loss: float, grad_norm: float) -> str | None:
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
        return None
