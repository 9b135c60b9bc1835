"""`evaluate --task`: a model's answers to the examples of a task, their scores, and those of simple rules beside them.

Each score has a 95% interval over items and says how it was computed, so that `eval.json` is a section of a model card.
The answers are kept (answers.jsonl) where a folder is given, so that two models can be compared item by item later.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from foretell.checkpoint import files
from foretell.errors import DataError
from foretell.evaluate.compared import answers_of, write_answers
from foretell.evaluate.continuations import evaluate_generation
from foretell.evaluate.dialogue import Progress, evaluate_dialogue
from foretell.evaluate.result import scored
from foretell.metrics import Measure
from foretell.tasks import prompts, scores, tuned
from foretell.tasks.examples import Example
from foretell.tasks.tuned import Answer, Tuned

if TYPE_CHECKING:
    from rich.table import Table

_AT_ONCE = 32  # examples between two reports of progress
_SHOWN = 3


def evaluate_task(
    asked: Tuned, examples: Sequence[Example], progress: Progress | None = None, features: Path | None = None
) -> dict[str, Any]:
    """The fields of `foretell evaluate --task --json`: each metric by its name, ci, how, rules, samples, seconds ...

    ci are 95% intervals. rules: the same metrics of simple rules, and of what people wrote. samples: the best and the
    worst answers. features: of generation, the model whose vectors tell texts apart.
    """
    if not examples:
        raise DataError("nothing to score: no examples")
    began = time.perf_counter()
    if asked.task.kind == "dialogue":
        told = evaluate_dialogue(asked, examples, progress)
    elif asked.task.kind == "generation":
        told = evaluate_generation(asked, examples, progress, features)
    else:
        told = _of_answers(asked, examples, progress)
    task = asked.task.model_dump(exclude_none=True)
    return {"task": task, "items": len(examples), "seconds": time.perf_counter() - began, **told}


def _of_answers(asked: Tuned, examples: Sequence[Example], progress: Progress | None) -> dict[str, Any]:
    """Scores of a task whose answers say all."""
    found = answered(asked, examples, progress)
    texts = [a.text for a in found]
    measured = scores.measures(texts, examples, asked.task)
    rules = {
        name: {n: m.value for n, m in scores.measures(said, examples, asked.task).items()}
        for name, said in scores.rules(examples, asked.task).items()
    }
    return {
        **scored(measured),
        "cut": sum(a.cut for a in found),
        "rules": rules,
        "samples": _samples(next(iter(measured.values())), examples, texts, asked),
        "answers": [
            {"name": e.name, "source": e.source, "wanted": list(e.targets), "answer": t}
            for e, t in zip(examples, texts, strict=True)
        ],
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


def keep(model: Path, result: dict[str, Any]) -> None:
    """The scores of a run into its eval.json, under `tasks`, and its answers beside; nothing for other models."""
    if not (model / "config.toml").is_file():
        return
    kind = result["task"]["kind"]
    file = model / "eval.json"
    told = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    card = {k: v for k, v in result.items() if k != "answers"}
    told["tasks"] = {**told.get("tasks", {}), kind: card}
    files.write_atomic(file, (json.dumps(told, ensure_ascii=False, indent=1) + "\n").encode())
    write_answers(answers_of(model, kind), result["answers"])


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
        interval = f"{_short(low_high[0])} to {_short(low_high[1])}" if low_high else ""
        rules = [_short(values[name]) if name in values else "" for values in result["rules"].values()]
        table.add_row(name.replace("_", " "), _short(result[name]), interval, *rules)
    return table


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 2 else f"{value:,.2f}"
