"""What a person sees of `foretell ladder run` and `score`: a line for each rung; then fit, forecast and score."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.markup import escape
from rich.table import Table

from foretell import config
from foretell.cli.display import Display
from foretell.cli.steps import label, machine, prepared, sources_of
from foretell.config import RunConfig
from foretell.plan import law
from foretell.report import numbers


def ladder(c: RunConfig, out: Path, name: str | None, climb: bool, display: Display) -> dict[str, Any]:
    """Prepare, measure the machine, and run the ladder of that name, which knows its own text once it is there.

    Writes its page, and that of the target's run where it was trained.
    """
    from foretell import report
    from foretell.ladder.climb import run
    from foretell.ladder.folder import read_design

    if c.data.source is None and name is not None and (stored := read_design(out / name)) is not None:
        c = config.updated(c, data=stored.base.data.model_dump(), tokenizer=stored.base.tokenizer.model_dump())
    folder = out / (name or f"{label(sources_of(c))}-ladder")
    data = prepared(c, out, display)
    result = run(c, data, folder, machine=machine(display), climb=climb, display=shown(display))
    trained = folder / "targets" / result["target"]["name"] / "run"
    if (trained / "measured.json").exists():
        report.write([trained])
    return {**result, "report": str(report.write([folder]))}


def score(folder: Path, data: Path, task: str | None, limit: int | None, display: Display) -> dict[str, Any]:
    """Ask the ladder a task; writes its page anew."""
    from foretell import report
    from foretell.ladder import tasks

    def on(event: dict[str, Any]) -> None:
        if event["event"] == "asked":
            display.say(f"[bold]{escape(event['name'])}[/]: {event['done']} of {event['of']} rungs asked")
        else:
            a = event["accuracy"]
            display.say(f"foretold of {escape(event['name'])}: {_percent(a)}")

    result = tasks.score(folder, data, task=task, limit=limit, display=on)
    return {**result, "report": str(report.write([folder]))}


def render_score(result: dict[str, Any]) -> Any:
    """The rungs' scores, the curve, and each target's forecast beside what was measured."""
    rungs = Table(box=None, padding=(0, 1))
    for column in ("rung", "loss", "right", "accuracy"):
        rungs.add_column(column, justify="left" if column == "rung" else "right")
    for r in sorted(result["rungs"], key=lambda r: -r["loss"]):
        rungs.add_row(escape(r["rung"]), f"{r['loss']:.4f}", f"{r['correct']:,}", f"{100 * r['accuracy']:.1f}%")
    fit = result["fit"]
    curve = (
        f"{fit['shape']} curve from {100 * fit['chance']:.0f}% (chance), half way at loss {fit['middle']:.2f}, slope "
        f"{fit['slope']:.2f} a nat; models scatter by {fit['factor']:.2f} of drawn questions' variance"
    )
    targets = Table(box=None, padding=(0, 1))
    for column in ("target", "foretold on", "forecast", "measured", "", "by the measured loss"):
        targets.add_column(column, justify="left" if column in ("target", "") else "right")
    for t in result["targets"]:
        cells = ["not yet", "", ""]
        if t["measured"] is not None:
            verdict = "[green]held[/]" if t["held"] else "[red]missed[/]"
            cells = [f"{100 * t['measured']:.1f}%", verdict, _percent(t["at_measured_loss"])]
        targets.add_row(escape(t["name"]), t["created"][:16].replace("T", " "), _percent(t["accuracy"]), *cells)
    asked = f"{escape(result['task'])}: {result['items']:,} questions ({result['kind']})"
    return Group(asked, rungs, curve, "", targets, f"[dim]{escape(result['report'])}[/]")


def _percent(share: dict[str, float]) -> str:
    return f"{100 * share['value']:.1f}% \\[{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def shown(display: Display) -> Callable[[dict[str, Any]], None]:
    """Takes the events of a ladder; those of a run's training go on to the display of runs."""

    def on(event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "rung":
            display.say(
                f"[bold]{escape(event['name'])}[/]: {numbers.count(event['parameters'])} parameters on "
                f"{numbers.count(event['tokens'])} tokens; {event['done']} of {event['of']} rungs done, "
                f"{100 * event['share']:.0f}% of the work"
            )
        elif kind == "rung finished":
            display.say(f"  loss {event['loss']:.4f}, {event['bits_per_byte']:.4f} bits/byte")
        elif kind == "waiting":
            display.say(f"[dim]other processes hold the {event['left']} sizes that are left; waiting …[/]")
        elif kind == "forecast":
            display.say(_foretold(event))
        else:
            display(event)

    return on


def render(result: dict[str, Any]) -> Any:
    """The ladder's rungs beside the law, the law, and the forecast with its score."""
    parts: list[Any] = [_rungs(result), _law(result["fit"]), _foretold(result)]
    if result["measured"] is not None:
        verdict = "[green]held[/]" if result["held"] else "[red]missed[/]"
        parts.append(f"measured {result['measured']:.4f}: {result['error_percent']:+.2f}%, {verdict}")
    parts.append(f"[dim]{escape(result['report'])}[/]")
    return Group(*parts)


def _rungs(result: dict[str, Any]) -> Table:
    fitted = law.Fit(**result["fit"])
    table = Table(box=None, padding=(0, 1))
    for column in ("rung", "parameters", "tokens", "loss", "law", "error"):
        table.add_column(column, justify="left" if column == "rung" else "right")
    for row in result["rungs"]:
        value = law.loss(fitted, row["parameters"], row["tokens"], row["unique_tokens"])
        sizes = (numbers.count(row["parameters"]), numbers.count(row["tokens"]))
        error = f"{100 * (row['loss'] / value - 1):+.2f}%"
        table.add_row(escape(row["rung"]), *sizes, f"{row['loss']:.4f}", f"{value:.4f}", error)
    return table


def _law(fit: dict[str, Any]) -> str:
    return (
        f"L = {fit['E']:.4g} + {fit['A']:.4g} / N^{fit['alpha']:.3f} + {fit['B']:.4g} / D^{fit['beta']:.3f}; "
        f"mean error {fit['end']['mean_error_percent']:.2f}% on {fit['rows']} rungs"
    )


def _foretold(record: dict[str, Any]) -> str:
    target, forecast = record["target"], record["forecast"]
    return (
        f"forecast of {record['created']} for {numbers.count(target['parameters'])} parameters on "
        f"{numbers.count(target['tokens'])} tokens, {record['compute_ratio']:.1f} times the largest rung: "
        f"[bold]{forecast['value']:.4f}[/] \\[{forecast['low']:.4f}, {forecast['high']:.4f}] nats/token"
        + (f"\n[yellow]{escape(record['caution'])}[/]" if record.get("caution") else "")
    )
