"""How well a ladder's models do a task: score against loss, the curve, the forecast of each target, what came of it.

Read from LADDER/tasks/NAME.json and, beside each target's forecast, task-NAME.json and scored-NAME.json, as
tolerantly as the rest of the folder (docs/ladder.md). The targets lie to the left of the rungs. Not handled: tasks in
one picture.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretell.plan import downstream
from foretell.report import chart, numbers, sections
from foretell.report.chart import Axis, Line, Mark, Unit
from foretell.report.checks import Check, badge, gauge, span
from foretell.report.curve import Point, scale
from foretell.report.run import interval, number, positive, table
from foretell.report.words import escape, html, pick, say, text

MOST_TASKS = 8
MOST_TARGETS = 8
HEIGHT = 340
TARGET_HUE = 5
_POINTS = 60  # of the curve


@dataclass(frozen=True)
class Target:
    """A target's score: the forecast of its loss and of its score, and what was measured; `known`: by its own loss."""

    name: str
    loss: float
    check: Check
    measured_loss: float | None
    known: Check | None


@dataclass(frozen=True)
class Task:
    """A task on a ladder. `rungs`: (name, loss, share right)."""

    name: str
    items: int
    chance: float
    rungs: list[tuple[str, float, float]]
    curve: downstream.Curve | None
    targets: list[Target]


def read(folder: Path, damaged: list[str]) -> list[Task]:
    """The tasks of a ladder's folder. damaged: takes the names of files that cannot be read."""
    found = []
    for path in sorted((folder / "tasks").glob("*.json"))[:MOST_TASKS]:
        told, name = _object(path, folder, damaged), path.stem
        rungs = [
            (rung, loss, share)
            for rung, r in table(told.get("rungs")).items()
            if (loss := positive(table(r).get("loss"))) is not None
            and (share := _share(table(r).get("accuracy"))) is not None
        ]
        items, chance = number(told.get("items")), _share(told.get("chance"))
        if not rungs or not items or chance is None:
            continue
        own = sorted((folder / "targets").glob(f"*/task-{name}.json"))[:MOST_TARGETS]
        targets = [t for p in own if (t := _target(p, name, folder, damaged)) is not None]
        found.append(Task(name, int(items), chance, rungs, _curve(told.get("fit")), targets))
    return found


def _object(path: Path, folder: Path, damaged: list[str]) -> dict[str, Any]:
    try:
        return table(json.loads(path.read_bytes().decode("utf-8-sig", errors="replace")))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError):
        damaged.append(path.relative_to(folder).as_posix())
        return {}


def _share(value: Any) -> float | None:
    found = number(value)
    return found if found is not None and 0 <= found <= 1 else None


def _target(path: Path, name: str, folder: Path, damaged: list[str]) -> Target | None:
    told = _object(path, folder, damaged)
    scored = _object(path.with_name(f"scored-{name}.json"), folder, damaged)
    loss, got = positive(table(told.get("loss_forecast")).get("value")), _share(scored.get("measured"))
    check = _check(told.get("accuracy"), got)
    if loss is None or check is None:
        return None
    known = _check(scored.get("at_measured_loss"), got)
    return Target(path.parent.name, loss, check, positive(scored.get("loss")), known)


def _check(forecast: Any, got: float | None) -> Check | None:
    value, (low, high) = _share(table(forecast).get("value")), interval(forecast) or (None, None)
    if value is None or low is None or high is None or not 0 <= low <= high <= 1:
        return None
    return Check("accuracy", value, low, high, got, None, None if got is None else low <= got <= high)


def _curve(raw: Any) -> downstream.Curve | None:
    raw = table(raw)
    chance, middle, slope, factor = (number(raw.get(k)) for k in ("chance", "middle", "slope", "factor"))
    shape = raw.get("shape")
    if chance is None or middle is None or slope is None or factor is None or shape not in downstream.SHAPES:
        return None
    if not 0 <= chance < 1 or slope < 0:
        return None
    return downstream.Curve(str(shape), chance, middle, slope, factor, (0.0, 0.0), 0, {})


def section(tasks: list[Task]) -> str:
    """All tasks, one under the other; nothing where there are none."""
    return "".join(_task(t, i) for i, t in enumerate(tasks))


def _task(task: Task, i: int) -> str:
    told = say("graded.lead", items=f"{task.items:,}", n=len(task.rungs), chance=numbers.percent(task.chance))
    body = "".join(_line(t) for t in task.targets)
    names = ("target", "forecast", "interval", "measured", "verdict", "known")
    listed = sections.columns("graded", names, body) if body else ""
    return f"<h3>{escape(task.name)}</h3><p>{told}</p>{_figure(task, i)}{listed}"


def _line(t: Target) -> str:
    c = t.check
    verdict = badge(c) if c.measured is not None else ""
    return (
        f'<tr><th scope="row">{escape(t.name)}</th><td class="n">{html(c.show(c.predicted))}</td>'
        f'<td class="interval">{span(c)}{gauge(c)}</td><td class="n">{html(c.show(c.measured))}</td>'
        f'<td class="v">{verdict}</td><td>{span(t.known) if t.known else "–"}</td></tr>'
    )


def _figure(task: Task, i: int) -> str:
    losses = [loss for _, loss, _ in task.rungs] + [t.loss for t in task.targets]
    losses += [t.measured_loss for t in task.targets if t.measured_loss is not None]
    x, ends = Axis(scale(losses), (Unit("loss", text("unit.nats")),)), (min(losses), max(losses))
    titles = tuple(rung for rung, _, _ in sorted(task.rungs, key=lambda r: r[1]))
    dots = sorted((loss, share) for _, loss, share in task.rungs)
    lines = [Line(text("line.chance"), [(end, task.chance) for end in ends], "raw", 0, told=False)]
    if task.curve is not None:
        lines.append(Line(text("line.curve"), _points(task.curve, *ends), "plan"))
    lines.append(Line(text("line.rungs"), dots, "dots", 0, told=False, titles=titles))
    got = sorted(
        (t.measured_loss, t.check.measured, t.name)
        for t in task.targets
        if t.measured_loss is not None and t.check.measured is not None
    )
    if got:
        names = tuple(name for _, _, name in got)
        lines.append(Line(text("line.targets"), [(a, b) for a, b, _ in got], "dots", TARGET_HUE, False, names))
    marks = [
        Mark(t.loss, c.predicted, c.low, c.high)
        for t in task.targets
        if (c := t.check).predicted is not None and c.low is not None and c.high is not None
    ]
    shares = [y for n in lines for _, y in n.points] + [v for m in marks for v in (m.low, m.high)]
    y = Axis(scale(shares, zero=True), (Unit("share", "", 100.0, "%"),))
    title = say("chart.graded", task=pick(task.name).en)
    return chart.draw(f"graded-plot-{i}", title, lines, [], marks, x, y, HEIGHT)


def _points(curve: downstream.Curve, low: float, high: float) -> list[Point]:
    losses = [low + (high - low) * i / (_POINTS - 1) for i in range(_POINTS)]
    return [(v, a) for v in losses if math.isfinite(a := downstream.accuracy(curve, v))]
