"""Causal attention by plain batched products, for training: what torch's fused kernel computes, often sooner on a CPU.

torch's kernel (`F.scaled_dot_product_attention`) keeps no probabilities and forms them again in the backward pass. On a
CPU its small tiles are slow in bfloat16 and with narrow heads; there it pays to write the products down, keep the
probabilities, and let the compiler fuse what stands between the products (docs/log.md has both beside each other).
Queries go in a few blocks of rows, each against no more keys than it may see, so that most of the masked half is never
computed. The price is memory (`plan/activations.py`, which also says which rows a block has).

Masks other than causal have no blocks and no gradient by hand: encoders and encoder-decoders read short sequences, on
which torch's kernel in bfloat16 took five times as long.

Not handled: dropout on the probabilities.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foretell.plan.activations import attention_blocks


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    kernel: str = "sdpa",
    mask: Tensor | None = None,
    *,
    causal: bool = True,
    scale: float | None = None,
) -> Tensor:
    """Attention (B, H, T, E) of q (B, H, T, E) over k and v (B, K, S, E).

    kernel: `products` for `causal_attention`, or `masked_attention` where a mask says what is seen or all is; else that
    of torch. mask: (B or 1, 1 or H, T or 1, S), boolean, True where a query may look, or float and added to the
    products; it says all. Without one, causal says whether a query sees only the keys up to its own place. scale: of
    the products; E^-0.5 unless given.
    """
    if kernel == "products":
        whole = causal and mask is None
        return causal_attention(q, k, v, scale) if whole else masked_attention(q, k, v, mask, scale)
    only_before = causal and mask is None and q.shape[2] > 1
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=only_before, scale=scale, enable_gqa=k.shape[1] != q.shape[1]
    )


def causal_attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v over the keys up to each query: (B, H, T, E). scale: E^-0.5 unless given.

    q is (B, H, T, E), k and v are (B, K, T, E), and H is a multiple of K: queries are grouped. The gradient is formed
    by hand. All products are in the dtype of v: under autocast it comes straight from a product, but q and k from their
    norms, which stay in float32.
    """
    B, H, T, E = q.shape
    K = k.shape[1]
    q, k = q.to(v.dtype), k.to(v.dtype)
    grouped = q.reshape(B * K, H // K, T, E)
    y = _CausalAttention.apply(grouped, k.reshape(B * K, T, E), v.reshape(B * K, T, E), scale or E**-0.5)
    return y.view(B, H, T, E)


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) v over the keys that a mask leaves: (B, H, T, E). For short sequences: all T x S are formed.

    q: (B, H, T, E); k and v: (B, K, S, E), H a multiple of K. mask: as `attend` wants it. scale: E^-0.5 unless given.
    """
    H, K = q.shape[1], k.shape[1]
    if H != K:
        k, v = k.repeat_interleave(H // K, 1), v.repeat_interleave(H // K, 1)
    scores = (q.to(v.dtype) @ k.to(v.dtype).mT).float() * (scale or q.shape[-1] ** -0.5)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1).to(v.dtype) @ v


class _CausalAttention(torch.autograd.Function):
    """q (N, G, T, E), k and v (N, T, E), where N counts KV heads of the batch and G the query heads of each."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        T, E = q.shape[-2:]
        outputs, kept = [], []
        for start, end in attention_blocks(T):
            scores = _rows(q, start, end) @ _keys(k, end).mT
            p = _probabilities(scores, start, end, scale)
            kept.append(p)
            outputs.append((p @ _keys(v, end)).view(*q.shape[:2], end - start, E))
        ctx.save_for_backward(q, k, v, *kept)
        return torch.cat(outputs, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, *kept = ctx.saved_tensors
        T, E = q.shape[-2:]
        grad_q, grad_k, grad_v = [], torch.zeros_like(k), torch.zeros_like(v)
        for (start, end), p in zip(attention_blocks(T), kept, strict=True):
            grad_y = _rows(grads[0], start, end)
            grad_v[:, :end] += p.mT @ grad_y
            grad_p = (grad_y @ _keys(v, end).mT).float()
            wide = p.float()
            mean = (wide * grad_p).sum(-1, keepdim=True)
            grad_scores = grad_p.sub_(mean).mul_(wide).mul_(ctx.scale).to(q.dtype)
            grad_q.append((grad_scores @ _keys(k, end)).view(*q.shape[:2], end - start, E))
            grad_k[:, :end] += grad_scores.mT @ _rows(q, start, end)
        return torch.cat(grad_q, 2), grad_k, grad_v, None


def _rows(x: Tensor, start: int, end: int) -> Tensor:
    """Some rows of all heads of a group, one head under another: (N, G, T, E) to (N, G * rows, E)."""
    return x[:, :, start:end].contiguous().view(x.shape[0], -1, x.shape[-1])


def _keys(x: Tensor, end: int) -> Tensor:
    """The first keys or values, (N, end, E), in one piece: batched products copy a slice more slowly."""
    return x[:, :end].contiguous()


def _probabilities(scores: Tensor, start: int, end: int, scale: float) -> Tensor:
    """Softmax over the keys that each row may see, formed in float32; scores (N, G * rows, keys) of any dtype."""
    rows = torch.arange(start, end, device=scores.device)
    seen = rows[:, None] >= torch.arange(end, device=scores.device)
    wide = scores.view(scores.shape[0], -1, *seen.shape).float()
    return wide.mul_(scale).masked_fill_(~seen, float("-inf")).softmax(-1).to(scores.dtype).view_as(scores)
