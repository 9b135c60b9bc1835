"""A ladder's folder as the report sees it: the plot, what was foretold of each target, and what came of it.

Read as tolerantly as a run folder: a ladder may still be climbing, and what cannot be read becomes a note. The layout
of the folder is on docs/ladder.md. Not handled: ladders side by side, or beside runs.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretell.plan import law
from foretell.report import graded, numbers, sections
from foretell.report import ladder as plot
from foretell.report.checks import Check
from foretell.report.run import interval, number, positive, rows, table
from foretell.report.words import escape, html, say, stress, text

MOST_RUNGS = 400
MOST_TARGETS = 8
_FORMS = {"chinchilla", "tied", "floorless"}  # whose law is written as the sum of three terms


@dataclass(frozen=True)
class Target:
    """One target: what forecast.json and measured.json said; `measured` is empty before the climb."""

    name: str
    foretold: dict[str, Any]
    measured: dict[str, Any]

    def checks(self) -> list[Check]:
        """Loss and bits per byte, forecast beside measured."""
        pairs = (("loss", "forecast", "measured"), ("bits_per_byte", "bits_per_byte", "bits_per_byte"))
        return [self._check(*pair) for pair in pairs if number(self.foretold.get(pair[1])) is not None]

    def _check(self, name: str, forecast: str, measured: str) -> Check:
        value, got = number(self.foretold.get(forecast)), number(self.measured.get(measured))
        low, high = interval(self.foretold.get(forecast)) or (None, None)
        error = 100 * (got / value - 1) if got is not None and value else None
        held = low <= got <= high if got is not None and low is not None and high is not None else None
        return Check(name, value, low, high, got, error, held)


@dataclass(frozen=True)
class Ladder:
    """`rungs`: lines of rungs.csv that are runs; `planned`: how many there will be; `digest`: of rungs.csv."""

    name: str
    folder: Path
    rungs: list[tuple[str, law.Row]]
    planned: int | None
    digest: str
    targets: list[Target]
    damaged: tuple[str, ...]
    tasks: list[graded.Task]


def is_ladder(folder: Path) -> bool:
    """Whether the folder is a ladder's, by its design or its table."""
    return any((folder / name).is_file() for name in ("ladder.json", "rungs.csv"))


def around(run: Path) -> tuple[Ladder, Target] | None:
    """The ladder that foretold the run in this folder, LADDER/targets/NAME/run, and what it foretold; else None."""
    own = run.resolve().parent
    if own.parent.name != "targets" or not (own / "forecast.json").is_file() or not is_ladder(own.parents[1]):
        return None
    found = read(own.parents[1], own.name)
    return (found, found.targets[0]) if found.targets else None


def read(folder: Path, only: str | None = None) -> Ladder:
    """What stands in a ladder's folder; of its targets the first few by name, or `only` that one."""
    damaged: list[str] = []
    names = [only] if only else sorted(p.parent.name for p in (folder / "targets").glob("*/forecast.json"))
    targets = []
    for name in names[:MOST_TARGETS]:
        own = folder / "targets" / name
        foretold = _object(own / "forecast.json", damaged)
        if number(foretold.get("forecast")) is not None:
            targets.append(Target(name, foretold, _object(own / "measured.json", damaged)))
        elif own / "forecast.json" not in damaged:
            damaged.append(f"targets/{name}/forecast.json")
    runs, digest = _rungs(folder / "rungs.csv", damaged)
    planned = len(rows(_object(folder / "ladder.json", damaged).get("rungs"))) or None
    tasks = graded.read(folder, damaged)
    damaged = list(dict.fromkeys(damaged))
    return Ladder(folder.resolve().name, folder, runs, planned, digest, targets, tuple(damaged), tasks)


def _object(path: Path, damaged: list[str]) -> dict[str, Any]:
    """A JSON object; an empty one where there is none, or none that can be read."""
    try:
        return table(json.loads(path.read_bytes().decode("utf-8-sig", errors="replace")))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError, OSError):
        damaged.append(path.name if path.name == "ladder.json" else f"targets/{path.parent.name}/{path.name}")
        return {}


def _rungs(path: Path, damaged: list[str]) -> tuple[list[tuple[str, law.Row]], str]:
    """The lines that are runs, by name, and the file's digest."""
    try:
        content = path.read_bytes()
        lines = list(csv.DictReader(content.decode("utf-8-sig", errors="replace").splitlines()[: MOST_RUNGS + 1]))
    except FileNotFoundError:
        return [], ""
    except (csv.Error, OSError):
        damaged.append("rungs.csv")
        return [], ""
    found = []
    for line in lines:
        size, tokens, loss, unique = (_number(line.get(k)) for k in ("parameters", "tokens", "loss", "unique_tokens"))
        if size and tokens and loss and min(size, tokens) >= 1:
            found.append((str(line.get("rung") or ""), law.Row(size, tokens, loss, unique)))
    return found, hashlib.sha256(content).hexdigest()


def _number(cell: Any) -> float | None:
    try:
        return positive(float(cell))
    except (TypeError, ValueError):
        return None


def headline(found: Ladder) -> str:
    """The first line of a ladder's page: the forecast of its target, and what was measured."""
    if not found.targets:
        return say("ladder.none")
    if len(found.targets) > 1:
        return say("ladder.several", n=len(found.targets))
    c = found.targets[0].checks()[0]
    shown = {k: "–" if v is None else f"{v:.3f}" for k, v in (("low", c.low), ("high", c.high), ("got", c.measured))}
    key = "ladder.headline" if c.measured is None else "ladder.headline.both"
    return stress(key, light=("low", "high"), loss=c.show(c.predicted), **shown)


def status(found: Ladder) -> str:
    """How far the ladder is, and what could not be read."""
    parts = []
    if found.planned and len(found.rungs) < found.planned:
        parts.append(f'<p class="note">{say("ladder.climbing", n=len(found.rungs), of=found.planned)}</p>')
    parts += [f'<p class="note bad">{say("status.damaged", file=name)}</p>' for name in found.damaged]
    return "".join(parts)


def target(found: Ladder, t: Target, i: int) -> str:
    """The section of one target: what was foretold and when, the plot, forecast against measured, the law."""
    place = table(t.foretold.get("target"))
    size, tokens = positive(place.get("parameters")), positive(place.get("tokens"))
    fitted = _law(t.foretold.get("fit"))
    parts = [f"<h3>{escape(t.name)}</h3>"] if len(found.targets) > 1 else []
    if size and tokens:
        ratio, created = number(t.foretold.get("compute_ratio")), t.foretold.get("created")
        when = created[:16].replace("T", " ") if isinstance(created, str) else "–"
        told = {"n": len(found.rungs), "size": numbers.count(size), "tokens": numbers.count(tokens)}
        told |= {"ratio": "–" if ratio is None else numbers.significant(ratio), "date": when}
        parts.append(f"<p>{say('ladder.lead', **told)}</p>")
    if found.digest and t.foretold.get("rungs_sha256") not in (None, found.digest):
        parts.append(f'<p class="note">{say("ladder.changed")}</p>')
    if t.foretold.get("caution") and found.rungs:
        longest = numbers.count(max(r.tokens for _, r in found.rungs))
        parts.append(f'<p class="note">{say("ladder.short", tokens=longest)}</p>')
    picture = _picture(found, t, fitted, i) if size and tokens and size >= 1 and tokens >= 1 else ""
    parts.append(picture)
    if picture:
        parts.append(f'<p class="small">{say("about.ladder")}</p>')
    parts.append(sections.against(t.checks(), everything=True))
    if fitted is not None and fitted.form in _FORMS:
        parts.append(f'<p class="small">{html(_written(fitted))}</p>')
    return "".join(parts)


def _picture(found: Ladder, t: Target, fitted: law.Fit | None, i: int) -> str:
    """The plot; nothing where its numbers are not such as could be drawn."""
    c = t.checks()[0]
    if fitted is None or not found.rungs or not all(v is not None and v > 0 for v in (c.predicted, c.low, c.high)):
        return ""
    place = table(t.foretold.get("target"))
    forecast = {k: float(place[k]) for k in ("parameters", "tokens")}
    forecast |= {"value": c.predicted or 0.0, "low": c.low or 0.0, "high": c.high or 0.0}
    unique = positive(place.get("unique_tokens"))
    if unique is not None:
        forecast["unique_tokens"] = unique
    try:
        return plot.figure([r for _, r in found.rungs], fitted, forecast, positive(c.measured), f"ladder-plot-{i}")
    except (OverflowError, ValueError, ZeroDivisionError):
        return ""


def _law(raw: Any) -> law.Fit | None:
    """The fitted law of a forecast; None where its numbers are none of a law."""
    raw = table(raw)
    e, a, b, alpha, beta = (number(raw.get(k)) for k in ("E", "A", "B", "alpha", "beta"))
    power, form = positive(raw.get("power", 1.0)), raw.get("form")
    if e is None or a is None or b is None or alpha is None or beta is None or power is None or form not in law.FREE:
        return None
    if min(e, a, b, alpha, beta) < 0 or max(alpha, beta) > 10:
        return None
    end = {"mean_error_percent": number(table(raw.get("end")).get("mean_error_percent"))}
    repeat, used = positive(raw.get("repeat")), int(number(raw.get("rows")) or 0)
    return law.Fit(e, a, b, alpha, beta, repeat, str(form), number(raw.get("objective")) or 0.0, end, used, power)


def _written(f: law.Fit) -> Any:
    error = f.end["mean_error_percent"]
    shown = {k: numbers.significant(getattr(f, k), 4) for k in ("E", "A", "B", "alpha", "beta")}
    return text("ladder.law", **shown, error="–" if error is None else f"{error:.2f}%", n=f.rows)


def listed(found: Ladder, fitted: law.Fit | None) -> str:
    """The table of the rungs, with the law's value beside each loss where there is a law."""
    if not found.rungs:
        return ""
    body = "".join(_line(name, row, fitted) for name, row in found.rungs)
    return sections.columns("rungs", ("rung", "parameters", "tokens", "loss", "law", "error"), body)


def _line(name: str, row: law.Row, fitted: law.Fit | None) -> str:
    try:
        value = law.loss(fitted, row.parameters, row.tokens, row.unique_tokens) if fitted else 0.0
    except (OverflowError, ZeroDivisionError):
        value = 0.0
    known = math.isfinite(value) and value > 0
    error = Check("loss", value, None, None, row.loss, 100 * (row.loss / value - 1)) if known else None
    cells = [numbers.count(row.parameters), numbers.count(row.tokens), f"{row.loss:.4f}"]
    cells += [f"{value:.4f}" if known else "–"]
    shown = "".join(f'<td class="n">{c}</td>' for c in cells)
    return f'<tr><th scope="row">{escape(name)}</th>{shown}<td class="n">{_percent(error)}</td></tr>'


def _percent(check: Check | None) -> str:
    if check is None or check.error_percent is None or abs(check.error_percent) > 1e6:
        return "–"
    return f"{check.error_percent:+.2f}%".replace("-", "−")


def own_law(found: Ladder) -> law.Fit | None:
    """The law of the first target's forecast."""
    return _law(found.targets[0].foretold.get("fit")) if found.targets else None


def of_run(run: Path, i: int) -> str:
    """The section of a run that a ladder foretold; nothing for any other."""
    found = around(run)
    if found is None:
        return ""
    ladder, t = found
    rungs = listed(ladder, own_law(ladder))
    told = say("ladder.rungs", n=len(ladder.rungs))
    return target(ladder, t, i) + (f"<details><summary>{told}</summary>{rungs}</details>" if rungs else "")
