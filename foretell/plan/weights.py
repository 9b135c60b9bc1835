"""Name and shape of every weight, under the names of the model itself: what is divided, sent and held is read off here.

Read from an architecture (`architecture.py`): matrices as they are stored, experts in stacks, biases and norms too. A
test compares names, shapes and order with every model that is built (`models/families.py`).
"""

from __future__ import annotations

from collections.abc import Iterator

from foretell.plan.architecture import Architecture, Layer, Matrix

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


def embedding_weights(a: Architecture) -> list[Weight]:
    """(name, shape) of the tables in which tokens and positions are looked up, and of a norm of their sum."""
    tables: list[Weight] = [(f"model.{name}.weight", (rows, width)) for name, rows, width in a.tables]
    return tables + [(f"model.{name}", (size,)) for name, size in a.vectors if name.startswith("embed")]


def head_weights(a: Architecture, first: bool = True) -> list[Weight]:
    """(name, shape) of what stands behind the layers. first: the embedding is there too, and is the head where tied."""
    found: list[Weight] = [(f"model.{name}", (size,)) for s in a.stacks for name, size in s.vectors]
    for n, m in enumerate(a.head):
        if n == len(a.head) - 1:
            found += [(name, (size,)) for name, size in a.vectors if not name.startswith("embed")]
        tied = a.tied and first and n == len(a.head) - 1
        found += [w for w in _of_matrix(m) if not tied or w[0].endswith(".bias")]
    return found


def outer_weights(a: Architecture, first: bool = True, last: bool = True) -> list[Weight]:
    """(name, shape) of what is outside the layers; of one stage of a pipeline, which may be the first or the last.

    A tied table stands once where one stage has both ends, and on both stages otherwise, on the last as `lm_head`.
    """
    return [*(embedding_weights(a) if first else ()), *(head_weights(a, first) if last else ())]
