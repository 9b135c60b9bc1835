"""Expert parallelism: each rank of the axis has some of the experts, and tokens travel to those that they chose.

One all-to-all carries the counts, one the tokens, one their outputs back (Lepikhin et al., 2021, GShard). Nothing is
dropped, so the sizes differ from step to step and the counts are needed on the host before tokens can be sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from foretell.models.moe import Experts


def exchanging(group: dist.ProcessGroup) -> Callable[[Experts, Tensor, Tensor], Tensor]:
    """`MoE.exchange` for experts whose stacks (N / ranks, ...) are this rank's part."""
    ranks = dist.get_world_size(group)

    def exchange(experts: Experts, tokens: Tensor, counts: Tensor) -> Tensor:
        sent = counts.view(ranks, -1)
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent.contiguous(), group=group)
        out, into = got.sum(1).tolist(), sent.sum(1).tolist()
        rows = _Travel.apply(tokens, out, into, group)
        local = torch.arange(sent.shape[1], device=tokens.device).repeat(ranks)
        by_expert = local.repeat_interleave(got.flatten(), output_size=sum(out)).argsort(stable=True)
        y = experts(rows.index_select(0, by_expert), got.sum(0))
        return _Travel.apply(y.index_select(0, by_expert.argsort()), into, out, group)

    return exchange


class _Travel(torch.autograd.Function):
    """Rows to the ranks: `into` of them leave for each, `out` arrive from each."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, out: list[int], into: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.sizes, ctx.group = (out, into), group
        received = rows.new_empty(sum(out), *rows.shape[1:])
        dist.all_to_all_single(received, rows.contiguous(), out, into, group=group)
        return received

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        out, into = ctx.sizes
        back = grads[0].new_empty(sum(into), *grads[0].shape[1:])
        dist.all_to_all_single(back, grads[0].contiguous(), into, out, group=ctx.group)
        return back, None, None, None


def summing(group: dist.ProcessGroup, tp: int) -> Callable[[Tensor], Tensor]:
    """`MoE.reduce` over the ranks that see different tokens. tp: ranks that see the same."""
    return lambda statistics: _Sum.apply(statistics, group, tp)


class _Sum(torch.autograd.Function):
    """The sum over the ranks both ways; the gradient is one of `tp` equal ones."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup, tp: int) -> Tensor:
        ctx.group, ctx.tp = group, tp
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        total = grads[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total / ctx.tp, None, None
