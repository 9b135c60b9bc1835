"""Tensor and sequence parallelism: a layer's matrices over the ranks of one axis, what is between them by sequence.

Megatron-LM's scheme (Shoeybi et al., 2019; Korthikanti et al., 2022) on plain local tensors: attention and feed-forward
see the whole sequence with a part of their heads or width, everything else a part of the sequence. So a sequence is
gathered before each of the two and their partial outputs are summed and scattered behind them: four collectives a layer
each way. The embedding holds a part of the vocabulary, and so does the head, whose logits never meet (`cross_entropy`).

The model's files know nothing of it: hooks gather and scatter, and weights are smaller (see `parts.py`). Weights that
are whole on every rank get partial gradients, which are summed once a step. A bias behind a sum over the ranks is added
by each of them in equal shares.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from foretell.models.decoder import Decoder
from foretell.models.model import Model, layers
from foretell.models.seq2seq import Seq2Seq


def gathered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """x (B, T / ranks, ...) of every rank as (B, T, ...)."""
    n = dist.get_world_size(group)
    whole = x.new_empty(n * x.shape[0], *x.shape[1:])
    dist.all_gather_single(whole, x.contiguous(), group=group)
    return whole.view(n, *x.shape).movedim(0, 1).flatten(1, 2)


def scattered(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The sum over ranks of x (B, T, ...), of which each gets its part (B, T / ranks, ...)."""
    n = dist.get_world_size(group)
    parts = x.unflatten(1, (n, -1)).movedim(1, 0).contiguous()
    own = torch.empty_like(parts[0])
    dist.reduce_scatter_single(own, parts.flatten(0, 1), group=group)
    return own


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return gathered(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return scattered(grads[0], ctx.group), None


class _Scatter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return scattered(x, group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return gathered(grads[0], ctx.group), None


def gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`gathered` with its gradient: summed and scattered."""
    return _Gather.apply(x, group)


def scatter(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`scattered` with its gradient: gathered."""
    return _Scatter.apply(x, group)


def connect(model: Model, group: dist.ProcessGroup) -> None:
    """Make the layers and the embedding of `model`, whose weights are this rank's parts, work with those of `group`."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)

    def before(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return gather(args[0], group), *args[1:]

    def behind(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return scatter(output, group)

    for layer in layers(model):
        cross = getattr(layer, "cross_attn", None)
        attentions = [layer.self_attn, *([] if cross is None else [cross])]
        for part in (*attentions, layer.mlp):
            part.register_forward_pre_hook(before)
            part.register_forward_hook(behind)
        for last in (*(a.o_proj for a in attentions), getattr(layer.mlp, "down_proj", None)):
            if isinstance(last, nn.Linear) and last.bias is not None:
                last.forward = _sharing_bias(last, ranks)  # type: ignore
    for rows in _places(model):
        rows.register_forward_hook(lambda module, args, rows: rows.chunk(ranks, -2)[rank])
    if isinstance(model, Seq2Seq):  # every layer of the decoder wants the whole memory
        model.model.decoder.register_forward_pre_hook(lambda module, args: (args[0], gather(args[1], group), *args[2:]))
    table = model.model.embed_tokens
    if not isinstance(table, nn.Embedding):  # a stage behind the first
        return

    def looked_up(ids: Tensor) -> Tensor:
        rows = table.weight.shape[0]
        local = ids - rank * rows
        here = (local >= 0) & (local < rows)
        found = F.embedding(local.clamp(0, rows - 1), table.weight)
        return scatter(found * here.unsqueeze(-1), group)

    table.forward = looked_up  # type: ignore


def _places(model: Model) -> list[nn.Module]:
    """What adds rows to the embeddings of all positions, of which a rank wants its own."""
    if isinstance(model, Seq2Seq):
        found: list[nn.Module | None] = [model.model.positions]
    elif isinstance(model, Decoder):
        found = [model.model.embed_positions]
    else:
        found = [model.model.embed_positions, model.model.embed_types]
    return [m for m in found if m is not None]


def _sharing_bias(linear: nn.Linear, ranks: int) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, linear.weight, linear.bias / ranks)


def cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int | None, group: dist.ProcessGroup
) -> Tensor:
    """Mean negative log-likelihood of targets (N,), the same on every rank, whose weight (V / ranks, D) is its part.

    hidden: (N, D), whole on every rank; its gradient is this rank's part of a sum.
    """
    return _CrossEntropy.apply(hidden.to(weight.dtype), weight, targets, chunk or targets.numel(), group)


# Logits formed at once: 8 MB of float32.
_LOGITS = 1 << 21


def token_scores(hidden: Tensor, weight: Tensor, targets: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood (N,) in float32 and whether the target is the likeliest token, of hidden (N, D).

    weight (V / ranks, D) is this rank's part; every rank must have the same hidden states. Of equals the first counts.
    """
    rows, ranks = weight.shape[0], dist.get_world_size(group)
    first, nll, correct = dist.get_rank(group) * rows, [], []
    chunk = max(1, _LOGITS // rows)
    for h, t in zip(hidden.split(chunk), targets.split(chunk), strict=True):
        logits = (h @ weight.T).float()
        local = t - first
        here = (local >= 0) & (local < rows)
        top, place = logits.max(1)
        sums = logits.sub(top[:, None]).exp_().sum(1)
        of_target = logits.gather(1, local.clamp(0, rows - 1)[:, None]).squeeze(1) * here
        own = torch.stack([top.double(), sums.double(), of_target.double(), (first + place).double()])
        every = own.new_empty(ranks * own.numel())
        dist.all_gather_single(every, own.flatten(), group=group)
        tops, sums, targeted, places = every.view(ranks, *own.shape).unbind(1)
        best, owner = tops.max(0)
        likelihood = (sums * (tops - best).exp()).sum(0).log() + best - targeted.sum(0)
        nll.append(likelihood.float())
        correct.append(places.gather(0, owner[None])[0] == t)
    return torch.cat(nll), torch.cat(correct)


class _CrossEntropy(torch.autograd.Function):
    """As `train/loss.py` forms it, chunk by chunk with its gradients; maxima and sums over the ranks' vocabularies."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, group: dist.ProcessGroup
    ) -> Tensor:
        N, rows = targets.numel(), weight.shape[0]
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        learns = ctx.needs_input_grad[1]
        grad_weight = torch.zeros(weight.shape if learns else 0, dtype=torch.float32, device=weight.device)
        first = dist.get_rank(group) * rows
        for i in range(0, N, chunk):
            h, local = hidden[i : i + chunk], targets[i : i + chunk, None] - first
            here = (local >= 0) & (local < rows)
            local = local.clamp(0, rows - 1)
            logits = (h @ weight.T).float()
            top = logits.amax(1, keepdim=True)
            dist.all_reduce(top, dist.ReduceOp.MAX, group=group)
            logits -= top
            of_target = logits.gather(1, local) * here
            exponentials = logits.exp_()
            sums = torch.cat([exponentials.sum(1, keepdim=True), of_target])
            dist.all_reduce(sums, group=group)
            norm, of_target = sums.chunk(2)
            total += (norm.log() - of_target).sum()
            grad = exponentials.div_(norm).scatter_add_(1, local, -here.float()).mul_(1.0 / N).to(h.dtype)
            grad_hidden[i : i + chunk] = grad @ weight
            if learns:
                grad_weight += grad.T @ h
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total / N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0] if ctx.needs_input_grad[1] else None, None, None, None
