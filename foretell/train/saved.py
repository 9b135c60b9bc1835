"""What a checkpoint of a run holds, and how a run goes on from one, on the same layout of processes or another.

`model.NAME` and `optimizer.KEY.NAME` are the whole model's, each process saving and reading its part. Random state is a
process's own (`random.cpu`, from rank 1 on `random.cpu.1`, ...): with more processes than before, the new ones draw
afresh, which only dropout sees. The order of the data is a function of the step and needs no state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretell import checkpoint
from foretell.checkpoint import Described, Piece
from foretell.errors import CheckpointError
from foretell.train import optim
from foretell.train.alone import Team, random_state, set_random_state
from foretell.train.guard import Guard

Optimizers = list[torch.optim.Optimizer]


@dataclass
class State:
    """Where a run stands. Saved as JSON beside the tensors of every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    guard: Guard = field(default_factory=Guard)

    def record(self) -> dict[str, Any]:
        """The JSON of it."""
        return asdict(self)


def tensors(team: Team, optimizers: Optimizers) -> dict[str, Tensor | Piece]:
    """All that this process saves, by name."""
    found: dict[str, Tensor | Piece | None] = {}
    for name, p in team.named():
        found[f"model.{name}"] = team.piece(name, p.detach())
    for name, key, value in optim.state(team.named(), optimizers):
        found[f"optimizer.{key}.{name}"] = team.piece(name, value)
    for name, value in random_state().items():
        found[team.named_once(name)] = value
    return {name: value for name, value in found.items() if value is not None}


@torch.no_grad()
def restore(checkpoints: Path, team: Team, optimizers: Optimizers) -> tuple[State, int | None, list[str]]:
    """Load the newest good checkpoint: its state, its step, and why newer ones were passed over; fresh if none is."""
    own = dict(team.named())

    def wanted(catalogue: Mapping[str, Described]) -> dict[str, Any]:
        boxes: dict[str, Any] = {n: None for n in map(team.named_once, random_state()) if n in catalogue}
        for name, held in catalogue.items():
            kind, _, rest = name.partition(".")
            of = rest if kind == "model" else rest.partition(".")[2]
            if kind in ("model", "optimizer") and of in own and own[of].numel():
                boxes[name] = team.box(of) if held.shape else None
        return boxes

    # A shared file system may show a folder's names to one process before another.
    names = team.told("\n".join(p.name for p in checkpoint.published(checkpoints)))
    among = [checkpoints / name for name in names.splitlines()]
    saved = checkpoint.load_latest(
        checkpoints,
        wanted,
        rank=team.rank,
        ranks=team.ranks,
        agree=lambda ok: not team.agreed(int(not ok)),
        among=among,
    )
    if saved is None:
        return State(), None, []
    for name, p in own.items():
        value = saved.tensors.get(f"model.{name}")
        if p.numel() and (value is None or value.shape != p.shape):
            there = "absent" if value is None else tuple(value.shape)
            raise CheckpointError(f"{saved.path}: {name} is {there}, the model wants {tuple(p.shape)}")
        if value is not None:
            p.copy_(value)
    optim.load_state_tensors(team.named(), optimizers, saved.tensors)
    set_random_state({n: saved.tensors[k] for n in random_state() if (k := team.named_once(n)) in saved.tensors})
    state = State(**{**saved.state, "guard": Guard(**saved.state["guard"])})
    return state, state.step, [str(s) for s in saved.skipped]
