"""Pipeline parallelism: stages of layers on different ranks, micro-batches following each other through them.

The schedules are torch's: GPipe (Huang et al., 2019), 1F1B and its interleaved form (Narayanan et al., 2021), and zero
bubble (Qi et al., 2024), which forms gradients of weights in the gaps. A stage is the decoder without the layers,
embedding or head that others have, under the names of the whole. Shapes between stages are given, so nothing is
inferred or pickled on the way. A tied table stands on the first stage and, as a copy, on the last; their gradients are
added (`Placed.finish`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

from foretell import runtime
from foretell.models.decoder import Decoder
from foretell.models.moe import with_balance
from foretell.plan import layout

if TYPE_CHECKING:
    from foretell.distributed.placed import Placed

_CLASSES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "Interleaved1F1B", "zero-bubble": "InterleavedZeroBubble"}
Batch = tuple[Tensor, Tensor, Tensor | None]
# Mean loss of (hidden states (B, T, D) of this rank's positions, their targets (B, T)).
HeadLoss = Callable[[Tensor, Tensor], Tensor]


def prune(model: Decoder, stage: int, stages: int) -> None:
    """Leave of a model only what is one stage's."""
    inner = model.model
    own = layout.stage_layers(len(inner.layers), stages)[stage]
    for n in [n for n in inner.layers._modules if int(n) not in own]:
        del inner.layers._modules[n]
    if stage > 0:
        inner.embed_tokens = inner.dropout = nn.Identity()  # type: ignore[assignment]
        inner.embed_positions, inner.embed_scale = None, 1.0
    if stage < stages - 1:
        inner.norm = model.lm_head = nn.Identity()  # type: ignore[assignment]


class Pipeline:
    """The schedule of one rank's stages, `chunks[i]` being stage `stages[i]` of all."""

    def __init__(self, placed: Placed, chunks: list[Decoder], stages: list[int], schedule: str) -> None:
        self.placed, self.chunks, self.stages, self.kind = placed, chunks, stages, schedule
        self.ranks = placed.degrees.pp
        self.count = self.ranks * len(chunks)
        self.group = placed.mesh.group("pp")
        self.is_first, self.is_last = 0 in stages, self.count - 1 in stages
        self._schedule: Any = None
        self._head_loss: HeadLoss | None = None
        self._share, self._balance = 0.0, 0.0
        for chunk in chunks:
            chunk.forward = self._forward_of(chunk)  # type: ignore[method-assign]

    def _forward_of(self, chunk: Decoder) -> Callable[..., Tensor]:
        def forward(x: Tensor, segments: Tensor | None = None) -> Tensor:
            def run() -> Tensor:
                return chunk.model(x, self.placed.places(len(x)), self.placed.mask(segments, x.device), None)

            if chunk.config.num_experts is None or not torch.is_grad_enabled():
                return run()
            hidden, balance = with_balance(chunk, run)
            if balance is None:
                return hidden
            balance = balance * self._share
            self._balance += balance.item()
            return _WithLoss.apply(hidden, balance)

        return forward

    def step(self, batches: Iterable[Batch], head_loss: HeadLoss, share: float) -> float:
        """Forward and backward passes of all micro-batches; gradients add up. Returns this rank's share of the loss.

        share: what each micro-batch's mean counts in the global batch's.
        """
        inputs, targets, segments = zip(*batches, strict=True)
        if self._schedule is None:
            self._schedule = self._scheduled(len(inputs), inputs[0])
        self._head_loss, self._share, self._balance = head_loss, share, 0.0
        losses: list[Tensor] = []
        whole = {"segments": torch.cat(segments)} if segments[0] is not None else {}
        args = (self.placed.own(torch.cat(inputs)),) if self.is_first else ()
        target = self.placed.own(torch.cat(targets)) if self.is_last else None
        self._schedule.step(*args, target=target, losses=losses if self.is_last else None, **whole)
        return self._balance + sum(loss.item() for loss in losses)

    def _scheduled(self, micro_batches: int, inputs: Tensor) -> Any:
        kind = get_schedule_class(_CLASSES[self.kind])
        ids = self.placed.own(inputs)
        hidden = torch.empty(self._hidden_shape(len(inputs)), device=ids.device)
        stages = [
            PipelineStage(
                chunk,
                stage,
                self.count,
                runtime.device(),
                input_args=ids if stage == 0 else hidden.clone().requires_grad_(),
                output_args=hidden.clone().requires_grad_(),
                group=self.group,
            )
            for chunk, stage in zip(self.chunks, self.stages, strict=True)
        ]
        own: Any = stages[0] if issubclass(kind, PipelineScheduleSingle) else stages
        return kind(own, micro_batches, loss_fn=self._loss, scale_grads=False)

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        assert self._head_loss is not None
        return self._head_loss(self.placed.whole(hidden), targets) * self._share

    def _hidden_shape(self, sequences: int) -> tuple[int, int, int]:
        d = self.placed.degrees
        return sequences, self.placed.length // (d.cp * d.tp), self.chunks[0].config.sizes.D

    def hidden(self, inputs: Tensor) -> Tensor | None:
        """A forward pass alone: the last stage's hidden states on its rank, None on the others."""
        x = self.placed.own(inputs)
        for chunk, stage in zip(self.chunks, self.stages, strict=True):
            if stage > 0 and self.ranks > 1:
                x = torch.empty(self._hidden_shape(len(inputs)), device=inputs.device)
                dist.recv(x, group=self.group, group_src=(stage - 1) % self.ranks)
            x = chunk(x)
            if stage < self.count - 1:
                dist.send(x.contiguous(), group=self.group, group_dst=(stage + 1) % self.ranks)
        return x if self.is_last else None


class _WithLoss(torch.autograd.Function):
    """Hands x on, and lets a loss formed on the way take part in the backward pass with weight 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        return x.clone()  # zero bubble detaches a stage's output in place, which a view cannot be

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], torch.ones((), device=grads[0].device)
