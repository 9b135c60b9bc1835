"""Examples of a task from files: what is given, what is wanted, and where each stands.

    translation, summarization   a source and one or more references: JSON lines, CSV, TSV, or two files, line by line
    classification               a text and its label: JSON lines, CSV, TSV
    qa                           a question, its passage and answers: SQuAD's JSON (1.1 and 2.0), JSON lines
    dialogue                     turns: JSON lines of messages, chatterbot's YAML, CrossWOZ's JSON
    generation                   texts: prose, JSON lines

Files may be packed (.gz, .zst). A folder, or a pattern such as `a/*.yml`, is all files of it that hold examples, in the
order of their paths. Two files of aligned lines are written `SOURCE+TARGET`. A record that has no example in
it is counted with its reason, never dropped in silence (`checks.py` says what is then refused). Keys are recognised by
usual names, or named. Not handled: images, tables, answers that are no text.
"""

from __future__ import annotations

import glob
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from foretell.data import plain
from foretell.data.turns import messages_of
from foretell.errors import DataError, MissingExtra

Message = dict[str, str]
KINDS = ("translation", "summarization", "qa", "dialogue", "generation", "classification")
# Usual names of what is given and of what is wanted; the first that a record has is taken.
SOURCE_KEYS: tuple[str, ...] = ("source", "src", "document", "article", "abstract", "dialogue", "text", "sentence")
SOURCE_KEYS += ("input", "content")
TARGET_KEYS: tuple[str, ...] = ("target", "tgt", "reference", "references", "summary", "highlights", "title", "label")
TARGET_KEYS += ("category", "intent", "output", "translation")
_RECORDS, _PROSE = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".yml", ".yaml"), (".txt", ".md")
_HEADERS = {*SOURCE_KEYS, *TARGET_KEYS}


class Example(NamedTuple):
    """One item. source: what is given; of qa the question. targets: references, answers, a label; none: unanswerable.

    context: of qa the passage; starts: where each answer begins in it, in characters, -1 where that is not told.
    messages: of dialogue all turns, which end with one of the assistant. name: the file and the record, from 1.
    group: what must not be divided among splits: of qa the article, where it is told, else the passage.
    """

    name: str
    source: str
    targets: tuple[str, ...] = ()
    context: str = ""
    starts: tuple[int, ...] = ()
    messages: tuple[Message, ...] = ()
    group: str = ""


@dataclass
class Read:
    """Examples of one file, and what else it had: reasons with their counts and the first place of each."""

    examples: list[Example] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def leave_out(self, reason: str, place: str) -> None:
        self.left_out[reason] += 1
        self.first.setdefault(reason, place)


class Keys(NamedTuple):
    """Keys, or columns by name or by number from 1, of what is given and what is wanted; None: recognised."""

    source: str | None = None
    target: str | None = None


def read(path: str, kind: str, keys: Keys = Keys()) -> Read:
    """The examples of a file, a folder, a pattern of files, or two aligned files. DataError where there are none."""
    found = Read()
    for place, value in (record for file in _files(path, kind) for record in _records(file, kind, keys)):
        if isinstance(value, Unreadable):
            found.leave_out(value, place)
            continue
        for made in _examples(kind, value, place, keys):
            if isinstance(made, Example):
                found.examples.append(made)
            else:
                found.leave_out(made, place)
    if not found.examples:
        told = "; ".join(f"{n:,} {reason} (first: {found.first[reason]})" for reason, n in found.left_out.items())
        raise DataError(f"{path}: no example of {kind}: {told or 'it is empty'}")
    return found


def _files(path: str, kind: str) -> list[str]:
    """The files that are meant: of a folder those that hold examples, all that fit a pattern, else the one named so."""
    if Path(path).is_dir():
        texts = _PROSE if kind == "generation" else ()
        found = sorted(f for f in Path(path).rglob("*") if f.is_file() and plain.suffix(f) in (*_RECORDS, *texts))
        if not found:
            raise DataError(f"{path}: no file in this folder ends in {', '.join((*_RECORDS, *texts))}")
        return list(map(str, found))
    if glob.has_magic(path) and not Path(path).exists():
        matching = sorted(f for f in glob.glob(path, recursive=True) if Path(f).is_file())
        if not matching:
            raise DataError(f"{path}: no file fits this pattern")
        return matching
    return [path]


class Unreadable(str):
    """Why a record could not be read."""

    __slots__ = ()


class Cells(NamedTuple):
    """A row of a table, with its header where it has one."""

    cells: list[str]
    header: list[str] | None


def _records(path: str, kind: str, keys: Keys) -> Iterator[tuple[str, Any]]:
    """The records of the file, each with its place."""
    if "+" in path and not Path(path).exists():
        yield from _aligned(*path.split("+", 1))
        return
    file = Path(path)
    if not file.is_file():
        raise DataError(f"{path}: there is no such file")
    suffix = plain.suffix(file)
    if suffix in (".yml", ".yaml"):
        yield from ((f"{file.name}:{n}", turns) for n, turns in enumerate(_yaml(file), 1))
    elif suffix in (".csv", ".tsv"):
        yield from _rows(file, suffix == ".tsv", keys)
    elif suffix == ".json":
        yield from _json(file)
    elif suffix in (".jsonl", ".ndjson"):
        yield from _lines(file)
    elif kind == "generation":
        yield file.name, plain.text(file)
    else:
        raise DataError(f"{path}: {kind} is read from .jsonl, .json, .csv, .tsv, or SOURCE+TARGET, not from {suffix}")


def _aligned(left: str, right: str) -> Iterator[tuple[str, Any]]:
    sides = []
    for side in (left, right):
        if not Path(side).is_file():
            raise DataError(f"{side}: there is no such file (two files of aligned lines are written SOURCE+TARGET)")
        sides.append(plain.text(Path(side)).split("\n"))
    for lines in sides:
        if lines and not lines[-1]:
            lines.pop()
    if len(sides[0]) != len(sides[1]):
        raise DataError(
            f"{left} has {len(sides[0]):,} lines and {right} {len(sides[1]):,}: they are no pairs line by line"
        )
    for n, (source, target) in enumerate(zip(*sides, strict=True), 1):
        yield f"{Path(left).name}:{n}", {"source": source, "target": target}


def _rows(file: Path, tabs: bool, keys: Keys) -> Iterator[tuple[str, Any]]:
    rows = plain.rows(file, tabs)
    first = next(rows, None)
    if first is None:
        return
    named = {k for k in keys if k is not None and not k.isdecimal()}
    header = [c.strip() for c in first]
    is_header = named <= set(header) if named else len({c.lower() for c in header} & _HEADERS) >= min(2, len(header))
    if named and not is_header:
        raise DataError(f"{file}: no column {', '.join(sorted(named))}; its first line has {', '.join(header)}")
    if not is_header:
        yield f"{file.name}:1", Cells(first, None)
    for n, row in enumerate(rows, 2):
        if row:
            yield f"{file.name}:{n}", Cells(row, header if is_header else None)


def _lines(file: Path) -> Iterator[tuple[str, Any]]:
    for n, line in enumerate(plain.text(file).split("\n"), 1):
        if line.strip():
            try:
                yield f"{file.name}:{n}", json.loads(line)
            except (ValueError, RecursionError) as e:
                yield f"{file.name}:{n}", Unreadable(f"not JSON ({str(e).partition(':')[0]})")


def _json(file: Path) -> Iterator[tuple[str, Any]]:
    """SQuAD's passages, CrossWOZ's dialogues, or a list of records; else JSON lines by another name."""
    try:
        value = json.loads(plain.text(file))
    except (ValueError, RecursionError):
        yield from _lines(file)
        return
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        passages = [p for n, a in enumerate(value["data"], 1) if isinstance(a, dict) for p in _passages(a, n)]
        yield from ((f"{file.name}:{n}", p) for n, p in enumerate(passages, 1))
    elif isinstance(value, dict) and value and all(isinstance(v, dict) and "messages" in v for v in value.values()):
        yield from ((f"{file.name}:{key}", v) for key, v in value.items())
    else:
        several = value if isinstance(value, list) else [value]
        yield from ((f"{file.name}:{n}", v) for n, v in enumerate(several, 1))


def _passages(article: dict[str, Any], n: int) -> Iterator[Any]:
    """The passages of SQuAD's `n`th article, each with what it belongs to."""
    if "paragraphs" not in article:
        yield article
        return
    named = {"title": str(article.get("title") or n)}
    yield from (named | p if isinstance(p, dict) else p for p in article["paragraphs"])


def _yaml(file: Path) -> list[Any]:
    """The conversations of chatterbot's YAML: lists of turns. Its values may parse as numbers or booleans: no texts."""
    try:
        import yaml
    except ImportError:
        raise MissingExtra(f"reading {file.name}", "tasks") from None
    try:
        value = yaml.load(plain.text(file), Loader=yaml.BaseLoader)
    except yaml.YAMLError as e:
        raise DataError(f"{file}: not YAML: {' '.join(str(e).split())[:200]}") from None
    found = value.get("conversations") if isinstance(value, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{file}: no list of `conversations` in it")
    return found


def _examples(kind: str, value: Any, place: str, keys: Keys) -> Iterator[Example | str]:
    """The examples of a record, or why it has none."""
    if kind == "qa":
        yield from _questions(value, place)
    elif kind == "dialogue":
        yield _dialogue(value, place)
    elif kind == "generation":
        text = _text(value.get(keys.source or "text") if isinstance(value, dict) else value, "\n")
        yield Example(place, text) if text else "without text"
    else:
        yield _pair(kind, value, place, keys)


def _pair(kind: str, value: Any, place: str, keys: Keys) -> Example | str:
    if isinstance(value, Cells):
        given, wanted = _cells(value, keys)
    elif isinstance(value, dict):
        inner = value.get("translation")
        value = inner if isinstance(inner, dict) else value
        given, wanted = (
            value.get(key) if key else next((value[k] for k in usual if k in value), None)
            for key, usual in zip(keys, (SOURCE_KEYS, TARGET_KEYS), strict=True)
        )
    else:
        return f"a record that is {type(value).__name__}, not an object"
    for what, found in (("source", given), ("label" if kind == "classification" else "target", wanted)):
        if found is None:
            return f"without a {what}"
    source = _text(given)
    targets = tuple(t for t in map(_text, wanted if isinstance(wanted, list) else [wanted]) if t)
    if not source:
        return "with an empty source"
    return Example(place, source, targets) if targets else "with an empty target"


def _cells(row: Cells, keys: Keys) -> tuple[str | None, str | None]:
    """What is given and wanted of a row: by its header, else by number, else the last two cells."""
    cells, header = row

    def at(key: str | None, usual: Sequence[str], otherwise: int) -> str | None:
        if key is not None and key.isdecimal():
            return cells[int(key) - 1] if 0 < int(key) <= len(cells) else None
        if header is None:
            return cells[otherwise] if len(cells) >= 2 else None
        names = [key] if key is not None else [n for u in usual for n in header if n.lower() == u]
        where = [header.index(n) for n in names if n in header]
        return cells[where[0]] if where and where[0] < len(cells) else None

    return at(keys.source, SOURCE_KEYS, -2), at(keys.target, TARGET_KEYS, -1)


def _text(value: Any, between: str = " ") -> str:
    """A text, or sentences (of generation: lines) as one, without space around it; nothing where it is neither."""
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = between.join(v.strip() for v in value)
    if isinstance(value, bool) or value is None:
        return ""
    return str(value).strip() if isinstance(value, str | int | float) else ""


def _questions(value: Any, place: str) -> Iterator[Example | str]:
    """The questions of a passage of SQuAD, or of one flat record."""
    if not isinstance(value, dict) or not _text(value.get("context")):
        yield "without a passage (`context`)"
        return
    context = str(value["context"])
    group = _text(value.get("title")) or context
    for n, asked in enumerate(value.get("qas", [value]), 1):
        where = f"{place}#{asked.get('id', n)}" if "qas" in value else place
        question = _text(asked.get("question"))
        if not question:
            yield "without a question"
            continue
        answers = _answers(asked)
        if answers is None:
            yield "without answers (an unanswerable question has an empty list, or is_impossible)"
            continue
        texts = tuple(t for t, _ in answers if t.strip())
        if answers and not texts:
            yield "with an empty answer"
            continue
        starts = tuple(s for t, s in answers if t.strip())
        astray = [t for t, s in zip(texts, starts, strict=True) if s >= 0 and context[s : s + len(t)] != t]
        yield (
            "with an answer that does not stand at its answer_start"
            if astray
            else Example(where, question, texts, context, starts, group=group)
        )


def _answers(asked: dict[str, Any]) -> list[tuple[str, int]] | None:
    """Texts with where they begin (-1: not told); [] where there is none to be had; None where nothing is said."""
    found = asked.get("answers", asked.get("answer"))
    if asked.get("is_impossible") or found == []:
        return []
    if isinstance(found, str):
        return [(found, -1)]
    if isinstance(found, dict):  # as the datasets library keeps SQuAD
        texts = found.get("text") or []
        return list(zip(map(str, texts), found.get("answer_start") or [-1] * len(texts), strict=False))
    if isinstance(found, list):
        flat = [{"text": a} if isinstance(a, str) else a for a in found]
        return [(str(a.get("text", "")), int(a.get("answer_start", -1))) for a in flat if isinstance(a, dict)]
    return None


def _dialogue(value: Any, place: str) -> Example | str:
    """Turns of a record. Lists of turns take turns, the first being the user's; CrossWOZ calls them usr and sys."""
    try:
        if isinstance(value, list):
            said = [_text(turn) for turn in value]
            if len(said) < 2 or not all(said):
                return "of fewer than two turns" if len(said) < 2 else "with a turn that is empty or no text"
            messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
        elif isinstance(value, dict):
            messages = messages_of(value)
        else:
            return f"a record that is {type(value).__name__}, neither a list of turns nor an object"
    except ValueError as e:
        return f"that cannot be read as turns ({e})"
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not messages:
        return "without an answer of the assistant"
    asked = next((m["content"] for m in messages if m["role"] == "user"), "")
    return Example(place, asked, (messages[-1]["content"],), messages=tuple(messages))
