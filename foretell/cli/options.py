"""What the verbs share: options, the config that arguments make, and how a result is shown."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from foretell.config import RunConfig

Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout; progress on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")]
RunToml = Annotated[
    list[str] | None, typer.Argument(metavar="[RUN.toml] [key=value ...]", help="A config file, and overrides of it.")
]
Base = Annotated[
    Path | None, typer.Option("--base", help="Go on from this model: a run, a Hugging Face folder, a GGUF file.")
]
Out = Annotated[Path, typer.Option("--out", help="The folder that holds run folders.")]


def print_json(result: dict[str, Any]) -> None:
    """One JSON object on stdout, in characters that its encoding has."""
    text = json.dumps(result, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # not in this encoding, or the name of a file that is no Unicode
        text = json.dumps(result)
    print(text)


def fail(message: str, code: int, as_json: bool) -> NoReturn:
    """Say what is wrong and end with that exit code."""
    if as_json:
        print_json({"error": message, "exit_code": code})
    print(f"foretell: {message}", file=sys.stderr)
    sys.exit(code)


def console() -> Console:
    """Where progress goes: stderr."""
    from rich.console import Console

    return Console(stderr=True)


def emit(result: dict[str, Any], as_json: bool, render: Callable[[dict[str, Any]], Any] | None = None) -> None:
    """The verb's result on stdout: JSON, or what `render` makes of it."""
    if as_json:
        print_json(result)
    elif render is not None:
        shown = render(result)
        if isinstance(shown, str):  # as it is: paths may be long, and hold what rich takes for markup
            print(shown)
            return
        from rich.console import Console

        # A pipe has no width of its own.
        out = Console() if sys.stdout.isatty() else Console(width=120)
        out.print(shown, highlight=False)


def read_config(arguments: list[str] | None) -> RunConfig:
    """The config of `[RUN.toml] [key=value ...]`."""
    from foretell import config

    words = list(arguments or [])
    path = Path(words.pop(0)) if words and "=" not in words[0] else None
    return config.load(path, words)


def with_options(
    c: RunConfig, source: str | None, budget: str | None, ladder: Path | None = None, base: Path | None = None
) -> RunConfig:
    """The config with what --data, --budget, --ladder and --base say."""
    from foretell import config

    if source is not None:
        c = config.updated(c, data={"source": source})
    if base is not None:
        c = config.updated(c, train={"base": str(base)})
    if ladder is not None:
        c = config.updated(c, train={"ladder": str(ladder)})
    return config.updated(c, train={"budget": budget}) if budget is not None else c
