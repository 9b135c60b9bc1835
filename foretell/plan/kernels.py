"""Seconds of single kernels on a device: matrix products, attention, passes over memory.

A product takes the longer of its multiplications and its memory traffic (roofline; Williams et al., 2009). Its rate
falls below the peak for three reasons that are counted: it is cut into tiles and the last ones stand half empty, tiles
come in waves over the device's units and the last wave is not full (NVIDIA, Matrix Multiplication Background), and a
short inner size leaves little work between filling and draining a tile. What is left is a share of the peak, fitted.

Not handled: clocks that fall with power, caches, kernels of other libraries one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from foretell.plan.shape import Attention

# (rows, columns, share of the best rate) of the tiles that libraries have; smaller ones fill small products better.
TILES = ((128, 256, 1.0), (128, 128, 0.93), (128, 64, 0.80), (64, 64, 0.65))
ITEM_BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float8": 1}


@dataclass(frozen=True)
class Constants:
    """What is fitted rather than looked up: the shares of data-sheet figures that software reaches, and overheads.

    product, attention: of peak FLOP/s. memory: of memory bandwidth. node, network: of the links' bandwidth.
    half_inner: inner size at which a product loses half its rate. kernel_seconds: gap between two kernels on the
    device. host_seconds: of the host to launch one. overlap: share of communication beside computation that is hidden
    at most. step_seconds: of a step beside all else. spread: standard deviation of the logarithm of a step's seconds.
    """

    product: float = 0.80
    half_inner: float = 150.0
    attention: float = 0.55
    memory: float = 0.80
    kernel_seconds: float = 2e-6
    host_seconds: float = 8e-6
    node: float = 0.90
    network: float = 0.80
    collective_seconds: float = 3e-5
    overlap: float = 0.85
    step_seconds: float = 5e-3
    spread: float = 0.12


@lru_cache(maxsize=200_000)
def quantisation(rows: int, outer: int, units: int, batch: int = 1) -> float:
    """Work done over work asked for, of the best tile: at least 1."""
    best = math.inf
    for tall, wide, share in TILES:
        tiles = batch * math.ceil(rows / tall) * math.ceil(outer / wide)
        waves = math.ceil(tiles / units)
        best = min(best, waves * units * tall * wide / (batch * rows * outer) / share)
    return max(1.0, best)


def product_seconds(
    rows: int,
    inner: int,
    outer: int,
    peak: float,
    bandwidth: float,
    units: int,
    c: Constants,
    item: int,
    batch: int = 1,
) -> float:
    """Seconds of `batch` products of rows x inner with inner x outer. peak: FLOP/s; bandwidth: bytes per second."""
    if min(rows, inner, outer, batch) <= 0:
        return 0.0
    rate = peak * c.product * inner / (inner + c.half_inner)
    work = 2.0 * batch * rows * inner * outer * quantisation(rows, outer, units, batch) / rate
    traffic = item * batch * (rows * inner + inner * outer + rows * outer) / (bandwidth * c.memory)
    return max(work, traffic) + c.kernel_seconds


def memory_seconds(traffic: float, bandwidth: float, c: Constants) -> float:
    """Seconds of elementwise work that moves so many bytes."""
    return traffic / (bandwidth * c.memory)


def _batched_seconds(
    batch: int, rows: int, inner: int, outer: int, peak: float, bandwidth: float, units: int, c: Constants
) -> float:
    """Seconds of the products of unfused attention: `batch` small ones in one launch."""
    work = 2.0 * batch * rows * inner * outer * quantisation(rows, outer, units, batch) / (peak * c.attention)
    traffic = 2.0 * batch * (rows * inner + inner * outer + rows * outer) / (bandwidth * c.memory)
    return max(work, traffic)


def attention_seconds(
    a: Attention,
    heads: int,
    sequences: int,
    context: int,
    queries: int,
    peak: float,
    bandwidth: float,
    units: int,
    c: Constants,
    backward: bool,
) -> float:
    """Seconds of scores, softmax and values of `heads` heads of a rank, for `queries` of the `context` positions.

    Fused: only the needed keys count; the backward pass is five products for the forward's two (Dao, 2023). Unfused:
    all keys, and the scores are written and read: scale and mask, softmax, dropout; twice the products backward.
    """
    pairs = float(sequences * heads * queries)
    value_dim = a.value_dim or a.head_dim
    if a.fused:
        flops = 2.0 * pairs * a.keys(context) * (a.head_dim + value_dim) * (2.5 if backward else 1.0)
        traffic = 2.0 * pairs * 2 * (a.head_dim + value_dim) * (2.0 if backward else 1.0)
        return max(flops / (peak * c.attention), traffic / (bandwidth * c.memory)) + c.kernel_seconds
    batch, longest = sequences * heads, min(context, a.window or context)
    scores = _batched_seconds(batch, queries, a.head_dim, longest, peak, bandwidth, units, c)
    values = _batched_seconds(batch, queries, longest, value_dim, peak, bandwidth, units, c)
    # Softmax reads the half below the diagonal and writes all, dropout reads, writes and keeps a mask; backward likewise.
    passes = pairs * longest * (9.0 if backward else 8.0)
    return (2.0 if backward else 1.0) * (scores + values) + memory_seconds(passes, bandwidth, c) + 2 * c.kernel_seconds
