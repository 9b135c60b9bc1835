"""What a checkpoint of a run holds, and how a run goes on from one, on the same layout of processes or another.

`model.NAME` and `optimizer.KEY.NAME` are the whole model's, each process saving and reading its part. Random state is a
process's own (`random.cpu`, from rank 1 on `random.cpu~1`, ...): with more processes than before, the new ones draw
afresh, which only dropout sees. The order of the data is a function of the step and needs no state.
"""

from __future__ import annotations

import re
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

# What copies that go their own ways save under names of their own, and what is one process's alone.
_COPY = re.compile(r"^copy-[0-9]+\.")
_RANK = re.compile(r"(.+)~([0-9]+)")
_OWN = ("random.", "reducer.")

Optimizers = list[torch.optim.Optimizer]


@dataclass
class State:
    """Where a run stands. Saved as JSON beside the tensors of every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    guard: Guard = field(default_factory=Guard)
    layout: str = ""

    def record(self) -> dict[str, Any]:
        """The JSON of it."""
        return asdict(self)


def tensors(team: Team, optimizers: Optimizers) -> dict[str, Tensor | Piece]:
    """All that this process saves, by name."""
    found: dict[str, Tensor | Piece | None] = {}
    for name, p in team.named():
        found[team.name_here(f"model.{name}")] = team.piece(name, p.detach())
    for name, key, value in optim.state(team.named(), optimizers):
        found[team.name_here(f"optimizer.{key}.{name}")] = team.piece(name, value)
    if team.copies is not None:
        for full, (name, value) in team.copies.shared().items():
            found[team.name_here(full)] = team.piece(name, value)
    for name, value in _own(team).items():
        found[team.named_once(name)] = value
    return {name: value for name, value in found.items() if value is not None}


def _own(team: Team) -> dict[str, Tensor]:
    """What is this process's alone."""
    return random_state() | (team.copies.own_tensors() if team.copies is not None else {})


def _of_rank(stored: str) -> tuple[str, int]:
    """The name and the rank of what `Team.named_once` named."""
    found = _RANK.fullmatch(stored)
    return (found[1], int(found[2])) if found else (stored, 0)


@torch.no_grad()
def restore(checkpoints: Path, team: Team, optimizers: Optimizers) -> tuple[State, int | None, list[str]]:
    """Load the newest good checkpoint: its state, its step, and why newer ones were passed over; fresh if none is."""
    own = dict(team.named())
    mine: dict[str, str] = {}  # names in the checkpoint, by what they are here

    def wanted(catalogue: Mapping[str, Described]) -> dict[str, Any]:
        mine.clear()
        boxes: dict[str, Any] = {}
        for stored in catalogue:
            name = _COPY.sub("", stored)
            kind, _, rest = name.partition(".")
            of = {"model": rest, "optimizer": rest.partition(".")[2], "outer": rest.partition(".")[2]}.get(kind)
            here = team.name_here(name)
            if of in own and own[of].numel() and stored == (here if here in catalogue else name):
                mine[name] = stored
                boxes[stored] = team.box(of) if catalogue[stored].shape else None
        for stored in catalogue:  # random state and what else is a process's own
            name, rank = _of_rank(stored)
            if name.startswith(_OWN) and rank == team.rank:
                mine[name] = stored
                boxes[stored] = None
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
        return State(layout=team.layout), None, []
    values = {name: saved.tensors[stored] for name, stored in mine.items()}
    for name, p in own.items():
        value = values.get(f"model.{name}")
        if p.numel() and (value is None or value.shape != p.shape):
            there = "absent" if value is None else tuple(value.shape)
            raise CheckpointError(f"{saved.path}: {name} is {there}, the model wants {tuple(p.shape)}")
        if value is not None:
            p.copy_(value)
    optim.load_state_tensors(team.named(), optimizers, values)
    set_random_state(values)
    state = State(**{**saved.state, "guard": Guard(**saved.state["guard"])})
    if team.copies is not None:
        for full, (_, tensor) in team.copies.shared().items():
            if full in values:
                tensor.copy_(values[full])
        if state.layout == team.layout:
            team.copies.load_own(values)
    state.layout = team.layout
    return state, state.step, [str(s) for s in saved.skipped]
