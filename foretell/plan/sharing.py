"""What ranks that hold one model together, or copies of it, send in a step beside the passes through its layers.

Weights and gradients of FSDP2's units (Zhao et al., 2023), sums over copies (`distributed/replicate.py`), Muon's
exchanges (`distributed/whole.py`), DiLoCo's meetings, norm and loss. FSDP2 pads dim 0 of every weight to a multiple of
the ranks: with 2,048 of them a matrix of 6,656 rows travels as 8,192.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from foretell.plan import layout
from foretell.plan.collective import BYTE, DOUBLE, FLOAT, HALF, LONG, Collective, Rank
from foretell.plan.rows import PARTLY
from foretell.plan.weights import Weight, layer_weights, outer_weights, stage_weights


def _shape_here(r: Rank, weight: Weight) -> tuple[int, ...]:
    """What tensor and expert parallelism leave of a weight, which FSDP2 divides."""
    return layout.before_fsdp(*weight, r.d, r.place)[1]


def _held(r: Rank, weight: Weight) -> int:
    """Numbers of a weight that this rank holds in the end."""
    return math.prod(layout.box(*weight, r.d, r.place)[1])


class Unit(NamedTuple):
    """FSDP2 units that are alike: numbers gathered, and of gradients summed. backward: whether they run backward."""

    name: str
    alike: int
    gathered: int
    summed: int
    item: int
    axis: str
    ranks: int
    backward: bool = True


def units(r: Rank) -> Iterator[Unit]:
    """FSDP2's units."""
    n, before = r.d.fsdp, 0

    def numbers(weights: list[Weight], ranks: int) -> int:
        return sum(layout.padded(_shape_here(r, w), ranks) for w in weights)

    for g in r.groups:
        layer = [(f"{g.place}layers.0.{name}", shape) for name, shape in layer_weights(g.layer)]
        apart = [w for w in layer if r.d.experts_apart and ".mlp.experts." in w[0]]
        whole = numbers([w for w in layer if w not in apart], n)
        if r.part is None:
            yield Unit("layer", g.layers, whole, whole, r.item, "fsdp", n)
        else:
            for own, times in Counter(r.part.layers[before : before + g.layers]).items():
                learned = [(f"{g.place}layers.0.{name}", shape) for name, shape in own.weights]
                more = numbers([w for w in learned if w not in layer], n)
                summed = numbers([w for w in learned if w not in apart], n)
                yield Unit("layer", times, whole + more, summed, r.item, "fsdp", n, own.hands_on)
        before += g.layers
        if apart:  # frozen experts are counted as if they learned
            every = numbers(apart, r.d.expert_fsdp)
            yield Unit("experts", g.layers, every, every, r.item, "expert_fsdp", r.d.expert_fsdp)
    for chunk in r.chunks:
        outer = outer_weights(r.a, *chunk)
        if outer:
            learned = outer if r.part is None else list(r.part.outer)
            yield Unit("root", 1, numbers(outer, n), numbers(learned, n), FLOAT, "fsdp", n)


def weights_and_gradients(r: Rank, evaluated: bool) -> Iterator[Collective]:
    """Gathers of weights and sums of gradients, unit by unit.

    Without a pipeline a layer is given back after its forward pass and gathered again for its backward pass, in every
    micro-batch; what is outside the layers is gathered once a micro-batch. A pipeline keeps what it has gathered
    through the step. A validation before the step leaves gathered what is not given back after a forward pass.
    """
    for u in units(r):
        if u.ranks > 1:
            if r.d.pp > 1:
                gathers = u.alike * (0 if evaluated else 1)
            elif u.name == "root":
                gathers = r.micro_batches - evaluated
            else:  # the highest of layers without a backward pass is fetched ahead of it all the same
                gathers = (2 * u.alike if u.backward else u.alike + 1) * r.micro_batches
            yield Collective("weights", "all_gather", u.axis, u.ranks, gathers, u.gathered, u.item)
            sums = u.alike if u.summed else 0
            yield Collective("gradients", "reduce_scatter", u.axis, u.ranks, sums, u.summed, FLOAT)
        if r.parallel.local_steps == 1:
            yield from over_copies(r, u.summed // u.ranks, u.alike)


def over_copies(
    r: Rank, numbers: int, calls: int = 1, purpose: str = "gradients between copies", every: int = 1
) -> Iterator[Collective]:
    """The sum of so many float32 numbers over the copies of the model, `calls` times."""
    n = r.d.dp_replicate
    if n == 1 or numbers == 0:
        return
    part, item = -(-numbers // n), FLOAT
    if r.parallel.strict:
        pass
    elif r.parallel.reduce == "float32":
        yield Collective(purpose, "all_reduce", "dp_replicate", n, calls, numbers, FLOAT, every)
        return
    elif r.parallel.reduce == "bfloat16":
        item = HALF
    else:
        blocks = -(-numbers // (n * layout.BLOCK))
        part, item = blocks * (layout.BLOCK + FLOAT), BYTE
    for kind in ("all_to_all", "all_gather"):
        yield Collective(purpose, kind, "dp_replicate", n, calls, n * part, item, every)


def whole_matrices(r: Rank) -> Iterator[Collective]:
    """Muon: parts of all matrices of a shape go to their owners, and parts of the results come back."""
    if r.train.optimizer != "muon":
        return
    ranks = r.d.fsdp * r.d.tp
    shapes = defaultdict[tuple[int, ...], list[Weight]](list)
    for weight in _all_weights(r):
        if len(weight[1]) >= 2 and not layout.is_table(weight[0]):
            shapes[weight[1]].append(weight)
    for members in shapes.values():
        mine = sum(_held(r, w) for w in members)
        # What is whole on every rank of tp goes back to each of them.
        owned = sum(math.prod(w[1]) * (r.d.tp if layout.split(w[0]).tp is None else 1) for w in members[::ranks])
        for numbers in (mine, owned):
            yield Collective("Muon's matrices", "all_to_all", "copy", ranks, 1, numbers, FLOAT)


def partial_gradients(r: Rank) -> Iterator[Collective]:
    """Gradients of weights that are whole on every rank of tp: one sum of all of them."""
    if r.d.tp == 1:
        return
    numbers = sum(_held(r, w) for w in _all_weights(r) if layout.split(w[0]).summed)
    yield Collective("gradients of whole weights", "all_reduce", "tp", r.d.tp, 1, numbers, FLOAT)


def _all_weights(r: Rank) -> list[Weight]:
    """Of all its stages, in the model's order; where not all learns, what does."""
    if r.part is not None:
        return list(_learned(r))
    return [w for chunk in r.chunks for w in stage_weights(r.a, *chunk)]


def _learned(r: Rank) -> Iterator[Weight]:
    """Of those that learn, where not all do."""
    assert r.part is not None
    tables = [w for w in r.part.outer if ".embed_" in w[0]]
    yield from tables
    before = 0
    for g in r.groups:
        for n, own in enumerate(r.part.layers[before : before + g.layers]):
            yield from ((f"{g.place}layers.{n}.{name}", shape) for name, shape in own.weights)
        before += g.layers
    yield from (w for w in r.part.outer if w not in tables)


def common_weights(r: Rank) -> Iterator[Collective]:
    """What several stages have: the two ends of a tied table exchange its gradient, all add those of T5's biases."""
    if r.d.pp == 1:
        return
    if r.model.tie_word_embeddings and r.pp_place in (0, r.d.pp - 1):
        numbers = _held(r, ("lm_head.weight", (r.model.sizes.V, r.model.sizes.D)))
        for kind in ("send", "recv"):
            yield Collective("gradient of the tied table", kind, "pp", 2, 1, numbers, FLOAT)
    biases = layout.biases(r.model)
    if biases:
        numbers = sum(_held(r, w) for w in biases)
        yield Collective("gradients of biases by distance", "all_reduce", "pp", r.d.pp, 1, numbers, FLOAT)


def totals(r: Rank) -> Iterator[Collective]:
    """Loss and norm of the step, what the loop asks around it, and in a strict run the loss in its fixed order."""
    world, alone = r.d.world_size, r.parallel.local_steps > 1
    if r.parallel.strict and r.d.dp_replicate > 1:
        n = r.d.dp_replicate
        for kind in ("all_to_all", "all_gather"):
            yield Collective("loss", kind, "dp_replicate", n, 1, n, DOUBLE)
    if alone:
        one = world // r.d.dp_replicate
        yield Collective("loss and norm", "all_reduce", "one_copy", one, 1, 2, DOUBLE)
        yield Collective("largest norm", "all_reduce", "world", world, 1, 1, DOUBLE)
    yield Collective("loss and norm", "all_reduce", "world", world, 1, 2, DOUBLE)
    if r.train.objective in PARTLY:
        yield Collective("targets that count", "all_reduce", "tokens", r.d.dp * r.d.cp, 1, 1, LONG)
    if r.train.objective == "dpo":
        yield Collective("margins", "all_reduce", "tokens", r.d.dp * r.d.cp, 1, 3, DOUBLE)
    yield Collective("wish to stop", "all_reduce", "world", world, 1, 1, LONG, outside=True)


def meetings(r: Rank) -> Iterator[Collective]:
    """DiLoCo's outer step, once in `local_steps`: how far each copy moved, in buckets of whole parameters."""
    if r.parallel.local_steps == 1:
        return
    size, begun = 0, False
    for weight in _all_weights(r):
        held = _held(r, weight)
        if begun and size + held > layout.BUCKET:
            yield from over_copies(r, size, purpose="outer step", every=r.parallel.local_steps)
            size = 0
        size, begun = size + held, True
    yield from over_copies(r, size, purpose="outer step", every=r.parallel.local_steps)
