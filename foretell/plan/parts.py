"""Seconds of the parts of a training step, from what a full calibration measured (`calibrate/parts.py`).

Each part has terms: operations, bytes, calls. Their unit is the time that three references of fixed size took beside
the measurement (`Speed`), so that a part measured while the machine was slow in one way says what it takes while it is
slow in another. The terms' coefficients and what they miss are fitted to the record (`plan/fitted.py`).

A layer is its attention and the rest, and one term of the rest is the layer's products, which are fitted alone. So a
layer of other proportions than those measured is put together from products that were. A step is the sum of its parts
with a coefficient fitted to whole steps.

Not handled: other devices than CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from statistics import median
from typing import Any, NamedTuple

from foretell.config import Sizes
from foretell.plan import activations, flops
from foretell.plan.fitted import Fitted, fit

# The references: a product of (side, side) by (side, side), and the products element by element of so many numbers of
# float32, a few (twice what torch gives one thread) and many (three arrays of them are more than a cache).
PRODUCT_SIDE, OPERATOR_NUMBERS, STREAM_NUMBERS = 768, 1 << 16, 1 << 22
# An operator on arrays of this many bytes finds half of them in a cache: about the size of a processor's last one. Of
# 4, 8, 16 and 32 MB this explained the calibrations of machine C best (docs/log.md).
CACHED_BYTES = 3.2e7
# The three products of a linear layer: forward, and the gradients of its input and of its weight.
KINDS = ("forward", "input", "weight")
# What the terms of a part miss, as a standard deviation of the logarithm. Attention's kernels have tiles of some sizes.
MISSED, MISSED_OF_ATTENTION, MISSED_OF_STEPS = 0.12, 0.3, 0.05
ITEM = {"float32": 4, "bfloat16": 2}

Facts = dict[str, Any]
Heads = tuple[int, int, int]
_Key = tuple[str, ...]
_Fits = dict[_Key, Fitted]


@dataclass(frozen=True)
class Speed:
    """How fast a machine is: seconds of the three references."""

    product_seconds: float
    operator_seconds: float
    stream_seconds: float

    def arithmetic(self, operations: float) -> float:
        """Seconds of so many operations at the rate of the reference product."""
        return operations * self.product_seconds / (2 * PRODUCT_SIDE**3)

    def calls(self, number: float) -> float:
        """Seconds of so many small operators."""
        return number * self.operator_seconds

    def traffic(self, total: float, array: float) -> float:
        """Seconds to move `total` bytes by operators on arrays of `array` bytes."""
        streamed = array / (array + CACHED_BYTES)
        near = self.operator_seconds / (12 * OPERATOR_NUMBERS)
        return total * ((1 - streamed) * near + streamed * self.stream_seconds / (12 * STREAM_NUMBERS))


class Step(NamedTuple):
    """An optimiser step on one execution path: all that its time depends on. kernel: attention's."""

    sizes: Sizes
    context: int
    sequences: int  # of a micro-batch
    micro_batches: int
    dtype: str
    kernel: str
    optimizer: str
    chunk: int | None = None  # tokens at a time in the loss
    dropout: bool = False
    experts: tuple[int, int, int] | None = None  # how many, of one token, and their width

    @property
    def tokens(self) -> int:
        """Of a micro-batch."""
        return self.sequences * self.context


class Cost(NamedTuple):
    """What a fit needs of one shape: terms, log2 of sizes, and seconds that are known already."""

    terms: list[float]
    place: list[float]
    known: float = 0.0


class _Row(NamedTuple):
    facts: Facts
    seconds: float
    speed: Speed


def product_cost(dtype: str, kind: str, tokens: int, width: int, out: int, speed: Speed) -> Cost:
    """One product of a linear layer from `width` to `out`."""
    m, n, k = {"forward": (tokens, out, width), "input": (tokens, width, out), "weight": (out, width, tokens)}[kind]
    operands, result = ITEM[dtype] * (m * k + k * n), ITEM[dtype] * m * n
    terms = [speed.arithmetic(2 * m * n * k), speed.traffic(operands, 0), speed.traffic(result, 0), speed.calls(1)]
    return Cost(terms, [math.log2(tokens), math.log2(width), math.log2(out)])


def attention_cost(kernel: str, tokens: int, context: int, heads: Heads, threads: int, speed: Speed) -> Cost:
    """Attention, forward and backward, over `tokens` in sequences; heads: query heads, KV heads, head width.

    The batched products of one kernel are shared out whole: three on two threads take as long as four.
    """
    H, K, E = heads
    groups = tokens // context * K
    uneven = -(-groups // threads) * threads / groups - 1
    blocks = list(activations.attention_blocks(context)) if kernel == "products" else []
    area = sum((b - a) * b for a, b in blocks) if blocks else context * (context + 1) / 2
    scores = tokens / context * H * area
    terms = [
        speed.arithmetic(12 * scores * E),
        speed.arithmetic(12 * scores * E) * (uneven if blocks else 0),
        speed.traffic(4 * scores, 4 * scores / len(blocks) if blocks else 0),
        speed.traffic(4 * tokens * (H + K) * E, 4 * tokens * H * E if blocks else 0),
        speed.calls(len(blocks) or 1),
    ]
    return Cost(terms, [math.log2(context), math.log2(E), math.log2(tokens * H) / 2])


def elementwise_bytes(sizes: Sizes) -> int:
    """Bytes per token that the operators of one layer beside products and attention read and write, in float32.

    Counted on the built layer, as a test does again: norms, residuals, rotary positions, SwiGLU, and their gradients.
    """
    D, _, H, K, E, F, _ = sizes
    return 4 * (83 * D + 51 * (H + K) * E + 14 * F)


class Parts:
    """The fitted parts of one record, given its `parts` and threads."""

    def __init__(self, entries: Sequence[Facts], threads: int) -> None:
        self.threads = threads
        names = [f.name for f in fields(Speed)]
        self._muon: _Fits = {}
        self._known_layers: dict[tuple[Any, ...], float] = {}
        rows = [
            _Row(entry, seconds, Speed(*speed))
            for entry in entries
            for seconds, *speed in zip(entry["seconds"], *(entry[k] for k in names), strict=True)
        ]
        self.speed = Speed(*(median(getattr(r.speed, k) for r in rows) for k in names))
        # In this order: products and attention are known to layers and heads, AdamW to Muon, all to steps. Where a part
        # is not there, neither are those that rest on it (`can`).
        self._products = _fits(rows, "product", ("dtype", "kind"), _product)
        self._attention = _fits(rows, "attention", ("dtype", "kernel"), self._attention_of, MISSED_OF_ATTENTION)
        whole = {d for d in ITEM if all((d, k) in self._products for k in KINDS)}
        rows = [r for r in rows if r.facts["dtype"] in whole]
        attended = [r for r in rows if (r.facts["dtype"], r.facts.get("kernel")) in self._attention]
        self._layers = _fits(attended, "layer", ("dtype",), self._layer)
        self._heads = _fits(rows, "head", ("dtype",), self._head)
        self._dropout = _fits(rows, "dropout", (), lambda f, s: _dropout_cost(f["numbers"], s))
        self._updates = _fits(rows, "update", ("optimizer",), lambda f, s: _update_cost(_sizes(f), s))
        if ("adamw",) in self._updates:
            self._muon = _fits(rows, "muon", ("dtype",), lambda f, s: self._muon_cost(_sizes(f), s))
        whole_steps = [r for r in attended if r.facts["part"] == "step" and self._has_parts(_step(r.facts))]
        self._steps = _fits(whole_steps, "step", ("dtype",), lambda f, s: self._step_cost(_step(f), s), MISSED_OF_STEPS)

    def product(self, dtype: str, tokens: int, width: int, out: int, speed: Speed) -> float:
        """The three products of one linear layer."""
        costs = {k: product_cost(dtype, k, tokens, width, out, speed) for k in KINDS}
        return sum(_seconds(self._products[dtype, k], c) for k, c in costs.items())

    def attention(self, dtype: str, kernel: str, tokens: int, context: int, heads: Heads, speed: Speed) -> float:
        """Attention of one layer, forward and backward."""
        cost = attention_cost(kernel, tokens, context, heads, self.threads, speed)
        return _seconds(self._attention[dtype, kernel], cost)

    def layer(self, dtype: str, kernel: str, tokens: int, context: int, sizes: Sizes, speed: Speed) -> float:
        """One dense layer, forward and backward."""
        alike = sizes._replace(L=1, V=1)
        key = (dtype, kernel, tokens, context, alike, speed)
        if key not in self._known_layers:  # a search for a size asks for each layer at many depths
            cost = self._layer_cost(dtype, kernel, tokens, context, alike, speed)
            self._known_layers[key] = _seconds(self._layers[dtype,], cost)
        return self._known_layers[key]

    def head(self, dtype: str, tokens: int, width: int, vocabulary: int, chunk: int | None, speed: Speed) -> float:
        """Embedding, last norm, head and loss, forward and backward."""
        return _seconds(self._heads[dtype,], self._head_cost(dtype, tokens, width, vocabulary, chunk, speed))

    def dropout(self, numbers: int, speed: Speed) -> float:
        """Dropout of so many numbers, forward and backward."""
        return _seconds(self._dropout[()], _dropout_cost(numbers, speed))

    def optimizer(self, name: str, dtype: str, sizes: Sizes, speed: Speed) -> float:
        """Clipping and the update of all parameters."""
        if name == "muon":
            return _seconds(self._muon[dtype,], self._muon_cost(sizes, speed))
        return _seconds(self._updates[name,], _update_cost(sizes, speed))

    def step(self, step: Step, speed: Speed, eager_share: float = 1.0) -> float:
        """A whole step. eager_share: what remains of what layers and head take beside products and attention."""
        seconds = _seconds(self._steps[step.dtype,], self._step_cost(step, speed))
        return seconds if eager_share == 1.0 else seconds - (1 - eager_share) * self._elementwise(step, speed)

    def of_step(self, step: Step, speed: Speed) -> dict[str, float]:
        """Seconds of all parts of a step by name, alone: `step` takes what their sum misses into account too."""
        n, sizes, dtype, micro = step.tokens, step.sizes, step.dtype, step.micro_batches
        layer = self._moe_layer if step.experts else self._dense_layer
        numbers = sizes.L * sum(r * c for r, c in _matrices(sizes)) + sizes.V * sizes.D
        dropouts = (2 * sizes.L + 1) * self.dropout(n * sizes.D, speed) if step.dropout else 0.0
        return {
            "layers": micro * sizes.L * layer(step, speed),
            "head": micro * self.head(dtype, n, sizes.D, sizes.V, step.chunk, speed),
            "dropout": micro * dropouts,
            # From the second micro-batch on, gradients are added to those that are there.
            "accumulation": (micro - 1) * speed.traffic(12 * numbers, 4 * numbers),
            "optimizer": self.optimizer(step.optimizer, dtype, sizes, speed),
        }

    def can(self, step: Step) -> bool:
        """Whether the record has all parts of such a step, and such steps."""
        return (step.dtype,) in self._steps and self._has_parts(step)

    def _has_parts(self, step: Step) -> bool:
        d, updates = (step.dtype,), self._muon if step.optimizer == "muon" else self._updates
        updated = d if step.optimizer == "muon" else (step.optimizer,)
        dropped = bool(self._dropout) or not step.dropout
        attended = (step.dtype, step.kernel) in self._attention
        return dropped and attended and updated in updates and d in self._layers and d in self._heads

    def left_out(self) -> dict[_Key, list[float]]:
        """Errors log(measured / forecast) of all timings, each forecast from the others of its part."""
        parts = {"product": self._products, "attention": self._attention, "layer": self._layers, "head": self._heads}
        parts |= {"dropout": self._dropout, "update": self._updates, "muon": self._muon, "step": self._steps}
        return {(part, *key): list(f.left_out) for part, fits in parts.items() for key, f in fits.items()}

    def _elementwise(self, step: Step, speed: Speed) -> float:
        """What layers and head of a step take beside products and attention."""
        n, (D, L, H, K, E, _, V) = step.tokens, step.sizes
        parts = self.of_step(step, speed)
        attention = self.attention(step.dtype, step.kernel, n, step.context, (H, K, E), speed)
        shapes = [(D, V), *(s for s in _matrices(step.sizes) for _ in range(L))]
        products = sum(self.product(step.dtype, n, i, o, speed) for i, o in shapes)
        return max(0.0, parts["layers"] + parts["head"] - step.micro_batches * (products + L * attention))

    def _step_cost(self, step: Step, speed: Speed) -> Cost:
        return Cost([sum(self.of_step(step, speed).values())], [math.log2(step.tokens), math.log2(step.sizes.D)])

    def _dense_layer(self, step: Step, speed: Speed) -> float:
        return self.layer(step.dtype, step.kernel, step.tokens, step.context, step.sizes, speed)

    def _moe_layer(self, step: Step, speed: Speed) -> float:
        """A layer of experts: a dense one with the feed-forward part of one expert of so many tokens, and the rest."""
        experts, chosen, width = step.experts or (1, 1, step.sizes.F)
        D, n = step.sizes.D, step.tokens
        dense = self.layer(step.dtype, step.kernel, n, step.context, step.sizes._replace(F=width), speed)
        rows = max(1, n * chosen // experts)
        one = 2 * self.product(step.dtype, rows, D, width, speed) + self.product(step.dtype, rows, width, D, speed)
        part = 2 * self.product(step.dtype, n, D, width, speed) + self.product(step.dtype, n, width, D, speed)
        # Copies of tokens there and back, forward and backward; SwiGLU of all of them but one; the router.
        copies = 4 * chosen * n * (10 * D + 14 * width) - 4 * n * 14 * width
        moved = speed.traffic(copies, 4 * chosen * n * D) + speed.traffic(12 * experts * D * width, 4 * D * width)
        router = self.product(step.dtype, n, D, experts, speed) + speed.calls(60 + 9 * experts)
        return dense - part + experts * one + moved + router

    def _attention_of(self, f: Facts, speed: Speed) -> Cost:
        heads = (f["H"], f["K"], f["E"])
        return attention_cost(f["kernel"], f["tokens"], f["context"], heads, self.threads, speed)

    def _layer(self, f: Facts, speed: Speed) -> Cost:
        return self._layer_cost(f["dtype"], f["kernel"], f["tokens"], f["context"], _sizes(f), speed)

    def _layer_cost(self, dtype: str, kernel: str, tokens: int, context: int, sizes: Sizes, speed: Speed) -> Cost:
        D, _, H, K, E, F, _ = sizes
        widths = ((D, H * E), (D, K * E), (D, K * E), (H * E, D), (D, F), (D, F), (F, D))
        terms = [
            sum(self.product(dtype, tokens, i, o, speed) for i, o in widths),
            speed.traffic(tokens * elementwise_bytes(sizes), 4 * tokens * D),
            speed.calls(100),
        ]
        known = self.attention(dtype, kernel, tokens, context, (H, K, E), speed)
        return Cost(terms, [math.log2(tokens), math.log2(D)], known)

    def _head(self, f: Facts, speed: Speed) -> Cost:
        return self._head_cost(f["dtype"], f["tokens"], f["D"], f["V"], f["chunk"], speed)

    def _head_cost(self, dtype: str, tokens: int, D: int, V: int, chunk: int | None, speed: Speed) -> Cost:
        chunked = chunk is not None and chunk < tokens
        piece = chunk if chunk is not None and chunked else tokens
        logits = speed.traffic(4 * tokens * V, 4 * piece * V)
        terms = [
            tokens / piece * self.product(dtype, piece, D, V, speed),
            0.0 if chunked else logits,
            logits if chunked else 0.0,
            speed.traffic(4 * V * D * (tokens / piece if chunked else 1), 4 * V * D),
            speed.traffic(4 * tokens * D, 4 * tokens * D),
            speed.calls(10 * (tokens / piece + 1)),
        ]
        return Cost(terms, [math.log2(tokens), math.log2(D), math.log2(V), 3.0 * chunked])

    def _muon_cost(self, sizes: Sizes, speed: Speed) -> Cost:
        tables = _update_cost(sizes._replace(L=0), speed)
        matrices, L = _matrices(sizes), sizes.L
        operations = L * sum(flops.newton_schulz_flops(*shape) for shape in matrices)
        numbers = L * sum(r * c for r, c in matrices)
        terms = [
            speed.arithmetic(operations),
            speed.traffic(4 * numbers, numbers),
            speed.calls(20 * len(set(matrices))),
        ]
        return Cost(terms, [math.log2(sizes.D)], _seconds(self._updates["adamw",], tables))


def _step(f: Facts) -> Step:
    sequences = f["tokens"] // f["context"]
    return Step(_sizes(f), f["context"], sequences, 1, f["dtype"], f["kernel"], f["optimizer"])


def _product(f: Facts, speed: Speed) -> Cost:
    return product_cost(f["dtype"], f["kind"], f["tokens"], f["in"], f["out"], speed)


def _dropout_cost(numbers: int, speed: Speed) -> Cost:
    return Cost([speed.traffic(4 * numbers, 4 * numbers), speed.calls(10)], [math.log2(numbers)])


def _update_cost(sizes: Sizes, speed: Speed) -> Cost:
    """Clipping and an update that reads and writes each number a few times."""
    numbers = sizes.L * sum(r * c for r, c in _matrices(sizes)) + sizes.V * sizes.D
    return Cost([speed.traffic(4 * numbers, 4 * numbers), speed.calls(11 * sizes.L + 2)], [math.log2(numbers)])


def _fits(
    rows: Iterable[_Row], part: str, keys: _Key, cost: Callable[[Facts, Speed], Cost], missed: float = MISSED
) -> _Fits:
    """One fit of a part for each combination of values that `keys` have in its rows."""
    groups: dict[_Key, list[_Row]] = {}
    for row in rows:
        if row.facts["part"] == part:
            groups.setdefault(tuple(row.facts[k] for k in keys), []).append(row)
    return {key: _fit(group, cost, missed) for key, group in groups.items()}


def _fit(rows: list[_Row], cost: Callable[[Facts, Speed], Cost], missed: float) -> Fitted:
    costs = [cost(r.facts, r.speed) for r in rows]
    seconds = [r.seconds / r.facts.get("times", 1) for r in rows]
    # What is known already may be more than all where the rest is little.
    left = [max(s - c.known, 0.1 * s) for s, c in zip(seconds, costs, strict=True)]
    return fit([c.terms for c in costs], [c.place for c in costs], left, missed)


def _seconds(fitted: Fitted, cost: Cost) -> float:
    return cost.known + fitted.seconds(cost.terms, cost.place)


def _sizes(facts: Facts) -> Sizes:
    return Sizes(*(facts.get(k) or 1 for k in Sizes._fields))


def _matrices(sizes: Sizes) -> list[tuple[int, int]]:
    D, _, H, K, E, F, _ = sizes
    return [(H * E, D), (K * E, D), (K * E, D), (D, H * E), (F, D), (F, D), (D, F)]
