"""Which curves a report shows: the loss inside its forecast band, and four small ones under it.

Drawn in bits per byte where the run tells how its nats convert, so that runs with different tokenizers share an axis;
the factor is the one between the two losses of the last validation, hence exact there and within the text's variation
elsewhere.
"""

from __future__ import annotations

from foretell.report import chart
from foretell.report.chart import Axis, Band, Line, Mark, Unit
from foretell.report.curve import Point, Scale, scale, smooth, thin
from foretell.report.run import Run, interval, number, rows
from foretell.report.words import Both, say, text

SMALL = 400  # points of a small chart


def figures(runs: list[Run]) -> str:
    """All charts of the page, or nothing when no run has a log yet."""
    if not any(r.steps or r.evals for r in runs):
        return ""
    x = _steps_axis(runs)
    small = "".join(
        [
            _small(runs, x, "lr", "lr"),
            _small(runs, x, "grad_norm", "grad_norm", log=True),
            _small(runs, x, "tokens_per_second", "tokens_per_second", forecast=True),
            _small(runs, x, "mfu", "mfu", percent=True, forecast=True),
        ]
    )
    return _switches(runs) + _loss(runs, x) + (f'<div class="grid">{small}</div>' if small else "")


def _factor(run: Run, runs: list[Run]) -> float:
    """From steps to the unit that is drawn: steps for one run, tokens for several."""
    return 1.0 if len(runs) == 1 else run.tokens_per_step or 1.0


def _steps_axis(runs: list[Run]) -> Axis:
    end = max(max(r.last_step, r.planned_steps or 0) * _factor(r, runs) for r in runs) or 1.0
    run = runs[0]
    if len(runs) > 1:
        return Axis(Scale(0, end), (Unit("tokens", text("unit.tokens")),))
    units = [Unit("steps", text("unit.steps"))]
    if run.tokens_per_step:
        units.append(Unit("tokens", text("unit.tokens"), run.tokens_per_step))
        if run.bytes_per_token:
            units.append(Unit("bytes", text("unit.bytes"), run.tokens_per_step * run.bytes_per_token))
    return Axis(Scale(0, end), tuple(units))


def _points(run: Run, events: list[dict], field: str, runs: list[Run], factor: float = 1.0) -> list[Point]:
    found = [(e["step"] * _factor(run, runs), number(e.get(field))) for e in events]
    return [(x, y * factor) for x, y in found if y is not None]


def _bits(runs: list[Run]) -> bool:
    """Whether every run can be drawn in bits per byte."""
    return all(r.bits_per_nat_token for r in runs)


def _loss(runs: list[Run], x: Axis) -> str:
    bits = _bits(runs)
    lines: list[Line] = []
    bands: list[Band] = []
    marks: list[Mark] = []
    for i, run in enumerate(runs):
        factor = (run.bits_per_nat_token or 1.0) if bits else 1.0
        raw = _points(run, run.steps, "loss", runs, factor)
        seen = _points(run, run.evals, "bits_per_byte" if bits else "loss", runs)
        if len(runs) == 1:
            lines.append(Line(text("line.train"), thin(raw), "raw", i, told=False))
        lines.append(Line(_named(runs, run, "line.smoothed"), thin(smooth(raw), SMALL), "main", i))
        lines.append(Line(_named(runs, run, "line.valid"), seen, "dots", i))
        end = (run.planned_steps or run.last_step) * _factor(run, runs)
        band, middle = _band(run, runs, bits)
        final = run.get("plan.bits_per_byte" if bits else "plan.loss")
        pair, value = interval(final), number(final)
        if pair and value is not None and end:
            marks.append(Mark(end, value, *pair, hue=i))
            if not band:
                bands.append(Band([(0, *pair), (end, *pair)], hue=i, faint=True))
        if band:
            bands.append(Band(band, hue=i))
            lines.append(Line(_named(runs, run, "line.forecast"), middle, "plan", i))
    if not any(n.points for n in lines):
        return ""
    y = scale(_loss_values(lines, bands, marks, x.scale.high), log=True)
    return chart.draw("loss", say("chart.loss"), lines, bands, marks, x, Axis(y, _loss_units(runs, bits)), 380)


def _named(runs: list[Run], run: Run, what: str) -> Both:
    words = text(what)
    return words if len(runs) == 1 else Both(f"{run.name}: {words.en}", f"{run.name}\uff1a{words.zh}")


def _loss_values(lines: list[Line], bands: list[Band], marks: list[Mark], end: float) -> list[float]:
    """What the loss axis must hold. The band's first hundredth may leave the picture: it starts far above any loss."""
    values = [y for n in lines if n.look != "plan" for _, y in n.points]
    values += [v for b in bands for at, low, high in b.edges if at >= 0.01 * end for v in (low, high)]
    return values + [v for m in marks for v in (m.low, m.high)]


def _loss_units(runs: list[Run], bits: bool) -> tuple[Unit, ...]:
    nats = text("unit.nats")
    if not bits:
        return (Unit("nats", nats),)
    own = Unit("bits", text("unit.bits"))
    return (own, Unit("nats", nats, 1 / (runs[0].bits_per_nat_token or 1.0))) if len(runs) == 1 else (own,)


def _band(run: Run, runs: list[Run], bits: bool) -> tuple[list[tuple[float, float, float]], list[Point]]:
    """The forecast along the run, from plan.json's `loss_curve`, where it has one."""
    edges, middle = [], []
    per_step = run.tokens_per_step
    for row in rows(run.get("plan.loss_curve")):
        at = number(row.get("step"))
        tokens = number(row.get("tokens"))
        if at is None and tokens is not None and per_step:
            at = tokens / per_step
        pair, value = interval(row), number(row.get("value"))
        if at is None or pair is None:
            continue
        at *= _factor(run, runs)
        edges.append((at, *pair))
        if value is not None:
            middle.append((at, value))
    return (edges, middle) if len(edges) > 1 else ([], [])


def _small(
    runs: list[Run], x: Axis, key: str, field: str, *, log: bool = False, percent: bool = False, forecast: bool = False
) -> str:
    lines: list[Line] = []
    bands: list[Band] = []
    factor = 100.0 if percent else 1.0
    for i, run in enumerate(runs):
        raw = _points(run, run.steps, field, runs, factor)
        if not raw:
            continue
        calm = field in {"lr"}
        if not calm and len(runs) == 1:
            lines.append(Line(text("line.step"), thin(raw, SMALL), "raw", i))
        main = raw if calm else smooth(raw)
        what = "line.measured" if calm else "line.average"
        lines.append(Line(_named(runs, run, what), thin(main, SMALL), "main", i, told=calm or len(runs) > 1))
        expected, pair = run.number(f"plan.{field}"), interval(run.get(f"plan.{field}"))
        if forecast and expected is not None:
            lines.append(
                Line(
                    _named(runs, run, "line.forecast"),
                    [(0, expected * factor), (x.scale.high, expected * factor)],
                    "plan",
                    i,
                )
            )
            if pair:
                low, high = pair[0] * factor, pair[1] * factor
                bands.append(Band([(0, low, high), (x.scale.high, low, high)], hue=i, faint=True))
    if not lines:
        return ""
    values = [y for n in lines for _, y in n.points] + [
        v for b in bands for _, low, high in b.edges for v in (low, high)
    ]
    y = Axis(scale(values, log=log, zero=not log), (Unit("own", "", 1.0, "%" if percent else ""),))
    return chart.draw(key.replace("_", "-"), say(f"chart.{key}"), lines, bands, [], x, y, 150)


def _switches(runs: list[Run]) -> str:
    """Radio buttons that choose the units of the axes; the style sheet obeys them without a script."""
    groups = []
    if len(runs) == 1:
        groups.append(("x", [u.key for u in _steps_axis(runs).units]))
        if _bits(runs):
            groups.append(("y", ["bits", "nats"]))
    out = []
    for axis, keys in groups:
        if len(keys) < 2:
            continue
        choices = "".join(
            f'<label><input type="radio" name="{axis}" id="{axis}-{k}" value="{k}"{" checked" if i == 0 else ""}>'
            f"<span>{say('unit.' + k)}</span></label>"
            for i, k in enumerate(keys)
        )
        out.append(
            f'<fieldset class="switch"><legend class="unseen">{say("switch." + axis)}</legend>{choices}</fieldset>'
        )
    return f'<div class="switches">{"".join(out)}</div>' if out else ""
