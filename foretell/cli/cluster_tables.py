"""The forecast on a cluster, and the layouts that a search found, as tables for a terminal."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from foretell.report import numbers
from foretell.report.words import pick

_BAR = 28
_PARTS = {
    "compute": "computing",
    "tp": "tensor parallelism, exposed",
    "cp": "context parallelism, exposed",
    "ep": "expert parallelism, exposed",
    "pp": "between stages, exposed",
    "dp": "weights and gradients, exposed",
    "bubble": "pipeline bubble",
    "optimizer": "optimiser",
    "other": "everything else",
}
_MEMORY = {
    "weights": "weights (float32 shards)",
    "gradients": "gradients",
    "optimizer": "optimiser's state",
    "gathered": "whole layers under way",
    "activations": "activations",
    "logits": "logits",
    "workspace": "optimiser's workspace",
}


def forecast(plan: dict[str, Any]) -> RenderableType:
    """A plan for a cluster: the headline, then where time, memory and bytes go."""
    return Group(_headline(plan), Text(), _time(plan), Text(), _memory(plan), Text(), _bytes(plan))


def _table() -> Table:
    return Table(box=None, show_header=False, padding=(0, 2))


def _headline(p: dict[str, Any]) -> Table:
    table, m, d, n = _table(), p["model"], p["layout"], p["parameters"]
    active = f", {numbers.count(n['active'])} active" if n["active"] != n["total"] else ""
    table.add_row("model", f"{n['total']:,} parameters{active}", f"{m['name']}, {m['num_hidden_layers']} layers")
    table.add_row("cluster", f"{p['hardware']['devices']:,} devices", escape(p["hardware"]["title"]))
    axes = ("dp_replicate", "dp_shard", "tp", "pp", "cp", "ep")
    named = " x ".join(f"{axis} {d[axis]}" for axis in axes if d[axis] > 1) or "one device"
    schedule = f"{d['schedule']}, " if d["pp"] > 1 else ""
    table.add_row("layout", named, f"{schedule}recompute {p['recompute']}, {p['dtype']}, {p['optimizer']}")
    batches = f"{p['micro_batches']:,} micro-batches of {p['micro_batch_size']} x {p['context']:,}"
    table.add_row("tokens", f"{p['tokens']:,}", f"{p['steps']:,} steps of {p['global_batch_tokens']:,}; {batches}")
    by = p["flops_by_convention"]
    others = f"{numbers.flops(by['causal'])} a token (6N {numbers.scientific(by['6n'])}, all keys "
    others += f"{numbers.scientific(by['full'])}, no head {numbers.scientific(by['without_head'])})"
    table.add_row("compute", numbers.flops(p["flops_total"]), others)
    table.add_row("time of a step", _seconds(p["step_seconds"]), f"MFU {_percents(p['mfu'])}")
    table.add_row("tokens a second", _counts(p["tokens_per_second"]), "")
    kept = p["goodput"]
    every = pick(numbers.duration(kept["interval_seconds"])).en
    failures = f"{numbers.percent(kept['share']['value'])} of it kept: a failure every "
    failures += f"{pick(numbers.duration(kept['mtbf_seconds'])).en}, a checkpoint every {every}"
    table.add_row("time in all", _seconds(p["seconds"]), failures)
    table.add_row("cost", _range(p["cost"], _dollars), f"{p['device_hours']:,.0f} device-hours")
    table.add_row("energy", _range(p["energy_kwh"], _mwh), f"{numbers.count(p['co2_kg']['value'] / 1000)} t of CO2")
    s = p["serving"]
    if "devices" in s:
        held = f"{numbers.size(s['cache_bytes_per_token'])} of cache a token, {s['largest_batch']:,} x {s['context']:,}"
        rates = (numbers.count(s[k]["value"]) for k in ("tokens_per_second", "tokens_per_second_alone"))
        speed = "{} tokens/s, {} alone".format(*rates)
        table.add_row("serving", speed, f"{s['devices']} device{'s' * (s['devices'] > 1)}, {held}")
    if not p["fits"]:
        table.add_row("[red]does not fit[/]", "", f"[red]{escape(p['why_not'])}[/]")
    return table


def _bars(title: str, rows: list[tuple[str, float, str]]) -> Table:
    table = Table(box=None, padding=(0, 2), title=title, title_justify="left", show_header=False)
    largest = max((value for _, value, _ in rows), default=1.0) or 1.0
    for name, value, shown in rows:
        table.add_row(name, "█" * round(_BAR * value / largest) or "▏", shown)
    return table


def _time(p: dict[str, Any]) -> Table:
    whole = p["step_seconds"]["value"]
    used = {k: v for k, v in p["step_parts"].items() if v > 0.0005 * whole}
    rows = [(_PARTS[k], v, f"{pick(numbers.duration(v)).en}, {numbers.percent(v / whole)}") for k, v in used.items()]
    return _bars("where the time of a step goes", rows)


def _memory(p: dict[str, Any]) -> Table:
    m = p["memory_bytes"]
    rows = [(label, m[k], numbers.size(m[k])) for k, label in _MEMORY.items() if m[k]]
    peak, device = numbers.size(m["peak"]["value"]), numbers.size(p["device_memory_bytes"])
    return _bars(f"memory of the fullest stage ({m['stage']}): at most {peak} at once, of {device}", rows)


def _bytes(p: dict[str, Any]) -> Table:
    rows = [
        (f"{axis} {kind.replace('_', '-')}", size, numbers.size(size))
        for axis, kinds in p["comm_bytes"].items()
        for kind, size in kinds.items()
        if size >= 1000
    ]
    how = "counted exactly" if p["comm_exact"] else "by the sizes of weights and activations"
    return _bars(f"bytes that a rank of the first stage communicates in a step ({how})", rows)


def layouts(found: dict[str, Any]) -> RenderableType:
    """The layouts of a search, the fastest first, with bars of tokens a second."""
    table = Table(box=None, padding=(0, 1))
    for column in (
        "",
        "dp x shard",
        "tp",
        "pp",
        "cp",
        "ep",
        "micro",
        "recompute",
        "step",
        "MFU",
        "memory",
        "sent",
        "idle",
    ):
        table.add_column(column, justify="left" if column in ("", "recompute") else "right")
    fastest = found["layouts"][0]["tokens_per_second"]
    for row in found["layouts"]:
        schedule = f" {row['schedule']}" if row["schedule"] else ""
        table.add_row(
            "█" * round(10 * row["tokens_per_second"] / fastest),
            f"{row['dp_replicate']} x {row['dp_shard']}",
            str(row["tp"]),
            f"{row['pp']}{schedule}",
            str(row["cp"]),
            str(row["ep"]),
            str(row["micro_batch_size"]),
            row["recompute"],
            pick(numbers.duration(row["step_seconds"]["value"])).en,
            numbers.percent(row["mfu"]),
            numbers.size(row["memory_bytes"]),
            numbers.percent(row["exposed_share"]),
            numbers.percent(row["bubble_share"]),
        )
    head = (
        f"{found['model']} on {found['devices']:,} x {found['hardware']},\n"
        f"{found['global_batch_tokens']:,} tokens a step in sequences of {found['context']:,}. "
        f"{found['fitting']:,} of {found['tried']:,} layouts fit; the best of each set of degrees:"
    )
    reasons = "\n".join(f"  left out, {n:,}: {why}" for why, n in found["left_out"].items())
    best = f"the first: foretell plan ... {found['layouts'][0]['command']}"
    drawn = [Text(f"the plot: {found['plot']}")] if "plot" in found else []
    return Group(Text(head), table, Text(reasons, style="dim"), Text(best), *drawn)


def traced(found: dict[str, Any]) -> RenderableType:
    """Forecast beside what our own step did on fake tensors, of the first and the last stage."""
    table = Table(box=None, padding=(0, 1))
    for column in ("stage", "", "calls", "traced", "forecast", "traced", "error"):
        table.add_column(column, justify="left" if column == "" else "right")
    for stage in found["stages"]:
        for kind, n in stage["collectives"].items():
            error = n["bytes"] / n["traced_bytes"] - 1 if n["traced_bytes"] else 0.0
            sizes = (numbers.size(n[k]) for k in ("bytes", "traced_bytes"))
            shown = "[green]exact[/]" if n["bytes"] == n["traced_bytes"] else numbers.percent(error, signed=True)
            name = kind.replace("_", "-")
            table.add_row(str(stage["stage"]), name, f"{n['calls']:,}", f"{n['traced_calls']:,}", *sizes, shown)
        peaks = (numbers.size(stage[k]) for k in ("memory_bytes", "traced_memory_bytes"))
        off = numbers.percent(stage["memory_bytes"] / stage["traced_memory_bytes"] - 1, signed=True)
        table.add_row(str(stage["stage"]), "peak memory", "", "", *peaks, off)
    seconds = sum(stage["seconds"] for stage in found["stages"])
    head = f"one rank of {found['world_size']:,}, traced in {pick(numbers.duration(seconds)).en}"
    return Group(Text(head), table)


def _seconds(q: dict[str, float]) -> str:
    value, low, high = (pick(numbers.duration(q[k])).en for k in ("value", "low", "high"))
    return rf"{value} \[{low}, {high}]"


def _counts(q: dict[str, float]) -> str:
    value, low, high = (numbers.count(round(q[k])) for k in ("value", "low", "high"))
    return rf"{value} \[{low}, {high}]"


def _percents(q: dict[str, float]) -> str:
    value, low, high = (numbers.percent(q[k]) for k in ("value", "low", "high"))
    return rf"{value} \[{low}, {high}]"


def _range(q: dict[str, float], shown: Any) -> str:
    return rf"{shown(q['value'])} \[{shown(q['low'])}, {shown(q['high'])}]"


def _dollars(x: float) -> str:
    return f"${numbers.count(round(x))}" if x >= 100 else f"${x:.2f}"


def _mwh(kwh: float) -> str:
    for unit, size in (("GWh", 1e6), ("MWh", 1e3)):
        if kwh >= size:
            return f"{numbers.significant(kwh / size)} {unit}"
    return f"{numbers.significant(kwh)} kWh"
