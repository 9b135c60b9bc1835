"""What a rank issues in an optimiser step, in kinds that are alike; and the rank itself, from which all is read.

The count of a collective is what `distributed/record.py` records: of an all-gather all that comes out, of a
reduce-scatter and of an all-to-all all that goes in, the tensor of an all-reduce, what a send or a receive moves. Wire
bytes are what a rank sends where the algorithm is a ring (Patarasuk and Yuan, 2009): 2 (n - 1) / n of an all-reduce,
(n - 1) / n of an all-gather, a reduce-scatter or an all-to-all, all of a send, none of a receive.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from foretell.config import ModelConfig, ParallelConfig, TrainConfig
from foretell.plan import layout, learning, rows
from foretell.plan.architecture import Architecture, Layer
from foretell.plan.layout import Degrees
from foretell.plan.learning import Learning, Part
from foretell.plan.rows import Row
from foretell.plan.weights import place_of

FLOAT, HALF, DOUBLE, LONG, BYTE = 4, 2, 8, 8, 1
_PASSES = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1, "all_to_all": 1}


@dataclass(frozen=True)
class Collective:
    """`calls` collectives of one kind and size that a rank issues in a step, among `ranks` along `axis`.

    purpose: what for. numbers: of one call, `item_bytes` each. every: steps from one to the next, where not each has
    them. routed: what tokens choose decides the size, and this is the one when all experts are chosen equally often; or
    the texts decide it, and this is what they take on average or at most. outside: not in the step itself but in the
    loop around it, so not in what a run records.
    """

    purpose: str
    kind: str
    axis: str
    ranks: int
    calls: int
    numbers: int
    item_bytes: int
    every: int = 1
    routed: bool = False
    outside: bool = False

    @property
    def bytes(self) -> int:
        """Of one call."""
        return self.numbers * self.item_bytes

    @property
    def step_bytes(self) -> float:
        """Of all calls of a step, or of the mean step."""
        return self.calls * self.bytes / self.every

    @property
    def wire_bytes(self) -> float:
        """What this rank sends by a ring in a step."""
        if self.kind in ("send", "recv"):
            return self.step_bytes if self.kind == "send" else 0.0
        return _PASSES[self.kind] * (self.ranks - 1) / self.ranks * self.step_bytes


class Chunk(NamedTuple):
    """One stage of the pipeline: which layers, and whether embedding and head are in it. All of it where pp is 1."""

    layers: range
    first: bool
    last: bool


class Group(NamedTuple):
    """Layers of a rank with the same weights: so many, one of them, what their names begin with.

    positions: tokens of a micro-batch that pass them, all of the tp axis together. chunks: stages that have some.
    """

    layers: int
    layer: Layer
    place: str
    positions: int
    chunks: int

    @property
    def parts(self) -> int:
        """Attentions and the feed-forward part of a layer."""
        return len(self.layer.attentions) + 1


@dataclass(frozen=True)
class Rank:
    """The first rank of place `pp_place` on the pipeline's axis: no other of that place holds more, or sends more.

    model, train and parallel must be resolved, and `layout.check` must have passed them; a describes the model.
    """

    model: ModelConfig
    train: TrainConfig
    parallel: ParallelConfig
    d: Degrees
    pp_place: int
    a: Architecture

    @cached_property
    def chunks(self) -> list[Chunk]:
        """Its stages."""
        pp = self.d.pp
        stages = pp * layout.stages_of_a_process(self.parallel)
        layers = layout.stage_layers(self.a.layers, stages)
        return [Chunk(layers[s], s == 0, s == stages - 1) for s in range(self.pp_place, stages, pp)]

    @cached_property
    def groups(self) -> list[Group]:
        """Its layers, stack by stack."""
        found, before = [], 0
        for stack in self.a.stacks:
            own = range(before, before + stack.depth)
            here = [sum(n in own for n in c.layers) for c in self.chunks]
            layer = stack.layers[0][1]
            positions = self.source_positions if layer.of_source else self.positions
            if any(here):
                found.append(Group(sum(here), layer, place_of(self.a, stack), positions, sum(map(bool, here))))
            before += stack.depth
        return found

    @cached_property
    def part(self) -> Part | None:
        """What learns, where not all does."""
        return learning.of(self.a, self.train)

    def backward(self, where: Callable[[Learning], bool]) -> int:
        """Of its layers, those of which this is so; all where all learns."""
        return self.layers if self.part is None else sum(where(own) for own in self.part.layers)

    @property
    def layers(self) -> int:
        """Layers it holds."""
        return sum(len(c.layers) for c in self.chunks)

    @property
    def has_embedding(self) -> bool:
        """Whether it looks tokens up."""
        return any(c.first for c in self.chunks)

    @property
    def has_head(self) -> bool:
        """Whether it forms the loss."""
        return any(c.last for c in self.chunks)

    @property
    def sequences(self) -> int:
        """Sequences of a micro-batch, B."""
        return self.train.needed("micro_batch_size")

    @property
    def micro_batches(self) -> int:
        """Micro-batches of a step."""
        sequences = self.train.needed("global_batch_tokens") // self.train.context
        return sequences // self.d.dp // self.sequences

    @cached_property
    def row(self) -> Row:
        """How long its rows are, and how much of them is asked for."""
        return rows.row(self.train.objective, self.train.context)

    @property
    def positions(self) -> int:
        """Tokens of a micro-batch whose positions are this rank's, all of the tp axis together: B T / cp."""
        return self.sequences * (self.row.target if self.has_source else self.train.context) // self.d.cp

    @property
    def has_source(self) -> bool:
        """Whether it is of an encoder-decoder."""
        return len(self.a.stacks) > 1

    @property
    def source_positions(self) -> int:
        """Of an encoder-decoder the tokens of the sources of a micro-batch: B S."""
        return self.sequences * (self.row.source or self.train.context)

    @property
    def handed(self) -> tuple[int, ...]:
        """Positions of the rows of hidden states that stages hand each other."""
        return (self.source_positions, self.positions) if self.has_source else (self.positions,)

    @property
    def drawn(self) -> bool:
        """Whether texts decide how long its rows are: not in a pipeline, whose micro-batches are all as long."""
        return self.row.drawn and self.d.pp == 1

    @property
    def item(self) -> int:
        """Bytes of a number in products."""
        return HALF if self.train.dtype == "bfloat16" else FLOAT

    def forward_runs(self, inside: str = "") -> int:
        """How often its layers run forward in a micro-batch, all added up; with `inside` "mlp.", that part of them."""
        return self.layers * self.runs(inside)

    def runs(self, inside: str = "") -> int:
        """How often a layer runs forward in a micro-batch; with `inside` "mlp.", that part of it."""
        kept = self.parallel.recompute == "none" or (self.parallel.recompute == "selective" and inside != "mlp.")
        return 1 if kept else 2

    @property
    def place(self) -> dict[str, int]:
        """On each axis of the mesh."""
        return {axis: self.pp_place if axis == "pp" else 0 for axis in layout.AXES}
