"""`evaluate --compare`: the kept answers of two systems to the same examples, item by item.

A difference of two scores says little without the chance of it: both are computed from the same items, so the test is
paired (`metrics.compare`), which finds smaller differences than two intervals that overlap.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretell import metrics
from foretell.checkpoint import files
from foretell.config import TaskConfig
from foretell.data import plain
from foretell.errors import DataError
from foretell.tasks import scores
from foretell.tasks.examples import Example

if TYPE_CHECKING:
    from rich.table import Table


def answers_of(run: Path, kind: str) -> Path:
    """Where the answers of a run to the examples of a task are kept."""
    return run / f"answers-{kind}.jsonl"


def write_answers(file: Path, answers: Sequence[dict[str, Any]]) -> None:
    """One JSON object a line; of tasks that are scored by their answers name, source, wanted (a list), answer."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(answer, ensure_ascii=False) for answer in answers)
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
