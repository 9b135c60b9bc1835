"""Next-token cross-entropy that need not hold all B x T x V logits.

Full: logits in one piece, which a compiler can fuse. Chunked: a few thousand tokens at a time, and the gradients of
hidden states and head are formed inside the forward pass, so that no chunk's logits outlive it and no product is
computed twice (the idea of Liger's and Wijmans et al.'s (2024) fused linear cross-entropy, without a custom kernel).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from foretell.data.objectives import UNSCORED
from foretell.data.windows import CHOICE
from foretell.models.encoder import span_losses
from foretell.models.model import Given, Model, head
from foretell.models.moe import with_balance
from foretell.train.alone import Team
from foretell.train.objectives import Batch


def next_token_loss(
    team: Team,
    inputs: Tensor,
    targets: Tensor,
    segments: Tensor | None,
    chunk_tokens: int | None,
    given: Given | None = None,
    partly: bool = False,
    smoothing: float = 0.0,
) -> Tensor:
    """Mean negative log-likelihood in nats of targets (B, T), given inputs (B, T). A scalar in float32.

    Of several processes each gets the mean over its own positions. A mixture of experts adds its balance loss, which is
    no part of the likelihood.

    segments: (B, T) document numbers to keep attention inside documents, or None. chunk_tokens: tokens a chunk of the
    cross-entropy, or None for all at once. given: what the rows have besides. partly: whether targets may be UNSCORED,
    which then do not count. smoothing: the share of each target that all tokens have alike (Szegedy et al., 2016); the
    scalar is then the cross-entropy with that.
    """
    if team.model.config.num_experts is None:
        hidden, balance = team.hidden(inputs, segments, given), None
    else:
        hidden, balance = with_balance(team.model, lambda: team.hidden(inputs, segments, given))
    loss = head_loss(team, hidden, team.own(targets), chunk_tokens, partly, smoothing)
    return loss if balance is None else loss + balance


def span_loss(team: Team, batch: Batch) -> Tensor:
    """Mean over questions of what beginning and end of their answers cost in nats. A scalar in float32."""
    assert batch.given is not None
    assert batch.given.marks is not None
    logits = team.model.lm_head(team.hidden(batch.inputs, None, batch.given))
    return span_losses(logits, batch.given.marks & CHOICE > 0, batch.targets).mean()


def head_loss(
    team: Team,
    hidden: Tensor,
    targets: Tensor,
    chunk_tokens: int | None,
    partly: bool = False,
    smoothing: float = 0.0,
) -> Tensor:
    """The mean negative log-likelihood of targets (B, T), given what the head takes (B, T, D): a last stage's part."""
    hidden, flat = hidden.flatten(0, 1), targets.flatten()
    if partly:
        counts = flat != UNSCORED
        hidden, flat = hidden[counts], flat[counts]
        if not flat.numel():  # a mean of nothing is no number, and everything must have a gradient in every process
            nothing: Tensor = team.model.lm_head(hidden).float().sum()
            return nothing
    loss = team.split_cross_entropy(hidden, flat, chunk_tokens)
    return _cross_entropy(team.model, hidden, flat, chunk_tokens, smoothing) if loss is None else loss


def _cross_entropy(model: Model, hidden: Tensor, flat: Tensor, chunk_tokens: int | None, smoothing: float) -> Tensor:
    if chunk_tokens is None or chunk_tokens >= flat.numel():
        return F.cross_entropy(model.lm_head(hidden).float(), flat, label_smoothing=smoothing)
    hidden, weight = head(model, hidden)
    if torch.is_autocast_enabled(hidden.device.type):
        weight = weight.to(torch.get_autocast_dtype(hidden.device.type))
    return _ChunkedCrossEntropy.apply(hidden.to(weight.dtype), weight, flat, chunk_tokens, smoothing)


class _ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of hidden (N, D) @ weight (V, D).T against targets (N,), of which all tokens have a share."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, chunk: int, smoothing: float) -> Tensor:
        N = targets.numel()
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.empty_like(hidden)
        learns = ctx.needs_input_grad[1]
        grad_weight = torch.zeros(weight.shape if learns else 0, dtype=torch.float32, device=weight.device)
        for i in range(0, N, chunk):
            h, t = hidden[i : i + chunk], targets[i : i + chunk, None]
            logits = (h @ weight.T).float()
            log_sum = torch.logsumexp(logits, dim=1, keepdim=True)
            total += (log_sum - (1 - smoothing) * logits.gather(1, t)).sum()
            if smoothing:
                total -= smoothing * logits.mean(1).sum()
            probabilities = logits.sub_(log_sum).exp_()
            probabilities.scatter_add_(1, t, torch.full_like(log_sum, smoothing - 1))
            if smoothing:
                probabilities -= smoothing / len(weight)
            grad_logits = probabilities.mul_(1.0 / N).to(h.dtype)
            grad_hidden[i : i + chunk] = grad_logits @ weight
            if not learns:
                continue
            if grad_logits.dtype == torch.float32:
                grad_weight.addmm_(grad_logits.T, h)
            else:
                grad_weight += grad_logits.T @ h
        ctx.save_for_backward(grad_hidden, grad_weight.to(weight.dtype))
        return total / N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        grad_hidden, grad_weight = ctx.saved_tensors
        return grad_hidden * grads[0], grad_weight * grads[0] if ctx.needs_input_grad[1] else None, None, None, None
