"""From examples to the files that a run learns from, in the form that its kind of model wants.

    encoder-decoder   pairs of source and target
    encoder           texts with labels; questions with where their answers stand
    decoder           conversations, of which answers are learned; of generation, texts

The folder has train.jsonl and valid.jsonl, which `prepare` reads (data.split=name), and test.jsonl, which keeps the
examples themselves, for scores. Without files of their own, valid and test are shares of the examples, drawn by the
digest of what is asked: so equal questions never stand in two splits, and the same file always divides alike. Several
translations of one source are one item of such a test, with several references.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from foretell.config import TaskConfig
from foretell.errors import DataError
from foretell.tasks import checks, examples, prompts, scores
from foretell.tasks.examples import Example, Keys
from foretell.tokenizer import Tokenizer
from foretell.tokenizer.chat import Template

SHARE, MOST = 0.05, 1000  # of the examples, for each of valid and test where no file is given


class Reader(NamedTuple):
    """What a decoder reads with: its chat template, its tokenizer, and how many tokens a conversation may have."""

    template: Template
    tokenizer: Tokenizer
    context: int


class Made(NamedTuple):
    """A folder of files, the examples of each split, what is to be told, and the task with the language it is in."""

    folder: Path
    counts: dict[str, int]
    told: list[str]
    task: TaskConfig


class Cut(dict[str, Any]):
    """A record whose text, or passage, lost its end."""


def made(
    paths: dict[str, str | None],
    keys: Keys,
    task: TaskConfig,
    form: str,
    reader: Reader | None,
    out: Path,
    test_share: float | None = None,
) -> Made:
    """Read the files of the splits (train at least), check them, divide what is not given, and write all in `out`.

    test_share: of the examples that become the test ones; `SHARE`, at most `MOST` of them, unless given.
    """
    kind = task.kind or ""
    read = {split: examples.read(path, kind, keys) for split, path in paths.items() if path is not None}
    task = scores.spoken(task, read["train"].examples)
    good, told = checks.checked(read, kind, task.target_language)
    wanted = [split for split in ("valid", "test") if split not in good]
    if wanted:
        good |= divided(good["train"], wanted, {} if test_share is None else {"test": test_share})
        if "test" in wanted and kind in ("translation", "summarization"):
            good["test"] = _joined(good["test"])
    facts = [task.model_dump(), form, reader and [reader.template.name, reader.tokenizer.digest, reader.context]]
    key = hashlib.sha256(json.dumps(facts).encode())
    for split, found in good.items():
        key.update(split.encode())
        for e in found:
            key.update(repr(e).encode("utf-8", "surrogatepass"))
    folder = out / f"{kind}-{key.hexdigest()[:10]}"
    told += write(good, task, form, reader, folder)
    return Made(folder, {split: len(found) for split, found in good.items()}, told, task)


def divided(
    whole: Sequence[Example], wanted: Sequence[str], shares: dict[str, float] | None = None
) -> dict[str, list[Example]]:
    """The examples as train and those of valid and test that are wanted, at least one in each.

    What is of one group, or asks the same, stays together. shares: of splits that are not to have the usual one.
    Raises DataError where there are fewer groups than splits.
    """
    alike: dict[bytes, list[Example]] = {}
    for e in whole:
        alike.setdefault(_digest(e), []).append(e)
    if len(alike) <= len(wanted):
        told = "articles" if whole[0].group else "examples"
        raise DataError(f"{len(alike):,} different {told} are too few for {1 + len(wanted)} splits; give more")
    groups = [alike[digest] for digest in sorted(alike)]
    found: dict[str, list[Example]] = {}
    for n, split in enumerate(wanted):
        share = (shares or {}).get(split)
        count = max(1, min(MOST, round(SHARE * len(whole))) if share is None else round(share * len(whole)))
        found[split] = groups.pop(0)
        spare = len(wanted) - n  # what the later splits and train need at least
        while len(groups) > spare and len(found[split]) + len(groups[0]) <= count:
            found[split] = found[split] + groups.pop(0)
    rest = {id(e) for group in groups for e in group}
    return {"train": [e for e in whole if id(e) in rest], **found}


def _joined(whole: Sequence[Example]) -> list[Example]:
    """Examples of one source as one, with all of its references."""
    found: dict[str, Example] = {}
    for e in whole:
        first = found.get(e.source)
        more = e.targets if first is None else (*first.targets, *(t for t in e.targets if t not in first.targets))
        found[e.source] = (e if first is None else first)._replace(targets=more)
    return list(found.values())


def _digest(e: Example) -> bytes:
    if e.group:
        return hashlib.sha256(e.group.encode()).digest()
    asked = "\x1e".join(m["content"] for m in e.messages[:-1]) if e.messages else f"{e.source}\x1e{e.context}"
    return hashlib.sha256(asked.encode()).digest()


def training(example: Example, task: TaskConfig, kind: str, reader: Reader | None) -> Iterator[dict[str, Any] | str]:
    """Records of the form `kind` of an example, or why there is none."""
    if kind == "text":
        yield {"text": example.source}
    elif kind == "labels":
        yield {"text": example.source, "label": example.targets[0]}
    elif kind == "spans":
        yield _spans(example)
    elif kind == "pairs":
        yield {"source": prompts.tagged(example.source, task), "target": example.targets[0]}
        if task.both_ways:
            yield {"source": prompts.tagged(example.targets[0], prompts.back(task)), "target": example.source}
    else:
        yield from _conversations(example, task, reader)


def _spans(example: Example) -> dict[str, Any] | str:
    starts = [s if s >= 0 else example.context.find(t) for t, s in zip(example.targets, example.starts, strict=True)]
    if example.targets and max(starts) < 0:
        return "whose answer does not stand in the passage"
    answers = [{"text": t, "answer_start": s} for t, s in zip(example.targets, starts, strict=True) if s >= 0]
    return {"question": example.source, "context": example.context, "answers": answers}


def _conversations(example: Example, task: TaskConfig, reader: Reader | None) -> Iterator[dict[str, Any] | str]:
    wanted = prompts.answer(example, task)
    if reader is None:  # a tokenizer is yet to be made
        asked = [{"role": "assistant", "content": wanted}] if task.kind != "dialogue" else []
        yield {"messages": [*prompts.asked(example, task), *asked] if asked else list(example.messages)}
        return
    own, tokenizer, context = reader
    if task.kind == "dialogue":
        yield from ({"messages": m} for m in prompts.windows(example, own, tokenizer, context))
        return
    room = context - len(tokenizer.encode(wanted)) - 4  # with the marks behind an answer
    fitting = prompts.fitted(example, task, own, tokenizer, max(room, context // 2))
    if task.kind == "qa" and wanted in example.context and wanted not in fitting.context:
        yield "whose answer stands behind what fits"
        return
    made = {"messages": [*prompts.asked(fitting, task), {"role": "assistant", "content": wanted}]}
    yield made if fitting == example else Cut(made)


def kept(example: Example, kind: str) -> dict[str, Any]:
    """The example as a record that `examples.read` reads again."""
    if kind == "qa":
        answers = [{"text": t, "answer_start": s} for t, s in zip(example.targets, example.starts, strict=True)]
        return {"question": example.source, "context": example.context, "answers": answers}
    if kind == "dialogue":
        return {"messages": list(example.messages)}
    if kind == "generation":
        return {"text": example.source}
    return {"source": example.source, "target": list(example.targets)}


def _keep(partial: Path, file: Path) -> None:
    """Let a file take its place; one that says the same stays, with its time, so that what was prepared of it holds."""
    if file.is_file() and file.read_bytes() == partial.read_bytes():
        partial.unlink()
    else:
        partial.replace(file)


def write(
    splits: dict[str, list[Example]], task: TaskConfig, kind: str, reader: Reader | None, folder: Path
) -> list[str]:
    """Write the files of the splits in `folder`; what is to be told. DataError where nothing of a split fits."""
    told: list[str] = []
    folder.mkdir(parents=True, exist_ok=True)
    for split, found in splits.items():
        lost: Counter[str] = Counter()
        lines = cut = 0
        partial = folder / f".{split}.partial"
        with partial.open("w", encoding="utf-8") as f:
            for example in found:
                whole = split == "test"
                for record in [kept(example, task.kind or "")] if whole else training(example, task, kind, reader):
                    if isinstance(record, str):
                        lost[record] += 1
                    else:
                        cut += isinstance(record, Cut)
                        f.write(json.dumps(record, ensure_ascii=False) + "\n")
                        lines += 1
        if not lines:
            raise DataError(f"{split}: of {len(found):,} examples none fits: {dict(lost)}; raise train.context")
        _keep(partial, folder / f"{split}.jsonl")
        told += [f"{split}: {n:,} examples {reason} are left out" for reason, n in lost.items()]
        if cut:
            told.append(f"{split}: {cut:,} texts lose their ends, to fit train.context (raise it to keep them)")
    return told
