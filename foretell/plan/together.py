"""What a forecast on the machine at hand gains when several processes share a run: memory of each, bytes, time.

The processes share the cores, so a step takes what one process would take on all of them, and what they tell each other
(`TOGETHER`: measured on two processes, benchmarks/scaling.py). On several machines the work is divided. The first step
of a run is known no better than that, so the interval is wide.
"""

from __future__ import annotations

import math
from typing import Any

from foretell.config import RunConfig
from foretell.plan import communication, layout, memory, models, ranks, scaling

# Time of a step over that of one process on the same cores; and half of the 90% interval of its logarithm.
TOGETHER, TOGETHER_SPREAD = 1.2, 0.35


def is_together(config: RunConfig, processes: int) -> bool:
    """Whether a run goes through `distributed`: of several processes, or with what one alone does by it."""
    return processes > 1 or config.parallel.strict or config.parallel.offload


def step_seconds(one: dict[str, float], processes: int, machines: int) -> dict[str, float]:
    """The forecast of a step of several processes from that of one process on one machine's cores."""
    if processes == 1:
        return one
    width = math.hypot(math.log(one["high"] / one["value"]), TOGETHER_SPREAD)
    return scaling.spread(one["value"] * TOGETHER / machines, width)


def memory_bytes(config: RunConfig, processes: int, process_bytes: float | None) -> dict[str, float]:
    """The parts and the resident peak of the process that holds most, with the names of `memory.memory_bytes`."""
    d = layout.degrees(config.parallel, processes)
    rows = ranks.memory_bytes(models.of_model(config.model), config.parallel, config.train, d)
    most = max(rows, key=lambda row: row["peak"])
    process, live = process_bytes or memory.PROCESS_BYTES, most["peak"]
    held = memory.HELD_BYTES + memory.HELD_SHARE * live
    snapshot = most["weights"] + most["optimizer"]
    parts = {k: most[k] for k in ("states", "activations", "logits", "workspace", "gathered")}
    peak = process + live + held + snapshot
    return {**parts, "snapshot": snapshot, "allocator": held, "process": process, "live": live, "peak": peak}


def shared(config: RunConfig, processes: int) -> dict[str, Any]:
    """`layout`, and what the first rank communicates in a step: `comm_bytes` by axis, `wire_bytes`, the sum."""
    d = layout.degrees(config.parallel, processes)
    evaluated = config.train.eval_every == 1
    rows = communication.collectives(config.model, config.train, config.parallel, processes, evaluated=evaluated)
    own = [row for row in rows if not row.outside]
    same = not any(row.routed or row.every > 1 for row in own)  # in every step
    return {
        "layout": {
            **d._asdict(),
            "dp_shard": d.dp_shard,
            "schedule": config.parallel.schedule,
            "world_size": processes,
        },
        "comm_bytes": communication.comm_bytes(rows),
        "wire_bytes": communication.wire_bytes(rows),
        **({"comm_step_bytes": sum(row.step_bytes for row in own)} if same and processes > 1 else {}),
    }
