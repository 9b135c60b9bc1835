"""Name and shape of every weight, under the names of the model itself: what is divided, sent and held is read off here.

Read from an architecture (`architecture.py`): matrices as they are stored, experts in stacks, biases and norms too. A
test compares names, shapes and order with every model that is built (`models/families.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from foretell.plan.architecture import Architecture, Layer, Matrix, Stack

Weight = tuple[str, tuple[int, ...]]


def layer_weights(layer: Layer) -> list[Weight]:
    """(name inside the layer, shape) of each parameter of one layer, in the order in which the model has them."""
    found = [w for m in layer.matrices for w in _of_matrix(m)]
    found += [(name, (size,)) for name, size in layer.vectors]
    parts = list(dict.fromkeys(_part(name) for name, _ in found))
    # A module's own parameters come before those of the modules in it.
    return sorted(found, key=lambda w: (parts.index(_part(w[0])), w[0].count(".") > 1))


def _part(name: str) -> str:
    return name.partition(".")[0]


def _of_matrix(m: Matrix) -> Iterator[Weight]:
    if m.is_stack:
        yield m.name, (m.copies, m.rows, m.columns)
        return
    yield f"{m.name}.weight", (m.rows, m.columns)
    if m.bias:
        yield f"{m.name}.bias", (m.rows,)


def stage_weights(a: Architecture, layers: range, first: bool = True, last: bool = True) -> Iterator[Weight]:
    """(name, shape) of each parameter of one stage of a pipeline, which may be the first or the last; or of all.

    layers: those of the stage, an encoder's before a decoder's. A tied table stands once where one stage has both ends,
    and on both stages otherwise, on the last as `lm_head`.
    """
    return _weights(a, layers, first, last, within=True)


def _weights(a: Architecture, layers: range, first: bool, last: bool, within: bool) -> Iterator[Weight]:
    if first:
        yield from ((f"model.{name}.weight", (rows, width)) for name, rows, width in a.tables)
        yield from ((f"model.{name}", (size,)) for name, size in a.vectors if name.startswith("embed_"))
    before = 0
    for stack in a.stacks:
        here = range(max(0, layers.start - before), min(stack.depth, layers.stop - before))
        before += stack.depth
        place = place_of(a, stack)
        if within:
            kinds = [(n, layer_weights(layer)) for n, layer in stack.layers]
            of_layer = [kind for n, kind in kinds for _ in range(n)]
            yield from ((f"{place}layers.{n}.{name}", shape) for n in here for name, shape in of_layer[n])
        for name, size in stack.vectors:
            heads = stack.layers[0][1].attentions[0].heads
            if name == "relative_bias.weight" and here:
                yield f"{place}{name}", (size // heads, heads)
            elif name != "relative_bias.weight" and stack.depth - 1 in here:
                yield f"{place}{name}", (size,)
    if last:
        yield from (w for m in a.head[:-1] for w in _of_matrix(m))
        yield from ((name, (size,)) for name, size in a.vectors if not name.startswith("embed_"))
        tied = a.tied and first
        yield from (w for w in _of_matrix(a.head[-1]) if not (tied and w[0] == "lm_head.weight"))


def place_of(a: Architecture, stack: Stack) -> str:
    """Where the layers of a stack stand in the model."""
    if len(a.stacks) == 1:
        return "model."
    return "model.encoder." if stack.encoder else "model.decoder."


def outer_weights(a: Architecture, layers: range, first: bool = True, last: bool = True) -> list[Weight]:
    """Those of `stage_weights` that are in no layer."""
    return list(_weights(a, layers, first, last, within=False))
