"""From sources (files, folders, globs, -, hf://name) to a stream of documents and quarantined records.

A folder is read in sorted order, without hidden files (they are counted, not read) and without following links to other
folders (each is one quarantined record). The format follows the extension, whatever stands in front of .gz or .zst:
.jsonl .ndjson .csv .tsv .html .htm .parquet; a .json file or standard input whose first line is a whole JSON object is
JSON lines; everything else that reads as text is prose or source code, one document a file. What is not text is one
quarantined record. Only regular files are opened, so a FIFO or a device cannot hang or flood a run.
"""

from __future__ import annotations

import glob
import itertools
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from foretell import runtime
from foretell.data import formats
from foretell.data.encodings import Binary, utf8_like
from foretell.data.records import Damaged, Document, Pair, Rejected, Turns
from foretell.data.streams import blocks
from foretell.errors import DataError, MissingExtra

Record = Document | Rejected


@dataclass(frozen=True)
class Entry:
    """One input; `size` and `mtime_ns` identify its version. `problem`: why it cannot be read."""

    name: str
    path: Path | None = None
    size: int = 0
    mtime_ns: int = 0
    problem: str = ""


@dataclass(frozen=True)
class Inputs:
    """The files that the sources come to, in the order they are read."""

    entries: list[Entry]
    hidden: int  # files and folders of folders, not read because their name begins with a dot


def documents(sources: str | list[str], text_key: str | Pair | Turns | None = None) -> Iterator[Document]:
    """The good documents of the sources, in order. Raises DataError when a source does not exist."""
    for entry in expand([sources] if isinstance(sources, str) else sources).entries:
        yield from (r for r in read(entry, text_key) if isinstance(r, Document))


def expand(sources: list[str], spool: Path | None = None, without: Sequence[Path] = ()) -> Inputs:
    """List the inputs, but for what lies in the folders `without` (the output, when it is inside a source).

    Standard input (`-`) is copied to the file `spool`, because preparing reads its input twice.
    """
    apart = frozenset(map(os.path.abspath, without))
    entries: list[Entry] = []
    hidden = 0
    for source in sources:
        found, dotted = _found(source, spool, apart)
        entries += found
        hidden += dotted
    inside = tuple(folder + os.sep for folder in apart)
    entries = [e for e in entries if not os.path.abspath(e.name).startswith(inside)]
    if not entries:
        raise DataError(f"no files in {', '.join(sources)}" + (f" ({hidden} hidden ones not read)" if hidden else ""))
    return Inputs(entries, hidden)


def _found(source: str, spool: Path | None, apart: frozenset[str]) -> tuple[list[Entry], int]:
    """The inputs of one source, and how many hidden ones it has."""
    if source == "-":
        return [_standard_input(spool)], 0
    if source.startswith("hf://"):
        return [Entry(source)], 0
    if os.path.isdir(source):
        return _folder(Path(source), apart)
    if os.path.lexists(source):
        return [_entry(Path(source))], 0
    matches = sorted(glob.glob(source, recursive=True))
    if not matches:
        raise DataError(f"{source}: no such file or folder, and no file matches it as a pattern")
    entries: list[Entry] = []
    hidden = 0
    for match in matches:
        if not os.path.isdir(match):
            entries.append(_entry(Path(match)))
        elif "**" not in source:  # which matches what is in the folder too
            found, dotted = _folder(Path(match), apart)
            entries += found
            hidden += dotted
    return entries, hidden


def _entry(path: Path) -> Entry:
    name = str(path)
    try:
        status = path.stat()
    except OSError as e:
        return Entry(name, problem="dangling link" if path.is_symlink() else f"cannot be read: {e.strerror}")
    if not stat.S_ISREG(status.st_mode):
        return Entry(name, problem="not a regular file")
    return Entry(name, path, status.st_size, status.st_mtime_ns)


def _folder(folder: Path, apart: frozenset[str]) -> tuple[list[Entry], int]:
    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        return [_entry(p) for p in _arrow_files(folder)], 0
    entries: list[Entry] = []
    hidden = 0
    denied: list[OSError] = []
    for root, folders, files in os.walk(folder, onerror=denied.append):
        here = os.path.abspath(root)
        folders[:] = sorted(n for n in folders if os.path.join(here, n) not in apart)
        hidden += sum(n.startswith(".") for n in [*folders, *files])
        folders[:] = [n for n in folders if not n.startswith(".")]
        entries += [_entry(Path(root, n)) for n in sorted(files) if not n.startswith(".")]
        linked = [os.path.join(root, n) for n in folders if os.path.islink(os.path.join(root, n))]
        entries += [Entry(name, problem="link to a folder, which is not followed") for name in linked]
    entries += [Entry(str(e.filename), problem=f"cannot be read: {e.strerror}") for e in denied]
    return entries, hidden


def _arrow_files(folder: Path) -> list[Path]:
    """The files of a `datasets` folder in its own order: all splits, and not the caches that may lie beside them."""
    files: list[Path] = []
    for state in sorted(folder.rglob("state.json")):
        try:
            names = [f["filename"] for f in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
            files += [state.parent / Path(n).name for n in names]
        except (ValueError, KeyError, TypeError, RecursionError) as e:
            raise DataError(f"{state}: not the state of a `datasets` folder: {e}") from None
    return files


def _standard_input(spool: Path | None) -> Entry:
    if spool is None:
        raise DataError("standard input can only be prepared: foretell prepare - --out DATA")
    with spool.open("wb") as f:
        shutil.copyfileobj(sys.stdin.buffer, f, 1 << 20)
    return Entry("-", spool, spool.stat().st_size)


def read(entry: Entry, text_key: str | Pair | Turns | None = None) -> Iterator[Record]:
    """Every record of one input. Nothing a file contains raises."""
    if entry.problem:
        yield Rejected(entry.name, 0, entry.problem)
    elif entry.path is None and isinstance(text_key, Pair | Turns):
        yield Rejected(entry.name, 0, "pairs are read from .jsonl, .csv and .tsv files")
    elif entry.path is None:
        assert not isinstance(text_key, Pair | Turns)
        yield from _hugging_face(entry.name, text_key)
    elif entry.size == 0:
        yield Rejected(entry.name, 0, "empty file")
    else:
        found = False
        try:
            for record in _by_format(entry.path, entry.name, text_key):
                found = True
                yield record
        except (Binary, OSError) as e:
            yield Rejected(entry.name, 0, f"cannot be read: {e.strerror}" if isinstance(e, OSError) else str(e))
            found = True
        if not found:
            yield Rejected(entry.name, 0, "empty: neither text nor records")


def _by_format(path: Path, source: str, text_key: str | Pair | Turns | None) -> Iterator[Record]:
    packed = path.suffix.lower() in {".gz", ".zst"}
    suffix = (path.with_suffix("") if packed else path).suffix.lower()
    if isinstance(text_key, Pair | Turns) and suffix not in {".jsonl", ".ndjson", ".csv", ".tsv", ".json"}:
        yield Rejected(source, 0, f"pairs are read from .jsonl, .csv and .tsv, not from {suffix or 'this'}")
        return
    if isinstance(text_key, Turns) and suffix in {".csv", ".tsv"}:
        yield Rejected(source, 0, f"{text_key.kind} records are read from .jsonl, not from {suffix}")
        return
    if suffix in {".parquet", ".arrow"}:
        assert not isinstance(text_key, Pair | Turns)
        if packed:
            yield Rejected(source, 0, f"a compressed {suffix} file; unpack it first")
        else:
            yield from (formats.parquet if suffix == ".parquet" else formats.arrow)(path, source, text_key)
        return
    stream = _Tail(blocks(path))
    text = utf8_like(iter(stream))
    if suffix == ".json":
        suffix, text = _json_kind(text)
    if suffix in {".jsonl", ".ndjson"}:
        yield from formats.json_lines(text, source, text_key)
    elif suffix in {".csv", ".tsv"}:
        assert not isinstance(text_key, Turns)
        yield from formats.csv_rows(text, source, text_key, tabs=suffix == ".tsv")
    elif suffix in {".html", ".htm", ".xhtml"}:
        yield from formats.html(text, source)
    else:
        yield from formats.prose(text, source)
    if stream.damage:
        yield Rejected(source, stream.size, stream.damage)


class _Tail:
    """Passes blocks on and ends quietly where the stream is damaged, so that what came before is still used."""

    def __init__(self, inner: Iterator[bytes]) -> None:
        self._inner = inner
        self.size = 0
        self.damage = ""

    def __iter__(self) -> Iterator[bytes]:
        try:
            for block in self._inner:
                self.size += len(block)
                yield block
        except Damaged as e:
            self.damage = str(e)


def _json_kind(text: Iterator[bytes]) -> tuple[str, Iterator[bytes]]:
    """A .json file is JSON lines when its first line is a whole object; else it is source text like any other."""
    first = next(text, b"")
    try:
        lines = isinstance(json.loads(first[: first.find(b"\n") + 1 or len(first)]), dict)
    except (ValueError, RecursionError):
        lines = False
    return ".jsonl" if lines else ".json", itertools.chain([first], text)


def _hugging_face(name: str, text_key: str | None) -> Iterator[Record]:
    """`hf://owner/name[/config]`, its train split, through the datasets library and its cache."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra(f"reading {name}", "data") from None
    if runtime.offline():
        raise DataError(f"{name}: HF_HUB_OFFLINE is set; unset it, or give a folder that `save_to_disk` wrote")
    parts = name.removeprefix("hf://").split("/")
    try:
        rows = datasets.load_dataset("/".join(parts[:2]), *parts[2:3], split="train")
    except Exception as e:  # the library raises a dozen unrelated kinds
        raise DataError(f"{name}: could not be fetched: {formats._first_line(e)}; is there a network?") from None
    key = text_key or next((k for k in formats.TEXT_KEYS if k in rows.column_names), None)
    if key not in rows.column_names:
        raise DataError(f"{name}: no text among its columns {rows.column_names}; name one with data.text_key")
    for n, row in enumerate(rows.select_columns([key])):
        yield formats.document("" if row[key] is None else row[key], name, n)
