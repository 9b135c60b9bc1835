"""Bytes that one process holds while it trains its part of a model: states, gathered weights, activations, logits.

Counted from what `distributed/placed.py` does, which is FSDP2 over a layer at a time (Zhao et al., 2023) after tensor,
expert and pipeline parallelism have taken their parts, and held against traced steps (`train/rehearsal.py`; tests):

- states: weights, gradients and the optimiser's tensors in float32, of each weight the rows that `layout.shard_rows`
  gives the first rank, which has most;
- gathered: the layer at work whole, and the next one on its way; embedding and head whole from the forward pass to the
  end of the step; in a pipeline all layers of the stage;
- gradients of whole layers: one layer's, and one on its way to be summed; with several micro-batches all of them,
  because they are summed over the processes only once a step;
- activations of every micro-batch that is under way on this stage of the pipeline, what stages hand each other, and
  what a layer's backward pass forms on the way; logits of one micro-batch.

The largest moment is one of four: the loss, when all activations live; the backward pass of the last layers, when
weights and gradients come on top; its end, when all gradients live; the optimiser's step. Every stage is counted. Not
handled: what an allocator cannot use (`SLACK` stands for it where memory is compared with a device's), offload (then
states are the host's).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from foretell.config import ParallelConfig, TrainConfig
from foretell.plan import activations, layout, learning
from foretell.plan.activations import FLOAT, HALF, MicroBatch
from foretell.plan.architecture import Architecture, Layer, Matrix
from foretell.plan.collective import Chunk
from foretell.plan.layout import Degrees
from foretell.plan.learning import Part
from foretell.plan.rows import row as row_of
from foretell.plan.weights import outer_weights

# Arrays of the feed-forward width, and gathered ones of the model's, that the backward pass of a layer has at once
# beside what was kept for it: with a gate, and without.
PASSING, PASSING_PLAIN = (2.5, 2), (1.0, 1)
# Arrays of what T5 adds to its products, beside the probabilities that were kept.
BIASES = 2
# Of a device's memory, what fragments and the driver's own data leave usable. A usual value, not a measurement.
SLACK = 0.92
_STATES = {"sgd": 1, "adamw": 2, "muon": 1}


@dataclass(frozen=True)
class Place:
    """What a process is given: layout, its stage's layers, sizes of a micro-batch. tokens: of it, on this rank."""

    degrees: Degrees
    recompute: str
    schedule: str
    dtype: str
    optimizer: str
    sequences: int
    length: int
    batches: int
    chunk: int | None
    kernel: str = "sdpa"
    dropout: bool = False
    source: int = 0  # tokens of a sequence that the encoder of an encoder-decoder reads
    asked: int | None = None  # of a sequence so many are asked for, all by default
    part: Part | None = None  # what learns, where not all does

    @cached_property
    def micro_batch(self) -> MicroBatch:
        """What passes through its layers at once."""
        return self._passing(self.length, self.source or None)

    @cached_property
    def sources(self) -> MicroBatch:
        """What passes through the layers of an encoder before a decoder."""
        return self._passing(self.source or self.length)

    def _passing(self, length: int, source: int | None = None) -> MicroBatch:
        d = self.degrees
        return MicroBatch(self.sequences, length, self.dtype, self.kernel, self.dropout, d.tp, d.cp, source)

    def passing(self, layer: Layer) -> MicroBatch:
        """What passes through this layer."""
        return self.sources if layer.of_source else self.micro_batch

    @property
    def handed(self) -> int:
        """Tokens whose states stages hand each other."""
        return self.tokens + (self.sources.tokens if self.source else 0)

    @property
    def scored(self) -> int:
        """Tokens that are asked for."""
        return self.tokens if self.asked is None else self.sequences * self.asked // self.degrees.cp

    @property
    def item(self) -> int:
        """Bytes of a number in a product."""
        return self.micro_batch.item

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch on this rank before tensor parallelism cuts the sequence."""
        return self.micro_batch.tokens


def place(parallel: ParallelConfig, train: TrainConfig, degrees: Degrees, part: Part | None = None) -> Place:
    """The place of a process of a completed [train] table. part: what learns, where not all does."""
    row = row_of(train.objective, train.context)
    micro = train.micro_batch_size or 1
    batches = max(1, (train.global_batch_tokens or train.context) // train.context // degrees.dp // micro)
    return Place(
        degrees,
        parallel.recompute,
        parallel.schedule,
        train.dtype,
        train.optimizer,
        micro,
        row.target,
        batches,
        train.loss_chunk_tokens,
        train.attention,
        bool(train.dropout),
        row.source,
        row.scored,
        part,
    )


def held_rows(m: Matrix, d: Degrees) -> tuple[int, int]:
    """(rows, numbers a row) of a weight that tensor and expert parallelism leave one process, before FSDP2."""
    rows, columns = m.rows, m.columns
    if m.is_stack:  # stacked: the experts stand in front
        inner = rows * columns // (d.tp if m.split != "whole" else 1)
        return m.copies // d.ep, inner
    if m.split == "column":
        rows //= d.tp
    elif m.split == "row":
        columns //= d.tp
    return rows, columns


def unit_numbers(layer: Layer, d: Degrees) -> tuple[int, int, int]:
    """Of one layer on one process: numbers when gathered, with FSDP2's padding; numbers held; of these, in matrices."""
    gathered = held = matrices = 0
    for m in layer.matrices:
        ranks = d.dp_outer * d.cp if m.is_stack else d.fsdp
        rows, each = held_rows(m, d)
        mine = math.ceil(rows / ranks)
        gathered += ranks * mine * each
        held += mine * each
        matrices += mine * each
        if m.bias:
            biases = m.copies * m.rows // (d.tp if m.split == "column" else 1)
            gathered += d.fsdp * math.ceil(biases / d.fsdp)
            held += math.ceil(biases / d.fsdp)
    for _, size in layer.vectors:
        gathered += d.fsdp * math.ceil(size / d.fsdp)
        held += math.ceil(size / d.fsdp)
    return gathered, held, matrices


def layer_bytes(layer: Layer, hidden: int, p: Place) -> tuple[float, float]:
    """Bytes of a layer's activations of one micro-batch between its passes, and while its backward pass runs."""
    b = p.passing(layer)
    whole = activations.layer_bytes(layer, hidden, b)
    if p.recompute == "full":
        return b.tokens * FLOAT * hidden / b.tp, whole
    if p.recompute == "selective":
        part = b.tokens * activations.feed_forward_bytes(layer, hidden, b)
        return whole - part + b.tokens * FLOAT * hidden / b.tp, part
    return whole, 0.0


def under_way(p: Place, stage: int) -> float:
    """Micro-batches whose activations a stage of the pipeline holds at once, as shares of its layers.

    With two chunks a process a micro-batch of one is half of the layers (Narayanan et al., 2021); zero bubble forms
    gradients of weights later the later the stage, and keeps what they need (Qi et al., 2023).
    """
    d, m = p.degrees, p.batches
    if d.pp == 1:
        return 1
    if p.schedule == "gpipe":
        return m
    if p.schedule == "1f1b":
        return min(m, d.pp - stage)
    return min(2 * m, 2 * d.pp + stage if p.schedule == "zero-bubble" else 3 * d.pp - 2 * stage - 1) / 2


def handed_bytes(hidden: int, p: Place, stage: int, last: bool) -> float:
    """What stages hand each other: buffers for what every micro-batch brings, forward and backward, and outputs."""
    d = p.degrees
    if d.pp == 1:
        return 0.0
    chunks = 2 if p.schedule in ("interleaved", "zero-bubble") else 1
    buffers = p.batches * (2 * chunks - (stage == 0) - last)
    outputs = p.batches * p.tokens if last else chunks * under_way(p, stage) * p.handed
    return FLOAT / d.tp * hidden * (buffers * p.handed + outputs)


def logit_bytes(a: Architecture, p: Place) -> float:
    """Bytes of the cross-entropy of one micro-batch at its peak (`train/loss.py`, `tensor.cross_entropy`)."""
    V, D, tp = a.outputs / p.degrees.tp, a.hidden, p.degrees.tp
    if tp == 1 and (p.chunk is None or p.chunk >= p.scored or a.told != "tokens"):
        return FLOAT * 3 * p.scored * V
    chunk = min(p.chunk or p.scored, p.scored)
    once = FLOAT + (HALF if p.item == HALF else 0) if tp > 1 else 2 * FLOAT
    return once * chunk * V + 2 * FLOAT * (p.scored * D + V * D)


def kept_loss_bytes(a: Architecture, p: Place) -> float:
    """What the loss of a micro-batch keeps for its backward pass."""
    V, D = a.outputs / p.degrees.tp, a.hidden
    whole = p.degrees.tp == 1 and (p.chunk is None or p.chunk >= p.scored or a.told != "tokens")
    return FLOAT * p.scored * V if whole else p.item * p.scored * D + FLOAT * V * D


Layers = list[tuple[int, Layer]]  # how many of each


def stages(a: Architecture, pp: int, schedule_stages: int) -> Iterator[tuple[Layers, list[Chunk]]]:
    """Of every place in the pipeline its layers, and its stages."""
    kinds = a.kinds
    ends = list(itertools.accumulate(n for n, _ in kinds))
    cut = layout.stage_layers(ends[-1], schedule_stages)
    for place in range(pp):
        own = [cut[s] for s in range(place, schedule_stages, pp)]
        groups = [
            (sum(max(0, min(end, r.stop) - max(end - n, r.start)) for r in own), y)
            for (n, y), end in zip(kinds, ends, strict=True)
        ]
        last = schedule_stages - 1
        chunks = [Chunk(cut[s], s == 0, s == last) for s in range(place, schedule_stages, pp)]
        yield [g for g in groups if g[0]], chunks


def of_stage(a: Architecture, p: Place, stage: int, layers: Layers, chunks: list[Chunk]) -> dict[str, float]:
    """The parts and the peak, in bytes, of a process of one stage."""
    d, last = p.degrees, any(c.last for c in chunks)
    units = [(n, *unit_numbers(y, d)) for n, y in layers]
    root = _root_numbers(a, d, chunks)
    held, matrices = sum(n * u for n, _, u, _ in units) + root[1], sum(n * u for n, _, _, u in units) + root[2]
    weights = FLOAT * held
    optimizer = FLOAT * (held * _STATES[p.optimizer] + (held - matrices if p.optimizer == "muon" else 0))
    largest = max((u for _, u, _, _ in units), default=0)
    whole = sum(n * u for n, u, _, _ in units) + root[0]
    several, outer = p.batches > 1, FLOAT * root[0]
    of_layers = [(n, *layer_bytes(y, a.hidden, p)) for n, y in layers]
    activations = under_way(p, stage) * sum(n * kept for n, kept, _ in of_layers)
    activations += handed_bytes(a.hidden, p, stage, last) + under_way(p, stage) * _memory_bytes(layers, a.hidden, p)
    again = max((more for _, _, more in of_layers), default=0.0)
    passing, gone = 0.0, 0.0  # the last layers first, whose activations are gone when those before them run
    for (n, kept, _), (_, y) in zip(reversed(of_layers), reversed(layers), strict=True):
        passing, gone = max(passing, _passing_bytes(y, a.hidden, p) - gone), gone + n * kept
    logits = logit_bytes(a, p) if last else 0.0
    held_loss = kept_loss_bytes(a, p) * (under_way(p, stage) - 1) if last else 0.0
    on_the_way = 1 if d.fsdp > 1 else 0
    fetched = p.item * ((whole - root[0]) if d.pp > 1 else largest * (1 + on_the_way)) + outer
    collected = FLOAT * whole if several else 0.0
    formed = 0.0 if several else p.item * largest + (outer if last else 0.0)
    summed = FLOAT * largest * on_the_way
    one = max((kept for _, kept, _ in of_layers), default=0.0) if d.pp == 1 else 0.0
    at_loss = activations + held_loss + logits + collected + (fetched if d.pp > 1 else outer)
    # Of the last layer nothing is on its way yet; of the one before the last layer's activations are gone.
    in_backward = activations + held_loss + again + passing + fetched + collected + formed + max(0.0, summed - one)
    at_end = FLOAT * held + 2 * outer + p.item * largest + FLOAT * largest * (1 + on_the_way)
    work = workspace_bytes(layers, p) if p.optimizer == "muon" else 0.0
    at_step = FLOAT * held + work
    return {
        "weights": weights,
        "gradients": FLOAT * held,
        "optimizer": optimizer,
        "gathered": fetched + formed + summed + max(0.0, collected - FLOAT * held),
        "activations": activations + again + passing,
        "logits": logits + held_loss,
        "workspace": work,
        "peak": weights + optimizer + max(at_loss, in_backward, at_end, at_step),
        "fetched": fetched,
        "outer": outer,
    }


def of_part(a: Architecture, p: Place, part: Part, layers: Layers, chunks: list[Chunk]) -> dict[str, float]:
    """The same where not all learns, which no pipeline has: gradients and optimiser's tensors of what learns alone."""
    d = p.degrees
    whole = of_stage(a, p, 0, layers, chunks)
    added = sum(own.added for own in part.layers)
    sizes = [sum(own.numbers for own in part.layers), sum(math.prod(shape) for _, shape in part.outer)]
    learned, outer, largest = sizes[0] / d.tp, sizes[1] / d.tp, max(own.numbers for own in part.layers) / d.tp
    mine = (learned + outer) / d.fsdp
    weights = whole["weights"] + FLOAT * added / d.tp / d.fsdp
    optimizer = FLOAT * mine * (2 if p.optimizer == "adamw" else 1)
    fetched = whole["fetched"] + p.item * 2 * max(own.added for own in part.layers) / d.tp
    collected = FLOAT * (learned + outer) if p.batches > 1 else FLOAT * (mine + outer)
    activations = whole["activations"]
    if learning.is_counted(a) and d.tp == 1 and p.recompute == "none":
        activations = learning.kept_bytes(a, part, p.micro_batch)
    at_loss = activations + whole["logits"] + collected
    in_backward = activations + fetched + collected + FLOAT * 2 * largest
    return {
        "weights": weights,
        "gradients": FLOAT * mine,
        "optimizer": optimizer,
        "gathered": fetched + max(0.0, collected - FLOAT * mine),
        "activations": activations,
        "logits": whole["logits"],
        "workspace": whole["workspace"],
        "peak": weights + optimizer + max(at_loss + whole["outer"], in_backward, FLOAT * mine + whole["workspace"]),
    }


def _passing_bytes(layer: Layer, hidden: int, p: Place) -> float:
    """What a layer's backward pass has at once beside what was kept for it, and what tensor parallelism gathers."""
    routed = layer.routed
    width = layer.inner + (routed.used * routed.rows if routed else 0)
    arrays, whole = PASSING if layer.gated else PASSING_PLAIN
    gathered = whole * FLOAT * hidden if p.degrees.tp > 1 else 0.0
    b = p.passing(layer)
    # What T5 adds to its products: its gradient from all layers so far, and from this one.
    return b.tokens * (p.item * arrays * width / p.degrees.tp + gathered) + BIASES * activations.bias_bytes(layer, b)


def _memory_bytes(layers: Layers, hidden: int, p: Place) -> float:
    """The memory of a micro-batch as all layers of a decoder here read it, where it is not what another stage sent."""
    reads = any(a.memory for _, y in layers for a in y.attentions)
    return FLOAT * p.sources.tokens * hidden if reads and (p.degrees.pp == 1 or p.degrees.tp > 1) else 0.0


def _root_numbers(a: Architecture, d: Degrees, chunks: list[Chunk]) -> tuple[int, int, int]:
    """Numbers outside the layers on a process: gathered with padding, held, and of these what Muon works on."""
    gathered = held = matrices = 0
    place = dict.fromkeys(layout.AXES, 0)
    for name, shape in (w for chunk in chunks for w in outer_weights(a, *chunk)):
        here = layout.before_fsdp(name, shape, d, place)[1]
        whole = layout.padded(here, d.fsdp)
        gathered += whole
        held += whole // d.fsdp
        matrices += whole // d.fsdp if len(shape) > 1 and not layout.is_table(name) else 0
    return gathered, held, matrices


def workspace_bytes(layers: Layers, p: Place) -> float:
    """Bytes of Muon's step (`distributed/whole.py`): parts that travel, whole matrices of a shape that are here."""
    d = p.degrees
    ranks, most = d.fsdp * d.tp, 0.0
    kinds: dict[tuple[int, int], int] = {}
    for count, y in layers:
        for m in y.matrices:
            kinds[m.rows, m.columns] = kinds.get((m.rows, m.columns), 0) + count * m.copies
    for (rows, columns), n in kinds.items():
        mine, matrix = math.ceil(n / ranks), FLOAT * rows * columns
        squares = 3 * FLOAT * mine * min(rows, columns) ** 2
        # Parts of all, sent, received and answered; whole, stacked and in the iteration.
        held = 3 * matrix * n / ranks + 4 * matrix * mine if ranks > 1 else 3 * matrix * mine
        most = max(most, held + squares)
    return most


def memory_bytes(a: Architecture, parallel: ParallelConfig, train: TrainConfig, d: Degrees) -> list[dict[str, Any]]:
    """The parts and the peak of a process of every stage of the pipeline, in bytes. `states` is the sum of three."""
    p = place(parallel, train, d, learning.of(a, train))
    count = d.pp * layout.stages_of_a_process(parallel)
    rows = []
    for n, (layers, chunks) in enumerate(stages(a, d.pp, count)):
        found = of_stage(a, p, n, layers, chunks) if p.part is None else of_part(a, p, p.part, layers, chunks)
        states = found["weights"] + found["gradients"] + found["optimizer"]
        rows.append({"stage": n, "layers": sum(k for k, _ in layers), "states": states, **found})
    return rows


def peak_bytes(a: Architecture, parallel: ParallelConfig, train: TrainConfig, d: Degrees) -> float:
    """The largest peak of any stage. Early stages hold most micro-batches, the last one the logits."""
    p = place(parallel, train, d)
    every = list(stages(a, d.pp, d.pp * layout.stages_of_a_process(parallel)))
    deepest = max(range(len(every)), key=lambda n: sum(k for k, _ in every[n][0]))
    return max(of_stage(a, p, n, *every[n])["peak"] for n in {0, min(1, d.pp - 1), deepest, d.pp - 1})
