"""`foretell vectors`: learn word vectors, ask for near words and analogies, score them, draw their map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from foretell.cli.options import Json, Quiet, console, emit

if TYPE_CHECKING:
    from rich.console import Group

vectors_app = typer.Typer(
    no_args_is_help=True, help="Word vectors: Word2Vec and GloVe, their neighbours and their map."
)

Made = Annotated[Path, typer.Argument(metavar="FOLDER", help="A folder of vectors, or a .bin or .txt file of them.")]


@vectors_app.command()
def train(
    sources: Annotated[list[str], typer.Argument(metavar="SOURCE...", help="Text as for prepare; prepared text.")],
    out: Annotated[Path, typer.Option("--out", help="The folder to make.")],
    kind: Annotated[Literal["word2vec", "glove"], typer.Option(help="What learns them.")] = "word2vec",
    architecture: Annotated[Literal["skip-gram", "cbow"], typer.Option(help="Of word2vec.")] = "skip-gram",
    dim: Annotated[int, typer.Option(help="Dimensions.")] = 100,
    window: Annotated[int, typer.Option(help="Words to either side that count.")] = 5,
    negative: Annotated[int, typer.Option(help="word2vec: words drawn against each true one.")] = 5,
    epochs: Annotated[int | None, typer.Option(help="Rounds; word2vec 5, glove 25.")] = None,
    min_count: Annotated[int, typer.Option(help="Rarer words get no vector.")] = 5,
    x_max: Annotated[float, typer.Option(help="glove: counts above it weigh no more.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Same seed, same vectors; word2vec: with one thread.")] = 0,
    threads: Annotated[int | None, typer.Option(help="One a core when not given.")] = None,
    units: Annotated[
        Literal["words", "characters", "tokens"],
        typer.Option(help="Words (Chinese: extra zh), Chinese characters, tokens."),
    ] = "words",
    tokenizer: Annotated[Path | None, typer.Option(help="With --units tokens: whose.")] = None,
    keep_case: Annotated[bool, typer.Option("--keep-case", help="Do not make letters lower case.")] = False,
    formats: Annotated[
        list[str] | None, typer.Option("--format", help="binary, text or glove; again for more. All when not given.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Learn vectors of words, Chinese words or characters, or a model's tokens, from text."""
    from foretell import vectors
    from foretell.cli.display import Display
    from foretell.vectors.folder import FORMATS

    settings = vectors.Settings(
        kind=kind,
        architecture=architecture,
        dim=dim,
        window=window,
        negative=negative,
        epochs=epochs,
        min_count=min_count,
        x_max=x_max,
        seed=seed,
        threads=threads,
        units=units,
        lower=not keep_case,
    )
    chosen = tuple(formats or FORMATS)
    with Display(console(), quiet) as display:
        result = vectors.train(sources, out, settings, tokenizer=tokenizer, formats=chosen, progress=display.progress)
    emit(result, as_json, _trained)


@vectors_app.command()
def nearest(
    folder: Made,
    words: Annotated[list[str], typer.Argument(metavar="WORD...", help="Words.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Near words of each.")] = 10,
    as_json: Json = False,
) -> None:
    """The words nearest to a word, by cosine."""
    from foretell import vectors

    emit(vectors.nearest(vectors.open_folder(folder), words, count), as_json, _near)


@vectors_app.command()
def analogy(
    folder: Made,
    a: Annotated[str, typer.Argument(help="a is to")],
    b: Annotated[str, typer.Argument(help="b as")],
    c: Annotated[str, typer.Argument(help="c is to ?")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Answers.")] = 5,
    multiply: Annotated[bool, typer.Option("--multiply", help="3CosMul instead of 3CosAdd.")] = False,
    as_json: Json = False,
) -> None:
    """a is to b as c is to ?"""
    from foretell import vectors

    emit(vectors.analogy(vectors.open_folder(folder), a, b, c, count, multiply), as_json, _answered)


@vectors_app.command()
def evaluate(
    folder: Made,
    pairs: Annotated[
        Path | None, typer.Option(help="Lines of word, word, score. WordSim-353 when not given (English).")
    ] = None,
    multiply: Annotated[bool, typer.Option("--multiply", help="Analogies by 3CosMul instead of 3CosAdd.")] = False,
    as_json: Json = False,
) -> None:
    """Word similarity against people's scores (Spearman), and Google's analogies. English sets; --pairs for others."""
    from foretell import vectors

    opened = vectors.open_folder(folder)
    result: dict[str, Any] = {"vectors": str(folder), "similarity": vectors.similarity(opened, pairs)}
    result["analogies"] = vectors.analogies(opened, multiply) if pairs is None else None
    result["note"] = None if pairs is not None else "English sets; none in Chinese is at hand: give one with --pairs"
    emit(result, as_json, _scored)


@vectors_app.command("map")
def draw(
    folder: Made,
    out: Annotated[Path, typer.Option("--out", help="The page.")] = Path("map.html"),
    count: Annotated[int, typer.Option("--words", help="The most frequent; 2 to 5,000.")] = 1000,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """A map of the most frequent words: one HTML page to look through, search and zoom. Any file of vectors will do."""
    import time

    from foretell import report, vectors
    from foretell.cli.display import Display

    began = time.monotonic()
    with Display(console(), quiet) as display:

        def told(share: float) -> None:
            gone = time.monotonic() - began
            display.progress({"stage": "t-SNE", "done": share, "total": 1.0, "of": "", "seconds": gone})

        found = vectors.chart(vectors.open_folder(folder), count, told)
    path = report.write_map(found, out)
    result = {"map": str(path), "words": len(found["words"]), "of": found["of"], "bytes": path.stat().st_size}
    emit(result, as_json, lambda r: r["map"])


def _trained(result: dict[str, Any]) -> Group:
    """What came out of training, for a terminal."""
    from rich.console import Group
    from rich.table import Table

    from foretell.cli.display import clock
    from foretell.report.numbers import count

    rows = Table(box=None, show_header=False, padding=(0, 2))
    rows.add_row("vectors", result["out"], f"{result['words']:,} {result['units']} x {result['dim']}")
    of = f"{result['distinct']:,} different, {count(result['units_total'])} in {result['documents']:,} documents"
    rows.add_row("text", of, f"{result['quarantined']:,} unreadable" if result["quarantined"] else "")
    rows.add_row("reading", clock(result["reading_seconds"]), "")
    if "pairs" in result:
        first, last = result["losses"][0], result["losses"][-1]
        rows.add_row("counting", clock(result["counting_seconds"]), f"{count(result['pairs'])} pairs")
        rows.add_row("loss", f"{first:.4f} to {last:.4f}", f"{result['epochs']} rounds")
    ahead = f"forecast {clock(result['forecast_seconds'])}" if result["forecast_seconds"] else ""
    rows.add_row("training", clock(result["training_seconds"]), ahead)
    rows.add_row("speed", f"{count(result['units_per_second'])} {result['units']}/s", "each in every round")
    return Group(rows)


def _near(result: dict[str, Any]) -> Group:
    from rich.console import Group
    from rich.markup import escape

    lines = []
    for found in result["words"]:
        near = "  ".join(f"{escape(n['word'])} [dim]{n['score']:.3f}[/]" for n in found["nearest"])
        lines.append(f"[bold]{escape(found['word'])}[/]: {near}")
    return Group(*lines)


def _answered(result: dict[str, Any]) -> str:
    a, b, c = result["question"]
    found = "  ".join(f"{x['word']} {x['score']:.3f}" for x in result["answers"])
    return f"{a} : {b} = {c} : {found}   ({result['method']})"


def _scored(result: dict[str, Any]) -> str:
    s, a = result["similarity"], result["analogies"]
    value = "no score" if s["spearman"] is None else f"Spearman {s['spearman']:.3f}"
    if s["ci"] is not None:
        value += f" [{s['ci'][0]:.3f}, {s['ci'][1]:.3f}]"
    lines = [f"{s['name']}: {value}, {s['covered']} of {s['pairs']} pairs have vectors"]
    if a is not None:
        share = "no score" if a["accuracy"] is None else f"{100 * a['accuracy']:.1f}% right"
        lines.append(f"analogies: {share}, {a['covered']:,} of {a['questions']:,} questions have vectors")
        lines += [
            f"  {p['name']}: {100 * p['accuracy']:.1f}% of {p['covered']:,}" for p in a["sections"] if p["covered"]
        ]
    return "\n".join([*lines, *([result["note"]] if result["note"] else [])])
