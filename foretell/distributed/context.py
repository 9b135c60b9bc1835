"""Context parallelism: each rank of the axis has a part of every sequence; only attention needs the others.

ulysses (Jacobs et al., 2023): an all-to-all changes parts of the sequence for heads, attention runs on whole sequences
with a part of the heads, and a second all-to-all changes back. Needs heads for every rank.
gather (Llama 3, 2024): keys and values of all ranks are gathered. A rank has one piece from either end of the sequence
(zigzag), so that causal work is even.
ring (Liu et al., 2023): keys and values travel from rank to rank, and what a rank has found is merged block by block,
so nobody holds more than two ranks' keys. Zigzag as well. See `ring.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from foretell.distributed.ring import ring_attention
from foretell.distributed.tensor import gathered, scattered
from foretell.models.attention import attend


def positions(context: int, rank: int, ranks: int, method: str) -> Tensor:
    """The places (context / ranks,) in the sequence that are this rank's."""
    if method == "ulysses":
        return torch.arange(context).chunk(ranks)[rank]
    pieces = torch.arange(context).chunk(2 * ranks)
    return torch.cat([pieces[rank], pieces[2 * ranks - 1 - rank]])


def mask(
    context: int,
    rank: int,
    ranks: int,
    method: str,
    segments: Tensor | None,
    prefix: Tensor | None = None,
    causal: bool = True,
) -> Tensor | None:
    """What `attending` wants for a mask; segments: (B, T) document numbers of the whole sequence, or None.

    prefix: (B,) tokens from the first on that every token sees, or None. causal: whether a token sees only what stands
    before it. ulysses: (B, 1, T, T), or None where the model's own rule says all. gather: (B or 1, 1, T / ranks, T)
    with keys in the order of the ranks, or None where all see all. ring: as gather, or None as ulysses.
    """
    if segments is None and prefix is None and (method != "gather" or not causal):
        return None
    own = torch.arange(context) if method == "ulysses" else positions(context, rank, ranks, method)
    keys = torch.cat([positions(context, r, ranks, method) for r in range(ranks)])
    seen = ((own[:, None] >= keys[None, :]) | (not causal))[None]
    if prefix is not None:
        seen = seen | (keys < prefix[:, None])[:, None, :]
    if segments is not None:
        seen = seen & (segments[:, own, None] == segments[:, None, keys])
    return seen.unsqueeze(1)


def nearing(context: int, rank: int, ranks: int, method: str, device: torch.device) -> Callable[..., Tensor | None]:
    """`models.core.near` for what `mask` gives: of this rank's queries over all keys of the sequence."""

    def near(seen: Tensor | None, window: int, queries: int, keys: int) -> Tensor | None:
        if context <= window:
            return seen
        if seen is None:
            seen = mask(context, rank, ranks, method, torch.zeros(1, context, dtype=torch.int64))
            assert seen is not None
            seen = seen.to(device)
        own = torch.arange(context) if method == "ulysses" else positions(context, rank, ranks, method)
        order = torch.cat([positions(context, r, ranks, method) for r in range(ranks)])
        return seen & (own[:, None] - order[None, :] < window).to(device)

    return near


def attending(group: dist.ProcessGroup, method: str) -> Callable[..., Tensor]:
    """`models.attention.attend` for q, k, v that are this rank's part of the sequence."""

    def ulysses(
        q: Tensor, k: Tensor, v: Tensor, kernel: str = "sdpa", mask: Tensor | None = None, **how: Any
    ) -> Tensor:
        q, k, v = (_Exchange.apply(t, 1, 2, group) for t in (q, k, v))
        return _Exchange.apply(attend(q, k, v, kernel, mask, **how), 2, 1, group)

    def gather(q: Tensor, k: Tensor, v: Tensor, kernel: str = "sdpa", mask: Tensor | None = None, **how: Any) -> Tensor:
        both = _GatherKeys.apply(torch.stack([k, v]), group)
        return attend(q, both[0], both[1], "sdpa", mask, **how)

    def ring(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        kernel: str = "sdpa",
        mask: Tensor | None = None,
        *,
        causal: bool = True,
        scale: float | None = None,
    ) -> Tensor:
        return ring_attention(q if scale is None else q * (scale * q.shape[-1] ** 0.5), k, v, mask, group, causal)

    return {"ulysses": ulysses, "gather": gather, "ring": ring}[method]


def _exchanged(x: Tensor, split: int, join: int, group: dist.ProcessGroup) -> Tensor:
    """All-to-all: dim `split` of (B, H, T, E) is dealt to the ranks, dim `join` comes from all of them."""
    sent = torch.stack(x.chunk(dist.get_world_size(group), split)).contiguous()
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return torch.cat(list(received.unbind(0)), join)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, split: int, join: int, group: dist.ProcessGroup) -> Tensor:
        ctx.dims, ctx.group = (split, join), group
        return _exchanged(x, split, join, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        split, join = ctx.dims
        return _exchanged(grads[0], join, split, ctx.group), None, None, None


class _GatherKeys(torch.autograd.Function):
    """(2, B, K, T / ranks, E) of all ranks along T; the gradient is summed and scattered."""

    @staticmethod
    def forward(ctx: Any, kv: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group, ctx.shape = group, kv.shape
        flat = kv.flatten(0, 2)  # the time stands in dim 1, where `gathered` joins
        return gathered(flat, group).unflatten(0, kv.shape[:3])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return scattered(grads[0].flatten(0, 2), ctx.group).view(ctx.shape), None
