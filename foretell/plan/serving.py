"""What serving a model takes: bytes of the key-value cache, tokens per second, sequences that fit.

A decoding step reads every weight that one of its tokens needs and each sequence's whole cache, so it mostly runs at
memory bandwidth; a prompt is processed at the rate of products. Each takes the longer of the two (Pope et al., 2022).
`tp` devices divide the weights and the heads; where there are more of them than key-value heads, or where the cache is
one latent vector (MLA), each keeps a whole copy of that.

Not handled: scheduling, chunked prompts, prefix caches, speculative decoding, replicas (they multiply).
"""

from __future__ import annotations

import math
from typing import Any

from foretell.plan import cluster, kernels, links
from foretell.plan.hardware import Hardware
from foretell.plan.kernels import Constants
from foretell.plan.layout import Degrees
from foretell.plan.shape import Attention, Shape

# Of measured over forecast rates: a judgement, for no public measurements were compared.
SLOWEST, FASTEST = 0.5, 1.15
# Between two kernels of a decoding step that is launched as one graph: a judgement.
GAP_SECONDS = 1.5e-6
# Share of memory left to activations and to the runtime.
RESERVE = 0.10


def cache_bytes_per_token(a: Attention, item_bytes: float = 2.0, tp: int = 1) -> float:
    """Bytes that one more token adds to a device's cache of one layer: grouped queries, or one latent vector (MLA)."""
    if a.latent:
        return item_bytes * (a.latent + a.rotary)
    return item_bytes * math.ceil(a.kv_heads / tp) * (a.head_dim + (a.value_dim or a.head_dim))


def cache_bytes(shape: Shape, tokens: int, item_bytes: float = 2.0, tp: int = 1) -> float:
    """Bytes on a device of one sequence's cache, all layers; a sliding window keeps its last keys alone."""
    return sum(
        n * min(tokens, x.attention.window or tokens) * cache_bytes_per_token(x.attention, item_bytes, tp)
        for n, x in shape.layers
    )


def largest_batch(
    shape: Shape,
    hardware: Hardware,
    tokens: int,
    tp: int = 1,
    weight_bytes: float = 2.0,
    item_bytes: float = 2.0,
    reserve: float = RESERVE,
) -> int:
    """Sequences of `tokens` whose caches fit beside the weights on `tp` devices; 0 where nothing fits."""
    room = hardware.memory_bytes * (1 - reserve) - shape.parameters * weight_bytes / tp
    return max(0, math.floor(room / cache_bytes(shape, tokens, item_bytes, tp)))


def touched_parameters(shape: Shape, batch: int) -> float:
    """Weights that a decoding step of `batch` tokens reads: of experts those that some token chose, on average.

    Choices are taken as even and independent: a token leaves an expert out with probability 1 - k/N. The embedding
    table is looked up, not read.
    """
    total = float(shape.vocab * shape.hidden + shape.hidden)
    for n, layer in shape.layers:
        shares = (1 - (1 - p.top_k / p.experts) ** batch if p.experts else 1.0 for p in layer.products)
        total += n * (layer.norms + sum(s * p.parameters for s, p in zip(shares, layer.products, strict=True)))
    return total


def decode(
    shape: Shape,
    hardware: Hardware,
    c: Constants,
    batch: int,
    tokens: int,
    tp: int = 1,
    weight_bytes: float = 2.0,
    item_bytes: float = 2.0,
) -> dict[str, Any]:
    """One decoding step of `batch` sequences that hold `tokens` each.

    Keys: step_seconds, tokens_per_second (of all sequences; both value, low, high), bound (`memory` or `compute`).
    """
    device = kernels.device(hardware, c, "bfloat16")
    read = touched_parameters(shape, batch) * weight_bytes / tp + batch * cache_bytes(shape, tokens, item_bytes, tp)
    weights = sum(n * p.active for n, x in shape.layers for p in x.products) + shape.vocab * shape.hidden
    scores = sum(n * x.attention.width * min(tokens, x.attention.window or tokens) for n, x in shape.layers)
    products = 2.0 * batch * (weights + scores) / tp / device.products
    one = links.all_reduce_seconds(2.0 * batch * shape.hidden, links.group(tp, 1, hardware), hardware, c)
    sums, launches = (sum(n * k for n, k in counts) for counts in _counts(shape))
    memory = read / device.bytes_per_second
    seconds = max(memory, products) + sums * one + launches * GAP_SECONDS
    return {
        "step_seconds": {"value": seconds, "low": seconds / FASTEST, "high": seconds / SLOWEST},
        "tokens_per_second": _rate(batch / seconds),
        "bound": "memory" if memory > products else "compute",
    }


def prefill(shape: Shape, hardware: Hardware, c: Constants, batch: int, tokens: int, tp: int = 1) -> dict[str, Any]:
    """`batch` prompts of `tokens` each, processed at once; the head works on their last tokens only.

    Keys: seconds, tokens_per_second (value, low, high).
    """
    job = cluster.Job(Degrees(1, 1, 1, 1, 1, tp), batch, batch, tokens)
    passes = [(n, cluster.layer_pass(layer, job, hardware, c)) for n, layer in shape.layers]
    seconds = sum(n * (p.forward + p.tp / 2) for n, p in passes)  # of tp, half is the backward pass's
    return {
        "seconds": {"value": seconds, "low": seconds / FASTEST, "high": seconds / SLOWEST},
        "tokens_per_second": _rate(batch * tokens / seconds),
    }


def _rate(value: float) -> dict[str, float]:
    return {"value": value, "low": value * SLOWEST, "high": value * FASTEST}


def _counts(shape: Shape) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """(layers, sums over tp each), (layers, launches each)."""
    return [(n, x.all_reduces) for n, x in shape.layers], [(n, x.kernels) for n, x in shape.layers]
