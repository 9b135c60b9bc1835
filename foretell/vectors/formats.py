"""The files that word vectors are exchanged in: word2vec's text and binary, GloVe's text. Written, and read with care.

- text: a line `N D`, then a line for each word: the word, D numbers, single spaces between.
- binary: the same first line, then for each word its UTF-8 bytes, a space, D little-endian float32, a newline (the
  newline is the original program's habit; readers take both).
- glove: as text, without the first line.

The reader believes nothing: numbers in a file are compared with its size before memory is taken, and every record must
be whole, finite and about another word. Nine digits give a float32 back exactly. Words have no spaces in them, though
the reader takes them where the numbers behind leave no doubt.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foretell.errors import DataError

_LONGEST_HEADER = 64
_LONGEST_WORD = 1 << 12
_ROWS = 1 << 12


@dataclass(frozen=True, eq=False)
class Vectors:
    """words: N of them, each once; matrix: (N, D) float32. Files of ours have the most frequent first."""

    words: list[str]
    matrix: np.ndarray

    @functools.cached_property
    def place(self) -> dict[str, int]:
        """The row of each word."""
        return {w: n for n, w in enumerate(self.words)}

    @functools.cached_property
    def directions(self) -> np.ndarray:
        """(N, D) float32: rows of length 1; a zero row stays zero."""
        lengths = np.linalg.norm(self.matrix, axis=1, keepdims=True)
        return self.matrix / np.where(lengths > 0, lengths, 1.0)


def binary(vectors: Vectors) -> Iterator[bytes]:
    """The bytes of word2vec's binary format."""
    yield f"{len(vectors.words)} {vectors.matrix.shape[1]}\n".encode()
    little = vectors.matrix.astype("<f4")
    for start in range(0, len(vectors.words), _ROWS):
        rows = zip(vectors.words[start : start + _ROWS], little[start : start + _ROWS], strict=True)
        yield b"".join(w.encode() + b" " + row.tobytes() + b"\n" for w, row in rows)


def text(vectors: Vectors, header: bool) -> Iterator[bytes]:
    """The bytes of word2vec's text format, or without `header` of GloVe's."""
    if header:
        yield f"{len(vectors.words)} {vectors.matrix.shape[1]}\n".encode()
    line = " ".join(["%.9g"] * vectors.matrix.shape[1])
    for start in range(0, len(vectors.words), _ROWS):
        rows = zip(vectors.words[start : start + _ROWS], vectors.matrix[start : start + _ROWS].tolist(), strict=True)
        yield "".join(f"{w} {line % tuple(row)}\n" for w, row in rows).encode()


def read(path: Path) -> Vectors:
    """The vectors in a file; `.bin` is binary, any other ending text, with or without its first line.

    Raises DataError that names the file, the place and what is wrong with it.
    """
    try:
        if path.suffix == ".bin":
            return _read_binary(path)
        return _read_text(path)
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror or e}") from None


def _sizes(line: bytes, path: Path) -> tuple[int, int]:
    fields = line.split()
    if len(fields) != 2 or not all(f.isdigit() and len(f) < 19 for f in fields):
        raise DataError(f"{path}: the first line is not `words dimensions` but {line[:40]!r}")
    count, dim = int(fields[0]), int(fields[1])
    if not count or not dim:
        raise DataError(f"{path}: {count} words of {dim} dimensions are no vectors")
    return count, dim


def _read_binary(path: Path) -> Vectors:
    data = path.read_bytes()
    end = data.find(b"\n", 0, _LONGEST_HEADER)
    if end < 0:
        raise DataError(f"{path}: no first line `words dimensions`; is it word2vec's binary format?")
    count, dim = _sizes(data[:end], path)
    least = count * (4 * dim + 2)
    if least > len(data) - end - 1:
        raise DataError(
            f"{path}: {count:,} words of {dim:,} dimensions need at least {least:,} bytes, "
            f"but {len(data) - end - 1:,} follow the first line: the file was cut, or is damaged"
        )
    words, matrix, at = [], np.empty((count, dim), np.float32), end + 1
    for n in range(count):
        at += data[at : at + 1] == b"\n"
        space = data.find(b" ", at, at + _LONGEST_WORD)
        if space < 0 or space + 1 + 4 * dim > len(data):
            raise DataError(f"{path}: word {n + 1:,} of {count:,}, at byte {at:,}, is not whole")
        words.append(_word(data[at:space], path, n))
        matrix[n] = np.frombuffer(data, "<f4", dim, space + 1)
        at = space + 1 + 4 * dim
    if data[at:].strip(b"\n"):
        raise DataError(f"{path}: {len(data) - at:,} bytes follow the last of {count:,} words")
    return _checked(words, matrix, path)


def _read_text(path: Path) -> Vectors:
    size = path.stat().st_size
    with path.open("rb") as file:
        first = file.readline(1 << 24)
        fields = first.split()
        has_header = len(fields) == 2 and all(f.isdigit() for f in fields)
        if has_header:
            count, dim = _sizes(first, path)
            if 2 * count * dim > size:
                raise DataError(
                    f"{path}: {count:,} words of {dim:,} dimensions do not fit into a file of {size:,} bytes"
                )
        else:
            count, dim = -1, len(fields) - 1
            file.seek(0)
        if dim < 1:
            raise DataError(f"{path}: the first line is not a word and its numbers: {first[:40]!r}")
        words, rows = [], []
        for n, line in enumerate(file):
            word, row = _line(line, dim, path, n + 1 + has_header)
            words.append(_word(word, path, n))
            rows.append(row)
    if has_header and len(words) != count:
        raise DataError(f"{path}: the first line says {count:,} words, but {len(words):,} follow")
    if not words:
        raise DataError(f"{path}: holds no vectors")
    return _checked(words, np.stack(rows), path)


def _line(line: bytes, dim: int, path: Path, number: int) -> tuple[bytes, np.ndarray]:
    fields = line.rstrip().rsplit(b" ", dim)
    try:
        if len(fields) != dim + 1:
            raise ValueError(f"{len(fields) - 1} numbers")
        return fields[0], np.array(fields[1:], np.float32)
    except ValueError as e:
        raise DataError(f"{path}: line {number:,} is not a word and {dim:,} numbers: {e}") from None


def _word(data: bytes, path: Path, n: int) -> str:
    try:
        word = data.decode()
    except UnicodeDecodeError:
        raise DataError(f"{path}: word {n + 1:,} is not UTF-8: {data[:40]!r}") from None
    if not word:
        raise DataError(f"{path}: word {n + 1:,} is empty")
    return word


def _checked(words: list[str], matrix: np.ndarray, path: Path) -> Vectors:
    vectors = Vectors(words, matrix)
    if len(vectors.place) != len(words):
        twice = next(w for n, w in enumerate(words) if vectors.place[w] != n)
        raise DataError(f"{path}: the word {twice!r} stands in it twice")
    bad = np.flatnonzero(~np.isfinite(matrix).all(axis=1))
    if len(bad):
        raise DataError(f"{path}: the vector of word {bad[0] + 1:,}, {words[bad[0]]!r}, is not finite")
    return vectors


def files(vectors: Vectors, formats: Iterable[str]) -> dict[str, Iterator[bytes]]:
    """By file name, the bytes of `formats`: binary, text, glove."""
    made = {
        "binary": ("vectors.bin", lambda: binary(vectors)),
        "text": ("vectors.txt", lambda: text(vectors, header=True)),
        "glove": ("vectors.glove.txt", lambda: text(vectors, header=False)),
    }
    return {made[f][0]: made[f][1]() for f in formats}
