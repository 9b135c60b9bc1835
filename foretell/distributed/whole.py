"""Whole matrices for Muon, whose update needs all of a matrix at once: each rank orthogonalises some of them.

Matrix n of a shape belongs to rank n mod ranks, of those that hold one copy of the layers together. An all-to-all
brings each owner the parts of its matrices, a second one brings everybody the parts of the results: as many numbers as
an all-gather and its inverse would move, and no product is computed twice (cf. Moonlight, Liu et al., 2025).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product

import torch
import torch.distributed as dist
from torch import Tensor, nn

from foretell.distributed.mesh import Mesh
from foretell.distributed.parts import Part
from foretell.plan.layout import Box, box


class WholeMatrices:
    """`train.optim.Matrices` over the ranks of `mesh.copy`."""

    def __init__(self, mesh: Mesh, parts: list[Part]) -> None:
        self.degrees, self.group = mesh.degrees, mesh.copy.get_group()
        self.rank, self.ranks = dist.get_rank(self.group), dist.get_world_size(self.group)
        self.part_of = {p.local: p for p in parts}
        axes = ("dp_outer", "ep", "cp", "tp")  # in the order of the group's ranks
        every = product(*(range(getattr(mesh.degrees, axis)) for axis in axes))
        self.places = [dict(zip(axes, place, strict=True)) for place in every]

    def shape(self, p: nn.Parameter) -> tuple[int, ...]:
        """The shape of the whole that p is a part of."""
        return self.part_of[p].shape

    def updates(
        self, parts: list[nn.Parameter], momenta: list[Tensor], whole: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """This rank's parts of `whole` of all momenta, stacked, of which these are its parts."""
        known = [self.part_of[p] for p in parts]
        boxes = [[box(p.name, p.shape, self.degrees, place) for place in self.places] for p in known]
        mine = range(self.rank, len(parts), self.ranks)
        numbers = range(self.ranks)
        sent = [torch.cat([momenta[0].new_empty(0), *(m.flatten() for m in momenta[r :: self.ranks])]) for r in numbers]
        arriving = [sum(_size(boxes[n][r]) for n in mine) for r in numbers]
        received = self._exchange(sent, arriving)
        wholes = [momenta[0].new_empty(known[n].shape) for n in mine]
        for r in numbers:
            _scattered(received[r], [boxes[n][r] for n in mine], wholes)
        if wholes:
            together = torch.stack(wholes)
            wholes = list(whole(together.flatten(0, -3)).view_as(together).unbind(0))
        back = [torch.cat([momenta[0].new_empty(0), *_pieces(wholes, [boxes[n][r] for n in mine])]) for r in numbers]
        answers = self._exchange(back, [s.numel() for s in sent])
        updates = list(momenta)
        for r, answer in enumerate(answers):
            members = range(r, len(parts), self.ranks)
            for n, flat in zip(members, answer.split([momenta[n].numel() for n in members]), strict=True):
                updates[n] = flat.view_as(momenta[n])
        return updates

    def _exchange(self, sent: list[Tensor], arriving: list[int]) -> list[Tensor]:
        flat = torch.cat(sent)
        received = flat.new_empty(sum(arriving))
        dist.all_to_all_single(received, flat, arriving, [s.numel() for s in sent], group=self.group)
        return list(received.split(arriving))


def _size(b: Box) -> int:
    return math.prod(b[1])


def _slices(b: Box) -> tuple[slice, ...]:
    return tuple(slice(start, start + size) for start, size in zip(*b, strict=True))


def _scattered(flat: Tensor, boxes: list[Box], wholes: list[Tensor]) -> None:
    """Write the parts that stand one behind another in `flat` into their places."""
    for piece, b, w in zip(flat.split([_size(b) for b in boxes]), boxes, wholes, strict=True):
        w[_slices(b)] = piece.view(b[1])


def _pieces(wholes: list[Tensor], boxes: list[Box]) -> list[Tensor]:
    return [w[_slices(b)].flatten() for w, b in zip(wholes, boxes, strict=True)]
