"""Copies of a model that train on different data: the sum of their gradients, or the mean of their progress.

`Reducer` sums a flat gradient over the replicas, at full or at reduced precision. Reduced precision goes the way of
ZeRO++'s gradients (Wang et al., 2023, arXiv 2306.10209): every rank sends each rank its part, the owner of a part adds
in float32 and sends the sum to all. That moves as many numbers as a ring all-reduce, but a number is rounded twice,
however many ranks there are; a ring in bfloat16 rounds at every hop. In int8 both roundings keep what they lost and add
it next time (error feedback: Seide et al., 2014; Karimireddy et al., 2019, arXiv 1901.09847; in two stages as in 1-bit
Adam, Tang et al., 2021, arXiv 2102.02888), so the error of the sum of many steps does not grow.

`OuterOptimizer` lets replicas run alone for many steps and then averages where they went (DiLoCo: Douillard et al.,
2023, arXiv 2311.08105; with lr 1 and momentum 0 it is local SGD, Stich, 2018, arXiv 1805.09767).

Whatever the method, all ranks end with the same bits. Not handled: replicas that come and go, overlap of the outer
step with computing (streaming DiLoCo), a sum that is the same for any number of ranks (`strict.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from foretell.distributed.collectives import Collectives
from foretell.errors import CheckpointError, ConfigError
from foretell.plan.layout import BLOCK, BUCKET

METHODS = ("float32", "bfloat16", "int8")


def quantised(x: Tensor) -> Tensor:
    """x (..., M) float32, M a multiple of 256, as bytes (..., M + M/64): M int8 numbers, then the blocks' scales.

    The largest number of a block becomes 127 or -127. A block that holds NaN or infinity is NaN or infinite throughout.
    """
    blocks = x.unflatten(-1, (-1, BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    # A scale of 0 is a block of zeros, or of numbers so small that their 127th part is none.
    numbers = (blocks / scale.where(scale > 0, 1.0)).nan_to_num_(0.0).round_().clamp_(-127, 127).to(torch.int8)
    return torch.cat((numbers.flatten(-2).view(torch.uint8), scale.squeeze(-1).view(torch.uint8)), dim=-1)


def dequantised(wire: Tensor) -> Tensor:
    """The inverse of `quantised`: bytes (..., M + M/64) to float32 (..., M), off by at most half a scale."""
    size = wire.shape[-1] // (BLOCK + 4) * BLOCK
    numbers = wire[..., :size].view(torch.int8).unflatten(-1, (-1, BLOCK))
    scale = wire[..., size:].contiguous().view(torch.float32).unsqueeze(-1)
    return (numbers * scale).flatten(-2)


class Reducer:
    """Sums flat tensors over `group` in place, by one of METHODS, and counts the bytes (`collectives`).

    int8 keeps, for each key, what this rank's roundings lost: one float32 a number, and one a number of the part that
    this rank adds up. That is state of a run: see `state_tensors`. It differs from rank to rank.
    """

    def __init__(self, group: ProcessGroup | None = None, method: str = "float32") -> None:
        if method not in METHODS:
            raise ConfigError(f"no method {method!r} to sum gradients over replicas; there are {', '.join(METHODS)}")
        self.collectives = Collectives(group)
        self.method = method
        self._lost: dict[str, Tensor] = {}

    @torch.no_grad()
    def sum_(self, values: Tensor, key: str) -> None:
        """Replace values (N,) by their sum over the ranks. key: whose they are, the same every time and on all ranks.

        N must not change from call to call of one key; CheckpointError where int8 finds a rest of another size.
        """
        if self.collectives.ranks == 1 or values.numel() == 0:
            return
        flat = values.float()
        if self.method == "float32":
            self.collectives.all_reduce(flat)
        elif self.method == "bfloat16":
            flat = self._in_two_rounds(flat, 1, lambda x, stage: x.bfloat16(), lambda wire: wire.float())
        else:
            flat = self._in_two_rounds(
                flat, BLOCK, lambda x, stage: self._with_feedback(x, f"{stage}.{key}"), dequantised
            )
        if flat is not values:
            values.copy_(flat)

    def _in_two_rounds(
        self, flat: Tensor, unit: int, encode: Callable[[Tensor, str], Tensor], decode: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """The sum of flat (N,): parts to their owners, added there in float32, and back to all."""
        parts = self.collectives.all_to_all(encode(self.collectives.rows(flat, unit), "part"))
        total = decode(parts).sum(0)
        return decode(self.collectives.all_gather(encode(total, "total"))).flatten()[: flat.numel()]

    def _with_feedback(self, x: Tensor, name: str) -> Tensor:
        lost = self._lost.get(name)
        if lost is not None:
            if lost.shape != x.shape:
                raise CheckpointError(
                    f"what int8 lost of {name} has shape {tuple(lost.shape)}, the tensor {tuple(x.shape)}: another "
                    f"number of ranks, or other parameters that train. Start the feedback anew with Reducer.reset()."
                )
            x = x + lost
        wire = quantised(x)
        # A gradient that is NaN must reach the guard, and must not come back in every later step.
        self._lost[name] = (x - dequantised(wire)).nan_to_num_(0.0, 0.0, 0.0)
        return wire

    def hook(self, key: str) -> Callable[[Tensor], None]:
        """`sum_` for one key, as FSDP2's `set_all_reduce_hook` wants it."""
        return lambda values: self.sum_(values, key)

    def state_tensors(self) -> dict[str, Tensor]:
        """This rank's rests as named tensors; empty unless int8. A run resumed with them goes on bit for bit."""
        return {f"reducer.{name}": lost.clone() for name, lost in self._lost.items()}

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state_tensors`; names that do not begin with `reducer.` are passed over."""
        self._lost = {n.removeprefix("reducer."): t.clone() for n, t in tensors.items() if n.startswith("reducer.")}

    def reset(self) -> None:
        """Forget the rests: with another number of ranks they have no place."""
        self._lost.clear()


def attach(model: nn.Module, hook: Callable[[str], Callable[[Tensor], None]]) -> None:
    """Let every FSDP2 group of `model` call hook(its module's name) on its gradient, after its reduce-scatter.

    Gradients become sums over all ranks, not means: the loss of a rank must be its share of the global batch's mean.
    The hook gets the group's flat gradient (N / shards, padded), in `reduce_dtype`. Keep that and the parameters
    float32: where torch casts afterwards, nothing holds the buffer while a hook on another stream still works on it.
    The hook is not called in a backward pass under `set_requires_gradient_sync(False)`.
    """
    for name, module in model.named_modules():
        if isinstance(module, FSDPModule):
            # gloo has no pre-multiplied sum; and on a mesh of size 1 a factor other than 1 would divide twice.
            module.set_force_sum_reduction_for_comms(True)
            module.set_gradient_divide_factor(1.0)
            module.set_all_reduce_hook(hook(name))


class OuterOptimizer:
    """Replicas take steps alone; `step()`, every so many of them, brings them together.

    The mean over replicas of (where all began - where each is) is taken for a gradient: SGD with Nesterov momentum on
    it moves the beginning, and all replicas go on from there. The sum goes through `reducer`, so it can be in bfloat16
    or int8 too. Replicas must begin alike. Parameters may be DTensors: a rank averages its own shards with the ranks
    that hold the same ones. Inner optimisers keep their state, each replica its own.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, Tensor]], reducer: Reducer, lr: float = 0.7, momentum: float = 0.9
    ) -> None:
        self.reducer, self.lr, self.momentum = reducer, lr, momentum
        self._parameters = dict(parameters)
        self._anchor = {n: p.detach().to(torch.float32, copy=True) for n, p in self._parameters.items()}
        self._velocity = {n: torch.zeros_like(a) for n, a in self._anchor.items()}

    @torch.no_grad()
    def step(self) -> None:
        """One outer step; afterwards the parameters of all replicas are the same bits."""
        for i, names in enumerate(self._buckets()):
            anchors = [_local(self._anchor[n]) for n in names]
            here = [_local(self._parameters[n]) for n in names]
            moved = torch.cat([(a - p.float()).flatten() for a, p in zip(anchors, here, strict=True)])
            self.reducer.sum_(moved, f"outer.{i}")
            moved /= self.reducer.collectives.ranks
            pieces = moved.split([a.numel() for a in anchors])
            for name, anchor, p, piece in zip(names, anchors, here, pieces, strict=True):
                gradient = piece.view_as(anchor)
                velocity = _local(self._velocity[name]).mul_(self.momentum).add_(gradient)
                anchor.sub_(gradient.add(velocity, alpha=self.momentum), alpha=self.lr)
                p.copy_(anchor)

    def _buckets(self) -> Iterator[list[str]]:
        names: list[str] = []
        size = 0
        for name, p in self._parameters.items():
            if names and size + p.numel() > BUCKET:
                yield names
                names, size = [], 0
            names.append(name)
            size += p.numel()
        if names:
            yield names

    def state_tensors(self) -> dict[str, Tensor]:
        """Where the replicas began and the momentum, alike on all of them: `outer.anchor.NAME`, `outer.momentum.NAME`.

        DTensors where the parameters are. The reducer's state is its own.
        """
        anchor = {f"outer.anchor.{n}": t for n, t in self._anchor.items()}
        return anchor | {f"outer.momentum.{n}": t for n, t in self._velocity.items()}

    @torch.no_grad()
    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """The inverse of `state_tensors`. Raises CheckpointError for a tensor that is absent or of another shape."""
        for name, own in self.state_tensors().items():
            value = tensors.get(name)
            if value is None or value.shape != own.shape:
                found = "absent" if value is None else f"of shape {tuple(value.shape)}"
                raise CheckpointError(f"{name} is {found}, the run wants {tuple(own.shape)}")
            own.copy_(value)


def _local(t: Tensor) -> Tensor:
    """This rank's part of a DTensor, to be changed in place; a plain tensor as it is."""
    return t.to_local() if isinstance(t, DTensor) else t
