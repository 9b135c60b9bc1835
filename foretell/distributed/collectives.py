"""Collectives over one group of ranks that count the bytes they move.

Two counts by collective, as forecasts give them. `comm_bytes`: the all-reduced tensor, the output of an all-gather, the
input of an all-to-all. `wire_bytes`: what a rank sends when the algorithm is a ring: 2(n-1)/n of an all-reduced tensor,
(n-1)/n of the others. Only the second compares methods that use different collectives.
"""

from __future__ import annotations

from collections import Counter

import torch
import torch.distributed as dist
from torch import Tensor


class Collectives:
    """Sums and exchanges over `group` (default: all ranks). Every rank of it must make the same calls in one order."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.ranks = dist.get_world_size(group)
        self.rank = dist.get_rank(group)
        self.comm_bytes: Counter[str] = Counter()
        self.wire_bytes: Counter[str] = Counter()

    def all_reduce(self, t: Tensor) -> None:
        """Sum t over the ranks, in place."""
        dist.all_reduce(t, group=self.group)
        self._count("all_reduce", t, 2)

    def all_to_all(self, t: Tensor) -> Tensor:
        """t (ranks, ...): row r goes to rank r. Returns (ranks, ...): row r came from rank r."""
        received = torch.empty_like(t)
        dist.all_to_all_single(received, t, group=self.group)
        self._count("all_to_all", t, 1)
        return received

    def all_gather(self, t: Tensor) -> Tensor:
        """t (M,) of every rank, stacked by rank: (ranks, M)."""
        gathered = t.new_empty(self.ranks * t.numel())  # gloo wants it flat
        dist.all_gather_single(gathered, t, group=self.group)
        self._count("all_gather", gathered, 1)
        return gathered.view(self.ranks, -1)

    def _count(self, name: str, t: Tensor, passes: int) -> None:
        size = t.numel() * t.element_size()
        self.comm_bytes[name] += size
        self.wire_bytes[name] += passes * (self.ranks - 1) * size // self.ranks

    def rows(self, flat: Tensor, unit: int = 1) -> Tensor:
        """flat (N,) as (ranks, M), zeros at its end, M the least multiple of `unit` that holds it."""
        columns = -(-flat.numel() // (self.ranks * unit)) * unit
        return torch.nn.functional.pad(flat, (0, self.ranks * columns - flat.numel())).view(self.ranks, columns)
