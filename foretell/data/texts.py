"""Texts as they are, for evaluation: nothing filtered, nothing deduplicated, a file of prose or source one document.

`documents` cuts a very long text and starts a new document behind a line it cannot read; here such a file stays one.
What cannot be read is yielded as `Rejected`, so that the caller can say so.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from foretell.data.encodings import Binary, utf8_like
from foretell.data.readers import Entry, _json_kind, expand, read
from foretell.data.records import Document, Pair, Rejected, Turns
from foretell.data.streams import blocks
from foretell.errors import DataError

_RECORDS = {".jsonl", ".ndjson", ".csv", ".tsv", ".html", ".htm", ".xhtml", ".parquet", ".arrow"}


def texts(sources: str | list[str], text_key: str | Pair | Turns | None = None) -> Iterator[Document | Rejected]:
    """Every document of the sources in order. DataError when a source does not exist, or is a prepared folder."""
    listed = [sources] if isinstance(sources, str) else sources
    for source in listed:
        if (Path(source) / "index.json").is_file() and (Path(source) / "tokenizer.json").is_file():
            raise DataError(f"{source} is a prepared folder, not text; give the text it was prepared from")
    for entry in expand(listed).entries:
        if _of_records(entry):
            yield from read(entry, text_key)
        else:
            yield from _whole(entry)


def _whole(entry: Entry) -> Iterator[Document | Rejected]:
    parts: list[Document] = []
    for record in read(entry):
        if isinstance(record, Document):
            parts.append(record)
        else:
            yield record
    if parts:
        yield Document("".join(p.text for p in parts), parts[0].source, parts[0].offset)


def _of_records(entry: Entry) -> bool:
    """Whether the input holds records, each a document of its own."""
    if entry.path is None:
        return entry.name.startswith("hf://")
    packed = entry.path.suffix.lower() in {".gz", ".zst"}
    suffix = (entry.path.with_suffix("") if packed else entry.path).suffix.lower()
    if suffix != ".json":
        return suffix in _RECORDS
    try:
        return _json_kind(utf8_like(iter(blocks(entry.path))))[0] == ".jsonl"
    except (Binary, OSError):
        return False
