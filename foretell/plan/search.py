"""The best layouts of a model on a cluster: every one that can be divided, in order of the forecast time of a step.

Degrees, micro-batches, recomputation and schedules are walked through; what does not divide is not a candidate, what
does not fit in memory is counted with its reason. Tensor parallelism stays inside the domain that fast links join
(Narayanan et al., 2021). The batch stays what the config says, so all candidates do the same work.

Not searched: precision, optimiser, uneven stages, several kinds of device.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import Any

from foretell import config as run_config
from foretell.config import ParallelConfig, RunConfig, TrainConfig
from foretell.errors import ConfigError, PlanError
from foretell.plan import abroad, cluster, efficiency, hardware, layout, ranks, shape
from foretell.plan.architecture import Architecture
from foretell.plan.hardware import Hardware
from foretell.plan.layout import Degrees

MICRO = (1, 2, 4, 8)
RECOMPUTE = ("none", "selective", "full")
SHOWN = 10
_DEGREES = ("dp_replicate", "dp_shard", "tp", "pp", "cp", "ep")


def search(config: RunConfig, shown: int = SHOWN, picture: bool = False) -> dict[str, Any]:
    """The `shown` fastest layouts that fit: `layouts`, `tried`, and `left_out` with how many failed for which reason.

    With `picture` also `points`, the fastest of each set of degrees and way of recomputation: those that fit, and those
    that do not (`fits`). Raises PlanError where none fits, with the smallest peak that was seen.
    """
    h = hardware.load(config.cluster.hardware or "", abroad.table(config))
    a = abroad.described(config)
    world = abroad.devices(config, h)
    c = _same_batch(config, a, h, world)
    s, model, constants = shape.of(a), abroad.view(c, a), efficiency.constants(c.cluster.software)
    found: list[tuple[float, dict[str, Any]]] = []
    over: list[tuple[float, dict[str, Any]]] = []
    left_out: Counter[str] = Counter()
    smallest, tried = float("inf"), 0
    for d, parallel, train in candidates(c, a, h, world):
        tried += 1
        peak = ranks.peak_bytes(a, parallel, train, d)
        smallest = min(smallest, peak)
        if peak > abroad.room(h):
            left_out["does not fit"] += 1
            if not picture:
                continue
        changed = c.model_copy(update={"parallel": parallel, "train": train})
        timed = cluster.step(s, abroad.job(changed, model, d), h, constants)
        seconds = timed["seconds"]
        kept = found if peak <= abroad.room(h) else over
        kept.append((seconds["value"], _row(d, parallel, train, timed, peak, a, c, h)))
    left_out |= _indivisible(c, a, h, world)
    if not found:
        raise PlanError(
            f"{a.name} fits {world:,} x {h.title} in no layout: the smallest peak of {tried:,} is "
            f"{smallest / 1e9:.1f} GB a device, which leaves {abroad.room(h) / 1e9:.1f} GB; take more nodes, a shorter "
            "train.context, or a device with more memory"
        )
    found.sort(key=lambda f: f[0])
    layouts = _different((row for _, row in found), _DEGREES)
    result = {
        "model": a.name,
        "hardware": h.title,
        "devices": world,
        "global_batch_tokens": c.train.needed("global_batch_tokens"),
        "context": c.train.context,
        "tried": tried,
        "fitting": len(found),
        "left_out": dict(left_out),
        "room_bytes": abroad.room(h),
        "layouts": layouts[:shown],
    }
    if picture:
        over.sort(key=lambda f: f[0])
        both = ((True, found), (False, over))
        kinds = (*_DEGREES, "recompute")
        result["points"] = [r | {"fits": fits} for fits, rows in both for r in _different((r for _, r in rows), kinds)]
    return result


def _different(rows: Iterator[dict[str, Any]], keys: tuple[str, ...]) -> list[dict[str, Any]]:
    """The first of the rows, the fastest, of each set of values of the keys."""
    best: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        best.setdefault(tuple(row[key] for key in keys), row)
    return list(best.values())


def _same_batch(config: RunConfig, a: Architecture, h: Hardware, world: int) -> RunConfig:
    """The config with a batch and dtype that no candidate changes."""
    whole = {"dp_replicate": 1, "dp_shard": None, "tp": 1, "pp": 1, "cp": 1, "ep": 1}
    plain = run_config.updated(
        config,
        parallel={**whole, "schedule": "1f1b", "recompute": "none"},
        train={"micro_batch_size": None},
    )
    if plain.train.global_batch_tokens is None:
        d = Degrees(1, 1, world, 1, 1, 1)
        return abroad.complete(plain, a, h, d)
    one = Degrees(1, 1, 1, 1, 1, 1)
    return abroad.complete(plain, a, h, one)


def candidates(
    c: RunConfig, a: Architecture, h: Hardware, world: int
) -> Iterator[tuple[Degrees, ParallelConfig, TrainConfig]]:
    """Every layout that divides the model and the batch."""
    model = abroad.view(c, a)
    sequences = c.train.needed("global_batch_tokens") // c.train.context
    for d, parallel in _layouts(c, a, h, world):
        for schedule, recompute, micro in itertools.product(_schedules(d), RECOMPUTE, MICRO):
            p = parallel.model_copy(update={"schedule": schedule, "recompute": recompute})
            try:
                layout.check(d, p, model, c.train.context, sequences, micro)
            except ConfigError:
                continue
            if sequences // d.dp % micro or sequences % d.dp:
                continue
            yield d, p, c.train.model_copy(update={"micro_batch_size": micro})


def _schedules(d: Degrees) -> tuple[str, ...]:
    return ("1f1b", "interleaved", "zero-bubble") if d.pp > 1 else ("1f1b",)


def _powers(most: int) -> list[int]:
    return [1 << n for n in range(most.bit_length()) if 1 << n <= most]


def _layouts(c: RunConfig, a: Architecture, h: Hardware, world: int) -> Iterator[tuple[Degrees, ParallelConfig]]:
    """Degrees whose product is the number of devices."""
    sequences = c.train.needed("global_batch_tokens") // c.train.context
    routed = a.stacks[-1].layers[-1][1].routed
    for tp in _powers(min(h.node_link.devices, world)):
        for pp in (n for n in range(1, min(a.layers, world // tp, 64) + 1) if world % (tp * n) == 0):
            for cp in _powers(min(16, world // (tp * pp))) if c.train.context >= 8192 else [1]:
                left = world // (tp * pp * cp)
                if tp * pp * cp * left != world or left > sequences:
                    continue
                for dp_replicate in _replicas(left):
                    dp_shard = left // dp_replicate
                    for ep in _powers(min(dp_shard, routed.copies)) if routed else [1]:
                        if dp_shard % ep == 0:
                            axes = {"dp_replicate": dp_replicate, "dp_shard": dp_shard}
                            own = {**axes, "tp": tp, "pp": pp, "cp": cp, "ep": ep}
                            yield (
                                Degrees(pp, dp_replicate, dp_shard // ep, ep, cp, tp),
                                c.parallel.model_copy(update=own),
                            )


def _replicas(left: int) -> list[int]:
    """All sharded, or copies that each take 8, 64 or 512 devices, or copies of one device."""
    return sorted({left // n for n in (1, 8, 64, 512) if left % n == 0} | {1})


def _indivisible(c: RunConfig, a: Architecture, h: Hardware, world: int) -> Counter[str]:
    """How many degrees were no candidates, by what did not divide."""
    model, reasons = abroad.view(c, a), Counter[str]()
    sequences = c.train.needed("global_batch_tokens") // c.train.context
    for d, parallel in _layouts(c, a, h, world):
        try:
            layout.check(d, parallel, model, c.train.context, sequences, 1)
        except ConfigError as e:
            what, bracket, _ = str(e).partition(" (")
            cut = bracket and not what.startswith("a step has")
            reasons[f"{what} cannot be divided so" if cut else "too few micro-batches for the pipeline"] += 1
    return reasons


def _row(
    d: Degrees,
    p: ParallelConfig,
    t: TrainConfig,
    timed: dict[str, Any],
    peak: float,
    a: Architecture,
    c: RunConfig,
    h: Hardware,
) -> dict[str, Any]:
    parts, seconds = timed["parts"], timed["seconds"]
    total = seconds["value"]
    sent = sum(parts.get(axis, 0.0) for axis in ("tp", "cp", "ep", "pp", "dp"))
    rate = a.flops_per_token(t.context, t.context)["causal"] * t.needed("global_batch_tokens")
    return {
        "dp_replicate": d.dp_replicate,
        "dp_shard": d.dp_shard,
        "tp": d.tp,
        "pp": d.pp,
        "cp": d.cp,
        "ep": d.ep,
        "schedule": p.schedule if d.pp > 1 else None,
        "recompute": p.recompute,
        "micro_batch_size": t.micro_batch_size,
        "step_seconds": seconds,
        "tokens_per_second": t.needed("global_batch_tokens") / total,
        "mfu": rate / total / d.world_size / h.peak(t.dtype),
        "memory_bytes": peak,
        "exposed_share": sent / total,
        "bubble_share": parts.get("bubble", 0.0) / total,
        "command": _command(d, p, t),
    }


def _command(d: Degrees, p: ParallelConfig, t: TrainConfig) -> str:
    """The overrides that give this layout."""
    named = {"dp_replicate": d.dp_replicate, "tp": d.tp, "pp": d.pp, "cp": d.cp, "ep": d.ep}
    words = [f"parallel.{axis}={n}" for axis, n in named.items() if n > 1]
    words += [f"parallel.schedule={p.schedule}"] if d.pp > 1 and p.schedule != "1f1b" else []
    words += [f"parallel.recompute={p.recompute}"] if p.recompute != "none" else []
    return " ".join([*words, f"train.micro_batch_size={t.micro_batch_size}"])
