"""Rectangular pieces of tensors: what a rank holds, where it stands in a checkpoint, how it is put together again.

A box is an offset and a size for each dimension of the global tensor. Nothing here knows why a tensor was cut: any
layout whose pieces tile each tensor exactly once can be saved, and any box can be read back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foretell.errors import CheckpointError

Box = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Piece:
    """The part `tensor` of a global tensor of `shape`, its first element at `offset`. ValueError if it sticks out."""

    tensor: Tensor
    offset: tuple[int, ...]
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        if not is_inside((self.offset, tuple(self.tensor.shape)), self.shape):
            raise ValueError(f"a piece {list(self.tensor.shape)} at {list(self.offset)} is not inside {self.shape}")


@dataclass(frozen=True)
class Stored:
    """Where one piece stands: the file of the checkpoint that holds it, and its box."""

    file: str
    box: Box


@dataclass(frozen=True)
class Described:
    """A global tensor of a checkpoint, with the stored pieces that tile it."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: tuple[Stored, ...]


def is_inside(box: Box, shape: tuple[int, ...]) -> bool:
    """Whether a box lies within a tensor of `shape`."""
    offset, size = box
    return len(offset) == len(size) == len(shape) and all(
        o >= 0 and s >= 0 and o + s <= n for o, s, n in zip(offset, size, shape, strict=True)
    )


def common(a: Box, b: Box) -> Box | None:
    """What two boxes share, None where nothing."""
    low = tuple(map(max, a[0], b[0]))
    high = tuple(min(p + m, q + n) for p, m, q, n in zip(*a, *b, strict=True))
    if any(h <= n for n, h in zip(low, high, strict=True)):
        return None
    return low, tuple(h - n for n, h in zip(low, high, strict=True))


def copy_common(target: Tensor, where: Box, source: Tensor, origin: Box) -> None:
    """Copy what the boxes of two tensors share from `source` to `target`."""
    shared = common(where, origin)
    if shared is not None:
        _cut(target, shared, where[0]).copy_(_cut(source, shared, origin[0]))


def _cut(t: Tensor, box: Box, start: tuple[int, ...]) -> Tensor:
    return t[tuple(slice(o - s, o - s + n) for o, n, s in zip(*box, start, strict=True))]


def check_tiling(name: str, shape: tuple[int, ...], pieces: Sequence[Stored]) -> None:
    """Raises CheckpointError unless the pieces cover every element of `shape` exactly once.

    An empty tensor is covered by any number of pieces from one on.
    """
    for p in pieces:
        if not is_inside(p.box, shape):
            raise CheckpointError(f"tensor {name}: {_said(p)} is not inside {list(shape)}")
    # Boxes that overlap do so in each dimension: those sorted by the most finely cut one are compared with neighbours.
    cuts = [len({p.box[0][d] for p in pieces}) for d in range(len(shape))]
    finest = cuts.index(max(cuts)) if cuts else None
    active: list[Stored] = []
    for p in sorted(pieces, key=lambda p: p.box[0][finest]) if finest is not None else pieces:
        if finest is not None:
            active = [q for q in active if q.box[0][finest] + q.box[1][finest] > p.box[0][finest]]
        for q in active:
            if common(p.box, q.box) is not None:
                raise CheckpointError(f"tensor {name}: {_said(q)} and {_said(p)} overlap")
        active.append(p)
    covered, wanted = sum(math.prod(p.box[1]) for p in pieces), math.prod(shape)
    if covered != wanted:
        raise CheckpointError(f"tensor {name}: its pieces cover {covered:,} of {wanted:,} elements")


def _said(p: Stored) -> str:
    return f"the piece {list(p.box[1])} at {list(p.box[0])} in {p.file}"
