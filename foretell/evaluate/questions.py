"""Which questions of a file a decoder gets right, by likelihood alone: what a ladder asks each of its models.

Three kinds of records, told apart by their keys, each asked as lm-eval asks the task of ours of that name (`lm_tasks`):

    continuation  {context, continuation}     right where each token of the continuation is the likeliest: a cloze
    endings       {context, choices, gold}    right where no choice is likelier than the gold one, as the text goes on
    choices       {query, choices, gold}      the same after "Answer:" and a space

The counts are those of lm-eval's `acc`; the extra `lm-eval` need not be there. A choice's likelihood is that of all of
it, whatever its length. Not handled: answers that are generated, examples before a question, other prompts (put
them into the records).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretell.data import plain
from foretell.errors import DataError
from foretell.evaluate import lm_tasks
from foretell.evaluate.likelihood import loglikelihoods
from foretell.models.decoder import Decoder
from foretell.tokenizer import Tokenizer

_ROWS_OF_UNITS = 1 << 10  # rows at once times hidden size: small models spend more on calls than on a cache too small
KINDS = ("continuation", "endings", "choices")
Ways = list[tuple[str, str]]


@dataclass(frozen=True)
class Questions:
    """`ways`: of each question, the (context, continuation) that are asked; `gold`: which is right.

    `chance`: the share that guessing gets right, 0 of a cloze. `digest`: of the records.
    """

    kind: str
    ways: list[Ways]
    gold: list[int]
    chance: float
    digest: str

    def __len__(self) -> int:
        return len(self.ways)


def read(file: Path, limit: int | None = None) -> Questions:
    """The questions of a .jsonl or .jsonl.gz file; `limit`: the first so many. DataError where it holds others."""
    keys = _first(file).keys()
    kind = next((k for k in KINDS if keys >= set(lm_tasks.TASKS[k][0])), None)
    if kind is None:
        wanted = "; ".join(f"{', '.join(lm_tasks.TASKS[k][0])} ({k})" for k in KINDS)
        raise DataError(f"{file}: its first record has {', '.join(map(str, keys))}; a task has {wanted}")
    records = lm_tasks.read(file, lm_tasks.TASKS[kind][0])[:limit]
    told = lm_tasks.TASKS[kind][1]
    ways: list[Ways] = []
    for record in records:
        context = told["doc_to_text"](record)
        space = told.get("target_delimiter", " ")  # as lm-eval has it, before choices only
        tails = [record["continuation"]] if kind == "continuation" else [space + c for c in record["choices"]]
        ways.append([(context, tail) for tail in tails])
    chance = 0.0 if kind == "continuation" else float(np.mean([1 / len(w) for w in ways]))
    digest = hashlib.sha256(json.dumps([kind, records], sort_keys=True).encode()).hexdigest()
    return Questions(kind, ways, [r.get("gold", 0) for r in records], chance, digest)


def _first(file: Path) -> dict[str, Any]:
    """The first record, whose keys tell the kind."""
    try:
        found = json.loads(next((line for line in plain.text(file).split("\n") if line.strip()), "{}"))
    except (OSError, ValueError) as e:
        raise DataError(f"{file}: cannot be read as JSON lines: {e}") from None
    return found if isinstance(found, dict) else {}


def right(model: Decoder, tokenizer: Tokenizer, questions: Questions) -> list[bool]:
    """Of each question, whether the model gets it right. DataError for one that does not fit the model's context."""
    pairs = [encoded(tokenizer, *way) for ways in questions.ways for way in ways]
    rows = max(1, _ROWS_OF_UNITS // model.config.sizes.D)
    scores = iter(loglikelihoods(model, pairs, batch_size=rows))
    found = []
    for ways, gold in zip(questions.ways, questions.gold, strict=True):
        own = list(itertools.islice(scores, len(ways)))
        found.append(own[0][1] if len(own) == 1 else int(np.argmax([s for s, _ in own])) == gold)
    return found


def encoded(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[Sequence[int], Sequence[int]]:
    """Both as tokens, cut where lm-eval cuts: white space before the cut goes to the continuation.

    Where a token lies across the cut (`.` and `append` in `x.append`) it is the continuation's first. lm-eval counts
    tokens there, and may ask for less than the continuation, or for nothing.
    """
    whole, before = tokenizer.encode(context + continuation), tokenizer.encode(context.rstrip())
    pairs = enumerate(zip(whole, before, strict=False))
    cut = next((i for i, (a, b) in pairs if a != b), min(len(whole), len(before)))
    return whole[:cut], whole[cut:]
