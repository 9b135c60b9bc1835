"""Whole files as text, where a part that cannot be read is an error: files of examples, whose lines belong together.

`readers` and `formats` read text that may be damaged here and there, and go on. Packing and encodings are the same.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from foretell.data import formats
from foretell.data.encodings import Binary, utf8_like
from foretell.data.records import Damaged, Rejected
from foretell.data.streams import blocks
from foretell.errors import DataError

_CELL_CHARACTERS = 1 << 22


def suffix(file: Path) -> str:
    """The extension that says the format, in lower case, without that of packing."""
    packed = file.suffix.lower() in (".gz", ".zst")
    return (file.with_suffix("") if packed else file).suffix.lower()


def text(file: Path) -> str:
    """The text of a file, unpacked, its lines ending in LF. DataError names the byte that is none."""
    parts: list[str] = []
    try:
        for record in formats.prose(utf8_like(blocks(file)), str(file)):
            if isinstance(record, Rejected):
                raise DataError(f"{file}, byte {record.offset:,}: {record.reason}")
            parts.append(record.text)
    except (Binary, Damaged) as e:
        raise DataError(f"{file}: {e}") from None
    return "".join(parts)


def rows(file: Path, tabs: bool) -> Iterator[list[str]]:
    """The rows of a CSV file (RFC 4180), or of a TSV file without quoting. DataError names the line that is none."""
    csv.field_size_limit(_CELL_CHARACTERS)
    lines = io.StringIO(text(file), newline="")
    reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE) if tabs else csv.reader(lines)
    try:
        yield from reader
    except csv.Error as e:
        raise DataError(f"{file}, line {reader.line_num:,}: not CSV: {e}") from None
