"""`foretell ladder`: forecast a large run from small ones.

A part of `foretell.cli`, which mounts it under its name; so it is imported last there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from foretell.cli import Json, Out, Quiet, RunToml, console, emit, read_config, with_options

app = typer.Typer(no_args_is_help=True, help="Forecast a large run from small ones.")


@app.command()
def run(
    arguments: RunToml = None,
    source: Annotated[str | None, typer.Option("--data", help="Text, or a prepared folder.")] = None,
    budget: Annotated[str | None, typer.Option(help="Of the target: 10m, 2h, or 1e15 FLOPs; sizes it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the ladder's folder; from the data when not given.")] = None,
    out: Out = Path("runs"),
    climb: Annotated[bool, typer.Option("--climb", help="Train the target too, and score the forecast.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a ladder of small models and forecast the run that the config describes. Exit 3 when it came out outside.

    The same command goes on where it was interrupted, and may be started several times at once to share the work.
    """
    from foretell.cli import climb as climbing
    from foretell.cli.display import Display

    c = with_options(read_config(arguments), source, budget)
    with Display(console(), quiet) as display:
        result = climbing.ladder(c, out, name, climb, display)
    emit(result, as_json, climbing.render)
    if result["held"] is False:
        raise typer.Exit(3)
