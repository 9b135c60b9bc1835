"""One reader a format: prose, JSON lines, CSV and TSV, HTML, Parquet and Arrow. Each yields `Document` and `Rejected`.

Records are independent: a bad one is quarantined and reading goes on with the next. CRLF and lone CR become LF, as
Python's own text mode does. Where a record is an object or a row, its text is the value of `text_key` if given, else of
the first of `TEXT_KEYS` that is present; a list of strings is joined by newlines. A CSV or TSV without such a column
(often one without a header) gives each row as one document, its cells joined by tabs.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from foretell.data.encodings import Decoder
from foretell.data.lines import RECORD_BYTES, byte_runs, decoded, decoded_lines, prose_runs
from foretell.data.records import BETWEEN, Document, Pair, Rejected, Turns
from foretell.data.turns import canonical
from foretell.data.webpage import visible_text
from foretell.errors import ConfigError, MissingExtra

Record = Document | Rejected
Columns = tuple[int, int]  # of source and target, from 0
TEXT_KEYS = ("text", "content", "contents", "body", "document", "article", "paragraphs", "sentences", "code", "raw")
PIECE_CHARACTERS = 1 << 22  # a longer text is cut into several documents
_CELL_CHARACTERS = 1 << 20
_JSON = json.JSONDecoder()


def document(value: Any, source: str, offset: int) -> Record:
    """A record's value as a document: text, or a list of texts; anything else is quarantined."""
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        value = "\n".join(value)
    if not isinstance(value, str):
        return Rejected(source, offset, f"the text is {type(value).__name__}, not a string")
    if len(value) > RECORD_BYTES:
        return Rejected(source, offset, f"a text of {len(value):,} characters is longer than {RECORD_BYTES:,}")
    if "\0" in value:
        return Rejected(source, offset, "NUL in the text")
    try:
        value.encode()
    except UnicodeEncodeError as e:
        return Rejected(source, offset, f"lone surrogate U+{ord(value[e.start]):04X} in the text")
    return Document(_lf(value), source, offset)


def pair(left: Any, right: Any, source: str, offset: int) -> Record:
    """A pair as one document, BETWEEN its two texts."""
    sides: list[str] = []
    for value in (left, right):
        side = document(value, source, offset)
        if isinstance(side, Rejected):
            return side
        if BETWEEN in side.text or not side.text.strip():
            return Rejected(source, offset, "an empty side of a pair" if BETWEEN not in side.text else "U+001E in it")
        sides.append(side.text.strip())
    return Document(BETWEEN.join(sides), source, offset)


def prose(blocks: Iterator[bytes], source: str) -> Iterator[Record]:
    """The whole stream is one document, cut at a quarantined line and, beyond 4 Mi characters, at a paragraph."""
    decoder = Decoder()
    parts: list[str] = []
    start = size = 0
    for run in prose_runs(blocks, decoder):
        for offset, text, reason in decoded(run, decoder):
            if reason:
                if parts:
                    yield Document(_lf("".join(parts)), source, start)
                parts, size = [], 0
                yield Rejected(source, offset, reason)
                continue
            if not parts:
                start = offset
            parts.append(text)
            size += len(text)
            if size > PIECE_CHARACTERS:
                whole = "".join(parts)
                cut = _paragraph_end(whole)
                yield Document(_lf(whole[:cut]), source, start)
                start += len(whole[:cut].encode(decoder.encoding or "utf-8"))
                parts, size = ([whole[cut:]], len(whole) - cut) if cut < len(whole) else ([], 0)
    if parts:
        yield Document(_lf("".join(parts)), source, start)


def _paragraph_end(text: str) -> int:
    """Where to cut a long text: after its last empty line, else its last line, if one is in its second half."""
    for mark in ("\n\n", "\n\r\n", "\n"):
        at = text.rfind(mark, len(text) // 2)
        if at >= 0:
            return at + len(mark)
    return len(text)


def json_lines(blocks: Iterator[bytes], source: str, text_key: str | Pair | Turns | None) -> Iterator[Record]:
    """A record from each line of JSON; a line that is none is rejected by itself."""
    decoder = Decoder()
    for run in byte_runs(blocks, longest=RECORD_BYTES):
        for offset, line, reason in decoded_lines(run, decoder):
            if reason:
                yield Rejected(source, offset, reason)
            elif not line.isspace():
                yield _json_record(line, source, offset, text_key)


def _json_record(line: str, source: str, offset: int, text_key: str | Pair | Turns | None) -> Record:
    try:
        value = _JSON.decode(line)
    except (ValueError, RecursionError) as e:
        return Rejected(source, offset, f"not JSON: {e}")
    if isinstance(text_key, Turns):
        try:
            return document(canonical(value, text_key), source, offset)
        except (ValueError, ConfigError) as e:
            return Rejected(source, offset, str(e))
    if isinstance(text_key, Pair):
        if not isinstance(value, dict) or any(k not in value for k in text_key):
            return Rejected(source, offset, f"no pair: no keys {text_key.source} and {text_key.target}")
        return pair(value[text_key.source], value[text_key.target], source, offset)
    if isinstance(value, dict):
        key = text_key or next((k for k in TEXT_KEYS if k in value), None)
        if key not in value:
            return Rejected(source, offset, _no_text("keys", map(repr, value)))
        value = value[key]
    return document(value, source, offset)


def csv_rows(blocks: Iterator[bytes], source: str, text_key: str | Pair | None, *, tabs: bool) -> Iterator[Record]:
    """CSV with quoted cells that may hold newlines (RFC 4180), or TSV without quoting (IANA text/tab-separated-values).

    A row with a bad byte is quarantined; its quotes still count, or a cell that the bad line closes would swallow the
    rows behind it. So is a cell beyond 1 MiB, which bounds what a quote that is never closed swallows.
    """
    decoder = Decoder()
    starts: list[int] = []  # offsets of the lines of the row being read
    bad: list[str] = []

    def lines() -> Iterator[str]:
        for run in byte_runs(blocks, longest=RECORD_BYTES):
            for offset, line, reason in decoded_lines(run, decoder):
                starts.append(offset)
                bad.extend([reason] if reason else [])
                yield line or "\n"

    csv.field_size_limit(_CELL_CHARACTERS)
    reader = csv.reader(lines(), delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines())
    column: int | Columns | None = None
    header = True
    while True:
        starts.clear()
        bad.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            yield Rejected(source, starts[0], f"not CSV: {e}")
            continue
        if header and row:
            header, column = False, _text_column(row, text_key)
            if text_key and column is None:
                yield Rejected(source, starts[0], _no_text("columns", row))
                return
            numbered = isinstance(text_key, Pair) and text_key.numbered
            if column is not None and not bad and not numbered:
                continue
        if bad:
            yield Rejected(source, starts[0], bad[0])
        elif row:
            yield _cell(row, column, source, starts[0])


def _cell(row: list[str], column: int | Columns | None, source: str, offset: int) -> Record:
    if column is None:
        return document("\t".join(row), source, offset)
    if isinstance(column, tuple):
        if max(column) >= len(row):
            return Rejected(source, offset, f"row of {len(row)} cells has no column {max(column) + 1}")
        return pair(row[column[0]], row[column[1]], source, offset)
    if column >= len(row):
        return Rejected(source, offset, f"row of {len(row)} cells has no column {column + 1}")
    return document(row[column], source, offset)


def _text_column(header: list[str], text_key: str | Pair | None) -> int | Columns | None:
    names = [h.strip().lower() for h in header]
    if isinstance(text_key, Pair):
        if text_key.numbered:
            return int(text_key.source) - 1, int(text_key.target) - 1
        both = [names.index(k.lower()) for k in text_key if k.lower() in names]
        return (both[0], both[1]) if len(both) == 2 else None
    keys = (text_key.lower(),) if text_key else TEXT_KEYS
    return next((names.index(k) for k in keys if k in names), None)


def html(blocks: Iterator[bytes], source: str) -> Iterator[Record]:
    """The visible text of one page as one document."""
    data = bytearray()
    for block in blocks:
        data += block
        if len(data) > RECORD_BYTES:
            yield Rejected(source, 0, f"a page of more than {RECORD_BYTES:,} bytes")
            return
    decoder = Decoder()
    page = bytes(data)
    decoder.choose(page)
    try:
        text = decoder.decode(page)
    except ValueError as e:
        yield Rejected(source, 0, str(e).replace("of the line", "of the page"))
        return
    yield document(visible_text(text), source, 0)


def parquet(path: Path, source: str, text_key: str | None) -> Iterator[Record]:
    """Rows of the text column, a row group at a time; a damaged row group is one quarantined record."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise MissingExtra("reading .parquet", "data") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names = file.schema_arrow.names
        groups = file.num_row_groups
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        yield Rejected(source, 0, f"not Parquet, or damaged: {_first_line(e)}")
        return
    key = text_key or next((k for k in TEXT_KEYS if k in names), None)
    if key not in names:
        yield Rejected(source, 0, _no_text("columns", names))
        return
    row = 0
    for group in range(groups):
        expected = row + file.metadata.row_group(group).num_rows
        try:
            for batch in file.iter_batches(batch_size=256, row_groups=[group], columns=[key]):
                for value in batch.column(0):
                    yield _value(value.as_py(), source, row)
                    row += 1
        except (pyarrow.ArrowException, OSError, ValueError) as e:
            yield Rejected(source, row, f"row group {group} is damaged: {_first_line(e)}")
            row = expected
    file.close()


def arrow(path: Path, source: str, text_key: str | None) -> Iterator[Record]:
    """Rows of an Arrow stream file, as the datasets library keeps them on disk; memory-mapped."""
    try:
        import pyarrow
    except ImportError:
        raise MissingExtra("reading a `datasets` folder", "data") from None
    row = 0
    try:
        with pyarrow.memory_map(str(path)) as mapped, pyarrow.ipc.open_stream(mapped) as stream:
            key = text_key or next((k for k in TEXT_KEYS if k in stream.schema.names), None)
            if key not in stream.schema.names:
                yield Rejected(source, 0, _no_text("columns", stream.schema.names))
                return
            for batch in stream:
                for value in batch.column(key):
                    yield _value(value.as_py(), source, row)
                    row += 1
    except (pyarrow.ArrowException, OSError, ValueError) as e:
        yield Rejected(source, row, f"not an Arrow stream, or damaged: {_first_line(e)}")


def _value(value: Any, source: str, row: int) -> Record:
    return document("" if value is None else value, source, row)


def _no_text(what: str, names: Iterable[str]) -> str:
    return f"no text: {what} {', '.join(itertools.islice(names, 8))}; name the right one with data.text_key"


def _first_line(e: Exception) -> str:
    return (str(e).splitlines() or [type(e).__name__])[0]


def _lf(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text
