"""The folder of vectors: meta.json, the map, and the vectors in one or more of the usual formats. See docs/formats.md.

It appears by one rename, so it is whole or not there. `load` also reads a single file that another program wrote.
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretell import tokenizer
from foretell.errors import ConfigError, DataError
from foretell.tokenizer import Tokenizer
from foretell.vectors import formats
from foretell.vectors.formats import Vectors

FORMAT_VERSION = 1
FORMATS = ("binary", "text", "glove")
MAP = "map.json"  # see wordmap.py
_NAMES = ("vectors.bin", "vectors.txt", "vectors.glove.txt")
_META: dict[str, type] = {"kind": str, "units": str, "dim": int, "words": int}


@dataclass(frozen=True)
class Folder:
    """Vectors, what is known of how they were made, and the tokenizer where they are of tokens."""

    path: Path
    vectors: Vectors
    meta: dict[str, Any]
    own: Tokenizer | None

    def find(self, word: str) -> int | None:
        """The row of a word as it is typed: itself, in lower case, or the one token that it is, with a space before."""
        place = self.vectors.place
        if self.own is not None:
            for text in (" " + word, word):
                ids = self.own.encode(text)
                name = self.own.inner.id_to_token(ids[0]) if len(ids) == 1 else None
                if name in place:
                    return place[name]
        return place.get(word, place.get(word.lower()))

    def shown(self, row: int) -> str:
        """The word of a row as a person reads it; of a token that is a part of a character, its bytes: <E5 9B>."""
        word = self.vectors.words[row]
        if self.own is None:
            return word
        id_ = self.own.inner.token_to_id(word)
        raw = self.own.token_bytes(id_) if id_ is not None else b""
        try:
            return raw.decode() or word
        except UnicodeDecodeError:
            return f"<{raw.hex(' ').upper()}>"


def load(path: Path) -> Vectors:
    """The vectors of a folder that `foretell vectors train` made, or of one file: `.bin`, or text (header or not).

    Raises DataError where it is missing or damaged.
    """
    return open_folder(path).vectors


def open_folder(path: Path) -> Folder:
    """The same with what is known of them; of a single file that is its size."""
    path = Path(path)
    if path.is_dir():
        meta = _meta(path)
        file = next((path / n for n in _NAMES if (path / n).is_file()), None)
        if file is None:
            raise DataError(f"{path}: holds none of {', '.join(_NAMES)}")
        vectors = formats.read(file)
        found = (len(vectors.words), vectors.matrix.shape[1])
        if found != (meta["words"], meta["dim"]):
            raise DataError(
                f"{file} has {found[0]:,} x {found[1]:,}, meta.json says {meta['words']:,} x {meta['dim']:,}"
            )
        own = tokenizer.load(path) if meta["units"] == "tokens" else None
        if own is not None and own.digest != meta.get("tokenizer"):
            raise DataError(f"{path}/tokenizer.json is not the tokenizer of these vectors; train them again")
        return Folder(path, vectors, meta, own)
    if not path.is_file():
        raise DataError(f"{path}: no such folder or file; make one with foretell vectors train")
    vectors = formats.read(path)
    meta = {"kind": "unknown", "units": "words", "words": len(vectors.words), "dim": vectors.matrix.shape[1]}
    return Folder(path, vectors, meta, None)


def _meta(path: Path) -> dict[str, Any]:
    file = path / "meta.json"
    try:
        meta = json.loads(file.read_text(encoding="utf-8"))
        version = meta["format_version"]
        if type(version) is not int or version < 1:
            raise ValueError(f"format_version {version!r}")
    except FileNotFoundError:
        raise DataError(
            f"{path}: not a folder of vectors (no meta.json); make one with foretell vectors train"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as e:
        raise DataError(f"{file}: not the description of a folder of vectors: {e}") from None
    if version > FORMAT_VERSION:
        raise DataError(f"{file}: format_version {version} is newer than this Foretell reads ({FORMAT_VERSION})")
    if wrong := [key for key, kind in _META.items() if type(meta.get(key)) is not kind]:
        raise DataError(f"{file}: `{wrong[0]}` is absent or of another type")
    found: dict[str, Any] = meta
    return found


# Takes what is to be written, the formats, and the bytes of the map, where there is one.
Finish = Callable[[Folder, Iterable[str], bytes | None], None]


@contextmanager
def making(out: Path) -> Iterator[tuple[Path, Finish]]:
    """A folder to work in beside `out`, and what writes the result and renames it. Gone again when anything fails.

    Raises ConfigError where `out` is there already and not empty.
    """
    from foretell.checkpoint import files  # which brings torch; reading does without

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists already; choose another --out, or remove it")
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    work = out.absolute().parent / f".{out.name}-{secrets.token_hex(4)}{files.PARTIAL}"
    (work / "work").mkdir(parents=True)

    def finish(made: Folder, wanted: Iterable[str], drawn: bytes | None) -> None:
        shutil.rmtree(work / "work")
        for name, parts in formats.files(made.vectors, wanted).items():
            files.write_file(work / name, parts)
        if made.own is not None:
            files.write_file(work / "tokenizer.json", [made.own.inner.to_str().encode()])
        if drawn is not None:
            files.write_file(work / MAP, [drawn])
        whole = {"format_version": FORMAT_VERSION, **made.meta}
        files.write_file(work / "meta.json", [(json.dumps(whole, ensure_ascii=False, indent=1) + "\n").encode()])
        files.sync_folder(work)
        if out.exists():
            files.remove_folder(out)
        files.rename(work, out)
        files.sync_folder(out.absolute().parent)

    try:
        yield work / "work", finish
    finally:
        shutil.rmtree(work, ignore_errors=True)
