"""One pass over the input: read, filter, deduplicate, group into blocks, and account for every record.

Preparing passes over its input twice (once to survey it, once to encode it) with this same function, and a resumed
preparation passes over it again; the three see the same blocks, because everything here is a function of the input
alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from foretell.data import dedup
from foretell.data.readers import Inputs, Record, read
from foretell.data.records import Rejected

BLOCK_BYTES = 1 << 21
_BLOCK_DOCUMENTS = 8192
_LISTED = 1000


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
    quarantine: list[dict[str, Any]] = field(default_factory=list)

    def summary(self) -> dict[str, Any]:
        """The JSON of it. `quarantine` lists the first 1,000 records."""
        return {
            "files": self.files,
            "hidden": self.hidden,
            "bytes_in": self.bytes_in,
            "documents_in": self.documents_in,
            "documents_out": self.documents_out,
            "bytes_out": self.bytes_out,
            "quarantined": self.quarantined,
            "dropped": dict(sorted(self.dropped.items())),
            "duplicates": self.dropped["duplicate"],
            "quarantine": self.quarantine,
        }


class Text(NamedTuple):
    """A document that is kept: its UTF-8 bytes, their digest, where it came from."""

    data: bytes
    digest: bytes
    source: str


def blocks(inputs: Inputs, text_key: str | None, scratch: Path, funnel: Funnel) -> Iterator[list[Text]]:
    """Kept documents in input order, about 2 MiB at a time. Fills `funnel`; uses `scratch` for the digests."""
    seen = dedup.Seen(scratch)
    pending: list[Text] = []
    size = 0
    funnel.hidden = inputs.hidden
    for entry in inputs.entries:
        funnel.files += 1
        funnel.bytes_in += entry.size
        for record in read(entry, text_key):
            text = _sorted_out(record, funnel)
            if text is None:
                continue
            pending.append(text)
            size += len(text.data)
            if size >= BLOCK_BYTES or len(pending) >= _BLOCK_DOCUMENTS:
                yield _new(pending, seen, funnel)
                pending, size = [], 0
    if pending:
        yield _new(pending, seen, funnel)


def _sorted_out(record: Record, funnel: Funnel) -> Text | None:
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
    data = record.text.encode()
    return Text(data, dedup.digest(data), record.source)


def _printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _new(texts: list[Text], seen: dedup.Seen, funnel: Funnel) -> list[Text]:
    first = seen.first_times([t.digest for t in texts])
    kept = [t for t, new in zip(texts, first, strict=True) if new]
    funnel.dropped["duplicate"] += len(texts) - len(kept)
    funnel.documents_out += len(kept)
    funnel.bytes_out += sum(len(t.data) for t in kept)
    return kept
