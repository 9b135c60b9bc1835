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
from collections.abc import Iterator, Mapping
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
        if t.dtype not in _NAMES or t.layout != torch.strided:
            raise CheckpointError(
                f"tensor {name}: {t.dtype}, {t.layout} cannot be stored; dense {', '.join(DTYPES)} can"
            )
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


def read(path: Path, expected: Written) -> dict[str, Tensor]:
    """The tensors of a file, on the CPU. Raises CheckpointError or OSError with the reason if it is not as expected."""
    fd = files.open_existing(path)
    try:
        size = files.size_bytes(fd)
        if size != expected.bytes:
            raise CheckpointError(f"{path}: {size:,} bytes, the manifest says {expected.bytes:,}")
        sha = hashlib.sha256()
        head = _read_bytes(fd, 8, size, sha, path)
        length = int.from_bytes(head, "little")
        if length > min(size - 8, _HEADER_BYTES_MAX):
            raise CheckpointError(f"{path}: the header claims {length:,} bytes of a file of {size:,}")
        layout = _layout(_read_bytes(fd, length, size, sha, path), size - 8 - length, path)
        tensors = {}
        for name, dtype, shape in layout:
            t = _empty(shape, dtype, path)
            view = raw(t)
            files.read_exactly(fd, view)
            sha.update(view)
            tensors[name] = t
    except EOFError as e:
        raise CheckpointError(f"{path}: {e}") from None
    finally:
        files.close(fd)
    if sha.hexdigest() != expected.sha256:
        raise CheckpointError(
            f"{path}: sha256 is {sha.hexdigest()[:12]}..., the manifest says {expected.sha256[:12]}..."
        )
    return tensors


def _empty(shape: tuple[int, ...], dtype: torch.dtype, path: Path) -> Tensor:
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


def _layout(head: bytes, size: int, path: Path) -> list[tuple[str, torch.dtype, tuple[int, ...]]]:
    """Names, dtypes and shapes in the order of the bytes, which must fill `size` exactly."""
    try:
        header = json.loads(head)
        header.pop("__metadata__", None)
        entries = []
        for name, entry in header.items():
            (start, stop), shape = entry["data_offsets"], tuple(entry["shape"])
            if not all(type(n) is int and n >= 0 for n in (start, stop, *shape)):
                raise ValueError(f"{name} has offsets or a shape that are not counts")
            entries.append((start, stop, name, DTYPES[entry["dtype"]], shape))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
        raise CheckpointError(f"{path}: the safetensors header is not valid: {type(e).__name__}: {e}") from None
    end = 0
    for start, stop, name, dtype, shape in sorted(entries, key=lambda e: e[:3]):
        if start != end or stop - start != math.prod(shape) * dtype.itemsize:
            raise CheckpointError(f"{path}: tensor {name} {list(shape)} does not fill bytes {start:,} to {stop:,}")
        end = stop
    if end != size:
        raise CheckpointError(f"{path}: tensors fill {end:,} bytes of {size:,}")
    return [(name, dtype, shape) for _, _, name, dtype, shape in sorted(entries, key=lambda e: e[:3])]
