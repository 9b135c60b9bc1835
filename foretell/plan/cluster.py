"""Seconds of an optimiser step on a cluster, part by part.

Each layer's products, attention and elementwise work are timed on one device (`kernels.py`), the messages of every axis
on the links they use (`links.py`), the stages are put in a pipeline (`pipeline.py`). What communication overlaps with
computation is exposed only where it is longer. The parts sum to the step.

Ranks stand in the order of `layout.AXES`: tensor parallelism innermost, the pipeline outermost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

from foretell.plan import kernels, layout, links, pipeline
from foretell.plan.hardware import Hardware
from foretell.plan.kernels import Constants
from foretell.plan.layout import Degrees
from foretell.plan.scaling import spread
from foretell.plan.shape import Layer, Shape

# Of the normal distribution: half of a central 90% interval.
NINETY = 1.645


@dataclass(frozen=True)
class Job:
    """How a model is trained: sizes of a step in sequences, the layout, and what the software does.

    sharding: `none` sums gradients and every copy updates all (DDP); `optimizer` divides the optimiser's state (ZeRO-1,
    Megatron's distributed optimiser); `full` divides the weights too (FSDP, ZeRO-3).
    """

    degrees: Degrees
    micro_batch: int
    global_batch: int
    context: int
    dtype: str = "bfloat16"
    schedule: str = "1f1b"
    chunks: int = 1
    recompute: Literal["none", "selective", "full"] = "none"
    sharding: Literal["none", "optimizer", "full"] = "optimizer"
    sequence_parallel: bool = True
    overlap_gradients: bool = True
    gradient_bytes: int = 4
    state_bytes: int = 16

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one copy in a step."""
        return max(1, self.global_batch // (self.micro_batch * self.degrees.dp))


@dataclass(frozen=True)
class Pass:
    """Seconds of one layer (or head) for one micro-batch: forward, gradient of inputs, gradient of weights, again."""

    forward: float
    inputs: float
    weights: float
    again: float
    tp: float = 0.0
    cp: float = 0.0
    ep: float = 0.0

    @property
    def compute(self) -> float:
        """Without communication."""
        return self.forward + self.inputs + self.weights + self.again


@lru_cache(maxsize=4096)
def layer_pass(layer: Layer, job: Job, hardware: Hardware, c: Constants) -> Pass:
    """Seconds of one layer for one micro-batch on one rank."""
    d, item = job.degrees, kernels.ITEM_BYTES[job.dtype]
    tokens = job.micro_batch * job.context // d.cp
    forward, inputs, weights = _products(layer, job, hardware, c, tokens)
    peak, bandwidth = hardware.peak("bfloat16"), hardware.memory_bytes_per_second
    a, queries = layer.attention, job.context // d.cp
    heads = max(1, a.heads // d.tp)
    device = (peak, bandwidth, hardware.units, c)
    scores = kernels.attention_seconds(a, heads, job.micro_batch, job.context, queries, *device, backward=False)
    scores_back = kernels.attention_seconds(a, heads, job.micro_batch, job.context, queries, *device, backward=True)
    host = layer.kernels * c.host_seconds
    ahead, back = (
        kernels.memory_seconds(tokens * (split / d.tp + whole / (d.tp if job.sequence_parallel else 1)), bandwidth, c)
        for split, whole in zip(layer.split_bytes, layer.whole_bytes, strict=True)
    )
    launches = layer.kernels * c.kernel_seconds
    first = max(forward + scores + ahead + launches, host)
    again = {"none": 0.0, "selective": scores if not a.fused else 0.0, "full": first}[job.recompute]
    tp, cp, ep = _exchanges(layer, job, hardware, c, tokens, item)
    return Pass(
        first, max(inputs + scores_back + back + 1.5 * launches, host), max(weights, host / 2), again, tp, cp, ep
    )


def _products(layer: Layer, job: Job, hardware: Hardware, c: Constants, tokens: int) -> tuple[float, float, float]:
    d, item = job.degrees, kernels.ITEM_BYTES[job.dtype]
    device = (hardware.peak(job.dtype), hardware.memory_bytes_per_second, hardware.units, c, item)
    sums = [0.0, 0.0, 0.0]
    for p in layer.products:
        rows, inner, outer, batch = tokens, p.inner, p.outer, 1
        if p.split == "column":
            outer = max(1, outer // d.tp)
        elif p.split == "row":
            inner = max(1, inner // d.tp)
        if p.experts:
            batch = max(1, p.experts // d.ep)
            rows = math.ceil(tokens * p.top_k * d.ep / p.experts)
        sums[0] += kernels.product_seconds(rows, inner, outer, *device, batch)
        sums[1] += kernels.product_seconds(rows, outer, inner, *device, batch)
        sums[2] += kernels.product_seconds(inner, rows, outer, *device, batch)
    return sums[0], sums[1], sums[2]


def _exchanges(
    layer: Layer, job: Job, hardware: Hardware, c: Constants, tokens: int, item: int
) -> tuple[float, float, float]:
    """Seconds of what a layer sends over tp, cp and ep for a micro-batch, forward and backward."""
    d, hidden = job.degrees, layer.products[0].inner
    tp = links.group(d.tp, 1, hardware)
    passes = 3 if job.recompute == "full" else 2
    one = links.all_reduce_seconds(2.0 * tokens * hidden, tp, hardware, c)
    cp = links.group(d.cp, d.tp, hardware)
    a = layer.attention
    keys = 2.0 * job.micro_batch * job.context * 2 * max(1, a.kv_heads // d.tp) * a.head_dim
    exchanged = links.gather_seconds(keys, cp, hardware, c) * (passes + 0)
    ep = links.group(d.ep, d.tp * d.cp, hardware)
    routed = max((p.top_k for p in layer.products if p.experts), default=0)
    sent = links.all_to_all_seconds(2.0 * tokens * hidden * routed, ep, hardware, c)
    return passes * layer.all_reduces * one, exchanged, 2 * passes * sent


def head_pass(shape: Shape, job: Job, hardware: Hardware, c: Constants) -> Pass:
    """Seconds of the output head and the cross-entropy of one micro-batch."""
    d, item = job.degrees, kernels.ITEM_BYTES[job.dtype]
    tokens, vocab = job.micro_batch * job.context // d.cp, max(1, shape.vocab // d.tp)
    bandwidth = hardware.memory_bytes_per_second
    device = (hardware.peak(job.dtype), bandwidth, hardware.units, c, item)
    # In float32: converted, its largest value, differences, exponentials, sum, quotients; backward copied, scaled, cast.
    logits = [kernels.memory_seconds(tokens * vocab * each, bandwidth, c) for each in (38.0, 22.0)]
    forward = kernels.product_seconds(tokens, shape.hidden, vocab, *device) + logits[0]
    inputs = kernels.product_seconds(tokens, vocab, shape.hidden, *device) + logits[1]
    weights = kernels.product_seconds(shape.hidden, tokens, vocab, *device)
    tp = 2 * links.all_reduce_seconds(2.0 * tokens * shape.hidden, links.group(d.tp, 1, hardware), hardware, c)
    return Pass(forward, inputs, weights, 0.0, tp)


def step(shape: Shape, job: Job, hardware: Hardware, c: Constants) -> dict[str, Any]:
    """The seconds of a step by part, with what follows from them.

    Keys: seconds, mfu, hfu, tokens_per_second (each value, low, high), parts (seconds by part; they sum to the step's).
    """
    parts = step_parts(shape, job, hardware, c)
    total = sum(parts.values())
    tokens = job.global_batch * job.context
    world = job.degrees.world_size
    peak = world * hardware.peak(job.dtype)
    model = tokens * shape.flops_per_token(job.context, causal=False)
    done = model + tokens * _recomputed_flops(shape, job)
    half = NINETY * c.spread
    return {
        "seconds": spread(total, half),
        "tokens_per_second": spread(tokens / total, half),
        "mfu": spread(model / total / peak, half),
        "hfu": spread(done / total / peak, half),
        "parts": parts,
    }


def _recomputed_flops(shape: Shape, job: Job) -> float:
    layers = shape.flops_per_token(job.context, causal=False) - 6.0 * shape.vocab * shape.hidden
    scores = sum(2.0 * n * layer.attention.width * job.context for n, layer in shape.layers)
    return {"none": 0.0, "selective": scores, "full": layers / 3}[job.recompute]


def step_parts(shape: Shape, job: Job, hardware: Hardware, c: Constants) -> dict[str, float]:
    """Seconds of a step: compute, tp, cp, ep, pp, dp (exposed communication of each axis), bubble, optimizer, other."""
    d, m = job.degrees, job.micro_batches
    one = replace(job, global_batch=0, degrees=d._replace(pp=1, dp_replicate=1, dp_outer=1))  # what a layer sees
    kinds = {layer: layer_pass(layer, one, hardware, c) for _, layer in shape.layers}
    head = head_pass(shape, job, hardware, c)
    chunks = job.chunks if d.pp > 1 else 1
    ranges = layout.stage_layers(shape.depth, d.pp * chunks)
    stages: list[list[Pass]] = [[] for _ in range(d.pp)]
    for s, chunk in enumerate(ranges):
        stages[s % d.pp] += [kinds[shape.layer(i)] for i in chunk]
    stages[-1].append(head)
    far = d.world_size // d.pp >= hardware.node_link.devices
    size = 2.0 * job.micro_batch * job.context // d.cp * shape.hidden / d.tp
    hop = chunks * links.send_seconds(size, far, hardware, c) if d.pp > 1 else 0.0
    sums = [{k: sum(getattr(x, k) for x in s) for k in ("compute", "tp", "cp", "ep")} for s in stages]
    forward = [sum(p.forward + (p.tp + p.cp + p.ep) / 3 for p in s) + hop for s in stages]
    weights = [sum(p.weights for p in s) for s in stages]
    backward = [sum(p.inputs + p.again + (p.tp + p.cp + p.ep) * 2 / 3 for p in s) + hop for s in stages]
    span = pipeline.span_seconds(forward, backward, weights, m, job.schedule, chunks)
    slow = max(range(d.pp), key=lambda s: forward[s] + backward[s] + weights[s])
    parts = {k: m * v for k, v in sums[slow].items()}
    parts["pp"] = m * 2 * hop
    parts["bubble"] = span - sum(parts.values())
    parts["dp"] = _gradient_seconds(shape, job, hardware, c, backward[slow], sums[slow]["compute"])
    parts["optimizer"] = _optimizer_seconds(shape, job, hardware, c)
    parts["other"] = c.step_seconds
    return parts


def _gradient_seconds(shape: Shape, job: Job, hardware: Hardware, c: Constants, back: float, compute: float) -> float:
    """Exposed seconds of the gradients (and with sharding of the weights) over the copies, in a step."""
    d = job.degrees
    mine = shape.parameters / (d.tp * d.pp)
    shards = links.group(d.fsdp, d.tp, hardware)
    copies = links.group(d.dp_replicate, d.tp * d.fsdp, hardware)
    if job.sharding == "full":
        gathered = links.gather_seconds(2.0 * mine, shards, hardware, c)
        reduced = links.gather_seconds(job.gradient_bytes * mine, shards, hardware, c)
        each = max(0.0, 2 * gathered + reduced - c.overlap * compute) + 2 * gathered / max(1, shape.depth)
        rest = links.all_reduce_seconds(job.gradient_bytes * mine / d.fsdp, copies, hardware, c)
        return job.micro_batches * each + max(0.0, rest - c.overlap * back)
    everyone = links.group(d.fsdp * d.dp_replicate, d.tp, hardware)
    total = links.all_reduce_seconds(job.gradient_bytes * mine, everyone, hardware, c)
    if job.sharding == "optimizer":
        total = links.gather_seconds((job.gradient_bytes + 2.0) * mine, everyone, hardware, c)
    return total - min(total * c.overlap, back) if job.overlap_gradients else total


def _optimizer_seconds(shape: Shape, job: Job, hardware: Hardware, c: Constants) -> float:
    """Seconds of the update: it reads and writes states, gradients and weights once."""
    d = job.degrees
    mine = shape.parameters / (d.tp * d.pp)
    divided = {"none": 1, "optimizer": d.dp * d.cp, "full": d.fsdp}[job.sharding]
    return kernels.memory_seconds(mine / divided * 2 * job.state_bytes, hardware.memory_bytes_per_second, c)
