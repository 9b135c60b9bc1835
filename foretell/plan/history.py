"""Forecasts against measurements over many runs: which share of the intervals held, and what the errors teach.

A central 90% interval that is right holds nine times of ten. `gathered` says how often it did, by quantity; `lessons`
turns the errors of time and memory into a factor and a width, which forecasts on the same machine then use (`taught`).
The factor is drawn towards 1 by as many imagined errorless runs as it takes to trust it; the width is Student's for one
more run (as in `fit.py`). Runs record the factor that they were forecast with, so it is not applied twice.

Not handled: errors that depend on size; the loss, whose law is fitted to whole runs (`fit.py`).
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from foretell.plan import scaling, verdict
from foretell.plan.fit import student_95

Pair = tuple[str, Mapping[str, Any], Mapping[str, Any]]
# Runs before a lesson is drawn, and imagined ones without error that it is weighed against.
FEWEST_RUNS, IMAGINED_RUNS = 4, 2
# No interval gets narrower than that: a half-width of the logarithm.
NARROWEST = 0.03
TAUGHT = ("step_seconds", "memory_bytes.peak")


def gathered(pairs: Iterable[Pair]) -> dict[str, Any]:
    """Of (name, plan.json, measured.json) of several runs: `runs`, and `quantities` with the share that held.

    A quantity has `runs`, `held_share` (None without intervals), `median_error_percent`, `worst_error_percent`.
    """
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    runs = []
    for name, plan, measured in pairs:
        one = verdict.verify(plan, measured)
        runs.append({"run": name, "held_share": one["held_share"], "headline_held": one["headline_held"]})
        for q in one["quantities"]:
            found[q["name"]].append(q)
    quantities = []
    for name, rows in found.items():
        held = [q["held"] for q in rows if q["held"] is not None]
        errors = [q["error_percent"] for q in rows if q["error_percent"] is not None]
        quantities.append(
            {
                "name": name,
                "runs": len(rows),
                "held_share": sum(held) / len(held) if held else None,
                "median_error_percent": statistics.median(errors) if errors else None,
                "worst_error_percent": max(errors, key=abs) if errors else None,
            }
        )
    judged = [q for rows in found.values() for q in rows if q["held"] is not None]
    share = sum(q["held"] for q in judged) / len(judged) if judged else None
    return {"runs": runs, "quantities": quantities, "held_share": share}


def lessons(pairs: Iterable[Pair]) -> dict[str, dict[str, float]]:
    """What forecasts of time and memory should be multiplied by, and their half-width, from runs of one machine.

    Kept apart by what a forecast of time stood on: `step_seconds.trial` and `step_seconds.record`. Only finished runs
    count, and only where there are `FEWEST_RUNS`.
    """
    errors: defaultdict[str, list[float]] = defaultdict(list)
    for _, plan, measured in pairs:
        if str(measured.get("stopped") or "finished") != "finished":
            continue
        for q in verdict.verify(plan, measured)["quantities"]:
            if q["name"] in TAUGHT and q["predicted"] > 0 and q["measured"] > 0:
                key = _key(q["name"], plan.get("trial") is not None)
                before = float((plan.get("lessons") or {}).get(key, 1.0))
                errors[key].append(math.log(q["measured"] / q["predicted"] * before))
    return {key: _lesson(values) for key, values in errors.items() if len(values) >= FEWEST_RUNS}


def _key(name: str, tried: bool) -> str:
    return f"{name}.{'trial' if tried else 'record'}" if name == "step_seconds" else name


def _lesson(errors: list[float]) -> dict[str, float]:
    n = len(errors)
    mean = sum(errors) / (n + IMAGINED_RUNS)
    square = sum((e - mean) ** 2 for e in errors) / (n - 1)
    width = student_95(n - 1) * math.sqrt(square * (1 + 1 / n))
    return {"factor": math.exp(mean), "half_width": max(width, NARROWEST), "runs": n}


def taught(q: dict[str, float], machine: Mapping[str, Any], name: str, tried: bool = False) -> dict[str, float]:
    """A forecast {value, low, high} as the machine's earlier runs correct it; as it is where there were too few."""
    lesson = (machine.get("lessons") or {}).get(_key(name, tried))
    return scaling.spread(q["value"] * lesson["factor"], lesson["half_width"]) if lesson else q


def factors(machine: Mapping[str, Any], tried: bool) -> dict[str, float]:
    """The factors that a forecast on this machine was multiplied by, for its plan.json."""
    known = machine.get("lessons") or {}
    return {key: known[key]["factor"] for key in (_key(name, tried) for name in TAUGHT) if key in known}
