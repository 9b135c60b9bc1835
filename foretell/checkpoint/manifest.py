"""manifest.json: what a checkpoint consists of, with a digest of each file and of itself.

The file is exactly the canonical rendering of its content, so any change to it shows: a flipped bit, appended bytes, a
key that stands twice. `docs/formats.md` is its specification. It protects against damage, not against an attacker, who
can compute digests too; but nothing in it can reach outside the folder or make the reader execute anything.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from foretell.checkpoint import files
from foretell.checkpoint.pieces import Described, Piece, Stored, check_tiling
from foretell.checkpoint.tensors import DTYPES, Written, described
from foretell.errors import CheckpointError

NAME = "manifest.json"
FORMAT_VERSION = 2
# By format: the name of a tensor file, and what is said of each tensor in it.
FILE_NAME = {1: re.compile(r"tensors-[0-9]{5}\.safetensors"), 2: re.compile(r"tensors-[0-9]{5}-[0-9]{5}\.safetensors")}
_TENSOR_KEYS = {1: {"dtype", "shape"}, 2: {"dtype", "shape", "offset", "global_shape"}}
_BYTES_MAX = 256 << 20
_NOT_PLAIN = "the state of a checkpoint must be plain JSON: string keys, lists instead of tuples"


def render(content: dict[str, Any]) -> bytes:
    """The canonical bytes of a manifest with this content, its own digest included.

    Raises ValueError when the content is not plain JSON that reads back equal: NaN, tuples, keys that are not strings.
    """
    text = _canonical(content)
    if json.loads(text) != content:
        raise ValueError(_NOT_PLAIN)
    return _canonical({**content, "sha256": hashlib.sha256(text).hexdigest()})


def copied(state: dict[str, Any]) -> dict[str, Any]:
    """A copy of plain JSON that later changes of `state` do not reach. Raises ValueError like `render`."""
    copy: dict[str, Any] = json.loads(_canonical(state))
    if copy != state:
        raise ValueError(_NOT_PLAIN)
    return copy


def file_entry(written: Written, pieces: Mapping[str, Piece]) -> dict[str, Any]:
    """What the manifest says of one tensor file and the pieces in it."""
    tensors = {
        name: {**described(p.tensor), "offset": list(p.offset), "global_shape": list(p.shape)}
        for name, p in pieces.items()
    }
    return {"bytes": written.bytes, "sha256": written.sha256, "tensors": tensors}


def in_file(entry: dict[str, Any]) -> tuple[Written, dict[str, Any]]:
    """Of the entry of a tensor file: size and digest, and dtype and shape of each tensor as its header has them."""
    tensors = {n: {"dtype": t["dtype"], "shape": t["shape"]} for n, t in entry["tensors"].items()}
    return Written(entry["bytes"], entry["sha256"]), tensors


def catalogue(content: dict[str, Any], path: Path) -> dict[str, Described]:
    """The global tensors of a checkpoint by name. Raises CheckpointError unless their pieces tile them exactly once."""
    found: dict[str, Described] = {}
    for file, entry in content["files"].items():
        for name, t in entry["tensors"].items():
            whole = tuple(t.get("global_shape", t["shape"]))
            piece = Stored(file, (tuple(t.get("offset", [0] * len(whole))), tuple(t["shape"])))
            one = Described(DTYPES[t["dtype"]], whole, (piece,))
            before = found.setdefault(name, one)
            if (before.dtype, before.shape) != (one.dtype, one.shape):
                raise CheckpointError(
                    f"{path}: tensor {name} is {before.dtype} {list(before.shape)} in {before.pieces[0].file}, "
                    f"{one.dtype} {list(whole)} in {file}"
                )
            if before is not one:
                found[name] = Described(one.dtype, whole, (*before.pieces, piece))
    for name, described_ in found.items():
        try:
            check_tiling(name, described_.shape, described_.pieces)
        except CheckpointError as e:
            raise CheckpointError(f"{path}: {e}") from None
    return found


def read(path: Path) -> dict[str, Any]:
    """The verified content of a manifest. Raises CheckpointError with the reason, or OSError."""
    fd = files.open_existing(path)
    try:
        size = files.size_bytes(fd)
        if size > _BYTES_MAX:
            raise CheckpointError(f"{path}: {size:,} bytes are too many for a manifest ({_BYTES_MAX:,})")
        data = bytearray(size)
        files.read_exactly(fd, memoryview(data))
    except EOFError as e:
        raise CheckpointError(f"{path}: {e}") from None
    finally:
        files.close(fd)
    if not data:
        raise CheckpointError(f"{path}: the file is empty")
    content = _parsed(bytes(data), path)
    version = content.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise CheckpointError(f"{path}: format_version {version} is newer than this Foretell reads ({FORMAT_VERSION})")
    stated = content.pop("sha256", None)
    try:
        expected = hashlib.sha256(_canonical(content)).hexdigest()
        if stated != expected:
            raise CheckpointError(f"{path}: its content has sha256 {expected[:12]}..., it says {str(stated)[:12]}...")
        if _canonical({**content, "sha256": stated}) != data:
            raise CheckpointError(f"{path}: not in canonical form")
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: {e}") from None
    _check(content, path)
    return content


def _canonical(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def _parsed(data: bytes, path: Path) -> dict[str, Any]:
    def no_constant(name: str) -> NoReturn:
        raise ValueError(f"{name} is not JSON")

    try:
        content = json.loads(data.decode("ascii"), parse_constant=no_constant)
    except (ValueError, RecursionError) as e:
        raise CheckpointError(f"{path}: not valid JSON: {e}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a JSON object")
    return content


def _check(content: dict[str, Any], path: Path) -> None:
    """The shape of a manifest whose digest holds: it may still come from elsewhere."""
    wanted: dict[str, type] = {"format_version": int, "step": int, "state": dict, "files": dict}
    for key, kind in wanted.items():
        if type(content.get(key)) is not kind:
            raise CheckpointError(f"{path}: `{key}` is absent or not of type {kind.__name__}")
    version = content["format_version"]
    if version not in FILE_NAME:
        raise CheckpointError(f"{path}: there is no format_version {version}")
    for name, entry in content["files"].items():
        if not FILE_NAME[version].fullmatch(name):
            raise CheckpointError(f"{path}: `{name}` is not the name of a checkpoint's file")
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256", "tensors"}:
            raise CheckpointError(f"{path}: the entry of {name} needs bytes, sha256 and tensors")
        if type(entry["bytes"]) is not int or type(entry["sha256"]) is not str or type(entry["tensors"]) is not dict:
            raise CheckpointError(f"{path}: the entry of {name} has a value of another type")
        for tensor, t in entry["tensors"].items():
            if not isinstance(t, dict) or set(t) != _TENSOR_KEYS[version] or not _is_tensor(t):
                raise CheckpointError(f"{path}: what it says of {tensor} in {name} describes no tensor")


def _is_tensor(t: dict[str, Any]) -> bool:
    sides = [t[k] for k in ("shape", "offset", "global_shape") if k in t]
    return (
        isinstance(t["dtype"], str)
        and t["dtype"] in DTYPES
        and all(isinstance(side, list) and all(type(n) is int and n >= 0 for n in side) for side in sides)
    )
