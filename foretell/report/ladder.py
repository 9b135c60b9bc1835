"""The ladder as a picture: the runs, the law through them, the forecast with its interval, and what came of it.

Loss against compute, both by logarithm. One colour a size, as long as there are seven; a faint line in the same
colour is the law for that size as its tokens grow. The dashed line is the law at the target's tokens a parameter, from
the smallest run to the target. Not handled: several targets in one picture, losses of different units.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from foretell.plan import law
from foretell.report import chart, numbers
from foretell.report.chart import Axis, Line, Mark, Unit
from foretell.report.curve import Point, scale
from foretell.report.words import pick, say, text

HEIGHT = 380
HUES = (0, 1, 2, 3, 4, 6, 7)  # of sizes
TARGET_HUE = 5
_POINTS = 40  # of a curve


def figure(
    rows: Sequence[law.Row],
    fit: law.Fit,
    forecast: Mapping[str, float],
    measured: float | None = None,
    key: str = "ladder-plot",
) -> str:
    """The figure as markup. forecast: parameters, tokens, value, low, high, and unique_tokens where they are known.

    `key` must be unique in the page.
    """
    size, tokens = forecast["parameters"], forecast["tokens"]
    unique = forecast.get("unique_tokens")
    end = 6 * size * tokens
    path = _path(rows, fit, size, tokens, unique)
    lines = [*_rungs(rows, fit), path]
    if measured is not None:
        lines.append(Line(text("line.target"), [(end, measured)], "dots", TARGET_HUE))
    marks = [Mark(end, forecast["value"], forecast["low"], forecast["high"])]
    x = Axis(scale([p[0] for n in lines for p in n.points], log=True), (Unit("flops", text("unit.flops")),))
    values = [r.loss for r in rows] + [loss for _, loss in path.points]
    values += [forecast["low"], forecast["high"], measured or forecast["value"]]
    y = Axis(scale(values, log=True), (Unit("own", ""),))
    return chart.draw(key, say("chart.ladder"), lines, [], marks, x, y, HEIGHT)


def _rungs(rows: Sequence[law.Row], fit: law.Fit) -> list[Line]:
    """The runs, and where each size has its own colour, the law for it."""
    sizes = sorted({r.parameters for r in rows})
    if len(sizes) > len(HUES):
        return [Line(text("line.rungs"), _ends(rows), "dots", 0, told=False)]
    lines = []
    for hue, size in zip(HUES, sizes, strict=False):
        own = [r for r in rows if r.parameters == size]
        lines.append(Line("", _curve(fit, own), "raw", hue, told=False))
        name = text("line.size", size=pick(numbers.count(size)).en)
        lines.append(Line(name, _ends(own), "dots", hue, told=False))
    return lines


def _ends(rows: Sequence[law.Row]) -> list[Point]:
    return sorted((6 * r.parameters * r.tokens, r.loss) for r in rows)


def _curve(fit: law.Fit, rows: Sequence[law.Row]) -> list[Point]:
    """The law for one size, from its fewest tokens to its most; nothing where the runs repeated their text."""
    tokens = [r.tokens for r in rows]
    if any(r.unique_tokens is not None and r.tokens > r.unique_tokens for r in rows) or len(set(tokens)) < 2:
        return []
    size = rows[0].parameters
    return [(6 * size * t, law.loss(fit, size, t)) for t in _between(min(tokens), max(tokens))]


def _path(rows: Sequence[law.Row], fit: law.Fit, size: float, tokens: float, unique: float | None) -> Line:
    """The law from the smallest run's compute to the target's, at the target's tokens (and epochs) a parameter."""
    least = min(6 * r.parameters * r.tokens for r in rows)
    end = 6 * size * tokens
    points = []
    for compute in _between(min(least, end), end):
        shrunk = math.sqrt(compute / end)
        share = None if unique is None else unique * shrunk
        points.append((compute, law.loss(fit, size * shrunk, tokens * shrunk, share)))
    return Line(text("line.law", share=pick(numbers.count(tokens / size)).en), points, "plan")


def _between(low: float, high: float) -> list[float]:
    return [low * (high / low) ** (i / (_POINTS - 1)) for i in range(_POINTS)]
