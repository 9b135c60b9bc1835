"""A step on a cluster that is not there: our own code on fake tensors, in one process, at any number of ranks.

The process group is torch's fake one, whose collectives return at once; tensors have shapes and no data. So what runs
is `Placed` and the training loop themselves, and what comes out is every collective that one rank issues and its peak
memory, not a formula's opinion of them. Numbers that the loop reads on the host are made up: a loss and a norm are 1,
and of the tokens that a mixture routes every rank gets the same share.

The mesh is made before the tensors are fake, because torch computes places on it. Weights stay undrawn. Steps run before
the one that is traced: in the first, optimisers and FSDP2 make what they keep.

Not handled: time, what a device's own kernels would allocate, numerical anything. Parts of torch used here
(`torch.distributed._tools`, the fake group) are not public and may change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from foretell.config import ModelConfig, ParallelConfig, TrainConfig
from foretell.distributed.mesh import Mesh
from foretell.distributed.placed import Placed
from foretell.distributed.record import Collective, Recording
from foretell.errors import ConfigError
from foretell.plan import layout
from foretell.runtime import dtype

Step = Callable[[], object]


@dataclass(frozen=True)
class Trace:
    """What a rank did in one step. seconds: what tracing took: `build` the model, the steps `before`, the one `traced`."""

    collectives: list[Collective]
    memory: dict[str, int]
    seconds: dict[str, float]


class _WithoutData(FakeTensorMode):
    """Fake tensors, of which a number can be read: 1 of reals, `whole` of integers."""

    def __init__(self, whole: int) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.whole = whole

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else self.whole
        return super().__torch_dispatch__(func, types, args, kwargs)


@contextmanager
def cluster(degrees: layout.Degrees, rank: int) -> Iterator[Mesh]:
    """This process as one rank of a cluster of which nothing else exists, until left."""
    if dist.is_initialized():
        raise ConfigError("a trace needs a process that is not part of a run; start it in one of its own")
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=degrees.world_size)
    try:
        yield Mesh(degrees).join_all()
    finally:
        dist.destroy_process_group()


def trace(
    model: ModelConfig,
    train: TrainConfig,
    parallel: ParallelConfig,
    world_size: int,
    begin: Callable[[Placed], Step],
    *,
    pp_place: int = 0,
    steps: int = 2,
) -> Trace:
    """The last of so many steps of the first rank of place `pp_place` on the pipeline's axis.

    begin: what makes a step of a placed model. model must be resolved, and
    `layout.check` must have passed it. Raises ConfigError in a process that has a process group already.
    """
    d = layout.degrees(parallel, world_size)
    copies = train.needed("micro_batch_size") * train.context // d.cp * (model.num_experts_per_tok or 1)
    clock = [time.perf_counter()]
    with cluster(d, pp_place * (world_size // d.pp)) as mesh:
        with _WithoutData(copies // d.ep):
            placed = Placed(
                model,
                parallel,
                train.context,
                seed=train.seed,
                dropout=train.dropout or 0.0,
                kernel=train.attention,
                dtype=dtype(train.dtype),
                mesh=mesh,
                drawn=False,
            )
            placed.chunks.train()
            step = begin(placed)
            clock.append(time.perf_counter())
            for _ in range(steps - 1):
                step()
            clock.append(time.perf_counter())
            with Recording() as recording:
                step()
            clock.append(time.perf_counter())
    seconds = {name: b - a for name, a, b in zip(("build", "before", "traced"), clock, clock[1:], strict=False)}
    return Trace(recording.collectives, {}, seconds)
