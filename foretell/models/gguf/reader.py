"""GGUF files, versions 2 and 3, little-endian: the metadata as a dict, the tensors by name without reading them.

The format is that of ggml: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is mapped, not read. It
is not trusted: every length is compared with the bytes that are left before anything is made from it, every tensor
must lie inside the file, at the place the format gives it (one after the other, padded to the alignment), and no name
may stand twice. Whatever is wrong is one ModelError that names the file, the place and the numbers.

Not handled: version 1, big-endian files, models split over several files, a file that is cut short while it is read.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from foretell.errors import ModelError

# By ggml's number: name, elements of a block, bytes of a block.
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}
# Types that exist and are not read, so that the message can name them.
_OTHER_TYPES = {
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}
# By GGUF's number, the struct format of a plain value.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_MOST_DIMS = 4
_DEEPEST_ARRAY = 4
_LONGEST_NAME = 1 << 16
_LARGEST_ALIGNMENT = 1 << 20
_SMALLEST_PAIR = 8 + 4 + 1  # an empty key, a type, one byte
_SMALLEST_TENSOR = 8 + 4 + 4 + 8  # an empty name, no dims, a type, an offset


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file: `shape` outermost first (as in torch), `kind` a name of `TYPES`, bytes [start, end)."""

    name: str
    shape: tuple[int, ...]
    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Gguf:
    """A file that was read: `metadata` of plain values (arrays are lists), `tensors` by name, `data` the whole file."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    data: np.ndarray

    def raw(self, name: str) -> np.ndarray:
        """The stored bytes of a tensor (uint8), not copied. ModelError when the file has none of that name."""
        if name not in self.tensors:
            raise ModelError(f"{self.path}: there is no tensor {name}")
        return self.data[self.tensors[name].start : self.tensors[name].end]


def read(path: Path) -> Gguf:
    """Map the file and read its header. ModelError where it is not a GGUF file that can be trusted."""
    path = Path(path)
    try:
        with open(path, "rb") as f:
            # Copy on write: torch wants memory that could be written. It never is.
            mapped = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_COPY)
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except ValueError:
        raise ModelError(f"{path}: the file is empty") from None
    except OSError as e:
        raise ModelError(f"{path}: {e.strerror}") from None
    cursor = _Cursor(path, mapped)
    version, tensor_count, pair_count = _head(cursor)
    metadata = _metadata(cursor, pair_count)
    infos = [_tensor(cursor, n) for n in range(tensor_count)]
    return Gguf(path, version, metadata, _placed(cursor, infos, metadata), np.frombuffer(mapped, np.uint8))


class _Cursor:
    """A place in the file. Whoever takes bytes asks first whether they are there."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 0

    def error(self, what: str) -> ModelError:
        return ModelError(f"{self.path}: {what} (at byte {self.at:,} of {self.size:,}); the file is damaged or no GGUF")

    def need(self, n: int, what: str) -> None:
        if n > self.size - self.at:
            raise self.error(f"{what} takes {n:,} bytes, {self.size - self.at:,} are left")

    def take(self, form: struct.Struct, what: str) -> Any:
        self.need(form.size, what)
        (value,) = form.unpack_from(self.data, self.at)
        self.at += form.size
        return value

    def string(self, what: str, most: int | None = None) -> str:
        n = self.take(_U64, f"the length of {what}")
        if most is not None and n > most:
            raise self.error(f"{what} of {n:,} bytes; at most {most:,} are taken")
        self.need(n, what)
        raw = self.data[self.at : self.at + n]
        try:
            text = raw.decode()
        except UnicodeDecodeError as e:
            raise self.error(f"{what} is not UTF-8: {e.reason}") from None
        self.at += n
        return text


def _head(c: _Cursor) -> tuple[int, int, int]:
    """Version, number of tensors, number of metadata pairs."""
    if c.data[:4] != b"GGUF":
        raise ModelError(f"{c.path}: not a GGUF file: it begins with {c.data[:4]!r}")
    c.at = 4
    version = c.take(_U32, "the version")
    if version not in (2, 3):
        big = version & 0xFFFF == 0 and version
        what = "a big-endian GGUF file" if big else f"GGUF version {version:,}"
        raise ModelError(f"{c.path}: {what}; versions 2 and 3, little-endian, are read. Convert it anew")
    tensors, pairs = c.take(_U64, "the number of tensors"), c.take(_U64, "the number of metadata pairs")
    c.need(tensors * _SMALLEST_TENSOR + pairs * _SMALLEST_PAIR, f"{tensors:,} tensors and {pairs:,} metadata pairs")
    return version, tensors, pairs


def _metadata(c: _Cursor, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for n in range(count):
        key = c.string(f"the key of metadata pair {n:,}", _LONGEST_NAME)
        if key in metadata:
            raise c.error(f"the metadata key {key} stands twice")
        metadata[key] = _value(c, c.take(_U32, f"the type of {key}"), key)
    return metadata


def _value(c: _Cursor, kind: int, key: str, depth: int = 0) -> Any:
    if kind in _SCALARS:
        return c.take(struct.Struct("<" + _SCALARS[kind]), key)
    if kind == _STRING:
        return c.string(key)
    if kind == _BOOL:
        return _truth(c, c.take(struct.Struct("<B"), key), key)
    if kind != _ARRAY:
        raise c.error(f"{key} has the unknown type {kind:,}")
    if depth == _DEEPEST_ARRAY:
        raise c.error(f"{key}: arrays in arrays deeper than {_DEEPEST_ARRAY}")
    inner = c.take(_U32, f"the type of {key}'s elements")
    count = c.take(_U64, f"the length of {key}")
    if inner == _STRING:
        return _strings(c, count, key)
    if inner == _ARRAY:
        c.need(12 * count, f"{key}, {count:,} arrays,")
        return [_value(c, _ARRAY, key, depth + 1) for _ in range(count)]
    return _plain_array(c, inner, count, key)


def _plain_array(c: _Cursor, kind: int, count: int, key: str) -> list[Any]:
    if kind != _BOOL and kind not in _SCALARS:
        raise c.error(f"{key} is an array of the unknown type {kind:,}")
    form = np.dtype("<" + np.dtype(_SCALARS.get(kind, "B")).str[1:])
    c.need(count * form.itemsize, f"{key}, {count:,} values,")
    values = np.frombuffer(c.data, form, count, c.at).tolist() if count else []
    c.at += count * form.itemsize
    return [_truth(c, v, key) for v in values] if kind == _BOOL else values


def _truth(c: _Cursor, value: int, key: str) -> bool:
    if value > 1:
        raise c.error(f"{key} is a truth value of {value}, not 0 or 1")
    return bool(value)


def _strings(c: _Cursor, count: int, key: str) -> list[str]:
    """Vocabularies are arrays of 100,000 strings and more, so this loop is written out."""
    c.need(8 * count, f"{key}, {count:,} strings,")
    data, size, at, unpack = c.data, c.size, c.at, _U64.unpack_from
    texts = []
    try:
        for _ in range(count):
            start = at + 8
            at = start + unpack(data, at)[0]
            if at > size:
                c.at = start
                raise c.error(f"a string of {key} takes {at - start:,} bytes, {size - start:,} are left")
            texts.append(data[start:at].decode())
    except struct.error:
        c.at = size
        raise c.error(f"{key}: string {len(texts):,} of {count:,} is missing") from None
    except UnicodeDecodeError as e:
        c.at = at
        raise c.error(f"{key}: string {len(texts):,} is not UTF-8: {e.reason}") from None
    c.at = at
    return texts


def _tensor(c: _Cursor, n: int) -> TensorInfo:
    """`start` is still counted from the beginning of the tensors' data, and `end` is its length."""
    name = c.string(f"the name of tensor {n:,}", _LONGEST_NAME)
    dims = c.take(_U32, f"the number of dims of {name}")
    if dims > _MOST_DIMS:
        raise c.error(f"tensor {name} has {dims:,} dims; at most {_MOST_DIMS}")
    sides = [c.take(_U64, f"the shape of {name}") for _ in range(dims)]  # innermost first
    number = c.take(_U32, f"the type of {name}")
    offset = c.take(_U64, f"the offset of {name}")
    if number not in TYPES:
        other = _OTHER_TYPES.get(number)
        known = ", ".join(kind for kind, _, _ in TYPES.values())
        what = f"{other}, which is not read" if other else f"the unknown type {number:,}"
        raise ModelError(f"{c.path}: tensor {name} is stored as {what}; read are {known}")
    kind, per_block, block_bytes = TYPES[number]
    if not all(sides):
        raise c.error(f"tensor {name} has a side of 0: {sides[::-1]}")
    if (sides[0] if sides else 1) % per_block:
        raise c.error(f"tensor {name} ({kind}) has rows of {sides[0]:,}, no multiple of {per_block}")
    elements = 1
    for side in sides:
        elements *= side
    length = elements // per_block * block_bytes
    if length > c.size:
        raise c.error(f"tensor {name} ({kind}, {sides[::-1]}) takes {length:,} bytes, the file has {c.size:,}")
    return TensorInfo(name, tuple(reversed(sides)), kind, offset, length)


def _placed(c: _Cursor, infos: list[TensorInfo], metadata: dict[str, Any]) -> dict[str, TensorInfo]:
    """The tensors at their places in the file; each must begin where the one before it, padded, ends."""
    alignment = metadata.get("general.alignment", 32)
    known = isinstance(alignment, int) and not isinstance(alignment, bool)
    if not known or not 0 < alignment <= _LARGEST_ALIGNMENT or alignment & (alignment - 1):
        raise c.error(f"general.alignment is {alignment!r}, not a power of two up to {_LARGEST_ALIGNMENT:,}")
    padded: Callable[[int], int] = lambda n: -(-n // alignment) * alignment  # noqa: E731
    base, expected = padded(c.at), 0
    placed: dict[str, TensorInfo] = {}
    for i in infos:
        if i.name in placed:
            raise c.error(f"the tensor {i.name} stands twice")
        if i.start != expected:
            raise c.error(f"tensor {i.name} begins at {i.start:,} of the data, but its place is {expected:,}")
        if base + i.start + i.end > c.size:
            raise c.error(f"tensor {i.name} ends at byte {base + i.start + i.end:,}; the file is cut short")
        placed[i.name] = TensorInfo(i.name, i.shape, i.kind, base + i.start, base + i.start + i.end)
        expected = padded(i.start + i.end)
    return placed
