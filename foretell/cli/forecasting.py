"""The verbs of the forecast: plan, verify, calibrate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from foretell import errors
from foretell.cli.options import Json, Out, Quiet, RunToml, console, emit, read_config, with_options


def plan(
    arguments: RunToml = None,
    source: Annotated[str | None, typer.Option("--data", help="Text, or a prepared folder.")] = None,
    budget: Annotated[str | None, typer.Option(help="10m, 2h, 90s, or 1e15 FLOPs.")] = None,
    search: Annotated[bool, typer.Option("--search", help="On a cluster: the best layouts.")] = False,
    out: Out = Path("runs"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Forecast a run here, or with cluster.hardware on any cluster: memory, bytes, time, cost, loss. Trains nothing."""
    from foretell import plan as forecasting
    from foretell.cli import cluster_tables, tables
    from foretell.cli.display import Display
    from foretell.cli.steps import machine, prepared

    c = with_options(read_config(arguments), source, budget)
    if c.cluster.hardware is not None:
        if search:
            emit(forecasting.search_layouts(c), as_json, cluster_tables.layouts)
        else:
            emit(forecasting.forecast_abroad(c), as_json, cluster_tables.forecast)
        return
    for given, what in ((search, "--search"), (c.model.preset, "model.preset")):
        if given:
            raise errors.ConfigError(
                f"{what} needs cluster.hardware, such as cluster.hardware=h100-sxm cluster.nodes=8"
            )
    with Display(console(), quiet) as display:
        record = machine(display)
        corpus = prepared(c, out, display).corpus if c.data.source else None
    forecast = forecasting.forecast(c, machine=record, corpus=corpus)
    emit(forecast, as_json, tables.forecast)


def verify(
    runs: Annotated[list[Path], typer.Argument(help="A run folder; or several, or folders of them: their history.")],
    recalibrate: Annotated[
        bool, typer.Option("--recalibrate", help="Let later forecasts on this machine learn from these runs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Forecast beside measurement with signed errors. Exit 3 when a headline fell outside its 90% interval."""
    from foretell import plan as forecasting
    from foretell.cli import tables

    if len(runs) == 1 and not recalibrate and not _runs_in(runs):
        result = forecasting.verify(*_pair(runs[0])[1:])
        emit(result, as_json, tables.verdict)
        if not result["headline_held"]:
            raise typer.Exit(3)
        return
    pairs = [_pair(run) for run in _runs_in(runs) or runs]
    result = forecasting.gathered(pairs)
    if recalibrate:
        result["lessons"] = _kept_lessons(pairs)
    emit(result, as_json, tables.history)


def _runs_in(folders: list[Path]) -> list[Path]:
    """The finished runs inside folders that are no runs themselves, with those that are; none where all are."""
    if all((folder / "plan.json").exists() or not folder.is_dir() for folder in folders):
        return []
    found = [folder if (folder / "plan.json").exists() else folder / "*" for folder in folders]
    every = (p for f in found for p in ([f] if f.name != "*" else sorted(f.parent.iterdir())))
    return [p for p in every if (p / "plan.json").exists() and (p / "measured.json").exists()]


def _pair(run: Path) -> tuple[str, dict[str, Any], dict[str, Any]]:
    from foretell import plan as forecasting

    return run.name, forecasting.stored(run / "plan.json"), forecasting.stored(run / "measured.json")


def _kept_lessons(pairs: list[tuple[str, dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Keep what the runs teach beside the machine's record. Raises ConfigError where they are too few."""
    from foretell import plan as forecasting
    from foretell.checkpoint import files
    from foretell.cli import steps

    found = forecasting.lessons(pairs)
    if not found:
        raise errors.ConfigError(f"{len(pairs)} runs are too few to learn from; it takes {forecasting.FEWEST_RUNS}")
    kept = {"format_version": 1, "runs": [name for name, _, _ in pairs], "lessons": found}
    path = steps.lessons_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, json.dumps(kept, indent=1).encode())
    return found


def calibrate(as_json: Json = False, quiet: Quiet = False) -> None:
    """Measure this machine anew: product rates, bandwidth, overheads. Forecasts read the record."""
    from foretell import calibrate as measuring
    from foretell.cli.display import Display

    with Display(console(), quiet) as display:
        display.say("measuring this machine …")
        record = measuring.record(renew=True)
    emit(record, as_json, measuring.render)
