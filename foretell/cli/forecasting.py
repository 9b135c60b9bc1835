"""The verbs of the forecast: plan, verify, calibrate."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretell import errors
from foretell.cli.options import Base, Json, Out, Quiet, RunToml, console, emit, read_config, with_options

if TYPE_CHECKING:
    from foretell.config import RunConfig


def plan(
    arguments: RunToml = None,
    source: Annotated[str | None, typer.Option("--data", help="Text, or a prepared folder.")] = None,
    budget: Annotated[str | None, typer.Option(help="10m, 2h, 90s, or 1e15 FLOPs.")] = None,
    base: Base = None,
    ladder: Annotated[
        Path | None,
        typer.Option("--ladder", help="A finished ladder's folder: its law decides, not the one that ships."),
    ] = None,
    search: Annotated[bool, typer.Option("--search", help="On a cluster: the best layouts.")] = False,
    plot: Annotated[Path | None, typer.Option("--plot", help="With --search: a page (.html) with the picture.")] = None,
    trace: Annotated[
        bool, typer.Option("--trace", help="On a cluster: run the step itself, on fake tensors, and compare.")
    ] = False,
    out: Out = Path("runs"),
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Forecast a run here, or with cluster.hardware on any cluster: memory, bytes, time, cost, loss. Trains nothing."""
    from foretell import plan as forecasting
    from foretell.cli import cluster_tables, tables
    from foretell.cli.display import Display
    from foretell.cli.steps import machine, prepared

    c = with_options(read_config(arguments), source, budget, ladder, base)
    if plot is not None and not search:
        raise errors.ConfigError("--plot draws the layouts of a search: give --search too")
    if c.cluster.hardware is not None:
        if search:
            emit(_searched(c, plot), as_json, cluster_tables.layouts)
        elif trace:
            emit(_traced(c), as_json, cluster_tables.traced)
        else:
            emit(forecasting.forecast_abroad(c), as_json, cluster_tables.forecast)
        return
    for given, what in ((search, "--search"), (trace, "--trace"), (c.model.preset, "model.preset")):
        if given:
            raise errors.ConfigError(
                f"{what} needs cluster.hardware, such as cluster.hardware=h100-sxm cluster.nodes=8"
            )
    with Display(console(), quiet) as display:
        record = machine(display)
        text = prepared(c, out, display) if c.data.source else None
    if c.train.base is not None or c.lora.rank is not None:
        from foretell.train import tune

        c = tune.settled(c)
    known = {"corpus": text.corpus, "fingerprint": text.index["fingerprint"]} if text else {}
    forecast = forecasting.forecast(c, machine=record, **known)
    emit(forecast, as_json, tables.forecast)


def _searched(c: RunConfig, plot: Path | None) -> dict[str, Any]:
    """The best layouts; and where a plot is asked for, its page with those that do not fit."""
    from foretell import plan as forecasting
    from foretell.report import layouts

    if plot is not None:
        layouts.check(plot)
    found = forecasting.search_layouts(c, picture=plot is not None)
    if plot is not None:
        found["plot"] = str(layouts.write(found, plot))
        del found["points"]
    return found


def _traced(c: RunConfig) -> dict[str, Any]:
    """What a rank of each end of the pipeline communicates and holds: as forecast, and in our own step on fake tensors.

    The step is that of the decoder that this package trains, in the sizes of the config; Llama's has no norms on
    queries and keys, so a preset's forecast is made anew for it here.
    """
    from foretell.plan import abroad, communication, layout, models, ranks
    from foretell.train.rehearsal import rehearse

    c, world = abroad.completed(c)
    held = ranks.memory_bytes(models.of_model(c.model), c.parallel, c.train, layout.degrees(c.parallel, world))
    stages = []
    for place in sorted({0, c.parallel.pp - 1}):
        found = rehearse(c, world, pp_place=place, memory=True)
        said = communication.collectives(c.model, c.train, c.parallel, world, pp_place=place)
        kinds = sorted({row.kind for row in said} | {one.kind for one in found.collectives})
        collectives = {
            kind: {
                "calls": sum(row.calls for row in said if row.kind == kind),
                "bytes": sum(row.calls * row.bytes for row in said if row.kind == kind),
                "traced_calls": sum(one.kind == kind for one in found.collectives),
                "traced_bytes": sum(one.bytes for one in found.collectives if one.kind == kind),
            }
            for kind in kinds
        }
        peaks = {"memory_bytes": held[place]["peak"], "traced_memory_bytes": found.memory["peak"]}
        stages.append({"stage": place, "collectives": collectives, **peaks, "seconds": sum(found.seconds.values())})
    return {"world_size": world, "stages": stages}


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


def calibrate(
    quick: Annotated[bool, typer.Option("--quick", help="Some seconds, without the parts of a training step.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure this machine anew, in at most two minutes: the parts of a training step. Forecasts read the record."""
    from foretell import calibrate as measuring
    from foretell.cli.display import Display

    with Display(console(), quiet) as display:
        display.say("measuring this machine, some seconds …" if quick else "measuring this machine, two minutes …")
        record = measuring.record(renew=True, level="quick" if quick else "full")
    emit(record, as_json, measuring.render)
