"""`foretell finetune`: from a file of examples to a model that does a task, and its score on examples it never saw."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretell import errors
from foretell.cli.options import Base, Json, Out, Quiet, RunToml, console, emit, read_config, with_options

if TYPE_CHECKING:
    from foretell.cli.display import Display
    from foretell.config import RunConfig
    from foretell.tasks.examples import Keys

TaskOption = Annotated[
    str | None, typer.Option("--task", help="translation, summarization, qa, dialogue, generation or classification.")
]
SourceKey = Annotated[str | None, typer.Option(help="Key, or column by name or number, of what is given.")]
TargetKey = Annotated[str | None, typer.Option(help="The same of what is wanted.")]
From = Annotated[str | None, typer.Option("--from", help="Language of what is given, such as en.")]
To = Annotated[str | None, typer.Option("--to", help="Language of what is wanted, such as zh.")]


def finetune(
    arguments: RunToml = None,
    task: TaskOption = None,
    source: Annotated[
        str | None, typer.Option("--data", help="A file, folder, pattern, or SOURCE+TARGET by lines.")
    ] = None,
    valid: Annotated[str | None, typer.Option(help="Examples to watch by; a share of --data when not given.")] = None,
    test: Annotated[str | None, typer.Option(help="Examples to score; a share of --data when not given.")] = None,
    test_share: Annotated[float | None, typer.Option(help="Share of --data to score; 0.05, at most 1,000.")] = None,
    base: Base = None,
    source_language: From = None,
    target_language: To = None,
    both_ways: Annotated[bool, typer.Option("--both-ways", help="Translation: in both directions.")] = False,
    source_key: SourceKey = None,
    target_key: TargetKey = None,
    budget: Annotated[str | None, typer.Option(help="10m, 2h: how long to train; 3 epochs when not given.")] = None,
    test_items: Annotated[int, typer.Option(help="Most test examples to score at the end; 0: none.")] = 200,
    name: Annotated[str | None, typer.Option(help="Name of the run folder; from task and data when not given.")] = None,
    out: Out = Path("runs"),
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run of that name.")] = False,
    allow_drift: Annotated[bool, typer.Option("--allow-drift", help="Resume on another execution path.")] = False,
    processes: Annotated[int, typer.Option("--nproc", min=1, help="Processes, divided as [parallel] says.")] = 1,
    begin_only: Annotated[
        bool, typer.Option("--begin-only", help="Check, forecast, write the run folder, train nothing.")
    ] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn a task from examples: check them, forecast, train, score. lora.rank=8 learns adapters alone."""
    from foretell import config
    from foretell.cli.display import Display
    from foretell.cli.steps import Processes, label, train_and_report
    from foretell.tasks.examples import KINDS, Keys

    if not source:
        raise errors.ConfigError("no examples: give --data FILE")
    c = with_options(read_config(arguments), None, budget, None, base)
    asked = {"kind": task or None, "source_language": source_language, "target_language": target_language}
    given = {k: v for k, v in asked.items() if v is not None} | ({"both_ways": True} if both_ways else {})
    c = config.updated(c, task=given)
    if test_share is not None and not (0 < test_share < 0.9 and test is None):
        raise errors.ConfigError("--test-share is more than 0 and less than 0.9, and has no effect with --test")
    if c.task.kind is None:
        raise errors.ConfigError(f"which task? give --task, one of {', '.join(KINDS)}")
    named = name or f"{c.task.kind}-{label([source.partition('+')[0]])}"
    with Display(console(), quiet) as display:
        paths = {"train": source, "valid": valid, "test": test}
        c, folder = _files(c, paths, Keys(source_key, target_key), out, display, test_share)
        where = Processes(processes, begin_only=begin_only)
        result = train_and_report(c, out, named, resume, allow_drift, display, where)
        if test_items and not begin_only and (folder / "test.jsonl").exists():
            result["scores"] = _scored(Path(result["run"]), folder / "test.jsonl", c, test_items, display)
    emit(result, as_json, lambda r: r["closing"])


def _files(
    c: RunConfig,
    paths: dict[str, str | None],
    keys: Keys,
    out: Path,
    display: Display,
    test_share: float | None,
) -> tuple[RunConfig, Path]:
    """The examples checked, divided and written beside the runs, as their model reads them; the config of its run."""
    from rich.markup import escape

    from foretell.tasks import records
    from foretell.tasks.recipe import recipe

    found = recipe(c)
    made = records.made(paths, keys, c.task, found.form, found.reader, out / "data", test_share)
    for line in made.told:
        display.say(f"  [yellow]{escape(line)}[/]")
    display.say(f"  examples: {', '.join(f'{split} {n:,}' for split, n in made.counts.items())}")
    return found.settled(made.task, made.folder), made.folder


def _scored(run: Path, file: Path, c: RunConfig, most: int, display: Display) -> dict[str, Any]:
    """The score of a finished run on the test examples, or the first `most` of them; it goes into eval.json."""
    from foretell.cli.asking import scored

    display.say(f"  [dim]scoring {file.name} …[/]")
    result = scored(run, c.task.kind or "", str(file), {}, most, display)
    display.say(result["table"])
    return {k: v for k, v in result.items() if k != "table"}
