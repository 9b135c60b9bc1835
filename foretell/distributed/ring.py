"""Ring attention: blocks of keys and values travel around the ranks; results are merged by their normalisers.

Each rank has pieces r and 2n - 1 - r of every sequence (zigzag), first half and second half of its positions. Of
another rank's block its queries see: from a lower rank the first half, whole; from a higher one everything, but only
its own second half sees it. So there is no mask, and each block costs half a square, on every rank at every turn.

The merged output and its log-sum-exp are all that the backward pass needs: the probabilities of a block are formed anew
from them, and the gradient of keys and values travels with these, once around (Liu et al., 2023, arXiv 2310.01889).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def ring_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, group: dist.ProcessGroup, causal: bool = True
) -> Tensor:
    """Attention of q (B, H, T / n, E) over the keys k, v (B, K, T / n, E) of all n ranks.

    mask: (B, 1, T / n, T) with keys in the order of the ranks, or None: causal, or all see all.
    """
    return _Ring.apply(q.to(v.dtype), k.to(v.dtype), v, mask, group, causal)


class _Ring(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, group: dist.ProcessGroup, causal: bool
    ) -> Tensor:
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        out = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        lse = torch.full(q.shape[:3], -torch.inf, device=q.device)
        block = torch.stack([k, v]).contiguous()
        for turn in range(ranks):
            arriving = _Passing(block, group) if turn < ranks - 1 else None
            source = (rank - turn) % ranks
            queries, keys, before_only, seen = _part(q.shape[2], rank, source, mask, causal)
            of_block, of_lse = _attention(q[:, :, queries], *_spread(block[:, :, :, keys], q), before_only, seen)
            before = lse[:, :, queries]
            after = torch.logaddexp(before, of_lse)
            shrink, grow = (torch.exp(x - after).nan_to_num_(0.0).unsqueeze(-1) for x in (before, of_lse))
            out[:, :, queries] = out[:, :, queries] * shrink + of_block.float() * grow
            lse[:, :, queries] = after
            if arriving is not None:
                block = arriving.wait()
        result = out.to(q.dtype)
        ctx.save_for_backward(q, k, v, mask, result, lse)
        ctx.group, ctx.causal = group, causal
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        q, k, v, mask, out, lse = ctx.saved_tensors
        ranks, rank = dist.get_world_size(ctx.group), dist.get_rank(ctx.group)
        grad_q = torch.zeros(q.shape, dtype=torch.float32, device=q.device)
        block = torch.stack([k, v]).contiguous()
        grad_block = torch.zeros(block.shape, dtype=torch.float32, device=q.device)
        for turn in range(ranks):
            arriving = _Passing(block, ctx.group) if turn < ranks - 1 else None
            source = (rank - turn) % ranks
            queries, keys, before_only, seen = _part(q.shape[2], rank, source, mask, ctx.causal)
            parts = (t[:, :, queries] for t in (grads[0], q, out, lse))
            grad_out, q_part, out_part, lse_part = (t.contiguous() for t in parts)
            of_q, of_k, of_v = _attention_backward(
                grad_out, q_part, *_spread(block[:, :, :, keys], q), out_part, lse_part, before_only, seen
            )
            grad_q[:, :, queries] += of_q
            grad_block[:, :, :, keys] += torch.stack([_gathered(g, k) for g in (of_k, of_v)])
            grad_block = _Passing(grad_block, ctx.group).wait()  # after the last turn it is back at its owner
            if arriving is not None:
                block = arriving.wait()
        return grad_q.to(q.dtype), grad_block[0].to(k.dtype), grad_block[1].to(v.dtype), None, None, None


class _Passing:
    """A tensor on its way to the next rank, and the previous one's on its way here."""

    def __init__(self, sent: Tensor, group: dist.ProcessGroup) -> None:
        ranks, rank = dist.get_world_size(group), dist.get_rank(group)
        self._sent, self._received = sent, torch.empty_like(sent)
        there = dist.P2POp(dist.isend, sent, group=group, group_peer=(rank + 1) % ranks)
        here = dist.P2POp(dist.irecv, self._received, group=group, group_peer=(rank - 1) % ranks)
        self._work = dist.batch_isend_irecv([there, here])

    def wait(self) -> Tensor:
        """What came."""
        for work in self._work:
            work.wait()
        return self._received


def _part(
    length: int, rank: int, source: int, mask: Tensor | None, causal: bool
) -> tuple[slice, slice, bool, Tensor | None]:
    """Which queries see which keys of `source`'s block, whether causally, and the mask where there is one."""
    everything, half = slice(0, length), length // 2
    if mask is not None:
        return everything, everything, False, mask[..., source * length : (source + 1) * length]
    if source == rank or not causal:
        return everything, everything, causal, None
    if source < rank:
        return everything, slice(0, half), False, None
    return slice(half, length), everything, False, None


def _spread(block: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with a head for each of q's."""
    groups = q.shape[1] // block.shape[2]
    both = block.repeat_interleave(groups, 2) if groups > 1 else block
    return both[0].contiguous(), both[1].contiguous()


def _gathered(grad: Tensor, k: Tensor) -> Tensor:
    """The inverse of `_spread`, for a gradient."""
    return grad.float().unflatten(1, (k.shape[1], -1)).sum(2)


def _attention(q: Tensor, k: Tensor, v: Tensor, causal: bool, seen: Tensor | None) -> tuple[Tensor, Tensor]:
    """Output (B, H, T, E) and log-sum-exp (B, H, T), float32; rows that see nothing give 0 and -inf."""
    if seen is None and q.device.type == "cpu":
        out, lse = _flash(q.contiguous(), k, v, 0.0, causal)
        return out, lse.float()
    scores = _scores(q, k, causal, seen)
    lse = torch.logsumexp(scores, -1)
    return torch.exp(scores - lse.unsqueeze(-1)).nan_to_num_(0.0).to(v.dtype) @ v, lse


def _attention_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, seen: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v of one block, given the output and log-sum-exp over all blocks."""
    if seen is None and q.device.type == "cpu":
        return _flash_backward(grad, q, k, v, out, lse, 0.0, causal)
    p = torch.exp(_scores(q, k, causal, seen) - lse.unsqueeze(-1))
    grad_p = (grad @ v.mT).float()
    grad_scores = p * (grad_p - (grad.float() * out.float()).sum(-1, keepdim=True)) * q.shape[-1] ** -0.5
    grad_scores = grad_scores.to(q.dtype)
    return grad_scores @ k, grad_scores.mT @ q, p.to(grad.dtype).mT @ grad


def _scores(q: Tensor, k: Tensor, causal: bool, seen: Tensor | None) -> Tensor:
    scores = (q @ k.mT).float() * q.shape[-1] ** -0.5
    if causal:
        T = q.shape[2]
        seen = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
    return scores if seen is None else scores.masked_fill(~seen, -torch.inf)
