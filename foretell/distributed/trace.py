"""A step on a cluster that is not there: our own code on fake tensors, in one process, at any number of ranks.

The process group is torch's fake one, whose collectives return at once; tensors have shapes and no data. So what runs
is `Placed` and the training loop themselves, and what comes out is every collective that one rank issues and its peak
memory, not a formula's opinion of them. Numbers that the loop reads on the host are made up: a loss and a norm are 1,
of the tokens that a mixture routes every rank gets the same share, and as many are asked for as `plan/rows.py` says.

The mesh is made before the tensors are fake, because torch computes places on it. Weights stay undrawn. Steps run
before the one that is traced: in the first, optimisers and FSDP2 make what they keep, and a pipeline agrees on shapes.

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
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.fsdp._fully_shard import _fsdp_param
from torch.testing._internal.distributed.fake_pg import FakeStore

from foretell.config import ModelConfig, ParallelConfig, TrainConfig
from foretell.distributed.live import Live, Parts, of_model
from foretell.distributed.mesh import Mesh
from foretell.distributed.placed import Placed
from foretell.distributed.record import Collective, Recording
from foretell.errors import ConfigError
from foretell.plan import layout, rows
from foretell.runtime import dtype

# A step, and the optimisers that take it.
Begun = tuple[Callable[[], object], list[torch.optim.Optimizer]]


@dataclass(frozen=True)
class Trace:
    """What a rank did in one step.

    memory: bytes of live tensors: `peak`, and what they were then, as `live.of_model` names it; empty unless asked for.
    seconds: what tracing took: `build` the model, the steps `before`, the one `traced`.
    """

    collectives: list[Collective]
    memory: dict[str, int]
    seconds: dict[str, float]


class _WithoutData(FakeTensorMode):
    """Fake tensors, of which a number can be read: `routed` where it counts tokens (int64), else 1.

    torch's pipelines vote in int32 whether shapes are known: 1 is yes. What a mask of a micro-batch's tokens chooses
    are `asked` of them.
    """

    def __init__(self, routed: int, asked: int) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.routed, self.asked = routed, asked

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return self.routed if args[0].dtype == torch.int64 else 1
        if func is torch.ops.aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            return args[0].new_empty((self.asked, *args[0].shape[1:]))
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


@contextmanager
def _cut_at_once() -> Iterator[None]:
    """FSDP2 cuts a weight into a tensor for every rank and keeps its own: here one stands for all that are alike.

    Of 405B on 16,384 ranks that would be 2.8 million fake tensors, and minutes.
    """
    module: Any = _fsdp_param
    original = module._chunk_with_empty

    def cut(tensor: Tensor, pieces: int, dim: int) -> list[Tensor]:
        each = -(-tensor.shape[dim] // pieces)
        whole, rest = divmod(tensor.shape[dim], each)
        first, last = tensor.narrow(dim, 0, each), tensor.narrow(dim, whole * each, rest)
        some = [first] * whole + [last] * bool(rest)
        return some + [first.new_empty(0)] * (pieces - len(some))

    module._chunk_with_empty = cut
    try:
        yield
    finally:
        module._chunk_with_empty = original


def trace(
    model: ModelConfig,
    train: TrainConfig,
    parallel: ParallelConfig,
    world_size: int,
    begin: Callable[[Placed], Begun],
    *,
    pp_place: int = 0,
    steps: int = 2,
    memory: bool = False,
) -> Trace:
    """The last of so many steps of the first rank of place `pp_place` on the pipeline's axis.

    begin: what makes a step of a placed model. memory: whether to take as many steps again, for the peak's parts. model
    must be resolved, and `layout.check` must have passed it. Raises ConfigError in a process that has a process group.
    """
    d = layout.degrees(parallel, world_size)
    copies = train.needed("micro_batch_size") * train.context // d.cp * (model.num_experts_per_tok or 1)
    asked = train.needed("micro_batch_size") * rows.row(train.objective, train.context).scored // d.cp
    steps = max(steps, 1 + memory)  # the first makes what others find
    clock = [time.perf_counter()]
    with cluster(d, pp_place * (world_size // d.pp)) as mesh, _WithoutData(copies // d.ep, asked):
        placed = _placed(model, train, parallel, mesh)
        placed.chunks.train()
        step, optimizers = begin(placed)
        clock.append(time.perf_counter())
        with Live(_held(placed, optimizers)) as live, Recording() as recording:
            for n in range(steps):
                if n == steps - 1:
                    clock.append(time.perf_counter())
                recording.collectives.clear()
                live.restart()
                step()
            clock.append(time.perf_counter())
            collectives, found = list(recording.collectives), {}
            if memory:
                found = _parts(live, steps, step, lambda: _held(placed, optimizers))
    seconds = {name: b - a for name, a, b in zip(("build", "before", "traced"), clock, clock[1:], strict=False)}
    return Trace(collectives, found, seconds)


def _placed(model: ModelConfig, train: TrainConfig, parallel: ParallelConfig, mesh: Mesh) -> Placed:
    with _cut_at_once():
        return Placed(
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


def _held(placed: Placed, optimizers: list[torch.optim.Optimizer]) -> dict[str, list[Tensor]]:
    """What a placed model holds, by what it is; `copies` is what DiLoCo keeps."""
    return {**of_model(placed.chunks, optimizers), "copies": [t for _, t in placed.copies.shared().values()]}


def _parts(live: Live, steps: int, step: Callable[[], object], held: Callable[[], Parts]) -> dict[str, int]:
    """The peak of the step that was just taken, and its parts: known when steps like it have come to it again."""
    peak, at = live.peak, live.at
    for _ in range(steps):
        live.restart(held, at)
        step()
    return {"peak": peak, **live.found}
