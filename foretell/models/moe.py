"""A mixture of experts in place of the feed-forward part: each token passes through k of N small SwiGLUs.

A router (`gate`) gives every token a probability of each expert; the k likeliest compute, and their outputs are added
by those weights (Shazeer et al., 2017). Formula and names are those of Qwen3-MoE in Hugging Face transformers. There is
no capacity: however many tokens choose an expert, none is dropped.

Experts that are seldom chosen learn seldom, so the choice is balanced, by one of two ways or both:

- a loss, N sum_i f_i P_i (Fedus et al., 2021, eq. 4): f_i the share of tokens that chose expert i, P_i its mean
  probability; the mean over the layers, times `router_aux_loss_coef`. `with_balance` collects it;
- a bias that only the choice sees (Wang et al., 2024; DeepSeek-V3, 2024): after a step it rises where an expert got
  fewer tokens than the mean and falls where it got more. The load error reaches the optimiser as the bias's gradient,
  so that whatever sums gradients (micro-batches, ranks) sums the loads too, and recomputation counts no token twice.

transformers pools f and P over all layers before it multiplies them, which an imbalance that differs from layer to
layer escapes; each layer has its own loss here, as in the paper, so that a pipeline's stages need not meet for it.

Shapes: N experts, k of one token, F width of one, M = B T k copies of tokens. Not handled: experts that all tokens
share, groups of experts, dense layers among sparse ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretell.config import ModelConfig
from foretell.models.grouped import grouped_product

# The load error's scale as a gradient: a power of two, which keeps sums exact, and too small for the gradient's norm.
LOAD_SCALE = 2.0**-40
_STACKS = ("gate_proj", "up_proj", "down_proj")


class Experts(nn.Module):
    """N SwiGLUs; the matrices of one kind are one stack: `gate_proj` and `up_proj` (N, F, D), `down_proj` (N, D, F)."""

    def __init__(self, experts: int, hidden: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = _stack(experts, inner, hidden)
        self.up_proj = _stack(experts, inner, hidden)
        self.down_proj = _stack(experts, hidden, inner)

    def forward(self, tokens: Tensor, counts: Tensor) -> Tensor:
        """tokens (M, D), those of the first expert first, and how many each has, counts (N,); gives (M, D)."""
        gate, up, down = (w.to(tokens.dtype) for w in (self.gate_proj, self.up_proj, self.down_proj))
        inner = F.silu(grouped_product(tokens, gate, counts)) * grouped_product(tokens, up, counts)
        return grouped_product(inner, down, counts)


def _stack(experts: int, rows: int, columns: int) -> nn.Parameter:
    bound = columns**-0.5  # as nn.Linear begins
    return nn.Parameter(torch.empty(experts, rows, columns).uniform_(-bound, bound))


def here(experts: Experts, tokens: Tensor, counts: Tensor) -> Tensor:
    """The exchange where all experts are at hand: none."""
    return experts(tokens, counts)


def local(statistics: Tensor) -> Tensor:
    """The reduction where all tokens are at hand: none."""
    return statistics


class MoE(nn.Module):
    """Router and experts. Two attributes are functions that parallelism replaces from outside:

    exchange: (experts, tokens, counts) to (M, D). tokens (M, D) are all copies of this rank's tokens, sorted by expert;
        counts (N,), int64, has the copies of each of all N experts. The answer has the experts' outputs row by row.
        `here` calls `experts(tokens, counts)`. With experts spread over ranks (each holding N / ranks in its stacks):
        an all-to-all of the rows and of the counts, rows regrouped by local expert, `experts(rows, local counts)`, and
        the way back; differentiable in tokens. 0 rows are allowed everywhere.
    reduce: (2 N + 1,) float32 to the same, summed over the ranks whose tokens are to be balanced together: tokens that
        chose each expert, the sums of each one's probability, tokens. Its gradient must be the sum of the ranks'
        gradients where gradients are averaged over these ranks (an all-reduce both ways).
    """

    exchange: Callable[[Experts, Tensor, Tensor], Tensor]
    reduce: Callable[[Tensor], Tensor]

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        self.num_experts, self.top_k = c.needed("num_experts"), c.needed("num_experts_per_tok")
        self.normalised = bool(c.norm_topk_prob)
        # The mean over the layers is formed by adding up each one's part.
        self.coefficient = (c.router_aux_loss_coef or 0.0) / c.sizes.L
        self.gate = nn.Linear(c.sizes.D, self.num_experts, bias=False)
        self.experts = Experts(self.num_experts, c.sizes.D, c.needed("moe_intermediate_size"))
        self.expert_bias = nn.Parameter(torch.zeros(self.num_experts)) if c.balance == "bias" else None
        self.exchange, self.reduce = here, local
        self.statistics: list[Tensor] | None = None

    def forward(self, x: Tensor) -> Tensor:
        tokens = _as_product(x.flatten(0, -2))
        probabilities = self.gate(tokens).softmax(-1, dtype=torch.float32)
        weights, chosen = self.choose(probabilities)
        flat = chosen.flatten()
        counts = flat.new_zeros(self.num_experts).scatter_add_(0, flat, torch.ones_like(flat))
        if self.expert_bias is not None:
            weights = _LoadError.apply(weights, self.expert_bias, counts)
        if self.statistics is not None:
            self.statistics.append(torch.cat([counts, probabilities.sum(0), counts.new_tensor([len(tokens)])]))
        order = flat.argsort(stable=True)
        dispatched = tokens.index_select(0, order // self.top_k)
        y = self.exchange(self.experts, dispatched, counts)
        # Back in the order of tokens and summed, not added row by row: index_add would keep its operand for nothing.
        copies = y.index_select(0, order.argsort()).view(*chosen.shape, -1)
        return (copies * weights[..., None].to(y.dtype)).sum(1).view_as(x)

    def choose(self, probabilities: Tensor) -> tuple[Tensor, Tensor]:
        """Of each token, the weights (tokens, k) and the experts (tokens, k), from probabilities (tokens, N)."""
        scores = probabilities.detach()
        if self.expert_bias is not None:
            scores = scores + self.expert_bias.detach()
        chosen = scores.topk(self.top_k, dim=-1).indices
        weights = probabilities.gather(-1, chosen)
        if self.normalised:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights, chosen

    def balance_loss(self, statistics: Tensor) -> Tensor:
        """This layer's part of the balance loss of one pass, from its sums (2 N + 1,) over this rank's tokens."""
        N = self.num_experts
        chosen, probability, tokens = self.reduce(statistics).split([N, N, 1])
        return self.coefficient * N * ((chosen / tokens) * (probability / tokens)).sum()


def with_balance(model: nn.Module, forward: Callable[[], Tensor]) -> tuple[Tensor, Tensor | None]:
    """What `forward` returns, and the balance loss of the experts of `model` in it, to be added to what is minimised.

    None where no part of the model has such a loss. `model` may be one stage of a pipeline: the parts of all stages add
    up. Statistics are taken only inside this call, so that layers which a backward pass runs again leave none.
    """
    layers = [m for m in model.modules() if isinstance(m, MoE) and m.coefficient]
    for layer in layers:
        layer.statistics = []
    try:
        y = forward()
        losses = [layer.balance_loss(s) for layer in layers for s in layer.statistics or []]
    finally:
        for layer in layers:
            layer.statistics = None
    return y, torch.stack(losses).sum() if losses else None


class _LoadError(torch.autograd.Function):
    """Passes the weights on unchanged, and gives the bias the load error of its experts (times a scale) as gradient."""

    @staticmethod
    def forward(ctx: Any, weights: Tensor, bias: Tensor, counts: Tensor) -> Tensor:
        ctx.save_for_backward(counts)
        return weights.view_as(weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        counts = ctx.saved_tensors[0].float()
        return grads[0], LOAD_SCALE * (counts - counts.mean()), None


def _as_product(x: Tensor) -> Tensor:
    """In the dtype of products: under autocast, which does not know the experts', the copies are made of these."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def split(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A tensor of the model as Hugging Face folders hold it: a stack of experts as one matrix of each, others as is."""
    if not _is_stack(name):
        yield name, tensor
        return
    place, _, kind = name.rpartition(".")
    for e, matrix in enumerate(tensor.unbind(0)):
        yield f"{place}.{e}.{kind}.weight", matrix


def _is_stack(name: str) -> bool:
    return name.endswith(tuple(f".experts.{kind}" for kind in _STACKS))
