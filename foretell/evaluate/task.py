"""`evaluate --task`: a model's answers to the examples of a task, their scores, and those of simple rules beside them.

Each score has a 95% interval over items and says how it was computed, so that `eval.json` is a section of a model card.
The answers are kept (answers.jsonl) where a folder is given, so that two models can be compared item by item later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell import metrics
from foretell.checkpoint import files
from foretell.config import TaskConfig
from foretell.data import plain
from foretell.errors import DataError
from foretell.metrics import Measure
from foretell.tasks import prompts, scores, tuned
from foretell.tasks.examples import Example
from foretell.tasks.tuned import Answer, Tuned

if TYPE_CHECKING:
    from rich.table import Table

_AT_ONCE = 32  # examples between two reports of progress
_SHOWN = 3
Progress = Callable[[int, int], None]


def evaluate_task(asked: Tuned, examples: Sequence[Example], progress: Progress | None = None) -> dict[str, Any]:
    """The fields of `foretell evaluate --task --json`: each metric by its name, ci, how, rules, samples, seconds ...

    ci are 95% intervals. rules: the same metrics of simple rules. samples: the best and the worst answers.
    """
    if not examples:
        raise DataError("nothing to score: no examples")
    began = time.perf_counter()
    found = answered(asked, examples, progress)
    seconds = time.perf_counter() - began
    texts = [a.text for a in found]
    measured = scores.measures(texts, examples, asked.task)
    rules = {
        name: {n: m.value for n, m in scores.measures(said, examples, asked.task).items()}
        for name, said in scores.rules(examples, asked.task).items()
    }
    return {
        **result(measured),
        "task": asked.task.model_dump(exclude_none=True),
        "items": len(examples),
        "cut": sum(a.cut for a in found),
        "seconds": seconds,
        "rules": rules,
        "samples": _samples(next(iter(measured.values())), examples, texts, asked),
        "answers": texts,
    }


def answered(asked: Tuned, examples: Sequence[Example], progress: Progress | None = None) -> list[Answer]:
    """The answers of a model, in order, some at a time by their length, so that progress can be told.

    The longest come first, so that the time that is left is not promised too short.
    """
    order = sorted(range(len(examples)), key=lambda n: -len(examples[n].source) - len(examples[n].context))
    found: dict[int, Answer] = {}
    for i in range(0, len(order), _AT_ONCE):
        group = order[i : i + _AT_ONCE]
        found.update(zip(group, tuned.answers(asked, [examples[n] for n in group]), strict=True))
        if progress is not None:
            progress(len(found), len(examples))
    return [found[n] for n in range(len(examples))]


def result(measured: dict[str, Measure]) -> dict[str, Any]:
    """Each metric by its name, their intervals and how they were computed."""
    card = {name: metrics.score(m) for name, m in measured.items()}
    return {
        **{name: s.value for name, s in card.items()},
        "ci": {name: [s.low, s.high] for name, s in card.items() if s.low is not None},
        "how": {name: s.how for name, s in card.items()},
    }


def _samples(first: Measure, examples: Sequence[Example], texts: Sequence[str], asked: Tuned) -> list[dict[str, Any]]:
    """The best and the worst answers by the first metric, one of each wanted text."""
    each = np.nan_to_num(first.each())
    order = np.argsort(-each, kind="stable").tolist()
    chosen = [*order[:_SHOWN], *order[-_SHOWN:]] if len(order) > 2 * _SHOWN else order
    return [
        {
            "name": examples[n].name,
            "source": examples[n].source,
            "wanted": list(examples[n].targets) or [prompts.answer(examples[n], asked.task)],
            "answer": texts[n],
            first.name: float(each[n]),
        }
        for n in chosen
    ]


def keep(model: Path, result: dict[str, Any], examples: Sequence[Example]) -> None:
    """The scores of a run into its eval.json, under `tasks`, and its answers beside; nothing for other models."""
    if not (model / "config.toml").is_file():
        return
    kind = result["task"]["kind"]
    file = model / "eval.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    card = {k: v for k, v in result.items() if k != "answers"}
    told["tasks"] = {**told.get("tasks", {}), kind: card}
    files.write_atomic(file, (json.dumps(told, ensure_ascii=False, indent=1) + "\n").encode())
    write_answers(answers_of(model, kind), result["answers"], examples)


def answers_of(run: Path, kind: str) -> Path:
    """Where the answers of a run to the examples of a task are kept."""
    return run / f"answers-{kind}.jsonl"


def write_answers(file: Path, answers: Sequence[str], examples: Sequence[Example]) -> None:
    """One JSON object a line: name, source, wanted (a list), answer."""
    lines = (
        json.dumps({"name": e.name, "source": e.source, "wanted": list(e.targets), "answer": a}, ensure_ascii=False)
        for e, a in zip(examples, answers, strict=True)
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(file, ("\n".join(lines) + "\n").encode())


def read_answers(file: Path) -> tuple[list[str], list[Example]]:
    """What `write_answers` wrote. DataError for anything else."""
    answers, examples = [], []
    for n, line in enumerate(plain.text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            answer, name, source, wanted = (told[k] for k in ("answer", "name", "source", "wanted"))
            if not (isinstance(answer, str) and isinstance(wanted, list)):
                raise TypeError("answer must be a text, wanted a list")
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise DataError(f"{file}, line {n}: no answer as `evaluate --task` keeps it: {str(e)[:80]}") from None
        answers.append(answer)
        examples.append(Example(str(name), str(source), tuple(map(str, wanted))))
    if not answers:
        raise DataError(f"{file}: no answers in it")
    return answers, examples


def compare(first: Path, second: Path, task: TaskConfig) -> dict[str, Any]:
    """Two systems' kept answers by the metrics of the task: `metrics`, with the fields of `metrics.Comparison` each.

    Raises DataError where the two were not asked the same, in the same order.
    """
    (one, asked), (two, also) = read_answers(first), read_answers(second)
    if len(asked) != len(also):
        raise DataError(f"{first} has {len(asked):,} answers and {second} {len(also):,}: score the same examples")
    for n, (a, b) in enumerate(zip(asked, also, strict=True), 1):
        if (a.source, a.targets) != (b.source, b.targets):
            raise DataError(f"{first} and {second} differ in what was asked, first in line {n}: {a.source[:60]!r}")
    both = [scores.measures(said, asked, task) for said in (one, two)]
    found = {name: asdict(metrics.compare(both[0][name], both[1][name])) for name in both[0]}
    return {"first": str(first), "second": str(second), "items": len(asked), "metrics": found}


def render_comparison(result: dict[str, Any]) -> Table:
    """A table for the terminal: each metric of both, their difference with its interval, and p."""
    from rich.markup import escape
    from rich.table import Table

    caption = f"{result['items']:,} items; p: how likely so large a difference would be by chance, swapping at random"
    table = Table("metric", caption=caption, caption_justify="left")
    for column in (escape(result["first"]), escape(result["second"]), "difference", "95% interval", "p"):
        table.add_column(column, justify="right", overflow="fold")
    for name, c in result["metrics"].items():
        interval = f"{c['low']:+.2f} to {c['high']:+.2f}" if c["low"] is not None else ""
        p = f"{c['p_randomisation']:.4f}"
        values = (f"{c['first']:.2f}", f"{c['second']:.2f}", f"{c['difference']:+.2f}")
        table.add_row(name.replace("_", " "), *values, interval, p)
    return table


def render(result: dict[str, Any]) -> Table:
    """A table for the terminal: metric, value, interval, and what simple rules reach."""
    from rich.markup import escape
    from rich.table import Table

    below = f"{result['items']:,} items in {result['seconds']:.0f} s"
    if result.get("cut"):
        below += f"; {result['cut']:,} did not fit and were cut"
    table = Table("metric", caption=escape(below), caption_justify="left")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    for rule in result["rules"]:
        table.add_column(escape(rule), justify="right")
    for name in result["how"]:
        low_high = result["ci"].get(name)
        interval = f"{low_high[0]:.2f} to {low_high[1]:.2f}" if low_high else ""
        rules = [f"{values[name]:.2f}" if name in values else "" for values in result["rules"].values()]
        table.add_row(name.replace("_", " "), f"{result[name]:.2f}", interval, *rules)
    return table
