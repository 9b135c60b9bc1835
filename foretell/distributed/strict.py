"""Sums that are the same bits on one, two or four ranks.

Floating-point addition depends on its order, so a gradient summed over two ranks differs in its last bits from one
summed on one, and two runs that should be equal part ways. Here the global batch is cut into V virtual shards, V a
fixed power of two that the ranks divide. Each shard's gradient is computed alone, and the V of them are added along one
fixed binary tree: the lower levels on the rank that computed them, the upper ones between ranks. Whoever computes a
shard, the additions are the same. The idea of virtual workers is EasyScale's (Li et al., 2023, arXiv 2208.14228).

Bit equality also needs what this file cannot see to: the same number of threads, the same micro-batches inside a shard,
random numbers that belong to the shard and not to the rank, and no other sum over ranks (a sharded or split model).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from foretell.distributed.collectives import Collectives
from foretell.errors import ConfigError


class TreeSum:
    """The sum of 2^k tensors along a binary tree, as they come, holding at most k of them.

    A binary counter: a partial sum of 2^i tensors waits at level i for its neighbour, as a bit waits for its carry.
    """

    def __init__(self) -> None:
        self.count = 0
        self._waiting: dict[int, Tensor] = {}

    def add(self, part: Tensor) -> None:
        """Add the next tensor; it is not changed, and not kept."""
        level, carried = 0, part
        while level in self._waiting:
            carried = self._waiting.pop(level).add_(carried)
            level += 1
        self._waiting[level] = part.clone() if level == 0 else carried
        self.count += 1

    def total(self) -> Tensor:
        """The sum; afterwards the tree is empty. Raises ValueError unless it was given 2^k tensors."""
        if len(self._waiting) != 1:
            raise ValueError(f"{self.count} tensors make no full binary tree; it wants a power of two")
        (total,) = self._waiting.values()
        self._waiting, self.count = {}, 0
        return total


def tree_sum(parts: Iterable[Tensor], collectives: Collectives) -> Tensor:
    """The sum over all ranks of the tensors of each (its V / ranks virtual shards, in order), the same bits everywhere.

    parts: tensors of one shape, 2^k of them on every rank; a generator is taken one at a time. Rank r holds the shards
    r * V / ranks to (r + 1) * V / ranks - 1. Returns a new tensor. Raises ConfigError unless the ranks are a power of
    two.
    """
    tree = TreeSum()
    for part in parts:
        tree.add(part)
    return _over_ranks(tree.total(), collectives)


def _over_ranks(mine: Tensor, collectives: Collectives) -> Tensor:
    """The upper levels: each rank adds up one part of the tensor for all, so as much is sent as by a ring."""
    n = collectives.ranks
    if n & (n - 1):
        raise ConfigError(f"a strict sum needs a power of two of ranks, not {n}: take {1 << (n.bit_length() - 1)}")
    if n > 1:
        tree = TreeSum()
        for part in collectives.all_to_all(collectives.rows(mine.flatten())):
            tree.add(part)
        mine = collectives.all_gather(tree.total()).flatten()[: mine.numel()].view_as(mine)
    return mine + 0.0  # -0 becomes 0, as it does where a gradient is added to zeros


class StrictReducer:
    """Sums flat tensors over the ranks in place, for `attach`: the same bits for any number of ranks that divides V.

    Every rank calls `sum_` once for each of its V / ranks virtual shards, in order: the tensor is zeroed all but the
    last time, when it becomes the sum over all V. So what accumulates it ends with the sum.
    """

    def __init__(self, collectives: Collectives, virtual_shards: int) -> None:
        V, n = virtual_shards, collectives.ranks
        if V < 1 or V & (V - 1) or V % n:
            raise ConfigError(
                f"{V} virtual shards on {n} ranks: the shards must be a power of two that the ranks divide; "
                f"4 serve 1, 2 and 4 ranks"
            )
        self.collectives, self.shards_here = collectives, V // n
        self._trees: dict[str, TreeSum] = {}

    @torch.no_grad()
    def sum_(self, values: Tensor, key: str) -> None:
        """Take the gradient of the next virtual shard; with the last, leave the sum over all of them in its place."""
        tree = self._trees.setdefault(key, TreeSum())
        tree.add(values)
        if tree.count < self.shards_here:
            values.zero_()
        else:
            values.copy_(_over_ranks(tree.total(), self.collectives))

    def hook(self, key: str) -> Callable[[Tensor], None]:
        """`sum_` for one key, as FSDP2's `set_all_reduce_hook` wants it."""
        return lambda values: self.sum_(values, key)
