"""From inputs to chunks of documents, with an account of every record; and one chunk's way through the cleaning steps.

A chunk is about 32 MiB of text in a file: the unit in which work is shared out. Chunks, and what becomes of them, are
functions of the input alone, so they are the same whoever makes them, and however often.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foretell.data.claims import appearing
from foretell.data.readers import Entry, read
from foretell.data.records import Document, Pair, Rejected, Turns
from foretell.data.steps import Dropped, Step

_CHUNK_DOCUMENTS = 1 << 17
_LISTED = 1000
_SHOWN_CHARACTERS = 200


@dataclass
class Funnel:
    """What came in and what became of it: documents_in = documents_out + quarantined + sum(dropped)."""

    files: int = 0
    hidden: int = 0
    bytes_in: int = 0
    documents_in: int = 0
    documents_out: int = 0
    bytes_out: int = 0
    quarantined: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    quarantine: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: dict[str, Any]) -> None:
        """Add the record of another."""
        for name, value in other.items():
            setattr(self, name, getattr(self, name) + (Counter(value) if isinstance(value, dict) else value))
        del self.quarantine[_LISTED:]

    def record(self) -> dict[str, Any]:
        """The JSON of it."""
        return dict(vars(self))

    def summary(self) -> dict[str, Any]:
        """The JSON of it for an index, which leaves out what is not there. `quarantine` has the first 1,000 records."""
        found = {**vars(self), "dropped": dict(sorted(self.dropped.items())), "duplicates": self.dropped["duplicate"]}
        changed = found.pop("changed")
        quarantine = found.pop("quarantine")
        return {**found, **({"changed": dict(sorted(changed.items()))} if changed else {}), "quarantine": quarantine}


class Text(NamedTuple):
    """A document that is kept: its UTF-8 bytes, their digest, where it came from."""

    data: bytes
    digest: bytes
    source: str


class Chunk:
    """Documents: their texts, and where each came from (source, offset)."""

    def __init__(self) -> None:
        self.texts: list[bytes] = []
        self.places: list[tuple[str, int]] = []
        self.bytes = 0

    def add(self, text: bytes, place: tuple[str, int]) -> None:
        self.texts.append(text)
        self.places.append(place)
        self.bytes += len(text)

    def save(self, path: Path) -> None:
        """Write to `path` by a rename, forced to disk."""
        names = list(dict.fromkeys(source for source, _ in self.places))
        number = {name: n for n, name in enumerate(names)}
        save_arrays(
            path,
            text=np.frombuffer(b"".join(self.texts), np.uint8),
            sizes=np.array([len(t) for t in self.texts], np.int64),
            names=np.frombuffer(json.dumps(names).encode("utf-8", "surrogateescape"), np.uint8),
            sources=np.array([number[source] for source, _ in self.places], np.int64),
            offsets=np.array([offset for _, offset in self.places], np.int64),
        )

    @staticmethod
    def load(path: Path) -> Chunk:
        """The inverse of `save`."""
        arrays = load_arrays(path)
        data, names = arrays["text"].tobytes(), json.loads(arrays["names"].tobytes())
        rows = zip(*(arrays[k].tolist() for k in ("sizes", "sources", "offsets")), strict=True)
        chunk = Chunk()
        for size, source, offset in rows:
            chunk.add(data[chunk.bytes : chunk.bytes + size], (names[source], offset))
        return chunk


def save_arrays(path: Path, **arrays: np.ndarray) -> None:
    """An .npz file that appears by a rename, forced to disk."""
    with appearing(path) as f:
        np.savez(f, **arrays)  # type: ignore[arg-type]


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """What `save_arrays` wrote; numpy checks its CRCs."""
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def chunks(
    entries: Sequence[Entry],
    text_key: str | Pair | Turns | None,
    size: int,
    funnel: Funnel,
    note: Callable[[int], None],
) -> Iterator[Chunk]:
    """The documents of some inputs in order, about `size` bytes at a time.

    Fills `funnel` with what was read; notes the bytes of text so far.
    """
    chunk, before = Chunk(), 0
    for entry in entries:
        funnel.files += 1
        funnel.bytes_in += entry.size
        for record in read(entry, text_key):
            data = _readable(record, funnel)
            if data is None:
                continue
            chunk.add(data, (record.source, record.offset))
            if chunk.bytes >= size or len(chunk.texts) >= _CHUNK_DOCUMENTS:
                yield chunk
                chunk, before = Chunk(), before + chunk.bytes
            note(before + chunk.bytes)
    if chunk.texts:
        yield chunk


def _readable(record: Document | Rejected, funnel: Funnel) -> bytes | None:
    funnel.documents_in += 1
    if isinstance(record, Rejected):
        funnel.quarantined += 1
        if len(funnel.quarantine) < _LISTED:
            place = {"source": record.source, "offset": record.offset, "reason": record.reason}
            # A file name may hold bytes that are not UTF-8; JSON may not.
            funnel.quarantine.append({k: _printable(v) if isinstance(v, str) else v for k, v in place.items()})
        return None
    if not record.text or record.text.isspace():
        funnel.dropped["empty"] += 1
        return None
    return record.text.encode()


def cleaned(
    chunk: Chunk,
    steps: list[tuple[str, Step]],
    funnel: Funnel,
    drops: Drops,
    note: Callable[[int], None],
) -> Chunk:
    """What the steps keep of a chunk. Fills `funnel` and `drops` with what they do not."""
    kept, done = Chunk(), 0
    for data, place in zip(chunk.texts, chunk.places, strict=True):
        done += len(data)
        text = data.decode()
        for name, step in steps:
            result = step(text)
            if isinstance(result, Dropped):
                funnel.dropped[result.reason] += 1
                drops.add(name, place, result.reason, result.detail, text)
                break
            funnel.changed.update(result.changed)
            text = result.text
        else:
            kept.add(text.encode(), place)
        note(done)
    return kept


class Drops:
    """What was dropped, by step: for each document its place, the reason, and how it begins.

    mask: takes out of the beginning what nobody may read.
    """

    def __init__(self, mask: Step | None = None) -> None:
        self.lines: dict[str, list[bytes]] = {}
        self._mask = mask

    def add(self, step: str, place: tuple[str, int], reason: str, detail: str, text: str) -> None:
        """One document."""
        begins = text[: 2 * _SHOWN_CHARACTERS]
        if self._mask is not None:
            begins = getattr(self._mask(begins), "text", "")
        line = {"source": _printable(place[0]), "offset": place[1], "reason": reason, "detail": detail}
        line["begins"] = begins[:_SHOWN_CHARACTERS]
        self.lines.setdefault(step, []).append(json.dumps(line, ensure_ascii=False).encode() + b"\n")

    def save(self, folder: Path, name: str) -> None:
        """A file for each step in `folder`: STEP/`name`, gzip of JSON lines; files so made may be joined."""
        for step, lines in self.lines.items():
            (folder / step).mkdir(parents=True, exist_ok=True)
            with appearing(folder / step / name) as f:
                f.write(gzip.compress(b"".join(lines), 6, mtime=0))


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
