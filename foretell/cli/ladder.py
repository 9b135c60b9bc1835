"""`foretell ladder`: train small runs and foretell a large one; or the law through a table that is there already."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Group

ladder_app = typer.Typer(no_args_is_help=True, help="Small runs, the law through them, the forecast of the large one.")


@ladder_app.command()
def fit(
    table: Annotated[Path, typer.Argument(help="Runs, one a line: params, tokens, loss under a header.")],
    targets: Annotated[
        list[str] | None, typer.Option("--target", help="N,D such as 7B,4T; N,D,UNIQUE; may be given again.")
    ] = None,
    form: Annotated[str, typer.Option(help="chinchilla, tied, floorless, coupled or compute.")] = "chinchilla",
    columns: Annotated[
        list[str] | None, typer.Option(help="QUANTITY=COLUMN, such as loss=loss_c4_val; may be given again.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="COLUMN=VALUE: only lines that have it; may be given again.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout; progress on stderr.")] = False,
) -> None:
    """Fit L(N, D) to a table of finished runs and forecast larger ones, with 90% intervals."""
    from foretell import ladder
    from foretell.cli.options import emit

    result = ladder.fit_table(
        table,
        [ladder.target(t) for t in targets or []],
        form=form,
        columns=ladder.pairs("--columns", columns or []),
        where=ladder.pairs("--where", where or []),
    )
    emit(result, as_json, render)


@ladder_app.command()
def run(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN.toml] [key=value ...]", help="The target's config file, and overrides of it."),
    ] = None,
    source: Annotated[str | None, typer.Option("--data", help="Text, or a prepared folder.")] = None,
    budget: Annotated[str | None, typer.Option(help="Of the target: 10m, 2h, or 1e15 FLOPs; sizes it.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the ladder's folder; from the data when not given.")] = None,
    out: Annotated[Path, typer.Option("--out", help="The folder that holds run folders.")] = Path("runs"),
    climb: Annotated[bool, typer.Option("--climb", help="Train the target too, and score the forecast.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout; progress on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a ladder of small models and forecast the run that the config describes. Exit 3 when it came out outside.

    The same command goes on where it was interrupted, and may be started several times at once to share the work.
    """
    from foretell.cli import climb as climbing
    from foretell.cli.display import Display
    from foretell.cli.options import console, emit, read_config, with_options

    c = with_options(read_config(arguments), source, budget)
    with Display(console(), quiet) as display:
        result = climbing.ladder(c, out, name, climb, display)
    emit(result, as_json, climbing.render)
    if result["held"] is False:
        raise typer.Exit(3)


@ladder_app.command()
def score(
    folder: Annotated[Path, typer.Argument(metavar="LADDER", help="A ladder's folder, its rungs finished.")],
    data: Annotated[Path, typer.Option("--data", help="Questions: JSON lines of choices, or of a cloze.")],
    task: Annotated[str | None, typer.Option(help="Name of the task; the file's when not given.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many questions, the first.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout; progress on stderr.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Ask the rungs a task and forecast the targets' scores in it, then ask those that are trained.

    Exit 3 when a score came out outside its interval. The same command goes on where it was interrupted.
    """
    from foretell.cli import climb as climbing
    from foretell.cli.display import Display
    from foretell.cli.options import console, emit

    with Display(console(), quiet) as display:
        result = climbing.score(folder, data, task, limit, display)
    emit(result, as_json, climbing.render_score)
    if any(t["held"] is False for t in result["targets"]):
        raise typer.Exit(3)


def render(result: dict[str, Any]) -> Group:
    """The answer for a terminal: the law, where the search ended, the forecasts."""
    from rich.console import Group
    from rich.markup import escape
    from rich.table import Table

    found, end = result["fit"], result["fit"]["end"]
    rows = Table(box=None, show_header=False, padding=(0, 2))
    read = ", ".join(f"{q} from {c}" for q, c in result["columns"].items())
    rows.add_row("runs", f"{result['rows']:,}", escape(read))
    rows.add_row("law", _law(found), f"{found['form']}, mean error {end['mean_error_percent']:.2f}%")
    if found["repeat"] is not None:
        rows.add_row("repeats", f"R_D* = {found['repeat']:.3g}", "what repeated tokens are worth")
    rows.add_row(
        "search",
        f"{end['agreeing']} of {end['starts']} starts agree",
        f"gradient {end['gradient_norm']:.0e}, {end['iterations']} rounds, condition {end['condition_number']:.3g}",
    )
    if end["at_bounds"]:
        rows.add_row("[yellow]at a bound[/]", ", ".join(end["at_bounds"]), "the rows do not determine it")
    for i in end["influential"][:1]:
        without = f"without it alpha {i['alpha_without']:.3f}, beta {i['beta_without']:.3f}"
        rows.add_row("influence", f"run {i['row']}: {i['error_percent']:+.2f}%", without)
    if "forecasts" not in result:
        return Group(rows)
    ahead = Table(box=None, padding=(0, 2))
    for name in ("parameters", "tokens", "forecast", "90% interval", "the law alone", "compute"):
        ahead.add_column(name, justify="right")
    for f in result["forecasts"]:
        ahead.add_row(
            f"{f['parameters']:.4g}",
            f"{f['tokens']:.4g}",
            f"{f['value']:.4f}",
            rf"\[{f['low']:.4f}, {f['high']:.4f}]",
            f"{f['law']:.4f}",
            f"{f['compute_ratio']:.3g}x",
        )
    return Group(rows, "", ahead)


def _law(found: dict[str, Any]) -> str:
    floor, one = f"{found['E']:.4f}", f"{found['A']:.4g}/N^{found['alpha']:.4f}"
    if found["form"] == "compute":
        return f"{floor} + {found['A']:.4g}/C^{found['alpha']:.4f}"
    two = f"{found['B']:.4g}/D^{found['beta']:.4f}"
    if found["form"] == "coupled":
        return f"{floor} + (({one})^(1/p) + ({two})^(1/p))^p, p = {found['power']:.3f}"
    return f"{floor} + {one} + {two}"
