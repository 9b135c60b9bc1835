"""Products of groups of rows, each with a matrix of its own: what the experts of a mixture compute.

Two operators, because the gradient of the first is the first again and the second. They are registered with torch, so
that tracing without data (FakeTensorMode), torch.compile and FlopCounterMode know their shapes and their cost; torch's
own `F.grouped_mm` traces in bfloat16 alone, is not counted, and refuses strides that are no multiple of 16 bytes. On a
CPU it loops over the groups as is done here and takes about as long (docs/log.md); on CUDA it is one kernel that spares
the device the wait for the counts, and is used (this project has not run it there).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula


@torch.library.custom_op("foretell::grouped_product", mutates_args=())
def grouped_product(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    """Rows (M, I) of N groups, one group after another, times each group's matrix transposed: (M, O).

    weight: (N, O, I), of the dtype of x. counts: (N,) integers, rows of each group; they sum to M and may be 0.
    """
    if x.is_cuda:
        return F.grouped_mm(x, weight.mT, offs=counts.cumsum(0).to(torch.int32))
    y = x.new_empty(x.shape[0], weight.shape[1])
    sizes = counts.tolist()
    for rows, matrix, out in zip(x.split(sizes), weight.unbind(0), y.split(sizes), strict=True):
        torch.mm(rows, matrix.T, out=out)
    return y


@torch.library.custom_op("foretell::grouped_outer", mutates_args=())
def grouped_outer(y: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    """Sums over each group's rows of y (M, O) times x (M, I): (N, O, I). counts as in `grouped_product`."""
    if x.is_cuda:
        return F.grouped_mm(y.mT, x, offs=counts.cumsum(0).to(torch.int32))
    products = x.new_empty(counts.shape[0], y.shape[1], x.shape[1])
    sizes = counts.tolist()
    for left, right, out in zip(y.split(sizes), x.split(sizes), products.unbind(0), strict=True):
        torch.mm(left.T, right, out=out)
    return products


@grouped_product.register_fake
def _(x: Tensor, weight: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[1])


@grouped_outer.register_fake
def _(y: Tensor, x: Tensor, counts: Tensor) -> Tensor:
    return x.new_empty(counts.shape[0], y.shape[1], x.shape[1])


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
    x, weight, counts = ctx.saved_tensors
    grad = grad.contiguous()  # CUDA's kernel refuses what was only expanded
    return grouped_product(grad, weight.mT, counts), grouped_outer(grad, x, counts), None


grouped_product.register_autograd(_gradients, setup_context=_keep)


@register_flop_formula([torch.ops.foretell.grouped_product, torch.ops.foretell.grouped_outer])
def _flops(left: Any, right: Any, counts: Any, *, out_shape: Any, **_: Any) -> int:
    """2 M O I of both: the shared dimension of the first is I, that of the second is each group's rows."""
    return 2 * left[0] * left[1] * (right[1] if len(right) == 2 else right[-2])
