"""Seconds of an optimiser step on a cluster, part by part.

Each layer's products, attention and elementwise work are timed on one device (`kernels.py`), the messages of every axis
on the links they use (`links.py`), the stages are put in a pipeline (`pipeline.py`). What communication overlaps with
computation is exposed only where it is longer. The parts sum to the step.

Ranks stand in the order of `layout.AXES`: tensor parallelism innermost, the pipeline outermost.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from foretell.plan import kernels, layout, links, pipeline
from foretell.plan.hardware import Hardware
from foretell.plan.kernels import Constants, Device
from foretell.plan.layout import Degrees
from foretell.plan.shape import Layer, Shape

# How much wider an interval is on machines of which no measured step was compared: a judgement.
UNCOMPARED = 1.3


@dataclass(frozen=True)
class Job:
    """How a model is trained: sizes of a step in sequences, the layout, and what the software does.

    sharding: `none` sums gradients and every copy updates all (DDP); `optimizer` divides the optimiser's state (ZeRO-1,
    Megatron's distributed optimiser); `full` divides the weights too (FSDP, ZeRO-3). overlap_gradients, overlap_tensor:
    whether what dp, and what tp, sends goes beside computation. chunks: stages a process of the interleaved schedule.
    fetched: whether sharded weights come anew for each pass of a layer, or stay through a step (FSDP in a pipeline).
    summed: whether their gradients are summed in each micro-batch, or in a step's last.
    """

    degrees: Degrees
    micro_batch: int
    global_batch: int
    context: int
    dtype: str = "bfloat16"
    schedule: str = "1f1b"
    chunks: int = 1
    recompute: Literal["none", "selective", "full"] = "none"
    fetched: Literal["layer", "step"] = "layer"
    summed: Literal["micro-batch", "step"] = "micro-batch"
    sharding: Literal["none", "optimizer", "full"] = "optimizer"
    sequence_parallel: bool = True
    overlap_gradients: bool = True
    overlap_tensor: bool = False
    context_exchange: Literal["gather", "ring", "ulysses"] = "gather"
    gradient_bytes: int = 4
    state_bytes: int = 16

    @property
    def micro_batches(self) -> int:
        """Micro-batches of one copy in a step."""
        return max(1, self.global_batch // (self.micro_batch * self.degrees.dp))


class Pass(NamedTuple):
    """Seconds of a micro-batch in one layer, head or stage.

    forward, inputs and weights (the gradients of), again (formed again): computation. tp, cp, ep: exposed
    communication, a third of it forward.
    """

    forward: float
    inputs: float
    weights: float
    again: float = 0.0
    tp: float = 0.0
    cp: float = 0.0
    ep: float = 0.0

    @property
    def compute(self) -> float:
        """Without communication."""
        return self.forward + self.inputs + self.weights + self.again

    @property
    def sent(self) -> float:
        """Communication."""
        return self.tp + self.cp + self.ep


@lru_cache(maxsize=4096)
def layer_pass(layer: Layer, job: Job, hardware: Hardware, c: Constants) -> Pass:
    """Seconds of one layer for one micro-batch on one rank."""
    d, device = job.degrees, kernels.device(hardware, c, job.dtype)
    tokens = job.micro_batch * job.context // d.cp
    forward, inputs, weights = _products(layer, job, device, tokens)
    a, heads = layer.attention, max(1, layer.attention.heads // d.tp)
    scores, scores_back = kernels.attention_seconds(a, heads, job.micro_batch, job.context, job.context // d.cp, device)
    ahead, back = (
        tokens * (split / d.tp + whole / (d.tp if job.sequence_parallel else 1)) / device.bytes_per_second
        for split, whole in zip(layer.split_bytes, layer.whole_bytes, strict=True)
    )
    launches, host = layer.kernels * c.kernel_seconds, layer.kernels * c.host_seconds
    first = max(forward + scores + ahead + launches, host)
    again = {"none": 0.0, "selective": ahead if a.fused else scores, "full": first}[job.recompute]
    tp, cp, ep = _exchanges(layer, job, hardware, c, tokens, scores + scores_back)
    inputs = max(inputs + scores_back + back + 1.5 * launches, host)
    return Pass(first, inputs, max(weights, host / 2), again, tp, cp, ep)


def _products(layer: Layer, job: Job, device: Device, tokens: int) -> tuple[float, float, float]:
    """Seconds of a layer's products: forward, gradients of inputs, gradients of weights."""
    d, sums = job.degrees, [0.0, 0.0, 0.0]
    for p in layer.products:
        rows, inner, outer, batch = tokens, p.inner, p.outer, 1
        if p.split == "column":
            outer = max(1, outer // d.tp)
        elif p.split == "row":
            inner = max(1, inner // d.tp)
        if p.experts:
            batch = max(1, p.experts // d.ep)
            rows = math.ceil(tokens * p.top_k * d.ep / p.experts)
        sums[0] += kernels.product_seconds(rows, inner, outer, device, batch)
        sums[1] += kernels.product_seconds(rows, outer, inner, device, batch)
        sums[2] += kernels.product_seconds(inner, rows, outer, device, batch)
    return sums[0], sums[1], sums[2]


def _exchanges(
    layer: Layer, job: Job, hardware: Hardware, c: Constants, tokens: int, scores: float
) -> tuple[float, float, float]:
    """Exposed seconds of what a layer sends over tp, cp and ep for a micro-batch: forward, backward, formed again."""
    d, hidden, a = job.degrees, max((p.inner for p in layer.products[:1]), default=0), layer.attention
    passes = 3 if job.recompute == "full" else 2
    one = links.all_reduce_seconds(2.0 * tokens * hidden, links.group(d.tp, 1, hardware), hardware, c)
    tp = passes * layer.all_reduces * one * ((1 - c.overlap) if job.overlap_tensor else 1.0)
    group = links.group(d.cp, d.tp, hardware)
    item = 2.0 * job.micro_batch * job.context
    keys = item * max(1, a.kv_heads // d.tp) * (a.head_dim + (a.value_dim or a.head_dim))
    if job.context_exchange == "ulysses":
        width = (a.heads + 2 * a.kv_heads + a.heads) * a.head_dim / d.tp
        cp = passes * links.all_to_all_seconds(item / d.cp * width, group, hardware, c)
    else:  # keys and values come in; backward they come again, and their gradients go home
        cp = (passes + 1) * links.gather_seconds(keys, group, hardware, c)
        cp = max(0.0, cp - c.overlap * scores) if job.context_exchange == "ring" else cp
    routed = max((p.top_k for p in layer.products if p.experts), default=0)
    experts = links.group(d.ep, d.tp * d.cp, hardware)
    sent = links.all_to_all_seconds(2.0 * tokens * hidden * routed, experts, hardware, c)
    return tp, cp, 2 * passes * sent


@lru_cache(maxsize=4096)
def head_pass(shape: Shape, job: Job, hardware: Hardware, c: Constants) -> Pass:
    """Seconds of the output head and the cross-entropy of one micro-batch."""
    d, device = job.degrees, kernels.device(hardware, c, "bfloat16" if job.dtype == "float8" else job.dtype)
    tokens, vocab = job.micro_batch * job.context // d.cp, max(1, shape.outputs // d.tp)
    # In float32: cast, largest value, differences, exponentials, sum, quotients; backward: copied, scaled, cast.
    ahead, back = (tokens * vocab * each / device.bytes_per_second for each in (38.0, 22.0))
    forward = kernels.product_seconds(tokens, shape.hidden, vocab, device) + ahead
    inputs = kernels.product_seconds(tokens, vocab, shape.hidden, device) + back
    weights = kernels.product_seconds(shape.hidden, tokens, vocab, device)
    tp = 2 * links.all_reduce_seconds(2.0 * tokens * shape.hidden, links.group(d.tp, 1, hardware), hardware, c)
    return Pass(forward, inputs, weights, 0.0, tp)


def step(shape: Shape, job: Job, hardware: Hardware, c: Constants) -> dict[str, Any]:
    """The seconds of a step by part, with what follows from them.

    Keys: seconds, tokens_per_second, mfu, hfu (each value, low, high), parts (seconds by part; they sum to the step's).
    MFU counts every product once, with full attention, over the peak of the products' dtype; HFU what is formed again.
    """
    parts = step_parts(shape, job, hardware, c)
    wider = 1.0 if hardware.compared else UNCOMPARED
    fast, slow = c.fastest / wider, c.slowest * wider
    seconds = _interval(sum(parts.values()), fast, slow)
    tokens = job.global_batch * job.context
    model = tokens * shape.flops_per_token(job.context, causal=False)
    again = tokens * _recomputed_flops(shape, job)
    peak = job.degrees.world_size * hardware.peak(job.dtype)
    rates = {"tokens_per_second": float(tokens), "mfu": model / peak, "hfu": (model + again) / peak}
    return {
        "seconds": seconds,
        **{name: _interval(work / seconds["value"], 1 / slow, 1 / fast) for name, work in rates.items()},
        "parts": parts,
    }


def _interval(value: float, low: float, high: float) -> dict[str, float]:
    return {"value": value, "low": value * low, "high": value * high}


def _recomputed_flops(shape: Shape, job: Job) -> float:
    """FLOPs of a token that are done a second time."""
    if job.recompute == "selective":
        return sum(2.0 * n * x.attention.width * job.context for n, x in shape.layers if not x.attention.fused)
    layers = shape.flops_per_token(job.context, causal=False) - 6.0 * shape.outputs * shape.hidden
    return layers / 3 if job.recompute == "full" else 0.0


def step_parts(shape: Shape, job: Job, hardware: Hardware, c: Constants) -> dict[str, float]:
    """Seconds of a step: compute, tp, cp, ep, pp, dp (exposed communication of each axis), bubble, optimizer, other."""
    d, m = job.degrees, job.micro_batches
    stages = _stages(shape, job, hardware, c)
    hop = _hop_seconds(shape, job, hardware, c)
    forward = [s.forward + s.sent / 3 + hop for s in stages]
    backward = [s.inputs + s.again + s.sent * 2 / 3 + hop for s in stages]
    span, slow = pipeline.span_seconds(forward, backward, [s.weights for s in stages], m, job.schedule, job.chunks)
    busy = stages[slow]
    parts = {"compute": m * busy.compute, "tp": m * busy.tp, "cp": m * busy.cp, "ep": m * busy.ep, "pp": 2 * m * hop}
    parts["bubble"] = span - sum(parts.values()) if d.pp > 1 else 0.0
    held = _held(shape, d)
    parts["dp"] = _gradient_seconds(shape, job, hardware, c, held, forward[slow], backward[slow] + busy.weights)
    parts["optimizer"] = _optimizer_seconds(job, hardware, c, held)
    parts["other"] = c.step_seconds
    factor = next((f for *key, f in c.corrections if key == [shape.hidden, d.tp, job.micro_batch]), 1.0)
    return {name: factor * seconds for name, seconds in parts.items()}


def _stages(shape: Shape, job: Job, hardware: Hardware, c: Constants) -> list[Pass]:
    """What each process of the pipeline does for a micro-batch."""
    d = job.degrees
    one = replace(job, global_batch=0, degrees=d._replace(pp=1, dp_replicate=1, dp_outer=1))  # what a layer sees
    kinds = [layer_pass(layer, one, hardware, c) for _, layer in shape.layers]
    ends = list(itertools.accumulate((n for n, _ in shape.layers), initial=0))
    chunks = job.chunks if d.pp > 1 else 1
    counts = [[0] * len(kinds) for _ in range(d.pp)]
    for s, part in enumerate(layout.stage_layers(shape.depth, d.pp * chunks)):
        for k, (first, end) in enumerate(itertools.pairwise(ends)):
            counts[s % d.pp][k] += max(0, min(end, part.stop) - max(first, part.start))
    stages = [_total(list(zip(n, kinds, strict=True))) for n in counts]
    stages[-1] = _total([(1, stages[-1]), (1, head_pass(shape, one, hardware, c))])
    return stages


def _total(parts: list[tuple[int, Pass]]) -> Pass:
    return Pass(*(sum(n * p[i] for n, p in parts) for i in range(len(Pass._fields))))


def _hop_seconds(shape: Shape, job: Job, hardware: Hardware, c: Constants) -> float:
    """Seconds of a micro-batch's messages in one direction, between all stages of two processes."""
    d = job.degrees
    if d.pp == 1:
        return 0.0
    far = d.world_size // d.pp >= hardware.node_link.devices
    size = 2.0 * job.micro_batch * job.context // d.cp * shape.hidden / d.tp
    return job.chunks * links.send_seconds(size, far, hardware, c)


@lru_cache(maxsize=4096)
def _held(shape: Shape, d: Degrees) -> tuple[float, float]:
    """Parameters that a rank of the busiest stage holds before sharding: dense ones, those of its experts."""
    expert = sum(n * p.parameters for n, x in shape.layers for p in x.products if p.experts)
    tables = shape.vocab * shape.hidden * (1 if shape.tied or d.pp > 1 else 2)
    layers = shape.layer_parameters - expert
    return (layers / d.pp + tables) / d.tp, expert / (d.pp * d.tp * d.ep)


def _gradient_seconds(
    shape: Shape, job: Job, hardware: Hardware, c: Constants, held: tuple[float, float], ahead: float, back: float
) -> float:
    """Exposed seconds of gradients (and of sharded weights) over the copies, in a step.

    ahead, back: seconds of a micro-batch's passes through the busiest stage. Sharded weights are fetched a layer ahead
    (Zhao et al., 2023), so what is longer than the computation shows, and one layer's part.
    """
    d, m, grad = job.degrees, job.micro_batches, float(job.gradient_bytes)
    shards = (links.group(d.fsdp, d.tp, hardware), links.group(d.fsdp // d.ep, d.tp * d.ep, hardware))
    if job.sharding == "full":
        gathered = sum(links.gather_seconds(2.0 * n, g, hardware, c) for n, g in zip(held, shards, strict=True))
        reduced = sum(links.gather_seconds(grad * n, g, hardware, c) for n, g in zip(held, shards, strict=True))
        layers, again = max(1, shape.depth // d.pp), 0.0 if job.fetched == "step" else gathered
        fetching = max(0.0, gathered - c.overlap * ahead) + gathered / layers
        busy = again + reduced - c.overlap * back
        last = max(0.0, busy) + reduced / layers
        between = last if job.summed == "micro-batch" else max(0.0, again - c.overlap * back)
        # Copies of the shards are summed once a step, in what time is left.
        copies = links.group(d.dp_replicate, d.tp * d.fsdp, hardware)
        size = sum(grad * n / g.size for n, g in zip(held, shards, strict=True))
        rest = max(0.0, links.all_reduce_seconds(size, copies, hardware, c) + min(0.0, busy))
        return (1 if job.fetched == "step" else m) * fetching + (m - 1) * between + last + rest
    everyone = [
        links.group(g.size * d.dp_replicate, d.tp * e, hardware) for g, e in zip(shards, (1, d.ep), strict=True)
    ]
    if job.sharding == "optimizer":
        total = sum(links.gather_seconds((grad + 2.0) * n, g, hardware, c) for n, g in zip(held, everyone, strict=True))
        beside = ahead + back
    else:
        total = sum(links.all_reduce_seconds(grad * n, g, hardware, c) for n, g in zip(held, everyone, strict=True))
        beside = back
    return total - min(total * c.overlap, beside) if job.overlap_gradients else total


def _optimizer_seconds(job: Job, hardware: Hardware, c: Constants, held: tuple[float, float]) -> float:
    """Seconds of the update: it reads and writes states, gradients and weights once."""
    d = job.degrees
    copies = {"none": 1, "optimizer": d.dp * d.cp, "full": d.fsdp}[job.sharding]
    mine = held[0] / copies + held[1] / max(1, copies // d.ep)
    return mine * 2 * job.state_bytes / (hardware.memory_bytes_per_second * c.memory)
