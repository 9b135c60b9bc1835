"""Why a step was bad: what can be said once it was computed twice and came out bad both times.

Asked of all processes of a team alike, in this order: weights that are not finite already, a sequence of the batch
whose loss stands out, a parameter whose gradient is not finite though all losses are. Names are of the first found.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from foretell.train.alone import Team

# A loss that far above the batch's median sequence is named as the one that stands out.
OUTSTANDING = 1.5

Losses = Callable[[int], Tensor]  # of the sequence that is this process's n-th: its mean loss over this process's part


def cause(team: Team, rows: Sequence[int], sequences: int, loss_of: Losses, where: Callable[[int], str]) -> str:
    """One clause. rows: which of the batch's `sequences` are this process's; where(row): names a sequence.

    The gradients of the bad step must still be there. Leaves weights, gradients and random state as they are.
    """
    found = _told(team, _first_bad(team, lambda p: p))
    if found:
        return f"the weights themselves are not finite, first {found}: an earlier checkpoint is needed"
    if team.pipeline is None:  # whose stages see hidden states, not sequences
        row, loss, median = _worst(team, rows, sequences, loss_of)
        if not math.isfinite(loss):
            return f"{where(row)} has a loss of {loss}, the others {median:.2f}"
        if loss > OUTSTANDING * median:
            return f"{where(row)} stands out: its loss is {loss:.2f}, the batch's median {median:.2f}"
    found = _told(team, _first_bad(team, lambda p: p.grad))
    if found:
        return f"every loss is finite, but not the gradient of {found}: the numbers grow too large, not the data"
    return (
        "no sequence and no parameter stands out: the batch as a whole is unlike the ones before, or the rate too high"
    )


def _first_bad(team: Team, part: Callable[[nn.Parameter], Tensor | None]) -> str:
    for name, p in team.named():
        value = part(p)
        if value is not None and not bool(torch.isfinite(value).all()):
            return name
    return ""


def _told(team: Team, found: str) -> str:
    """What one of the processes found, if any did: the same text for all."""
    who = team.agreed(team.rank + 1 if found else 0) - 1
    return team.told(found, who) if who >= 0 else ""


@torch.no_grad()
def _worst(team: Team, rows: Sequence[int], sequences: int, loss_of: Losses) -> tuple[int, float, float]:
    """The row with the largest loss, that loss, and the median over the batch."""
    losses = torch.full((sequences,), -math.inf, dtype=torch.float64)
    team.chunks.eval()
    for n, row in enumerate(rows):
        losses[row] = loss_of(n).double().cpu()
    team.chunks.train()
    losses = team.maxima(losses.nan_to_num_(math.inf, math.inf, -math.inf))
    row = int(losses.argmax())
    return row, losses[row].item(), losses.nanmedian().item()
