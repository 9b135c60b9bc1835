"""Seconds of the parts of a training step, from what a full calibration measured (`calibrate/parts.py`).

Each part has terms: operations, bytes, calls. Their unit is the time that three references of fixed size took beside
the measurement (`Speed`), so that a part measured while the machine was slow in one way says what it takes while it is
slow in another. The terms' coefficients and what they miss are fitted to the record (`plan/fitted.py`).

A layer is its attention and the rest, and one term of the rest is the layer's products, which are fitted alone. So a
layer of other proportions than those measured, or of another family, is put together from products that were. A step is
the sum of its parts with a coefficient fitted to whole steps.

Not handled: other devices than CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import median
from typing import Any, NamedTuple

from foretell.plan import activations, elementwise, flops, models
from foretell.plan.architecture import Architecture, Layer, Matrix
from foretell.plan.fitted import Fitted, fit
from foretell.plan.weights import layer_weights

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
    """An optimiser step on one execution path: all that its time depends on. kernel: attention's.

    a: the model; of a mixture of experts the dense one of its sizes, to which `experts` is added.
    """

    a: Architecture
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

    @property
    def asked(self) -> int:
        """Places of a micro-batch at which the head works."""
        return self.a.asked(self.sequences, self.tokens)


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


def attention_cost(
    kernel: str, tokens: int, context: int, heads: Heads, threads: int, speed: Speed, masked: bool = False
) -> Cost:
    """Attention, forward and backward, over `tokens` in sequences; heads: query heads, KV heads, head width.

    The batched products of one kernel are shared out whole: three on two threads take as long as four. masked: a window
    hides some keys; torch's kernel then meets all of them.
    """
    H, K, E = heads
    groups = tokens // context * K
    uneven = -(-groups // threads) * threads / groups - 1
    blocks = list(activations.attention_blocks(context)) if kernel == "products" else []
    area = sum((b - a) * b for a, b in blocks) if blocks else context * (context if masked else (context + 1) / 2)
    scores = tokens / context * H * area
    terms = [
        speed.arithmetic(12 * scores * E),
        speed.arithmetic(12 * scores * E) * (uneven if blocks else 0),
        speed.traffic(4 * scores, 4 * scores / len(blocks) if blocks else 0),
        speed.traffic(4 * tokens * (H + K) * E, 4 * tokens * H * E if blocks else 0),
        speed.calls(len(blocks) or 1),
    ]
    return Cost(terms, [math.log2(context), math.log2(E), math.log2(tokens * H) / 2])


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
        self._updates = _fits(rows, "update", ("optimizer",), lambda f, s: _update_cost(_model(f), s))
        if ("adamw",) in self._updates:
            self._muon = _fits(rows, "muon", ("dtype",), lambda f, s: self._muon_cost(_model(f), s))
        whole_steps = [r for r in attended if r.facts["part"] == "step" and self._has_parts(_step(r.facts))]
        self._steps = _fits(whole_steps, "step", ("dtype",), lambda f, s: self._step_cost(_step(f), s), MISSED_OF_STEPS)

    def product(self, dtype: str, tokens: int, width: int, out: int, speed: Speed) -> float:
        """The three products of one linear layer."""
        costs = {k: product_cost(dtype, k, tokens, width, out, speed) for k in KINDS}
        return sum(_seconds(self._products[dtype, k], c) for k, c in costs.items())

    def attention(self, dtype: str, kernel: str, tokens: int, context: int, layer: Layer, speed: Speed) -> float:
        """Attention of one layer, forward and backward. One that a window masks takes torch's kernel, where timed."""
        masked, a = activations.is_masked(layer, context), layer.attentions[0]
        if masked and (dtype, "sdpa") in self._attention:
            kernel = "sdpa"
        cost = attention_cost(kernel, tokens, context, (a.heads, a.kv_heads, a.qk), self.threads, speed, masked)
        return _seconds(self._attention[dtype, kernel], cost)

    def layer(
        self, dtype: str, kernel: str, tokens: int, context: int, layer: Layer, hidden: int, speed: Speed
    ) -> float:
        """One dense layer, forward and backward."""
        key = (dtype, kernel, tokens, context, layer, hidden, speed)
        if key not in self._known_layers:  # a search for a size asks for each layer at many depths
            cost = self._layer_cost(dtype, kernel, tokens, context, layer, hidden, speed)
            self._known_layers[key] = _seconds(self._layers[dtype,], cost)
        return self._known_layers[key]

    def head(self, dtype: str, tokens: int, width: int, vocabulary: int, chunk: int | None, speed: Speed) -> float:
        """Embedding, last norm, head and loss, forward and backward."""
        return _seconds(self._heads[dtype,], self._head_cost(dtype, tokens, width, vocabulary, chunk, speed))

    def dropout(self, numbers: int, speed: Speed) -> float:
        """Dropout of so many numbers, forward and backward."""
        return _seconds(self._dropout[()], _dropout_cost(numbers, speed))

    def optimizer(self, name: str, dtype: str, a: Architecture, speed: Speed) -> float:
        """Clipping and the update of all parameters."""
        if name == "muon":
            return _seconds(self._muon[dtype,], self._muon_cost(a, speed))
        return _seconds(self._updates[name,], _update_cost(a, speed))

    def step(self, step: Step, speed: Speed, eager_share: float = 1.0) -> float:
        """A whole step. eager_share: what remains of what layers and head take beside products and attention."""
        seconds = _seconds(self._steps[step.dtype,], self._step_cost(step, speed))
        return seconds if eager_share == 1.0 else seconds - (1 - eager_share) * self._elementwise(step, speed)

    def of_step(self, step: Step, speed: Speed) -> dict[str, float]:
        """Seconds of all parts of a step by name, alone: `step` takes what their sum misses into account too."""
        n, a, dtype, micro = step.tokens, step.a, step.dtype, step.micro_batches
        layer = self._moe_layer if step.experts else self._dense_layer
        numbers = _matrix_numbers(a) + _table_numbers(a)
        dropouts = (2 * a.layers + 1) * self.dropout(n * a.hidden, speed) if step.dropout else 0.0
        return {
            "layers": micro * sum(count * layer(step, kind, speed) for count, kind in a.kinds),
            "head": micro * self.head(dtype, step.asked, a.hidden, a.outputs, step.chunk, speed),
            "dropout": micro * dropouts,
            # From the second micro-batch on, gradients are added to those that are there.
            "accumulation": (micro - 1) * speed.traffic(12 * numbers, 4 * numbers),
            "optimizer": self.optimizer(step.optimizer, dtype, a, speed),
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
        n, a = step.tokens, step.a
        parts = self.of_step(step, speed)
        known = self.product(step.dtype, step.asked, a.hidden, a.outputs, speed)
        for count, layer in a.kinds:
            products = sum(self.product(step.dtype, n, m.rows, m.columns, speed) for m in layer.matrices)
            attention = self.attention(step.dtype, step.kernel, n, step.context, layer, speed)
            known += count * (products + attention)
        return max(0.0, parts["layers"] + parts["head"] - step.micro_batches * known)

    def _step_cost(self, step: Step, speed: Speed) -> Cost:
        return Cost([sum(self.of_step(step, speed).values())], [math.log2(step.tokens), math.log2(step.a.hidden)])

    def _dense_layer(self, step: Step, layer: Layer, speed: Speed) -> float:
        return self.layer(step.dtype, step.kernel, step.tokens, step.context, layer, step.a.hidden, speed)

    def _moe_layer(self, step: Step, layer: Layer, speed: Speed) -> float:
        """A layer of experts: a dense one with the feed-forward part of one expert of so many tokens, and the rest."""
        experts, chosen, width = step.experts or (1, 1, layer.inner)
        D, n = step.a.hidden, step.tokens
        one_wide = replace(layer, matrices=tuple(_of_width(m, width) for m in layer.matrices), inner=width)
        dense = self._dense_layer(step, one_wide, speed)
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
        layer = _model(f).kinds[0][1]
        return self._layer_cost(f["dtype"], f["kernel"], f["tokens"], f["context"], layer, f["D"], speed)

    def _layer_cost(
        self, dtype: str, kernel: str, tokens: int, context: int, layer: Layer, hidden: int, speed: Speed
    ) -> Cost:
        terms = [
            sum(self.product(dtype, tokens, m.columns, m.rows, speed) for m in layer.matrices),
            speed.traffic(tokens * elementwise.bytes_per_token(layer, hidden), 4 * tokens * hidden),
            speed.calls(100 * elementwise.operators(layer) / elementwise.OF_QWEN3),
        ]
        known = self.attention(dtype, kernel, tokens, context, layer, speed)
        return Cost(terms, [math.log2(tokens), math.log2(hidden)], known)

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

    def _muon_cost(self, a: Architecture, speed: Speed) -> Cost:
        matrices = list(flops.muon_matrices(a))
        numbers = sum(count * rows * columns for count, rows, columns, _ in matrices)
        tables = _of_numbers(_matrix_numbers(a) + _table_numbers(a) - numbers, 2, speed)
        operations = sum(count * flops.newton_schulz_flops(rows, columns) for count, rows, columns, _ in matrices)
        terms = [
            speed.arithmetic(operations),
            speed.traffic(4 * numbers, numbers),
            speed.calls(20 * len({kind[1:] for kind in matrices})),
        ]
        return Cost(terms, [math.log2(a.hidden)], _seconds(self._updates["adamw",], tables))


def _step(f: Facts) -> Step:
    sequences = f["tokens"] // f["context"]
    return Step(_model(f), f["context"], sequences, 1, f["dtype"], f["kernel"], f["optimizer"])


def _product(f: Facts, speed: Speed) -> Cost:
    return product_cost(f["dtype"], f["kind"], f["tokens"], f["in"], f["out"], speed)


def _dropout_cost(numbers: int, speed: Speed) -> Cost:
    return Cost([speed.traffic(4 * numbers, 4 * numbers), speed.calls(10)], [math.log2(numbers)])


def _update_cost(a: Architecture, speed: Speed) -> Cost:
    """Clipping and an update that reads and writes each number a few times."""
    tensors = sum(count * len(layer_weights(layer)) for count, layer in a.kinds)
    return _of_numbers(_matrix_numbers(a) + _table_numbers(a), tensors + 2, speed)


def _of_numbers(numbers: int, tensors: int, speed: Speed) -> Cost:
    return Cost([speed.traffic(4 * numbers, 4 * numbers), speed.calls(tensors)], [math.log2(numbers)])


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


def _model(facts: Facts) -> Architecture:
    """What was timed: Qwen3 of these sizes, as far as the part has them."""
    D, H, K, E, F, L, V = (facts.get(k) or 1 for k in ("D", "H", "K", "E", "F", "L", "V"))
    keys = {"hidden_size": D, "num_attention_heads": H, "num_key_value_heads": K, "head_dim": E, "vocab_size": V}
    more = {"num_hidden_layers": L, "intermediate_size": F, "max_position_embeddings": 1, "tie_word_embeddings": True}
    return models.of({"model_type": "qwen3", **keys, **more})


def _of_width(m: Matrix, inner: int) -> Matrix:
    """A matrix of the feed-forward part made as wide as that; others as they are."""
    if not m.name.startswith("mlp."):
        return m
    return replace(m, columns=inner) if m.split == "row" else replace(m, rows=inner)


def _matrix_numbers(a: Architecture) -> int:
    return sum(count * rows * columns for count, rows, columns, _ in flops.matrices(a))


def _table_numbers(a: Architecture) -> int:
    """Numbers of tables, and of a head of its own."""
    return sum(rows * width for _, rows, width in a.tables) + a.parameters["head"]
