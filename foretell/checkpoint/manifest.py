"""manifest.json: what a checkpoint consists of, with a digest of each file and of itself.

The file is exactly the canonical rendering of its content, so any change to it shows: a flipped bit, appended bytes, a
key that stands twice. `docs/formats.md` is its specification. It protects against damage, not against an attacker, who
can compute digests too; but nothing in it can reach outside the folder or make the reader execute anything.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any, NoReturn

from foretell.checkpoint import files
from foretell.errors import CheckpointError

NAME = "manifest.json"
FORMAT_VERSION = 1
FILE_NAME = re.compile(r"tensors-[0-9]{5}\.safetensors")
_BYTES_MAX = 256 << 20


def render(content: dict[str, Any]) -> bytes:
    """The canonical bytes of a manifest with this content, its own digest included.

    Raises ValueError when the content is not plain JSON that reads back equal: NaN, tuples, keys that are not strings.
    """
    text = _canonical(content)
    if json.loads(text) != content:
        raise ValueError("the state of a checkpoint must be plain JSON: string keys, lists instead of tuples")
    return _canonical({**content, "sha256": hashlib.sha256(text).hexdigest()})


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
    for name, entry in content["files"].items():
        if not FILE_NAME.fullmatch(name):
            raise CheckpointError(f"{path}: `{name}` is not the name of a checkpoint's file")
        if not isinstance(entry, dict) or set(entry) != {"bytes", "sha256", "tensors"}:
            raise CheckpointError(f"{path}: the entry of {name} needs bytes, sha256 and tensors")
        if type(entry["bytes"]) is not int or type(entry["sha256"]) is not str or type(entry["tensors"]) is not dict:
            raise CheckpointError(f"{path}: the entry of {name} has a value of another type")
