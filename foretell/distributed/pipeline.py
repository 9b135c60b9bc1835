"""Pipeline parallelism: stages of layers on different ranks, micro-batches following each other through them.

The schedules are torch's: GPipe (Huang et al., 2019), 1F1B and its interleaved form (Narayanan et al., 2021), and zero
bubble (Qi et al., 2024), which forms gradients of weights in the gaps. What a stage is stands in `stages.py`. Shapes
between stages are given, so nothing is inferred or pickled on the way, and all micro-batches of a run have one shape.
Every rank reads the rows of its micro-batches itself: masks do not travel. A tied table stands on the first stage and,
as a copy, on the last; their gradients are added (`Placed.finish`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import PipelineScheduleSingle, get_schedule_class

from foretell import runtime
from foretell.distributed.stages import Seen, passed
from foretell.models.model import Given, Model
from foretell.models.moe import with_balance

if TYPE_CHECKING:
    from foretell.distributed.placed import Placed

_CLASSES = {"gpipe": "GPipe", "1f1b": "1F1B", "interleaved": "Interleaved1F1B", "zero-bubble": "InterleavedZeroBubble"}
# Inputs and targets (B, T), document numbers (B, T), and what the rows have besides.
Batch = tuple[Tensor, Tensor, Tensor | None, Given | None]
# Mean loss of (hidden states (B, T, D) of this rank's positions, their targets (B, T)).
HeadLoss = Callable[[Tensor, Tensor], Tensor]


class Pipeline:
    """The schedule of one rank's stages, `chunks[i]` being stage `stages[i]` of all."""

    def __init__(self, placed: Placed, chunks: list[Model], stages: list[int], schedule: str) -> None:
        self.placed, self.chunks, self.stages, self.kind = placed, chunks, stages, schedule
        self.ranks = placed.degrees.pp
        self.count = self.ranks * len(chunks)
        self.group = placed.mesh.group("pp")
        self.is_first, self.is_last = 0 in stages, self.count - 1 in stages
        self._schedule: Any = None
        self._head_loss: HeadLoss | None = None
        self._share, self._balance = torch.zeros(1), 0.0
        for chunk, stage in zip(chunks, stages, strict=True):
            chunk.forward = self._forward_of(chunk, stage == 0, stage == self.count - 1)  # type: ignore

    def _forward_of(self, chunk: Model, first: bool, last: bool) -> Callable[..., Tensor | tuple[Tensor, ...]]:
        def forward(*handed: Tensor, share: Tensor | None = None, **known: Tensor) -> Tensor | tuple[Tensor, ...]:
            def run() -> tuple[Tensor, ...]:
                return passed(chunk, handed, self._seen(handed, first, **known), first, last)

            if share is not None:  # the last stage's loss follows its forward pass at once
                self._share = share
            if chunk.config.num_experts is None or not torch.is_grad_enabled():
                found = run()
                return found if len(found) > 1 else found[0]
            hidden, balance = with_balance(chunk, lambda: run()[0])
            if balance is None:
                return hidden
            balance = balance * self._share.squeeze()
            self._balance += balance.item()
            return _WithLoss.apply(hidden, balance)

        return forward

    def _seen(
        self,
        handed: tuple[Tensor, ...],
        first: bool,
        segments: Tensor | None = None,
        prefix: Tensor | None = None,
        source_mask: Tensor | None = None,
    ) -> Seen:
        x, whole = handed[-1], 1 if first else self.placed.degrees.tp
        lengths = (handed[0].shape[1] * whole, x.shape[1] * whole)
        places = self.placed.places(len(x))
        return Seen(places, self.placed.mask(segments, x.device, prefix), source_mask, lengths)

    def step(self, batches: Iterable[Batch], head_loss: HeadLoss, shares: Sequence[float]) -> float:
        """Forward and backward passes of all micro-batches; gradients add up. Returns this rank's share of the loss.

        shares: what each micro-batch's mean counts in the global batch's.
        """
        each = list(batches)
        handed, known = zip(*(self._handed(batch) for batch in each), strict=True)
        if self._schedule is None:
            self._schedule = self._scheduled(len(each), handed[0])
        self._head_loss, self._balance = head_loss, 0.0
        losses: list[Tensor] = []
        more = {name: torch.cat([k[name] for k in known]) for name in known[0]}
        more["share"] = torch.tensor(shares, device=runtime.device())
        args = tuple(torch.cat(parts) for parts in zip(*handed, strict=True)) if self.is_first else ()
        target = self.placed.own(torch.cat([batch[1] for batch in each])) if self.is_last else None
        self._schedule.step(*args, target=target, losses=losses if self.is_last else None, **more)
        return self._balance + sum(loss.item() for loss in losses)

    def _handed(self, batch: Batch) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """What the first stage is handed of a micro-batch, and what all stages know of it."""
        inputs, _, segments, given = batch
        given = given or Given()
        known = {"segments": segments, "prefix": given.prefix, "source_mask": given.source_mask}
        ids = self.placed.own(inputs)
        return (ids,) if given.source is None else (given.source, ids), {
            k: v for k, v in known.items() if v is not None
        }

    def _scheduled(self, micro_batches: int, ids: tuple[Tensor, ...]) -> Any:
        kind = get_schedule_class(_CLASSES[self.kind])
        stages = []
        for chunk, stage in zip(self.chunks, self.stages, strict=True):
            given = self._hidden_like(ids)
            stages.append(
                PipelineStage(
                    chunk,
                    stage,
                    self.count,
                    runtime.device(),
                    input_args=ids if stage == 0 else self._hidden_like(ids),
                    output_args=given[-1] if stage == self.count - 1 else given,
                    group=self.group,
                )
            )
        own: Any = stages[0] if issubclass(kind, PipelineScheduleSingle) else stages
        return kind(own, micro_batches, loss_fn=self._loss, scale_grads=False)

    def _loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        assert self._head_loss is not None
        return self._head_loss(self.placed.whole(hidden), targets) * self._share.squeeze()

    def _hidden_like(self, ids: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """States of tokens (B, T) as stages hand them on: (B, T / tp, D)."""
        width, tp = self.chunks[0].config.sizes.D, self.placed.degrees.tp
        return tuple(x.new_empty(len(x), x.shape[1] // tp, width, dtype=torch.float32).requires_grad_() for x in ids)

    def hidden(self, inputs: Tensor, segments: Tensor | None = None, given: Given | None = None) -> Tensor | None:
        """A forward pass alone: what the head's product takes on the last stage's rank, None on the others."""
        ids, known = self._handed((inputs, inputs, segments, given))
        handed = ids
        for chunk, stage in zip(self.chunks, self.stages, strict=True):
            if stage > 0:
                handed = tuple(x.detach() for x in self._hidden_like(ids))
                for x in handed:
                    dist.recv(x, group=self.group, group_src=(stage - 1) % self.ranks)
            found = chunk(*handed, **known)
            handed = (found,) if isinstance(found, Tensor) else found
            if stage < self.count - 1:
                for x in handed:
                    dist.send(x.contiguous(), group=self.group, group_dst=(stage + 1) % self.ranks)
        return handed[-1] if self.is_last else None


class _WithLoss(torch.autograd.Function):
    """Hands x on, and lets a loss formed on the way take part in the backward pass with weight 1."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        return x.clone()  # zero bubble detaches a stage's output in place, which a view cannot be

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        return grads[0], torch.ones((), device=grads[0].device)
