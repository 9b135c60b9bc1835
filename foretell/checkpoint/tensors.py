"""safetensors files, written and read in one pass.

The format is that of the safetensors library (https://github.com/huggingface/safetensors): eight bytes with the length
of a JSON header, the header, then the tensors' bytes without a gap. It is written here, and not by the library, because
the library needs a second copy of everything in memory, and because every write has to go through `files`, where tests
make it fail. The digest of a file is taken on the way, so that reading verifies without reading twice.

Reading trusts nothing: lengths are compared with the file's size before anything is allocated, and offsets must follow
each other without gap or overlap. Not handled: big-endian machines, and quantised or complex tensors.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretell.checkpoint import files
from foretell.errors import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
# The library's own limit.
_HEADER_BYTES_MAX = 100_000_000
_HASH_BYTES = 1 << 20


@dataclass(frozen=True)
class Written:
    """What the manifest says of one file."""

    bytes: int
    sha256: str


def _order(item: tuple[str, Tensor]) -> tuple[int, str]:
    """Widest elements first, as the library does, so that every tensor starts at a multiple of its element."""
    return -item[1].element_size(), item[0]


def write(path: Path, tensors: Mapping[str, Tensor]) -> Written:
    """Write one file and force it to disk. Tensors may live on any device; one at a time is brought to the CPU."""
    header: dict[str, Any] = {}
    ordered, end = sorted(tensors.items(), key=_order), 0
    for name, t in ordered:
        check_storable(name, t)
        start, end = end, end + t.nbytes
        header[name] = {**described(t), "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()

    def parts() -> Iterator[memoryview]:
        arrays = (raw(t.detach().cpu().contiguous()) for _, t in ordered)
        for part in itertools.chain([memoryview(len(head).to_bytes(8, "little") + head)], arrays):
            digest.update(part)
            yield part

    files.write_file(path, parts())
    return Written(8 + len(head) + end, digest.hexdigest())


def check_storable(name: str, t: Tensor) -> None:
    """Raises CheckpointError for a tensor that the format has no name for."""
    if t.dtype not in _NAMES or t.layout != torch.strided:
        raise CheckpointError(f"tensor {name}: {t.dtype}, {t.layout} cannot be stored; dense {', '.join(DTYPES)} can")


def described(t: Tensor) -> dict[str, Any]:
    """Dtype and shape of a tensor as the header and the manifest write them."""
    return {"dtype": _NAMES[t.dtype], "shape": list(t.shape)}


def raw(t: Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, not copied."""
    return t.reshape(-1).view(torch.uint8).numpy().data


def digest(path: Path) -> Written:
    """Size and digest of a file as it stands on the disk, not as memory remembers it. Raises OSError."""
    fd = files.open_existing(path)
    try:
        files.forget_cached(fd)
        total, sha, buffer = 0, hashlib.sha256(), memoryview(bytearray(_HASH_BYTES))
        while got := files.read_into(fd, buffer):
            sha.update(buffer[:got])
            total += got
        return Written(total, sha.hexdigest())
    finally:
        files.close(fd)


def read(
    path: Path, expected: Written, described: dict[str, Any] | None = None, names: Container[str] | None = None
) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU: those among `names`, or all. All bytes are verified in any case.

    described: dtype and shape of every tensor, as the manifest has them. Raises CheckpointError or OSError with the
    reason if the file is not as expected.
    """
    fd = files.open_existing(path)
    try:
        size = files.size_bytes(fd)
        if size != expected.bytes:
            raise CheckpointError(f"{path}: {size:,} bytes, the manifest says {expected.bytes:,}")
        sha = hashlib.sha256()
        layout = _header(fd, size, sha, path)
        if described is not None and {p.name: p.described for p in layout} != described:
            raise CheckpointError(f"{path}: names, dtypes or shapes of tensors differ from the manifest's")
        tensors = {}
        for place in layout:
            if names is None or place.name in names:
                tensors[place.name] = t = empty(place.shape, place.dtype, path)
                _fill(fd, raw(t), sha)
            else:
                _pass_over(fd, place.stop - place.start, sha)
    except EOFError as e:
        raise CheckpointError(f"{path}: {e}") from None
    finally:
        files.close(fd)
    if sha.hexdigest() != expected.sha256:
        raise CheckpointError(
            f"{path}: sha256 is {sha.hexdigest()[:12]}..., the manifest says {expected.sha256[:12]}..."
        )
    return tensors


def read_one(path: Path, name: str) -> Tensor:
    """One tensor of a file that was verified before. Raises CheckpointError or OSError."""
    fd = files.open_existing(path)
    try:
        for place in _header(fd, files.size_bytes(fd), hashlib.sha256(), path):
            if place.name == name:
                t = empty(place.shape, place.dtype, path)
                files.seek(fd, place.start)
                files.read_exactly(fd, raw(t))
                return t
    except EOFError as e:
        raise CheckpointError(f"{path}: {e}") from None
    finally:
        files.close(fd)
    raise CheckpointError(f"{path}: holds no tensor {name}")


@dataclass(frozen=True)
class _Place:
    """Where a tensor's bytes stand, counted from the start of the file."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def described(self) -> dict[str, Any]:
        return {"dtype": _NAMES[self.dtype], "shape": list(self.shape)}


def _fill(fd: int, view: memoryview, sha: Any) -> None:
    """Fill `view`, hashing each part while it is still in the cache."""
    for start in range(0, view.nbytes, _HASH_BYTES):
        part = view[start : start + _HASH_BYTES]
        files.read_exactly(fd, part)
        sha.update(part)


def _pass_over(fd: int, length: int, sha: Any) -> None:
    buffer = memoryview(bytearray(min(length, _HASH_BYTES)))
    while length:
        part = buffer[:length]
        files.read_exactly(fd, part)
        sha.update(part)
        length -= part.nbytes


def _header(fd: int, size: int, sha: Any, path: Path) -> list[_Place]:
    """What stands where in an open file of `size` bytes; it is left at the first tensor."""
    length = int.from_bytes(_read_bytes(fd, 8, size, sha, path), "little")
    if length > min(size - 8, _HEADER_BYTES_MAX):
        raise CheckpointError(f"{path}: the header claims {length:,} bytes of a file of {size:,}")
    return _layout(_read_bytes(fd, length, size, sha, path), 8 + length, size, path)


def empty(shape: tuple[int, ...], dtype: torch.dtype, path: Path) -> Tensor:
    """Memory for a tensor that `path` describes. Raises CheckpointError when there cannot be one of this shape."""
    try:
        return torch.empty(shape, dtype=dtype)
    except RuntimeError as e:  # no bytes, but sides whose product overflows
        raise CheckpointError(f"{path}: a tensor of shape {list(shape)} cannot be: {str(e).splitlines()[0]}") from None


def _read_bytes(fd: int, length: int, size: int, sha: Any, path: Path) -> bytes:
    if length > size:
        raise CheckpointError(f"{path}: {size:,} bytes are too few for a safetensors file")
    data = bytearray(length)
    files.read_exactly(fd, memoryview(data))
    sha.update(data)
    return bytes(data)


def _layout(head: bytes, begin: int, size: int, path: Path) -> list[_Place]:
    """The tensors in the order of their bytes, which must fill the file from `begin` to `size` exactly."""
    try:
        header = json.loads(head)
        header.pop("__metadata__", None)
        places = []
        for name, entry in header.items():
            (start, stop), shape = entry["data_offsets"], tuple(entry["shape"])
            if not all(type(n) is int and n >= 0 for n in (start, stop, *shape)):
                raise ValueError(f"{name} has offsets or a shape that are not counts")
            places.append(_Place(name, DTYPES[entry["dtype"]], shape, begin + start, begin + stop))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{path}: the safetensors header is not valid: {type(e).__name__}: {e}") from None
    places.sort(key=lambda p: (p.start, p.stop, p.name))
    end = begin
    for p in places:
        if p.start != end or p.stop - p.start != math.prod(p.shape) * p.dtype.itemsize:
            raise CheckpointError(
                f"{path}: tensor {p.name} {list(p.shape)} does not fill bytes {p.start:,} to {p.stop:,}"
            )
        end = p.stop
    if end != size:
        raise CheckpointError(f"{path}: tensors fill {end - begin:,} bytes of {size - begin:,}")
    return places
