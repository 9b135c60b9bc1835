"""Optimisers: SGD with momentum and AdamW from torch; Muon for matrices, with AdamW for embeddings, head and norms.

Muon (Jordan et al., 2024) orthogonalises the momentum of each matrix by a Newton-Schulz iteration. torch.optim.Muon
takes one matrix at a time in bfloat16; here all matrices of one shape go through the iteration as one batched product,
in the dtype the caller chose, because bfloat16 is slow on some processors and dozens of small products are slow on all
(docs/log.md has the comparison). A stack of matrices, such as that of experts, counts as so many matrices; a router of
experts is a matrix like others, which learned better than at AdamW's rate for embeddings, and so did GPT-2's table of
positions (docs/log.md).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from foretell.config import TrainConfig
from foretell.plan.layout import is_table

Named = Iterable[tuple[str, nn.Parameter]]

# The quintic whose iteration drives singular values towards 1 (Jordan et al., 2024).
_A, _B, _C = 3.4445, -4.7750, 2.0315

# Peak learning rates where the config names none. Muon's and the embedding's were tuned on one small model
# (docs/log.md); those of AdamW and SGD are usual values, not tuned.
DEFAULT_LR = {"muon": 0.02, "adamw": 2e-3, "sgd": 0.1}
DEFAULT_EMBEDDING_LR = 0.05
# What an expert's bias moves in a step where the config names nothing, times the experts: their probabilities are about
# 1 / experts. Tried with 8 (docs/log.md).
BALANCE_SHARE = 0.1


def orthogonalise(g: Tensor, steps: int = 5, dtype: torch.dtype = torch.float32) -> Tensor:
    """Approximately the nearest semi-orthogonal matrix to each of g (..., rows, cols), by Newton-Schulz in `dtype`."""
    x = g.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a = x @ x.mT
        b = torch.baddbmm(a, a, a, beta=_B, alpha=_C)
        x = torch.baddbmm(x, b, x, beta=_A)
    return (x.mT if tall else x).to(g.dtype)


class Matrices(Protocol):
    """What Muon works on where this process holds parts of matrices: `distributed/whole.py`."""

    def shape(self, p: nn.Parameter) -> tuple[int, ...]:
        """The shape of the whole that p is a part of."""
        ...

    def updates(
        self, parts: list[nn.Parameter], momenta: list[Tensor], whole: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        """This process's parts of `whole` (stacked matrices to the same) of the momenta, which are used up."""
        ...


class _AllHere:
    """Matrices that this process holds whole."""

    def shape(self, p: nn.Parameter) -> tuple[int, ...]:
        return tuple(p.shape)

    def updates(
        self, parts: list[nn.Parameter], momenta: list[Tensor], whole: Callable[[Tensor], Tensor]
    ) -> list[Tensor]:
        together = torch.stack(momenta)
        momenta.clear()  # they would take as much again at the peak
        return list(whole(together.flatten(0, -3)).view_as(together).unbind(0))


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum over matrices. The update is scaled by sqrt(max(1, rows / cols))."""

    def __init__(
        self,
        params: list[nn.Parameter],
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype = torch.float32,
        matrices: Matrices | None = None,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype, self.matrices = dtype, matrices or _AllHere()
        self._shapes: dict[tuple[int, ...], list[nn.Parameter]] = defaultdict(list)
        for p in params:
            self._shapes[self.matrices.shape(p)].append(p)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        group = self.param_groups[0]
        lr, momentum, decay = group["lr"], group["momentum"], group["weight_decay"]
        for shape, members in self._shapes.items():
            params = [p for p in members if p.grad is not None]
            if not params:
                continue
            gradients = [p.grad for p in params if p.grad is not None]
            for p in params:
                if "momentum_buffer" not in self.state[p]:
                    self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            buffers = [self.state[p]["momentum_buffer"] for p in params]
            torch._foreach_lerp_(buffers, gradients, 1 - momentum)
            whole = partial(orthogonalise, dtype=self.dtype)
            updates = self.matrices.updates(params, list(torch._foreach_lerp(gradients, buffers, momentum)), whole)
            weights: list[Tensor] = list(params)
            if decay:
                torch._foreach_mul_(weights, 1 - lr * decay)
            scale = -lr * max(1.0, shape[-2] / shape[-1]) ** 0.5
            torch._foreach_add_(weights, updates, alpha=scale)
            del updates  # they would live beside the next shape's iteration


class Balance(torch.optim.Optimizer):
    """One step down the sign of the gradient: of the experts' biases, whose gradient is their load error.

    An expert that got more tokens than the mean is chosen less from now on (Wang et al., 2024; `models/moe.py`).
    """

    def __init__(self, params: list[nn.Parameter], lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-group["lr"])


def build(
    parameters: Named, c: TrainConfig, dtype: torch.dtype = torch.float32, matrices: Matrices | None = None
) -> list[torch.optim.Optimizer]:
    """The optimisers of a run. dtype: of Muon's iteration. Peak learning rates stand in each group's `peak_lr`.

    parameters: named; where they are parts, `matrices` knows the wholes.
    """
    every = [(n, p) for n, p in parameters if p.requires_grad]
    # Of wholes that several processes hold in parts each takes part in the exchange, even one with an empty part.
    takes_part = matrices is not None and c.optimizer == "muon"
    named = [(n, p) for n, p in every if p.numel()]
    inner = every if takes_part else named
    weights = [p for n, p in inner if p.ndim >= 2 and not is_table(n)]
    tables = [p for n, p in named if p.ndim == 2 and is_table(n)]
    biases = [p for n, p in named if n.endswith("expert_bias")]
    vectors = [p for n, p in named if p.ndim < 2 and not n.endswith("expert_bias")]
    lr = c.lr or DEFAULT_LR[c.optimizer]
    betas = (c.beta1, c.beta2)
    built: list[torch.optim.Optimizer]
    if c.optimizer == "sgd":
        built = [
            torch.optim.SGD(_decayed(weights + tables, vectors, c.weight_decay), lr, momentum=c.momentum, foreach=True)
        ]
    elif c.optimizer == "adamw":
        built = [torch.optim.AdamW(_decayed(weights + tables, vectors, c.weight_decay), lr, betas, fused=True)]
    else:
        rest = torch.optim.AdamW(
            tables + vectors, c.embedding_lr or DEFAULT_EMBEDDING_LR, betas, weight_decay=0.0, fused=True
        )
        built = [Muon(weights, lr, c.momentum, c.weight_decay, dtype, matrices), rest]
    if biases:
        built.append(Balance(biases, c.balance_step or BALANCE_SHARE / biases[0].numel()))
    for optimizer in built:
        for group in optimizer.param_groups:
            group["peak_lr"] = group["lr"]
    return built


def _decayed(matrices: list[nn.Parameter], vectors: list[nn.Parameter], weight_decay: float) -> list[dict[str, object]]:
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def set_lr(optimizers: list[torch.optim.Optimizer], factor: float) -> float:
    """Set every group to its peak times `factor`; returns the first group's rate."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
    return float(optimizers[0].param_groups[0]["lr"])


def state(parameters: Named, optimizers: list[torch.optim.Optimizer]) -> Iterator[tuple[str, str, Tensor]]:
    """The optimisers' tensors: (name of the parameter, key, tensor)."""
    for name, p in parameters:
        for optimizer in optimizers:
            for key, value in optimizer.state.get(p, {}).items():
                if isinstance(value, Tensor):
                    yield name, key, value


def state_tensors(parameters: Named, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The same by name: `optimizer.KEY.PARAMETER`."""
    return {f"optimizer.{key}.{name}": value for name, key, value in state(parameters, optimizers)}


def load_state_tensors(parameters: Named, optimizers: list[torch.optim.Optimizer], tensors: dict[str, Tensor]) -> None:
    """The inverse of `state_tensors`."""
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    by_name = dict(parameters)
    for full, value in tensors.items():
        if full.startswith("optimizer."):
            key, _, name = full.removeprefix("optimizer.").partition(".")
            p = by_name[name]
            owner[p].state[p][key] = value.clone()
