"""Verbs that use a model for a task: translate, summarize, ask, classify; and `evaluate --task`."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from foretell import errors
from foretell.cli.options import Json, emit

if TYPE_CHECKING:
    from foretell.cli.display import Display
    from foretell.tasks.tuned import Tuned

Model = Annotated[Path, typer.Argument(help="A run folder, a Hugging Face folder, an adapter's, or a GGUF file.")]
Texts = Annotated[list[str] | None, typer.Argument(metavar="[TEXT...]", help="Texts; asked for when not given.")]
File = Annotated[Path | None, typer.Option("--file", help="A text a line, in UTF-8.")]
From = Annotated[str | None, typer.Option("--from", help="Language of the text; the model's own when not given.")]
To = Annotated[str | None, typer.Option("--to", help="Language that is wanted; the model's own when not given.")]
Beams = Annotated[int | None, typer.Option(min=1, help="Hypotheses of a search; 1 takes the likeliest token.")]
Instruction = Annotated[str | None, typer.Option(help="What a decoder is asked, in place of the task's own words.")]
Features = Annotated[
    Path | None, typer.Option(help="Generation: the model whose vectors tell texts apart; MODEL when not given.")
]
Longest = Annotated[int | None, typer.Option("--max-new-tokens", min=1, help="Longest answer.")]


def load(model: Path, kind: str, template: str | None = None, **changes: Any) -> Tuned:
    """The model for a task, on this run's device. template: of conversations, by name; the model's own when None."""
    from foretell import runtime
    from foretell.tasks import tuned

    return tuned.load(model, kind, changes, runtime.device(), template)


def translate(
    model: Model,
    texts: Texts = None,
    file: File = None,
    source_language: From = None,
    target_language: To = None,
    beams: Beams = None,
    length_penalty: Annotated[float | None, typer.Option(help="Above 0 prefers longer texts.")] = None,
    instruction: Instruction = None,
    max_new_tokens: Longest = None,
    as_json: Json = False,
) -> None:
    """Translate texts, a line each; without texts, ask for lines until an empty one."""
    asked = load(
        model,
        "translation",
        source_language=source_language,
        target_language=target_language,
        beams=beams,
        length_penalty=length_penalty,
        instruction=instruction,
        max_new_tokens=max_new_tokens,
    )
    _answer_all(asked, texts, file, as_json)


def summarize(
    model: Model,
    texts: Texts = None,
    file: Annotated[Path | None, typer.Option("--file", help="A file whose whole text is summarized.")] = None,
    language: Annotated[str | None, typer.Option(help="en or zh: what a decoder is asked in.")] = None,
    beams: Beams = None,
    instruction: Instruction = None,
    max_new_tokens: Longest = None,
    as_json: Json = False,
) -> None:
    """Summarize texts; with --file a whole file; without either, ask for texts, a line each."""
    from foretell.data import plain

    changes: dict[str, Any] = {"target_language": language, "beams": beams, "instruction": instruction}
    asked = load(model, "summarization", max_new_tokens=max_new_tokens, **changes)
    _answer_all(asked, [*(texts or []), *([plain.text(file)] if file is not None else [])], None, as_json)


def ask(
    model: Model,
    question: Annotated[str | None, typer.Argument(help="A question; asked for when not given.")] = None,
    context: Annotated[Path | None, typer.Option("--context", help="A file with the passage.")] = None,
    passage: Annotated[str | None, typer.Option("--passage", help="The passage itself.")] = None,
    language: Annotated[str | None, typer.Option(help="en or zh: what a decoder is asked in.")] = None,
    instruction: Instruction = None,
    max_new_tokens: Longest = None,
    as_json: Json = False,
) -> None:
    """Answer a question from a passage; without a question, ask for questions until an empty line."""
    from foretell.data import plain
    from foretell.tasks import tuned
    from foretell.tasks.examples import Example

    text = passage if passage is not None else plain.text(context) if context is not None else None
    if text is None:
        raise errors.ConfigError("no passage to answer from: give --context FILE or --passage TEXT")
    changes: dict[str, Any] = {
        "target_language": language,
        "instruction": instruction,
        "max_new_tokens": max_new_tokens,
    }
    asked = load(model, "qa", **changes)
    for given in [question] if question is not None else _lines("? "):
        answer = tuned.answers(asked, [Example("", given, context=text)])[0]
        told = {"question": given, "answer": answer.text, "cut": answer.cut}
        emit(told, as_json, lambda r: shown(r["answer"]) or "(no answer)")
        if answer.cut:
            print("foretell: the passage does not fit as a whole; its end was not read", file=sys.stderr)


def classify(
    model: Model, texts: Texts = None, file: File = None, instruction: Instruction = None, as_json: Json = False
) -> None:
    """The label of each text, a line each; without texts, ask for lines until an empty one."""
    _answer_all(load(model, "classification", instruction=instruction), texts, file, as_json)


def scored(
    model: Path,
    kind: str,
    data: str,
    changes: dict[str, Any],
    most: int | None,
    display: Display,
    keys: Any = None,
    features: Path | None = None,
    kept: Path | None = None,
) -> dict[str, Any]:
    """The scores of a model at a task, as `evaluate --task` prints them; those of a run go into eval.json and report.

    kept: a file for the answers.
    """
    from foretell import evaluate, report
    from foretell.tasks import checks, examples, scores

    read = examples.read(data, kind, keys or examples.Keys())
    asked = load(model, kind, **changes)
    asked = replace(asked, task=scores.spoken(asked.task, read.examples))
    good, told = checks.checked({"test": read}, kind, asked.task.target_language)
    for line in told:
        display.say(f"  [yellow]{line}[/]")
    chosen = good["test"][:most] if most else good["test"]
    if len(chosen) < len(good["test"]):
        display.say(f"  [dim]the first {len(chosen):,} of {len(good['test']):,} examples[/]")

    began = time.perf_counter()

    def told_progress(done: int, of: int) -> None:
        seconds = time.perf_counter() - began
        display.progress({"stage": "answering", "done": done, "total": of, "of": "items", "seconds": seconds})

    result = evaluate.evaluate_task(asked, chosen, told_progress, features)
    result |= {"data": data, "items_given": len(good["test"])}
    evaluate.keep_scores(model, result)
    if (model / "measured.json").is_file():
        report.write([model])
    if kept is not None:
        evaluate.write_answers(kept, result["answers"])
    answers = result.pop("answers")
    return {**result, "answered": len(answers), "table": evaluate.render_task(result)}


def evaluate(
    model: Path,
    kind: str,
    data: list[str],
    changes: dict[str, Any],
    most: int | None,
    keys: tuple[str | None, str | None],
    features: Path | None,
    kept: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """`foretell evaluate --task`."""
    from foretell.cli.display import Display
    from foretell.cli.options import console
    from foretell.tasks.examples import KINDS, Keys

    if kind not in KINDS:
        raise errors.ConfigError(f"--task {kind}: there are {', '.join(KINDS)}, and lm-eval:TASK")
    if len(data) != 1:
        raise errors.ConfigError(
            f"--task wants one --data, not {len(data)}: a file, a folder, a pattern in quotes, or SOURCE+TARGET"
        )
    if features is not None and kind != "generation":
        raise errors.ConfigError("--features has no effect but on --task generation; leave it out")
    with Display(console(), quiet) as display:
        result = scored(model, kind, data[0], changes, most, display, Keys(*keys), features, kept)
    table = result.pop("table")
    emit(result, as_json, lambda r: table)


def compare(first: Path, second: Path, kind: str | None, language: str | None, as_json: bool) -> None:
    """`foretell evaluate FIRST --task KIND --compare SECOND`: of run folders, or of files of kept answers."""
    from foretell import evaluate
    from foretell.config import TaskConfig
    from foretell.tasks.examples import KINDS

    if kind not in KINDS:
        raise errors.ConfigError(f"--compare wants a --task, whose answers are compared: {', '.join(KINDS)}")
    one, two = (evaluate.answers_of(p, kind) if p.is_dir() else p for p in (first, second))
    for file in (one, two):
        if not file.is_file():
            raise errors.DataError(
                f"{file}: no answers are kept there; make them: evaluate --task {kind} --answers FILE"
            )
    task = TaskConfig.model_validate({"kind": kind, "target_language": language})
    emit(evaluate.compare_answers(one, two, task), as_json, evaluate.render_comparison)


def _answer_all(asked: Tuned, texts: list[str] | None, file: Path | None, as_json: bool) -> None:
    from foretell import embed
    from foretell.tasks import tuned
    from foretell.tasks.examples import Example

    given = [*(texts or []), *(embed.lines(file) if file is not None else [])]
    if as_json and not given:
        raise errors.ConfigError("--json needs texts, or --file")
    for group in [given] if given else ([line] for line in _lines("> ")):
        found = tuned.answers(asked, [Example("", text) for text in group])
        told = [{"source": text, "answer": a.text, "cut": a.cut} for text, a in zip(group, found, strict=True)]
        emit({"answers": told}, as_json, lambda r: "\n".join(shown(a["answer"]) for a in r["answers"]))
        if cut := sum(a.cut for a in found):
            print(f"foretell: {cut:,} texts do not fit; their ends were not read", file=sys.stderr)


def _lines(mark: str) -> Iterator[str]:
    """Lines from the terminal, until an empty one or the end."""
    while True:
        print(mark if sys.stdin.isatty() else "", end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line.strip():
            return
        yield line.strip()


def shown(text: str) -> str:
    """Text as this output takes it: a terminal gets no control characters."""
    from foretell.cli.steps import visible

    return visible(text) if sys.stdout.isatty() else text
