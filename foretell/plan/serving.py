"""What serving a model takes: bytes of the key-value cache, tokens per second, sequences that fit.

Decoding reads all weights that a step touches and every sequence's cache once a token, so it runs at memory bandwidth;
the prompt is processed at the rate of products. Both take the longer of the two (roofline), as in Pope et al. (2022).
Not handled: schedulers, speculative decoding, prefix caches.
"""

from __future__ import annotations

import math
from typing import Any

from foretell.plan import kernels, links
from foretell.plan.hardware import Hardware
from foretell.plan.kernels import Constants
from foretell.plan.shape import Attention, Shape


def cache_bytes_per_token(a: Attention, item_bytes: float = 2.0) -> float:
    """Bytes that one more token adds to one layer's cache; a latent one (MLA) keeps the latent and the rotary key."""
    if a.latent:
        return item_bytes * (a.latent + a.rotary)
    return item_bytes * a.kv_heads * (a.head_dim + (a.value_dim or a.head_dim))


def cache_bytes(shape: Shape, tokens: int, item_bytes: float = 2.0) -> float:
    """Bytes of the cache of one sequence of so many tokens, all layers; a sliding window keeps its last keys only."""
    total = 0.0
    for n, layer in shape.layers:
        kept = min(tokens, layer.attention.window or tokens)
        total += n * kept * cache_bytes_per_token(layer.attention, item_bytes)
    return total


def weight_bytes(shape: Shape, item_bytes: float = 2.0) -> float:
    """Bytes of all weights."""
    return shape.parameters * item_bytes


def largest_batch(
    shape: Shape,
    hardware: Hardware,
    tokens: int,
    devices: int = 1,
    item_bytes: float = 2.0,
    cache_item_bytes: float = 2.0,
    reserve: float = 0.1,
) -> int:
    """Sequences of `tokens` whose caches fit beside the weights, divided over `devices`; 0 where weights do not fit.

    reserve: share of the memory left for activations and what the runtime takes.
    """
    room = devices * hardware.memory_bytes * (1 - reserve) - weight_bytes(shape, item_bytes)
    return max(0, math.floor(room / cache_bytes(shape, tokens, cache_item_bytes)))


def touched_parameters(shape: Shape, batch: int) -> float:
    """Weights that one decoding step of `batch` tokens reads: of experts the mean number that some token chose."""
    total = float(shape.vocab * shape.hidden)
    for n, layer in shape.layers:
        total += n * layer.norms
        for p in layer.products:
            share = 1 - (1 - p.top_k / p.experts) ** batch if p.experts else 1.0
            total += n * p.parameters * share
    return total


def decode(
    shape: Shape,
    hardware: Hardware,
    c: Constants,
    batch: int,
    tokens: int,
    devices: int = 1,
    item_bytes: float = 2.0,
    cache_item_bytes: float = 2.0,
) -> dict[str, Any]:
    """Seconds of one decoding step of `batch` sequences of `tokens` each under tensor parallelism, and tokens/s."""
    read = touched_parameters(shape, batch) * item_bytes + batch * cache_bytes(shape, tokens, cache_item_bytes)
    device = kernels.device(hardware, c, "bfloat16")
    memory = read / devices / device.bytes_per_second
    active = shape.flops_per_token(tokens, causal=False) / 3
    products = batch * active / devices / device.products
    group = links.group(devices, 1, hardware)
    one = links.all_reduce_seconds(2.0 * batch * shape.hidden, group, hardware, c)
    sent = sum(n * layer.all_reduces for n, layer in shape.layers) * one
    launches = sum(n * layer.kernels for n, layer in shape.layers) * c.kernel_seconds
    seconds = max(memory, products) + sent + launches
    return {
        "step_seconds": seconds,
        "tokens_per_second": batch / seconds,
        "bound": "memory" if memory > products else "compute",
    }


def prefill(
    shape: Shape, hardware: Hardware, c: Constants, batch: int, tokens: int, devices: int = 1
) -> dict[str, float]:
    """Seconds to process `batch` prompts of `tokens` each, and tokens/s."""
    work = batch * tokens * shape.flops_per_token(tokens) / 3 / devices
    group = links.group(devices, 1, hardware)
    one = links.all_reduce_seconds(2.0 * batch * tokens * shape.hidden, group, hardware, c)
    sent = sum(n * layer.all_reduces for n, layer in shape.layers) * one
    device = kernels.device(hardware, c, "bfloat16")
    read = weight_bytes(shape) / devices / device.bytes_per_second
    seconds = max(work / device.products, read) + sent
    return {"seconds": seconds, "tokens_per_second": batch * tokens / seconds}
