"""Linear layers in float32 by the library whose kernels this processor runs best; for scoring, not for training.

torch forms these products by MKL, and MKL keeps to AVX2 on processors of AMD. oneDNN, which comes with torch as well,
has AVX-512 there, and forms the same products in half the time (docs/log.md, 2026-11-26). With AVX2 alone it was no
faster, and on Intel's nothing was measured: both keep MKL. The two round differently (about 1e-6 of a product).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from foretell import runtime

_FEWEST_ROWS = 16  # below it the time goes into reading the weight, and oneDNN first puts it in another order


class OneDnn(TorchFunctionMode):
    """While it is entered, linear layers without gradient on float32 of a CPU are oneDNN's."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.linear and not kwargs and _fits(*args):
            x, weight, *bias = args
            return torch.ops.mkldnn._linear_pointwise(x, weight, bias[0] if bias else None, "none", [], "")
        return func(*args, **(kwargs or {}))


def _fits(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> bool:
    plain = all(type(t) in (Tensor, torch.nn.Parameter) for t in (x, weight))
    right = x.dtype == weight.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
    return plain and right and weight.is_contiguous() and x.numel() >= _FEWEST_ROWS * weight.shape[1]


@functools.cache
def _is_faster() -> bool:
    """Whether oneDNN has wider vectors here than MKL, and this build of torch has the product."""
    wide = "AMD" in runtime.processor() and torch.backends.cpu.get_cpu_capability() == "AVX512"
    return wide and torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def fast() -> AbstractContextManager[Any]:
    """Within it, products without gradient are formed the fastest way that this processor has."""
    return OneDnn() if _is_faster() else contextlib.nullcontext()
