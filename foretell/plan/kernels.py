"""Seconds of single kernels on a device: matrix products, attention, passes over memory.

A product takes the longer of its multiplications and its memory traffic (roofline; Williams et al., 2009). Its rate
falls below the best one for three reasons that are counted: it is cut into tiles and the last ones stand half empty,
tiles come in waves over the device's units and the last wave is not full (NVIDIA, Matrix Multiplication Background),
and a short inner size leaves little work between filling and draining a tile. What is left is a share, fitted.

Not handled: clocks that fall with power, caches, the kernels of other libraries one by one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from foretell.plan.hardware import Hardware
from foretell.plan.shape import Attention

# (rows, columns, share of the best rate) of the tiles that libraries have; smaller ones fill small products better.
TILES = ((128, 256, 1.0), (128, 128, 0.93), (128, 64, 0.80), (64, 64, 0.65))
ITEM_BYTES = {"float32": 4, "tf32": 4, "bfloat16": 2, "float8": 1}
CAST_BYTES = 3  # to 8 bits: 16 are read, 8 written
HALF = 2  # attention, norms and activations are in 16 bits whatever the products are in


@dataclass(frozen=True)
class Constants:
    """What is fitted rather than looked up: the shares that whole training programs reach, and overheads.

    product: of the rate of the best products (`Hardware.product_rate`). batched: of the peak, by the batched products
    of unfused attention. fused: of the rate of the best fused attention. memory: of memory bandwidth. node, network: of
    the links'. half_inner: inner size at which a product has half its rate. kernel_seconds: gap between two kernels on
    the device. host_seconds: of the host to launch one. collective_seconds: of a collective beside its ring. overlap:
    share of communication beside computation that is hidden at most. step_seconds: of a step beside all else.
    fastest, slowest: measured over forecast seconds, the 5th and 95th percentile of the runs of `validated_on`.
    corrections: (hidden, tp, micro_batch, factor) of shapes that were measured themselves.
    """

    product: float = 0.90
    half_inner: float = 150.0
    batched: float = 0.30
    fused: float = 0.90
    memory: float = 0.85
    kernel_seconds: float = 2e-6
    host_seconds: float = 8e-6
    node: float = 0.95
    network: float = 0.80
    collective_seconds: float = 3e-5
    overlap: float = 0.85
    step_seconds: float = 2e-2
    fastest: float = 0.8
    slowest: float = 1.5
    corrections: tuple[tuple[int, int, int, float], ...] = ()


@dataclass(frozen=True)
class Device:
    """The rates a program reaches on a device: FLOP/s of products, batched products and fused attention; bytes/s."""

    products: float
    batched: float
    attention: float
    bytes_per_second: float
    units: int
    half_inner: float
    kernel_seconds: float
    item_bytes: int


@lru_cache(maxsize=256)
def device(hardware: Hardware, c: Constants, dtype: str) -> Device:
    """The rates of a device for products in a dtype. Raises PlanError where it has none."""
    half = hardware.peak("bfloat16")
    return Device(
        products=hardware.product_rate(dtype) * c.product,
        batched=half * c.batched,
        attention=half * hardware.reached.attention * c.fused,
        bytes_per_second=hardware.memory_bytes_per_second * c.memory,
        units=hardware.units,
        half_inner=c.half_inner,
        kernel_seconds=c.kernel_seconds,
        item_bytes=ITEM_BYTES[dtype],
    )


@lru_cache(maxsize=200_000)
def quantisation(rows: int, outer: int, units: int, batch: int = 1) -> float:
    """Work done over work asked for, with the best tile: at least 1."""
    best = math.inf
    for tall, wide, share in TILES:
        waves = math.ceil(batch * math.ceil(rows / tall) * math.ceil(outer / wide) / units)
        best = min(best, waves * units * tall * wide / (batch * rows * outer) / share)
    return max(1.0, best)


def product_seconds(rows: int, inner: int, outer: int, d: Device, batch: int = 1) -> float:
    """Seconds of `batch` products of rows x inner with inner x outer, in one launch."""
    if min(rows, inner, outer, batch) <= 0:
        return 0.0
    flops = 2.0 * batch * rows * inner * outer * quantisation(rows, outer, d.units, batch)
    read = batch * (rows * inner + inner * outer)
    casts = CAST_BYTES * read / d.bytes_per_second if d.item_bytes == 1 else 0.0
    traffic = (d.item_bytes * read + HALF * batch * rows * outer) / d.bytes_per_second
    return max(flops * (1 + d.half_inner / inner) / d.products, traffic) + casts + d.kernel_seconds


def attention_seconds(
    a: Attention, heads: int, sequences: int, context: int, queries: int, d: Device
) -> tuple[float, float]:
    """Seconds (forward, backward) of scores, softmax and values: `heads` heads, `queries` of `context` positions."""
    if a.fused:
        return _fused_seconds(a, heads, sequences, context, queries, d)
    batch, keys = sequences * heads, min(context, a.window or context)
    products = _batched_seconds(batch, queries, a.head_dim, keys, d)
    products += _batched_seconds(batch, queries, keys, a.value_dim or a.head_dim, d)
    # Softmax reads the half below the diagonal and writes all; dropout reads, writes and has a mask of a byte.
    scores = float(batch * queries * keys) / d.bytes_per_second
    return products + 8 * scores + 4 * d.kernel_seconds, 2 * products + 9 * scores + 7 * d.kernel_seconds


def _fused_seconds(
    a: Attention, heads: int, sequences: int, context: int, queries: int, d: Device
) -> tuple[float, float]:
    """Only the needed keys count; the backward pass forms five products for the forward's two (Dao, 2023)."""
    rows, width = float(sequences * heads * queries), a.head_dim + (a.value_dim or a.head_dim)
    flops = 2.0 * rows * a.keys(context) * width
    traffic = HALF * 2.0 * rows * width
    forward = max(flops / d.attention, traffic / d.bytes_per_second)
    backward = max(2.5 * flops / d.attention, 2 * traffic / d.bytes_per_second)
    return forward + d.kernel_seconds, backward + 2 * d.kernel_seconds


def _batched_seconds(batch: int, rows: int, inner: int, outer: int, d: Device) -> float:
    """Seconds of the products of unfused attention: `batch` small ones in one launch."""
    flops = 2.0 * batch * rows * inner * outer * quantisation(rows, outer, d.units, batch)
    traffic = HALF * batch * (rows * inner + inner * outer + rows * outer)
    return max(flops / d.batched, traffic / d.bytes_per_second)
