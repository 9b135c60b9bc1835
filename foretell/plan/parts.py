"""Seconds of the parts of a training step, from what a full calibration measured (`calibrate/parts.py`).

Each part has terms: operations at a nominal rate, bytes at a nominal bandwidth, calls. Their coefficients and what they
miss are fitted to the record (`plan/fitted.py`). Terms of arithmetic go with the time of the reference product at the
speed that is asked for, all others with that of the reference operator.

A layer is its attention and the rest, and one term of the rest is the layer's products, which are fitted alone. So a
layer of other proportions than those measured is put together from products that were.

Not handled: other devices than CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

from foretell.config import ModelConfig, Sizes
from foretell.plan import flops, memory
from foretell.plan.fitted import Fitted, fit

# Nominal figures that make coefficients numbers around one: FLOP/s, bytes/s, seconds of an operator.
RATE, BANDWIDTH, CALL = 2e11, 5e10, 1e-5
# Half of what is done to arrays of this size finds them in a cache; a layer has a dozen of them in use. An estimate.
CACHED = 4e6
# A visit that took longer than another to the same shape by more than this, as a logarithm, was disturbed.
DISTURBED = 0.15
SPEED = ("product_seconds", "operator_seconds", "stream_seconds")
# The three products of a linear layer: forward, and the gradients of its input and of its weight.
KINDS = ("forward", "input", "weight")
# What the terms of a part miss, as a standard deviation of the logarithm. Attention's kernels have tiles of a few sizes.
MISSED, MISSED_OF_ATTENTION = 0.12, 0.3
ITEM = {"float32": 4, "bfloat16": 2}

Facts = dict[str, Any]


class Slow(NamedTuple):
    """Seconds of arithmetic, of calls and what is in a cache, and of what is not, over those at the record's speed."""

    arithmetic: float = 1.0
    calls: float = 1.0
    stream: float = 1.0

    def traffic(self, total: float, array: float) -> list[float]:
        """Two terms of `total` bytes in arrays of `array` bytes: from a cache, and from memory."""
        streamed = array / (array + CACHED)
        return [total * (1 - streamed) / BANDWIDTH * self.calls, total * streamed / BANDWIDTH * self.stream]


class Cost(NamedTuple):
    """What a fit needs of one shape: terms, log2 of sizes, and seconds that are known already."""

    terms: list[float]
    place: list[float]
    known: float = 0.0


class _Row(NamedTuple):
    facts: Facts
    seconds: float
    slow: Slow


_Key = tuple[str, ...]
_Fits = dict[_Key, Fitted]


def product_cost(dtype: str, kind: str, tokens: int, width: int, out: int, slow: Slow) -> Cost:
    """One product of a linear layer from `width` to `out`."""
    m, n, k = {"forward": (tokens, out, width), "input": (tokens, width, out), "weight": (out, width, tokens)}[kind]
    operands, result = ITEM[dtype] * (m * k + k * n), ITEM[dtype] * m * n
    terms = [
        2.0 * m * n * k / RATE * slow.arithmetic,
        operands / BANDWIDTH * slow.arithmetic,
        result / BANDWIDTH * slow.arithmetic,
        CALL * slow.calls,
    ]
    return Cost(terms, [math.log2(tokens), math.log2(width), math.log2(out)])


def attention_cost(kernel: str, tokens: int, context: int, heads: tuple[int, int, int], slow: Slow) -> Cost:
    """Attention, forward and backward, over `tokens` in sequences; heads: query heads, KV heads, head width."""
    H, K, E = heads
    blocks = list(memory.attention_blocks(context))
    products = kernel == "products"
    area = sum((b - a) * b for a, b in blocks) if products else context * (context + 1) / 2
    scores = tokens / context * H * area
    terms = [
        12.0 * scores * E / RATE * slow.arithmetic,
        *slow.traffic(4.0 * scores, 4.0 * scores if products else 0.0),
        *slow.traffic(4.0 * tokens * (H + K) * E, 4.0 * tokens * H * E),
        CALL * (len(blocks) if products else 1) * slow.calls,
    ]
    return Cost(terms, [math.log2(context), math.log2(E), math.log2(tokens * H) / 2])


def elementwise_bytes(sizes: Sizes) -> int:
    """Bytes per token that the operators of one layer beside products and attention read and write, in float32."""
    D, _, H, K, E, F, _ = sizes
    return 4 * (58 * D + 50 * (H + K) * E + 4 * K * E + 14 * F)


class Parts:
    """The fitted parts of one record, given its `parts`."""

    def __init__(self, entries: Sequence[Facts]) -> None:
        self.speed = {k: median(s for e in entries for s in e[k]) for k in SPEED}
        rows = [
            _Row(entry, seconds, self.slow(dict(zip(SPEED, speed, strict=True))))
            for entry in entries
            for seconds, *speed in zip(entry["seconds"], *(entry[k] for k in SPEED), strict=True)
        ]

        def of(part: str) -> list[_Row]:
            return [r for r in rows if r.facts["part"] == part]

        # In this order: attention and products are known to layers and heads, AdamW to Muon.
        self._products = _fits(of("product"), ("dtype", "kind"), lambda f, s: product_cost(
            f["dtype"], f["kind"], f["tokens"], f["in"], f["out"], s))
        self._attention = _fits(of("attention"), ("dtype", "kernel"), lambda f, s: attention_cost(
            f["kernel"], f["tokens"], f["context"], (f["H"], f["K"], f["E"]), s), MISSED_OF_ATTENTION)
        self._layers = _fits(of("layer"), ("dtype",), lambda f, s: self._layer_cost(
            f["dtype"], f["kernel"], f["tokens"], f["context"], _sizes(f), s))
        self._heads = _fits(of("head"), ("dtype",), lambda f, s: self._head_cost(
            f["dtype"], f["tokens"], f["D"], f["V"], f["chunk"], s))
        self._dropout = _fits(of("dropout"), (), lambda f, s: _dropout_cost(f["numbers"], s))
        # _fits of optimisers
        updates = of("optimizer")
        self._simple = _fits([r for r in updates if r.facts["optimizer"] != "muon"], ("optimizer",), lambda f, s: _update_cost(
            _numbers(_sizes(f))["all"], _tensors(_sizes(f)), s))
        self._muon = _fits([r for r in updates if r.facts["optimizer"] == "muon"], ("dtype",), lambda f, s: self._muon_cost(_sizes(f), s))

    def slow(self, speed: dict[str, float] | None) -> Slow:
        """How slow the machine is at `speed` (seconds of the three references); as recorded where None."""
        return Slow() if speed is None else Slow(*(speed[k] / self.speed[k] for k in SPEED))

    def product(self, dtype: str, tokens: int, width: int, out: int, slow: Slow = Slow()) -> float:
        """The three products of one linear layer."""
        costs = {k: product_cost(dtype, k, tokens, width, out, slow) for k in KINDS}
        return sum(_seconds(self._products[dtype, k], c) for k, c in costs.items())

    def attention(self, dtype: str, kernel: str, tokens: int, context: int, heads: tuple[int, int, int], slow: Slow = Slow()) -> float:
        """Attention of one layer, forward and backward."""
        return _seconds(self._attention[dtype, kernel], attention_cost(kernel, tokens, context, heads, slow))

    def layer(self, dtype: str, kernel: str, tokens: int, context: int, sizes: Sizes, slow: Slow = Slow()) -> float:
        """One dense layer, forward and backward."""
        return _seconds(self._layers[dtype,], self._layer_cost(dtype, kernel, tokens, context, sizes, slow))

    def head(self, dtype: str, tokens: int, D: int, V: int, chunk: int | None, slow: Slow = Slow()) -> float:
        """Embedding, last norm, head and loss, forward and backward."""
        return _seconds(self._heads[dtype,], self._head_cost(dtype, tokens, D, V, chunk, slow))

    def dropout(self, numbers: int, slow: Slow = Slow()) -> float:
        """Dropout of so many numbers, forward and backward."""
        return _seconds(self._dropout[()], _dropout_cost(numbers, slow))

    def optimizer(self, name: str, dtype: str, sizes: Sizes, slow: Slow = Slow()) -> float:
        """Clipping and the update of all parameters."""
        if name == "muon":
            return _seconds(self._muon[dtype,], self._muon_cost(sizes, slow))
        return _seconds(self._simple[name,], _update_cost(_numbers(sizes)["all"], _tensors(sizes), slow))

    def _layer_cost(self, dtype: str, kernel: str, tokens: int, context: int, sizes: Sizes, slow: Slow) -> Cost:
        D, _, H, K, E, F, _ = sizes
        widths = ((D, H * E), (D, K * E), (D, K * E), (H * E, D), (D, F), (D, F), (F, D))
        products = sum(self.product(dtype, tokens, i, o, slow) for i, o in widths)
        terms = [
            products,
            *slow.traffic(tokens * elementwise_bytes(sizes), 4 * tokens * D),
            100 * CALL * slow.calls,
        ]
        known = self.attention(dtype, kernel, tokens, context, (H, K, E), slow)
        return Cost(terms, [math.log2(tokens), math.log2(D)], known)

    def _head_cost(self, dtype: str, tokens: int, D: int, V: int, chunk: int | None, slow: Slow) -> Cost:
        chunked = chunk is not None and chunk < tokens
        piece = chunk if chunk is not None and chunked else tokens
        pieces = tokens / piece
        logits = slow.traffic(4 * tokens * V, 4 * piece * V)
        terms = [
            pieces * self.product(dtype, piece, D, V, slow),
            *(logits if not chunked else (0.0, 0.0)),
            *(logits if chunked else (0.0, 0.0)),
            *slow.traffic(4 * V * D * (pieces if chunked else 1), 4 * V * D),
            4 * tokens * D / BANDWIDTH * slow.calls,
            10 * CALL * (pieces + 1) * slow.calls,
        ]
        return Cost(terms, [math.log2(tokens), math.log2(D), math.log2(V), 3.0 * chunked])

    def _muon_cost(self, sizes: Sizes, slow: Slow) -> Cost:
        numbers = _numbers(sizes)
        known = _seconds(self._simple["adamw",], _update_cost(numbers["tables"], 1, slow))
        m, L = _matrices(sizes), sizes.L
        operations = L * sum(flops.NEWTON_SCHULZ_STEPS * (4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3) for s in m)
        terms = [
            operations / RATE * slow.arithmetic,
            *slow.traffic(4 * L * sum(r * c for r, c in m), 4 * L * sum(r * c for r, c in m) / 4),
            CALL * 20 * len({(r, c) for r, c in m}) * slow.calls,
        ]
        return Cost(terms, [math.log2(sizes.D)], known)


def _fits(
    rows: Iterable[_Row], keys: tuple[str, ...], cost: Callable[[Facts, Slow], Cost], missed: float = MISSED
) -> _Fits:
    """One fit for each combination of values that `keys` have in `rows`."""
    groups: dict[_Key, list[_Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row.facts[k] for k in keys), []).append(row)
    return {key: _fit(group, cost, missed) for key, group in groups.items()}


def _fit(rows: list[_Row], cost: Callable[[Facts, Slow], Cost], missed: float) -> Fitted:
    """The fit of rows, and again without the visits that were disturbed."""
    costs = [cost(r.facts, r.slow) for r in rows]
    # Of a stack of layers, one. What is known already may be more than all where the rest is little.
    seconds = [r.seconds / (r.facts["L"] if r.facts["part"] in ("layer", "attention") else 1) for r in rows]
    left = [max(s - c.known, 0.1 * s) for s, c in zip(seconds, costs, strict=True)]
    fitted = fit([c.terms for c in costs], [c.place for c in costs], left, missed)
    errors = [math.log(s / _seconds(fitted, c)) for s, c in zip(seconds, costs, strict=True)]
    least: dict[int, float] = {}
    for row, error in zip(rows, errors, strict=True):
        least[id(row.facts)] = min(error, least.get(id(row.facts), error))
    kept = [i for i, (row, error) in enumerate(zip(rows, errors, strict=True)) if error <= least[id(row.facts)] + DISTURBED]
    if len(kept) == len(rows):
        return fitted
    return fit([costs[i].terms for i in kept], [costs[i].place for i in kept], [left[i] for i in kept], missed)


def _seconds(fitted: Fitted, cost: Cost) -> float:
    return cost.known + fitted.seconds(cost.terms, cost.place)


def _dropout_cost(numbers: int, slow: Slow) -> Cost:
    return Cost([*slow.traffic(4 * numbers, 4 * numbers), 10 * CALL * slow.calls], [math.log2(numbers)])


def _update_cost(numbers: int, tensors: int, slow: Slow) -> Cost:
    """Clipping and an update that reads and writes each number a few times."""
    return Cost([*slow.traffic(4 * numbers, 4 * numbers), CALL * tensors * slow.calls], [math.log2(numbers)])


def _sizes(facts: Facts) -> Sizes:
    return Sizes(*(facts.get(k) or 1 for k in Sizes._fields))


def _matrices(sizes: Sizes) -> list[tuple[int, int]]:
    D, _, H, K, E, F, _ = sizes
    return [(H * E, D), (K * E, D), (K * E, D), (D, H * E), (F, D), (F, D), (D, F)]


def _numbers(sizes: Sizes) -> dict[str, int]:
    matrices = sizes.L * sum(r * c for r, c in _matrices(sizes))
    return {"all": matrices + sizes.V * sizes.D, "tables": sizes.V * sizes.D}


def _tensors(sizes: Sizes) -> int:
    return 11 * sizes.L + 2
