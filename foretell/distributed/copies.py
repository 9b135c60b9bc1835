"""How the copies of a model (dp_replicate) stay one: gradients summed at every step, in a fixed order, or rarely.

`Summing` adds gradients as FSDP2 hands them over, in float32, bfloat16 or int8. `Strict` adds those of a fixed number
of virtual shards along a fixed tree, so that 1, 2 or 4 copies give the same bits. `Meeting` lets copies take steps of
their own and averages where they went (DiLoCo). Each answers the same questions; `Placed` asks them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from foretell import runtime
from foretell.config import ParallelConfig
from foretell.distributed.collectives import Collectives
from foretell.distributed.replicate import OuterOptimizer, Reducer, attach
from foretell.distributed.strict import StrictReducer

Named = Sequence[tuple[str, Tensor]]


class Summing:
    """The gradient of a step is the sum over the copies."""

    shares_gradients = True  # all copies have one gradient, and one norm
    copies_differ = False  # between two meetings

    def __init__(self, group: dist.ProcessGroup, parallel: ParallelConfig) -> None:
        self.reducer = Reducer(group, parallel.reduce)

    def attach(self, chunk: nn.Module, stage: int) -> None:
        """Take the gradients of one stage from FSDP2."""
        attach(chunk, lambda name: self.reducer.hook(f"{stage}.{name}"))

    def begin(self, parameters: Named) -> None:
        """The initial weights are there."""

    def is_last(self, step: int, n: int, of: int) -> bool:
        """Whether gradients are complete after micro-batch `n` of `of`."""
        return n == of - 1

    def total(self, losses: Sequence[float]) -> float:
        """What this rank has of the loss, from its micro-batches."""
        return sum(losses)

    def after_step(self, steps: int) -> None:
        """The optimiser has taken so many steps in all."""

    def own_tensors(self) -> dict[str, Tensor]:
        """State that is this rank's alone, by name."""
        return self.reducer.state_tensors()

    def load_own(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `own_tensors`."""
        self.reducer.load_state_tensors(tensors)

    def shared(self) -> dict[str, tuple[str, Tensor]]:
        """State shaped like parameters and alike on all copies: by name, that of the parameter and the tensor."""
        return {}


class Strict(Summing):
    """Virtual shards of the batch, added in an order that does not know how many copies there are."""

    def __init__(self, group: dist.ProcessGroup, parallel: ParallelConfig, seed: int) -> None:
        super().__init__(group, parallel)
        self.collectives, self.shards, self.seed = Collectives(group), parallel.virtual_shards, seed
        self.strict = StrictReducer(self.collectives, parallel.virtual_shards)
        torch.set_num_threads(1)  # products are added up in another order by another number

    def attach(self, chunk: nn.Module, stage: int) -> None:
        attach(chunk, lambda name: self.strict.hook(f"{stage}.{name}"))

    def is_last(self, step: int, n: int, of: int) -> bool:
        each = of // self.strict.shards_here
        if n % each == 0:  # random numbers are the shard's, whoever has it
            shard = self.collectives.rank * self.strict.shards_here + n // each
            runtime.seed_all(((self.seed * 1_000_003 + step) * self.shards + shard) % 2**63)
        return n % each == each - 1

    def total(self, losses: Sequence[float]) -> float:
        each = len(losses) // self.strict.shards_here
        for i in range(0, len(losses), each):
            value = torch.tensor([sum(losses[i : i + each])], dtype=torch.float64)
            self.strict.sum_(value, "loss")
        return value.item() if self.collectives.rank == 0 else 0.0


class Meeting(Summing):
    """Copies take `local_steps` steps alone, then an outer step moves where all of them go on from."""

    shares_gradients = False
    copies_differ = True

    def __init__(self, group: dist.ProcessGroup, parallel: ParallelConfig) -> None:
        super().__init__(group, parallel)
        self.every, self.lr, self.momentum = parallel.local_steps, parallel.outer_lr, parallel.outer_momentum
        self._outer: OuterOptimizer | None = None

    def begin(self, parameters: Named) -> None:
        self._outer = OuterOptimizer(parameters, self.reducer, self.lr, self.momentum)

    def attach(self, chunk: nn.Module, stage: int) -> None:
        attach(chunk, lambda name: lambda values: None)

    def after_step(self, steps: int) -> None:
        if self._outer is not None and steps % self.every == 0:
            self._outer.step()

    def shared(self) -> dict[str, tuple[str, Tensor]]:
        held = self._outer.state_tensors() if self._outer is not None else {}
        return {full: (full.split(".", 2)[2], t) for full, t in held.items()}
