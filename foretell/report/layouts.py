"""The layouts that a search found, as a page: step time against memory a device, what fits and what does not.

A dot is the fastest layout of a set of degrees and a way of recomputation; pointing at it names it. Those that do not
fit are grey, right of the line that a device's memory draws. Not handled: searches on several clusters in one picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foretell.errors import ConfigError
from foretell.report import chart, numbers, page, sections
from foretell.report.chart import Axis, Line, Mark, Unit
from foretell.report.curve import scale
from foretell.report.words import Both, escape, html, pick, say, stress, text

HEIGHT = 420
GREY = 8
_RECOMPUTED = {
    "none": "layouts.recompute.none",
    "selective": "layouts.recompute.selective",
    "full": "layouts.recompute.full",
}
Row = Mapping[str, Any]


def check(out: Path) -> None:
    """Raises ConfigError for a name that is no page's."""
    if out.suffix not in (".html", ".htm"):
        raise ConfigError(f"--plot {out}: the plot is a page for a browser; name it {out.stem or 'plot'}.html")


def write(found: Mapping[str, Any], out: Path) -> Path:
    """Write the page of `plan.search_layouts(..., picture=True)`. DataError where it cannot be written."""
    return page.put(out, document(found))


def document(found: Mapping[str, Any]) -> str:
    """The whole page."""
    best, where = found["layouts"][0], f"{found['model']}, {found['devices']:,} x {found['hardware']}"
    told: dict[str, Both | str] = {
        "name": named(best),
        "time": numbers.duration(best["step_seconds"]["value"]),
        "mfu": numbers.percent(best["mfu"]),
        "size": numbers.size(best["memory_bytes"]),
    }
    tokens, context = f"{found['global_batch_tokens']:,}", f"{found['context']:,}"
    counts = say("layouts.lead", tokens=tokens, context=context, n=f"{found['fitting']:,}", of=f"{found['tried']:,}")
    body = (
        f'<header class="top"><p class="over">{say("layouts.over")} <b>{escape(where)}</b></p>'
        f'<h1>{stress("layouts.headline", light=(), **told)}</h1><p class="lead">{counts}</p></header>'
        + sections.section("layouts", figure(found) + f'<p class="small">{say("about.picture")}</p>', 0)
        + sections.section("fastest", _listed(found["layouts"]), 0)
        + sections.section("left-out", _left_out(found), 0)
    )
    return page.document(where, body)


def figure(found: Mapping[str, Any]) -> str:
    """The plot: one dot a point, the memory that a device has as a line, the fastest with its interval and its name."""
    fitting = [p for p in found["points"] if p["fits"]]
    others = [p for p in found["points"] if not p["fits"]]
    room, best = found["room_bytes"], found["layouts"][0]
    seconds = [p["step_seconds"]["value"] for p in found["points"]] + [best["step_seconds"][k] for k in ("low", "high")]
    x = Axis(scale([p["memory_bytes"] for p in found["points"]] + [room], log=True), (Unit("bytes", ""),))
    y = Axis(scale(seconds, log=True), (Unit("own", text("unit.seconds_a_step")),))
    size = numbers.size(room)
    lines = [
        Line(text("line.over", size=size), _places(others), "dots", GREY, told=False, titles=_titles(others)),
        Line(text("line.fits", n=len(fitting)), _places(fitting), "dots", 0, told=False, titles=_titles(fitting)),
        Line(text("line.room", size=size), [(room, y.scale.low), (room, y.scale.high)], "plan", GREY, told=False),
    ]
    s = best["step_seconds"]
    marks = [Mark(best["memory_bytes"], s["value"], s["low"], s["high"], name=_short(best))]
    return chart.draw("layouts", say("chart.layouts"), lines, [], marks, x, y, HEIGHT)


def _places(points: Sequence[Row]) -> list[tuple[float, float]]:
    return [(p["memory_bytes"], p["step_seconds"]["value"]) for p in points]


def _titles(points: Sequence[Row]) -> tuple[str, ...]:
    """What a dot says when it is pointed at."""
    return tuple(
        f"{pick(named(p)).en}: {pick(numbers.duration(p['step_seconds']['value'])).en}, "
        f"{numbers.size(p['memory_bytes'])}"
        for p in points
    )


def _short(row: Row) -> str:
    """The degrees alone: dp 2 x 8, tp 4, pp 2."""
    copies, shards = row["dp_replicate"], row["dp_shard"]
    words = [f"dp {copies} x {shards}" if copies > 1 else f"dp {shards}"]
    return ", ".join(words + [f"{axis} {row[axis]}" for axis in ("tp", "pp", "cp", "ep") if row[axis] > 1])


def named(row: Row) -> Both:
    """A layout in words: its degrees, schedule, micro-batch and recomputation."""
    schedule = f" {row['schedule']}" if row["schedule"] else ""
    how = text(_RECOMPUTED[row["recompute"]])
    return text("layouts.name", degrees=_short(row) + schedule, n=row["micro_batch_size"], recompute=how)


def _listed(rows: Sequence[Row]) -> str:
    body = "".join(
        f'<tr><th scope="row">{html(named(r))}</th>'
        + "".join(f'<td class="n">{cell}</td>' for cell in _numbers(r))
        + f"<td><code>{escape(r['command'])}</code></td></tr>"
        for r in rows
    )
    return sections.columns("fastest", ("layout", "step", "mfu", "memory", "sent", "idle", "command"), body)


def _numbers(r: Row) -> list[str]:
    """The cells of a layout: seconds, MFU, memory, shares of a step."""
    shares = [numbers.percent(r[k]) for k in ("exposed_share", "bubble_share")]
    time = html(numbers.duration(r["step_seconds"]["value"]))
    return [time, numbers.percent(r["mfu"]), numbers.size(r["memory_bytes"]), *shares]


def _left_out(found: Mapping[str, Any]) -> str:
    """How many layouts are no candidates, or do not fit, by reason."""
    body = "".join(
        f'<tr><th scope="row">{escape(why)}</th><td class="n">{n:,}</td></tr>' for why, n in found["left_out"].items()
    )
    return sections.columns("left-out", ("reason", "count"), body) if body else ""
