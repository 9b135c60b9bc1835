"""`foretell tokenizer`: train one from texts; several compared on a text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretell import errors
from foretell.cli.options import Json, emit

if TYPE_CHECKING:
    from rich.table import Table

    from foretell.tokenizer import Tokenizer

tokenizer_app = typer.Typer(no_args_is_help=True, help="Train a tokenizer; compare several on a text.")

KINDS = ("bpe", "bytes", "wordpiece", "word")


@tokenizer_app.command()
def train(
    sources: Annotated[list[str], typer.Argument(help="Files, folders, globs, - for stdin, hf://name.")],
    out: Annotated[Path, typer.Option("--out", help="The tokenizer.json to write, or a folder for it.")],
    kind: Annotated[str, typer.Option(help=f"{', '.join(KINDS)}.")] = "bpe",
    vocab_size: Annotated[int | None, typer.Option(help="Tokens at most; fitted to the texts when not given.")] = None,
    cased: Annotated[bool, typer.Option("--cased", help="wordpiece: keep case and accents.")] = False,
    as_json: Json = False,
) -> None:
    """Train a tokenizer on texts and write its tokenizer.json."""
    from foretell import tokenizer

    if kind not in KINDS:
        raise errors.ConfigError(f"--kind {kind}: there are {', '.join(KINDS)}")
    if cased and kind != "wordpiece":
        raise errors.ConfigError(f"--cased has no effect with --kind {kind}, which keeps case anyhow")
    texts = _texts(sources)
    size = sum(len(t.encode(errors="replace")) for t in texts)
    if not size:
        raise errors.DataError(f"{', '.join(sources)}: there is no text to train on")
    made = tokenizer.train(texts, kind, vocab_size or tokenizer.fitted_vocab_size(size), lowercase=not cased)
    if out.suffix != ".json":
        out.mkdir(parents=True, exist_ok=True)
    made.save(out)
    written = out / "tokenizer.json" if out.is_dir() else out
    result = {"out": str(written), "kind": made.kind, "vocab_size": made.vocab_size, "bytes": size}
    emit(result, as_json, lambda r: f"{r['out']}: {r['kind']}, {r['vocab_size']:,} tokens")


@tokenizer_app.command()
def compare(
    text: Annotated[str, typer.Argument(help="The text: a file, folder or glob, - for stdin.")],
    tokenizers: Annotated[
        list[Path],
        typer.Argument(help="Folders, tokenizer.json, SentencePiece .model, .tiktoken, vocab.txt and GGUF files."),
    ],
    as_json: Json = False,
) -> None:
    """Tokens, bytes a token, unknown share and speed of several tokenizers on one text."""
    from foretell.tokenizer.compare import compare as compared

    loaded = {str(path): load(path) for path in tokenizers}
    emit(compared(_texts([text]), loaded), as_json, render)


def _texts(sources: list[str]) -> list[str]:
    from foretell import data

    found = list(data.texts(sources))
    texts = [d.text for d in found if isinstance(d, data.Document)]
    if len(texts) < len(found):
        typer.echo(f"{len(found) - len(texts):,} records could not be read and are left out", err=True)
    return texts


def load(path: Path) -> Tokenizer:
    """The tokenizer of a file or folder of any kind that is read, a GGUF file among them."""
    from foretell import tokenizer

    if path.suffix.lower() == ".gguf":
        from foretell.models import gguf

        return gguf.tokenizer(gguf.read(path))
    if (path / "model" / "tokenizer.json").is_file():  # a run folder
        return tokenizer.load(path / "model")
    return tokenizer.load(path)


def render(result: dict[str, Any]) -> Table:
    """The comparison for a terminal, most bytes a token first."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2), caption=f"{result['bytes']:,} bytes, {result['characters']:,} characters")
    table.add_column("tokenizer")
    for name in ("kind", "vocabulary", "tokens", "bytes/token", "characters/token", "unknown", "exact", "MB/s"):
        table.add_column(name, justify="right")
    for row in sorted(result["tokenizers"], key=lambda r: -r["bytes_per_token"]):
        table.add_row(
            escape(row["name"]),
            row["kind"],
            f"{row['vocab_size']:,}",
            f"{row['tokens']:,}",
            f"{row['bytes_per_token']:.3f}",
            f"{row['characters_per_token']:.3f}",
            f"{row['unknown']:.2%}",
            "yes" if row["exact"] else "no",
            f"{row['bytes_per_second'] / 1e6:.2f}",
        )
    return table
