"""The forecast of a run on a cluster: counts, memory of every stage, every byte sent, time, money, energy, failures.

Where `outlook.py` forecasts the machine at hand from what was measured on it, this one stands on the hardware table and
on constants fitted to published runs (`cluster.py`), so its intervals are wider. The layout, the counts and the bytes
are those of this package's own training: FSDP2 for what tensor, pipeline and expert parallelism leave whole.

Collectives are counted exactly for the families that this package trains and places, and Mixtral. Of other families
 weights and activations that travel are counted by size (`_by_size`); the plan says which (`comm_exact`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from foretell import config as run_config
from foretell.config import ModelConfig, RunConfig
from foretell.errors import ConfigError
from foretell.plan import (
    cluster,
    communication,
    cost,
    efficiency,
    hardware,
    layout,
    models,
    ranks,
    reliability,
    scaling,
    serving,
    shape,
)
from foretell.plan.architecture import Architecture
from foretell.plan.collective import Collective
from foretell.plan.hardware import Hardware
from foretell.plan.layout import Degrees

# Families whose layers `distributed` places as they are.
_PLACED = ("gemma3_text", "gpt2", "llama", "mistral", "mixtral", "qwen2", "qwen3", "qwen3_moe")
CONVENTION = "all matrix products with the head, attention causal-exact, backward twice forward"
MEMORY_SPREAD = 0.1
# Tokens a parameter where a config does not say how long to train (Hoffmann et al., 2022).
TOKENS_A_PARAMETER = 20
MICRO_BATCHES = (8, 4, 2, 1)
SERVED_CONTEXT = 8192


def is_abroad(config: RunConfig) -> bool:
    """Whether a config asks for a cluster's forecast rather than this machine's."""
    return config.cluster.hardware is not None


def described(config: RunConfig) -> Architecture:
    """The model of a config: its preset, or its sizes."""
    if config.model.preset is not None:
        return models.named(config.model.preset)
    return models.of_model(config.model.resolved(config.model.vocab_size or 32_768, config.train.context))


def complete(config: RunConfig, a: Architecture, h: Hardware, d: Degrees) -> RunConfig:
    """Batches, steps and dtype filled in, as a cluster wants them. Raises ConfigError where they clash."""
    t = config.train
    if a.family not in ("t5", "bert") and t.context > a.context:
        raise ConfigError(f"train.context ({t.context:,}) exceeds what {a.name} was made for ({a.context:,})")
    tokens = t.tokens or (t.steps or 0) * (t.global_batch_tokens or 0) or TOKENS_A_PARAMETER * a.parameters["total"]
    unit = t.context * d.dp
    batch = t.global_batch_tokens or max(1, round(_batch(tokens) / unit / d.pp)) * unit * d.pp
    if batch % unit:
        near = max(1, round(batch / unit)) * unit
        raise ConfigError(
            f"train.global_batch_tokens ({batch:,}) must be a multiple of context {t.context:,} x data parallel "
            f"{d.dp:,} = {unit:,}; nearest: {near:,}"
        )
    dtype = t.dtype if t.dtype != "auto" else ("bfloat16" if h.flops_per_second.bfloat16 > 0 else "float32")
    done: dict[str, Any] = {
        "global_batch_tokens": batch,
        "steps": t.steps or max(1, round(tokens / batch)),
        "dtype": dtype,
        "dropout": t.dropout or 0.0,
        "attention": "sdpa",
        "compile": "off",
    }
    sequences = batch // unit
    done["micro_batch_size"] = t.micro_batch_size or _micro(config, a, h, d, done, sequences)
    if sequences % done["micro_batch_size"]:
        near = max(n for n in range(1, sequences + 1) if sequences % n == 0 and n <= done["micro_batch_size"])
        raise ConfigError(
            f"train.micro_batch_size ({done['micro_batch_size']}) must divide the {sequences:,} sequences that each of "
            f"{d.dp:,} data-parallel ranks has in a step; nearest: {near}"
        )
    return run_config.updated(config, parallel={"dp_shard": d.dp_shard}, train=done)


def _batch(tokens: float) -> float:
    """Step Law's batch (Li et al., 2025), without the limits of small machines."""
    return 0.58 * float(tokens) ** 0.571


def _micro(config: RunConfig, a: Architecture, h: Hardware, d: Degrees, done: dict[str, Any], sequences: int) -> int:
    """The largest micro-batch whose memory fits, or 1; of a pipeline one that leaves each stage some."""
    for micro in MICRO_BATCHES:
        batches = sequences // micro
        if sequences % micro or (d.pp > 1 and (batches < d.pp or batches % d.pp)):
            continue
        train = config.train.model_copy(update={**done, "micro_batch_size": micro})
        if peak(a, config, train, d) <= room(h):
            return micro
    return 1


def peak(a: Architecture, config: RunConfig, train: run_config.TrainConfig, d: Degrees) -> float:
    """Bytes of the fullest stage."""
    return ranks.peak_bytes(a, config.parallel, train, d)


def room(h: Hardware) -> float:
    """Bytes of a device that a run may fill."""
    return ranks.SLACK * h.memory_bytes


def job(config: RunConfig, model: ModelConfig, d: Degrees) -> cluster.Job:
    """A completed config as the step-time model takes it."""
    t, p = config.train, config.parallel
    return cluster.Job(
        degrees=d,
        micro_batch=t.micro_batch_size or 1,
        global_batch=(t.global_batch_tokens or t.context) // t.context,
        context=t.context,
        dtype=t.dtype,
        schedule=p.schedule,
        chunks=layout.stages_of_a_process(p),
        recompute=p.recompute,
        sharding="full",
        fetched="step" if d.pp > 1 else "layer",
        summed="step",
        context_exchange=_exchange(p, model),
    )


def _exchange(p: run_config.ParallelConfig, model: ModelConfig) -> Literal["gather", "ring", "ulysses"]:
    how = layout.exchange(p, model)
    return "ulysses" if how == "ulysses" else "ring" if how == "ring" else "gather"


def view(config: RunConfig, a: Architecture) -> ModelConfig:
    """The model as a [model] table: what a layout divides."""
    if config.model.preset is None:
        return config.model.resolved(a.vocab, config.train.context)
    return models.as_model(a)


def devices(config: RunConfig, h: Hardware) -> int:
    """Of all nodes."""
    return config.cluster.nodes * (config.cluster.gpus_per_node or h.devices_per_node)


def completed(config: RunConfig) -> tuple[RunConfig, int]:
    """A config for a cluster with nothing left open, its sizes in [model], and the number of devices.

    Raises ConfigError as `forecast` does, and for a family that this package does not place.
    """
    h = hardware.load(config.cluster.hardware or "", table(config))
    a, world = described(config), devices(config, h)
    if a.family not in _PLACED:
        raise ConfigError(f"{a.name}: steps of {', '.join(_PLACED)} can be traced, not those of {a.family} yet")
    d = layout.degrees(config.parallel, world)
    c = complete(config, a, h, d)
    model = view(c, a).model_copy(update={"max_position_embeddings": c.train.context})
    sequences = c.train.needed("global_batch_tokens") // c.train.context
    layout.check(d, c.parallel, model, c.train.context, sequences, c.train.needed("micro_batch_size"))
    return run_config.updated(c, model={**model.model_dump(), "preset": None}), world


def forecast(config: RunConfig) -> dict[str, Any]:
    """Plan a config on the cluster it names: the content of `foretell plan --json`, with the names of plan.json.

    Raises ConfigError where the model, the batch or the layout cannot work, with both numbers and the nearest that can.
    """
    h = hardware.load(config.cluster.hardware or "", table(config))
    a = described(config)
    world = devices(config, h)
    d = layout.degrees(config.parallel, world)
    c = complete(config, a, h, d)
    model, t = view(c, a), c.train
    sequences = t.needed("global_batch_tokens") // t.context
    layout.check(d, c.parallel, model, t.context, sequences, t.needed("micro_batch_size"))
    memory = ranks.memory_bytes(a, c.parallel, t, d)
    largest = max(row["peak"] for row in memory)
    timed = cluster.step(shape.of(a), job(c, model, d), h, efficiency.constants(c.cluster.software))
    rows, exact = collectives(c, a, d)
    tokens = t.needed("global_batch_tokens") * t.needed("steps")
    flops = a.flops_per_token(t.context, t.context)
    seconds = {k: v * t.needed("steps") for k, v in timed["seconds"].items()}
    fits = largest <= room(h)
    return {
        "format_version": 1,
        "model": {"name": a.name, "family": a.family, **_sizes(model)},
        "hardware": _hardware(c, h, world),
        "layout": {**d._asdict(), "dp_shard": d.dp_shard, "schedule": c.parallel.schedule, "world_size": world},
        "convention": CONVENTION,
        "parameters": {**a.parameters, "per_rank": max(row["weights"] for row in memory) // 4},
        "flops_per_token": flops["causal"],
        "flops_by_convention": flops,
        "flops_total": flops["causal"] * tokens,
        "tokens": tokens,
        "steps": t.needed("steps"),
        "global_batch_tokens": t.needed("global_batch_tokens"),
        "micro_batch_size": t.needed("micro_batch_size"),
        "micro_batches": sequences // d.dp // t.needed("micro_batch_size"),
        "context": t.context,
        "dtype": t.dtype,
        "optimizer": t.optimizer,
        "recompute": c.parallel.recompute,
        "step_seconds": timed["seconds"],
        "step_parts": timed["parts"],
        "tokens_per_second": timed["tokens_per_second"],
        "mfu": _mfu(flops["causal"] * t.needed("global_batch_tokens"), timed["seconds"], world * h.peak(t.dtype)),
        **_memory(memory, largest, h),
        "fits": fits,
        "why_not": None if fits else why_not(c, a, h, d, largest),
        "comm_bytes": communication.comm_bytes(rows),
        "wire_bytes": communication.wire_bytes(rows),
        "collectives": [_shown(row) for row in rows],
        "comm_exact": exact,
        **_run(c, h, world, seconds),
        "serving": served(a, h, c.cluster.software),
    }


def table(config: RunConfig) -> Path | None:
    """The user's own hardware table, where there is one."""
    return Path(config.cluster.table) if config.cluster.table else None


def _mfu(work: float, seconds: dict[str, float], peak_rate: float) -> dict[str, float]:
    value, low, high = (work / seconds[k] / peak_rate for k in ("value", "high", "low"))
    return {"value": value, "low": low, "high": high}


def _sizes(model: ModelConfig) -> dict[str, int]:
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    sizes = {n: model.needed(n) for n in names}
    if model.num_experts:
        own = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
        sizes |= {n: model.needed(n) for n in own}
    return sizes


def _hardware(c: RunConfig, h: Hardware, world: int) -> dict[str, Any]:
    k = c.cluster
    return {"name": k.hardware, "title": h.title, "software": k.software, "devices": world, "nodes": k.nodes}


def _memory(rows: list[dict[str, Any]], largest: float, h: Hardware) -> dict[str, Any]:
    """The parts of the fullest stage and the peak with an interval; every stage; the device."""
    fullest = max(rows, key=lambda row: row["peak"])
    parts = {k: v for k, v in fullest.items() if k not in ("stage", "layers", "peak")}
    peak = scaling.spread(largest, MEMORY_SPREAD)
    return {
        "memory_bytes": {**parts, "stage": fullest["stage"], "peak": peak},
        "memory_by_stage": rows,
        "device_memory_bytes": h.memory_bytes,
    }


def _shown(row: Collective) -> dict[str, Any]:
    return {
        "purpose": row.purpose,
        "kind": row.kind,
        "axis": row.axis,
        "ranks": row.ranks,
        "calls": row.calls,
        "bytes": row.bytes,
        "step_bytes": row.step_bytes,
        "routed": row.routed,
    }


def _run(c: RunConfig, h: Hardware, world: int, seconds: dict[str, float]) -> dict[str, Any]:
    """What the whole run takes: time with failures, energy, carbon, money."""
    k = c.cluster
    kept = reliability.goodput(world, k.checkpoint_seconds, k.restart_seconds, h.failures_per_1000_device_days)
    share = kept["share"]
    taken = {
        "value": seconds["value"] / share["value"],
        "low": seconds["low"] / share["high"],
        "high": seconds["high"] / share["low"],
    }
    energy = {n: cost.energy_kwh(h, world, s) for n, s in taken.items()}
    return {
        "seconds": taken,
        "training_seconds": seconds,
        "goodput": kept,
        "energy_kwh": energy,
        "co2_kg": {n: cost.co2_kg(e) for n, e in energy.items()},
        "cost": {n: cost.price(h, world, s, k.price_per_hour) for n, s in taken.items()},
        "device_hours": taken["value"] * world / 3600,
    }


def served(a: Architecture, h: Hardware, software: str) -> dict[str, Any]:
    """Serving the model in bfloat16 on the fewest devices of a node that hold it, a power of two."""
    s, c = shape.of(a), efficiency.constants(software)
    context = min(SERVED_CONTEXT, a.context)
    result: dict[str, Any] = {"cache_bytes_per_token": 2.0 * a.cache_numbers_per_token, "context": context}
    if not a.cache_numbers_per_token:
        return result
    n = 1
    while n <= 64:
        batch = serving.largest_batch(s, h, context, n)
        if batch:
            one, full = (serving.decode(s, h, c, b, context, n) for b in (1, batch))
            return result | {
                "devices": n,
                "largest_batch": batch,
                "tokens_per_second_alone": one["tokens_per_second"],
                "tokens_per_second": full["tokens_per_second"],
            }
        n *= 2
    return result


def collectives(c: RunConfig, a: Architecture, d: Degrees) -> tuple[list[Collective], bool]:
    """What a rank of the first stage sends in a step, and whether that is exact."""
    if a.family in _PLACED:
        return communication.collectives(view(c, a), c.train, c.parallel, d.world_size, architecture=a), True
    return list(_by_size(c, a, d)), False


def _by_size(c: RunConfig, a: Architecture, d: Degrees) -> Iterator[Collective]:
    """Weights and gradients by layers, activations of tensor parallelism and of the pipeline, by their sizes."""
    t, item = c.train, 2 if c.train.dtype == "bfloat16" else 4
    p = ranks.place(c.parallel, t, d)
    layers, _ = next(ranks.stages(a, d.pp, d.pp * layout.stages_of_a_process(c.parallel)))
    if d.fsdp > 1:
        gathers = 1 if d.pp > 1 else 2 * p.batches
        for n, y in layers:
            numbers, held, _ = ranks.unit_numbers(y, d)
            yield Collective("weights", "all_gather", "fsdp", d.fsdp, n * gathers, numbers, item)
            yield Collective("gradients", "reduce_scatter", "fsdp", d.fsdp, n, numbers, 4)
            if d.dp_replicate > 1:
                yield Collective("gradients", "all_reduce", "dp_replicate", d.dp_replicate, n, held, 4)
    sums = sum(n * (1 + len(y.attentions)) for n, y in layers)
    if d.tp > 1:
        for kind in ("all_gather", "reduce_scatter"):
            calls = 2 * sums * p.batches
            yield Collective("sequence", kind, "tp", d.tp, calls, p.tokens * a.hidden, item)
    if d.pp > 1:
        calls = p.batches * layout.stages_of_a_process(c.parallel)
        for kind in ("send", "recv"):
            yield Collective("between stages", kind, "pp", 2, calls, p.tokens // d.tp * a.hidden, 4)


def why_not(c: RunConfig, a: Architecture, h: Hardware, d: Degrees, largest: float) -> str:
    """How far it is from fitting, and the nearest single changes that do."""
    found = []
    for text, parallel, train in _changes(c, d):
        try:
            changed = run_config.updated(c, parallel=parallel, train=train)
            degrees = layout.degrees(changed.parallel, d.world_size)
            t = changed.train
            sequences = t.needed("global_batch_tokens") // t.context
            layout.check(degrees, changed.parallel, view(changed, a), t.context, sequences, t.micro_batch_size or 1)
            if peak(a, changed, t, degrees) <= room(h):
                found.append(text)
        except ConfigError:
            continue
    told = f"a rank needs {largest / 1e9:.1f} GB of the {room(h) / 1e9:.1f} GB that a device of {h.title} leaves"
    return f"{told}; " + (f"fits with {' or with '.join(found[:3])}" if found else "see --search for layouts that fit")


def _changes(c: RunConfig, d: Degrees) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Single changes of a config that save memory, the cheapest first."""
    micro, tp = c.train.micro_batch_size or 1, d.tp
    if micro > 1:
        yield f"train.micro_batch_size={micro // 2}", {}, {"micro_batch_size": micro // 2}
    if d.dp_replicate > 1:
        yield "parallel.dp_replicate=1", {"dp_replicate": 1, "dp_shard": None}, {}
    for kind in ("selective", "full"):
        if c.parallel.recompute != kind:
            yield f"parallel.recompute={kind}", {"recompute": kind}, {}
    for factor in (2, 4, 8):
        yield f"parallel.tp={tp * factor}", {"tp": tp * factor, "dp_shard": None}, {}
        yield f"parallel.pp={d.pp * factor}", {"pp": d.pp * factor, "dp_shard": None}, {}
