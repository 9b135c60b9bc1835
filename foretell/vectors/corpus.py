"""The text as numbers on disk: read and cut once, whatever its size, and gone through as often as wanted.

A first pass gives every unit a number in order of appearance and writes four bytes a unit. When all is counted, the
units that are frequent enough are numbered anew, the most frequent first, and the others are passed over: they are
taken out before windows are laid, as word2vec and GloVe do. In memory are only the vocabulary and a block of numbers.
Windows never reach over the end of a document.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foretell import tokenizer
from foretell.data import open_data, readers
from foretell.data.records import Document
from foretell.errors import DataError
from foretell.tokenizer import Tokenizer
from foretell.vectors.units import Units, words_of

Progress = Callable[[dict[str, Any]], None]
BLOCK = 1 << 20  # units handled at once


class _Numbers(dict[str, int]):
    """A number for each unit, in order of appearance."""

    def __missing__(self, unit: str) -> int:
        self[unit] = number = len(self)
        return number


@dataclass
class Corpus:
    """A counted text. words: by falling count; counts: of each; ids: its file; unit_total: of all units, rare ones too.

    `number[n]` is the place in `words` of the unit that the file calls n, or -1.
    """

    words: list[str]
    counts: np.ndarray
    number: np.ndarray
    ids: Path
    ends: np.ndarray
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Units that count: those whose word is in the vocabulary."""
        return int(self.counts.sum())

    def blocks(self, length: int = BLOCK) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """About `length` units at a time: their places in `words`, and the number of each one's document.

        Whole documents where they fit; one that is longer is cut.
        """
        raw = np.memmap(self.ids, "<i4", "r") if self.ids.stat().st_size else np.zeros(0, "<i4")
        start = 0
        while start < len(raw):
            stop = min(start + length, len(raw))
            inside = int(np.searchsorted(self.ends, stop, "right"))
            if stop < len(raw) and inside and self.ends[inside - 1] > start:
                stop = int(self.ends[inside - 1])
            document = np.searchsorted(self.ends, np.arange(start, stop), "right")
            ids = self.number[raw[start:stop]]
            kept = ids >= 0
            yield ids[kept], document[kept]
            start = stop


class _Counter:
    """Writes the numbers of documents, and counts."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._counts = np.zeros(1 << 12, np.int64)
        self._ends: list[int] = []
        self.total = 0

    def add(self, ids: np.ndarray) -> None:
        """One document."""
        if not len(ids):
            return
        ids.astype("<i4").tofile(self._file)
        top = int(ids.max()) + 1
        if top > len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros(max(top, len(self._counts)), np.int64)])
        if len(ids) * 8 < top:
            np.add.at(self._counts, ids, 1)
        else:
            self._counts[:top] += np.bincount(ids, minlength=top)
        self.total += len(ids)
        self._ends.append(self.total)

    def close(self) -> tuple[np.ndarray, np.ndarray]:
        """Counts by number, and the ends of the documents."""
        self._file.close()
        return self._counts, np.array(self._ends, np.int64)


def build(
    sources: list[str],
    work: Path,
    *,
    units: Units,
    lower: bool,
    min_count: int,
    own: Tokenizer | None = None,
    progress: Progress | None = None,
) -> Corpus:
    """Read and count `sources`; the numbers go into the folder `work`.

    own: the tokenizer where units are tokens. Sources are those of `foretell prepare`; of a prepared folder (tokens
    only, and its tokenizer must be `own`) the training split is read. DataError where nothing is frequent enough.
    """
    counter, numbers = _Counter(work / "ids"), _Numbers()
    facts: dict[str, Any]
    if own is not None and len(sources) == 1 and is_prepared(Path(sources[0])):
        facts = _of_prepared(Path(sources[0]), own, counter)
    else:
        facts = _of_text(sources, work, _numbering(units, lower, own, numbers), counter, progress)
    counts, ends = counter.close()
    names = _token_names(own) if own is not None else list(numbers)
    counts = np.pad(counts, (0, max(0, len(names) - len(counts))))[: len(names)]
    fits = np.array([bool(n) and not any(c.isspace() for c in n) for n in names], bool)
    order = np.argsort(-counts, kind="stable")
    order = order[(counts[order] >= max(1, min_count)) & fits[order]]
    if not len(order):
        raise DataError(
            f"no {units} occur {min_count} times among {counter.total:,} in {', '.join(sources)}; lower --min-count"
        )
    number = np.full(max(len(names), 1), -1, np.int32)
    number[order] = np.arange(len(order), dtype=np.int32)
    facts |= {"units_total": counter.total, "distinct": int((counts > 0).sum()), "documents": len(ends)}
    return Corpus([names[i] for i in order], counts[order], number, work / "ids", ends, facts)


def is_prepared(path: Path) -> bool:
    """Whether this is a folder that `foretell prepare` made."""
    return (path / "index.json").is_file() and (path / "tokenizer.json").is_file()


def tokenizer_at(path: Path) -> Tokenizer:
    """The tokenizer of a prepared folder, a run folder, a Hugging Face folder, or a tokenizer.json."""
    inside = path / "model"
    return tokenizer.load(inside if (inside / "tokenizer.json").is_file() else path)


def _numbering(
    units: Units, lower: bool, own: Tokenizer | None, numbers: _Numbers
) -> Callable[[list[str]], list[np.ndarray]]:
    """From texts to the numbers of their units."""
    if own is not None:
        return lambda texts: own.encode_batch(texts)
    cut = words_of(units, lower)

    def number(texts: list[str]) -> list[np.ndarray]:
        return [np.fromiter(map(numbers.__getitem__, cut(text)), np.int64) for text in texts]

    return number


def _of_text(
    sources: list[str],
    work: Path,
    number: Callable[[list[str]], list[np.ndarray]],
    counter: _Counter,
    progress: Progress | None,
) -> dict[str, Any]:
    for source in sources:
        if is_prepared(Path(source)):
            raise DataError(
                f"{source} is a prepared folder, not text; give the text it was prepared from, or it alone with "
                "--units tokens"
            )
    inputs = readers.expand(sources, work / "stdin")
    total, done, quarantined, read_bytes, began = sum(e.size for e in inputs.entries), 0, 0, 0, time.monotonic()
    for entry in inputs.entries:
        for record in readers.read(entry):
            if not isinstance(record, Document):
                quarantined += 1
                continue
            for ids in number([record.text]):
                counter.add(ids)
            read_bytes += len(record.text.encode(errors="surrogatepass"))
            if progress is not None:
                # Of a packed file only the unpacked size is known while it is read.
                event = {"stage": "reading", "done": max(done, min(read_bytes, total)), "total": total, "of": "bytes"}
                progress({**event, "seconds": time.monotonic() - began})
        done += entry.size
    return {"bytes": read_bytes, "quarantined": quarantined, "hidden": inputs.hidden}


def _of_prepared(folder: Path, own: Tokenizer, counter: _Counter) -> dict[str, Any]:
    data = open_data(folder)
    if data.tokenizer.digest != own.digest:
        raise DataError(f"{folder} was prepared with another tokenizer than --tokenizer; leave --tokenizer out")
    tokens, start = data.tokens("train"), 0
    for end in data.document_ends("train").tolist():
        ids = np.asarray(tokens[start:end]).astype(np.int64)
        counter.add(ids[ids != own.eot_id] if own.eot_id is not None else ids)
        start = end
    return {"bytes": data.index["splits"]["train"]["bytes"], "quarantined": 0, "hidden": 0, "split": "train"}


def _token_names(own: Tokenizer) -> list[str]:
    """The tokenizer's own spelling of each id; empty for a gap."""
    return [own.inner.id_to_token(i) or "" for i in range(own.vocab_size)]
