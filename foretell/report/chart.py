"""Charts as SVG written by hand. They are complete without JavaScript; the script only adds a read-out.

Curves live in an inner SVG of 2000 x 2000 units that stretches with the page, with strokes that do not; labels live in
the outer one at percent positions, so that text keeps its size from 380 pixels to print. An axis may be read in
several units (steps, tokens, bytes; bits per byte, nats) that are proportional to each other: the curve is drawn once
and every unit brings its own ticks, of which the style sheet shows one set.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from foretell.report import curve, numbers
from foretell.report.curve import Point, Scale
from foretell.report.words import Both, escape, html, pick, say

BOX = 2000


@dataclass(frozen=True)
class Line:
    """`look`: raw (faint), main, dots, or plan (dashed, the forecast). `hue` tells runs apart."""

    name: Both | str
    points: list[Point]
    look: str = "main"
    hue: int = 0
    told: bool = True  # whether the read-out names it
    titles: tuple[str, ...] = ()  # of dots: what each says when it is pointed at


@dataclass(frozen=True)
class Band:
    """A forecast interval along the run: (x, low, high), left to right."""

    edges: list[tuple[float, float, float]]
    hue: int = 0
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """An interval at one x: an upright bar with a point at the forecast value, and a name beside it."""

    x: float
    value: float
    low: float
    high: float
    hue: int = 0
    name: str = ""


@dataclass(frozen=True)
class Unit:
    """One way to read an axis: shown value = drawn value * factor. `key` is what the switch selects."""

    key: str
    name: Both | str
    factor: float = 1.0
    suffix: str = ""


@dataclass(frozen=True)
class Axis:
    """One axis: where values fall, and the units a reader may choose from."""

    scale: Scale
    units: tuple[Unit, ...]


def draw(
    key: str, title: str, lines: list[Line], bands: list[Band], marks: list[Mark], x: Axis, y: Axis, height: int
) -> str:
    """A figure: heading, legend, picture, read-out. `title` is markup; `key` must be unique in the page."""
    inner = "".join([*(_band(b, x.scale, y.scale) for b in bands), *(_line(n, x.scale, y.scale) for n in lines)])
    dots = "".join(_dots(n, x.scale, y.scale) for n in lines if n.look == "dots")
    marked, names = ("".join(f(m, x.scale, y.scale) for m in marks) for f in (_mark, _name))
    return (
        f'<figure class="chart" id="{key}"><figcaption id="{key}-t"><h3>{title}{_unit_names(y)}</h3>'
        f"{_legend(lines, bands, marks)}</figcaption>"
        f'<div class="frame" tabindex="0" role="img" aria-labelledby="{key}-t" '
        f'data-chart="{_data(lines, x, y, height)}">'
        f'<svg class="plot" width="100%" height="{height + 30}" aria-hidden="true" focusable="false">'
        f"{_axes(x, y, height)}"
        f'<svg width="100%" height="{height}" viewBox="0 0 {BOX} {BOX}" preserveAspectRatio="none" class="curves">'
        f"{inner}</svg>"
        f'<svg width="100%" height="{height}" class="over">{marked}{dots}{names}</svg>'
        f'<g class="cursor"><line y1="0" y2="{height}"/></g></svg></div>'
        f'<output class="readout" for="{key}"></output></figure>'
    )


def _xy(p: Point, x: Scale, y: Scale) -> str:
    return f"{round(BOX * x.at(p[0]))} {round(BOX * (1 - y.at(p[1])))}"


def _path(points: Iterable[Point], x: Scale, y: Scale) -> str:
    return "M" + "L".join(_xy(p, x, y) for p in points)


def _line(n: Line, x: Scale, y: Scale) -> str:
    if n.look == "dots" or not n.points:
        return ""
    points = n.points if len(n.points) > 1 else [*n.points, *n.points]
    return f'<path class="line {n.look} hue{n.hue}" d="{_path(points, x, y)}"/>'


def _band(b: Band, x: Scale, y: Scale) -> str:
    low, high = [(e[0], e[1]) for e in b.edges], [(e[0], e[2]) for e in b.edges]
    if len(low) < 2:
        return ""
    faint = " faint" if b.faint else ""
    return f'<path class="band{faint} hue{b.hue}" d="{_path([*low, *reversed(high)], x, y)}Z"/>'


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%"


def _dots(n: Line, x: Scale, y: Scale) -> str:
    titles = n.titles or ("",) * len(n.points)
    return "".join(
        (f"<g><title>{escape(title)}</title>" if title else "")
        + f'<circle class="dot hue{n.hue}" cx="{_percent(x.at(a))}" cy="{_percent(1 - y.at(b))}" r="3.5"/>'
        + ("</g>" if title else "")
        for (a, b), title in zip(n.points, titles, strict=True)
    )


def _mark(m: Mark, x: Scale, y: Scale) -> str:
    cx, top, bottom = _percent(x.at(m.x)), _percent(1 - y.at(m.high)), _percent(1 - y.at(m.low))
    return (
        f'<g class="mark hue{m.hue}"><line x1="{cx}" x2="{cx}" y1="{top}" y2="{bottom}"/>'
        f'<circle cx="{cx}" cy="{_percent(1 - y.at(m.value))}" r="4.5"/>'
        "</g>"
    )


def _name(m: Mark, x: Scale, y: Scale) -> str:
    """The mark's name, on the side where there is room."""
    if not m.name:
        return ""
    anchor, dx = ("end", -10) if x.at(m.x) > 0.5 else ("start", 10)
    place = f'x="{_percent(x.at(m.x))}" y="{_percent(1 - y.at(m.value))}" dx="{dx}" dy="0.32em"'
    return f'<text class="name" {place} text-anchor="{anchor}">{escape(m.name)}</text>'


def _axes(x: Axis, y: Axis, height: int) -> str:
    parts = []
    for i, unit in enumerate(y.units):
        shown = Scale(y.scale.low * unit.factor, y.scale.high * unit.factor, y.scale.log)
        for value in curve.ticks(shown, 5 if height > 200 else 4):
            at = _percent(1 - shown.at(value))
            parts.append(
                f'<g class="tick {_unit_class("y", i, unit)}"><svg height="{height}" class="over">'
                f'<line x1="0" x2="100%" y1="{at}" y2="{at}"/>'
                f'<text x="-8" y="{at}" dy="0.32em" text-anchor="end">{_tick(value)}{unit.suffix}</text></svg></g>'
            )
    for i, unit in enumerate(x.units):
        shown = Scale(x.scale.low * unit.factor, x.scale.high * unit.factor, x.scale.log)
        unit_name = "" if unit.key == "bytes" else f" {html(unit.name, 'tspan')}"
        values = curve.ticks(shown, 5)
        for value in values:
            at = _percent(shown.at(value))
            anchor = "start" if shown.at(value) < 0.04 else "end" if shown.at(value) > 0.96 else "middle"
            label = numbers.size(value) if unit.key == "bytes" and value else _tick(value)
            parts.append(
                f'<g class="tick {_unit_class("x", i, unit)}"><text x="{at}" y="{height + 20}" '
                f'text-anchor="{anchor}">{label}{unit_name if value == values[-1] else ""}</text></g>'
            )
    parts.append(f'<line class="base" x1="0" x2="100%" y1="{height}" y2="{height}"/>')
    return "".join(parts)


def _unit_names(y: Axis) -> str:
    """The unit of the upright axis after the title, where it has a name."""
    named = [(i, u) for i, u in enumerate(y.units) if pick(u.name).en]
    return "".join(f'<span class="unit {_unit_class("y", i, u)}">, {html(u.name)}</span>' for i, u in named)


def _unit_class(axis: str, i: int, unit: Unit) -> str:
    """The first unit is what a reader without the switch sees."""
    return f"{axis}u {axis}-{unit.key}" + (" first" if i == 0 else "")


def _tick(value: float) -> str:
    if abs(value) >= 1e15:
        return f"{value:.1e}".replace(".0e", "e").replace("e+", "e")
    if abs(value) >= 10_000:
        return numbers.count(value)
    return f"{value:.6g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.0e}".replace("e-0", "e-")


def _legend(lines: list[Line], bands: list[Band], marks: list[Mark]) -> str:
    shown: dict[str, str] = {}
    for n in lines:
        if n.points and n.look != "raw":
            shown.setdefault(f"{pick(n.name).en}{n.look}{n.hue}", _key(n.look, n.hue, html(n.name)))
    if len(shown) < 2 and not bands and not marks:
        return ""
    if bands or marks:
        shown["band"] = _key("band", 0, say("chart.interval"))
    return f'<p class="legend">{"".join(shown.values())}</p>'


def _key(look: str, hue: int, name: str) -> str:
    shape = {
        "dots": f'<circle class="dot hue{hue}" cx="9" cy="6" r="3.5"/>',
        "band": f'<rect class="band hue{hue}" width="18" height="12" rx="2"/>',
    }.get(look, f'<path class="line {look} hue{hue}" d="M0 6H18"/>')
    return f'<span class="key"><svg width="18" height="12" aria-hidden="true">{shape}</svg>{name}</span>'


def _data(lines: list[Line], x: Axis, y: Axis, height: int) -> str:
    """What the read-out needs, as JSON in an attribute: never as script, so that no text of a run can become code."""
    told = [
        {
            "n": pick(n.name),
            "h": n.hue,
            "x": [float(f"{a:.6g}") for a, _ in n.points],
            "y": [float(f"{b:.4g}") for _, b in n.points],
        }
        for n in lines
        if n.told and n.points
    ]

    def axis(a: Axis) -> dict[str, object]:
        units = {u.key: [*pick(u.name), float(f"{u.factor:.8g}"), u.suffix] for u in a.units}
        return {"low": a.scale.low, "high": a.scale.high, "log": a.scale.log, "units": units}

    data = {"lines": told, "x": axis(x), "y": axis(y), "height": height}
    return escape(json.dumps(data, ensure_ascii=False, separators=(",", ":")))
