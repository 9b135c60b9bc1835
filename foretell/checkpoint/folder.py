"""Checkpoints of a run: `step-000400/` folders that are whole or absent.

A save writes into a partial folder, forces it to disk, reads it back, and publishes it by one rename. Only then are
older ones deleted; they are renamed to a partial name first, so that no half-deleted one is ever seen. A name is never
reused: where step 400 exists already (a damaged one that a resume passed over), the new one is `step-000400-2`. So from
the first save's rename on there is a good checkpoint on the disk at every moment; tests/test_checkpoint.py stops after
every operation and looks.

Handles one writing process. Tensors that share memory are the caller's business: give each once.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from foretell.checkpoint import files, manifest
from foretell.checkpoint import tensors as tensor_files
from foretell.checkpoint.tensors import Written
from foretell.errors import CheckpointError

# A file holds at least one tensor and otherwise stays below this, so that no file system's limit is met.
SHARD_BYTES = 1 << 30
# Room left on a disk after a save: headers, manifest, the log.
SPARE_BYTES = 1 << 20
_STEP = re.compile(r"step-([0-9]{6,})(?:-([0-9]+))?")


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. skipped: one line, with file and reason, for each newer one that is damaged."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path
    skipped: tuple[str, ...] = ()


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Store a checkpoint in `folder`, then delete all but the newest `keep` good ones. Returns its path.

    state: plain JSON that reads back equal. Raises CheckpointError when it cannot be stored; what was stored before is
    untouched then.
    """
    folder = Path(folder)
    try:
        _prepare(folder, sum(t.nbytes for t in tensors.values()))
        path = _new_path(folder, step)
        partial = folder / f".{path.name}{files.PARTIAL}"
        files.make_folder(partial)
        try:
            _write(partial, step, tensors, state)
            _verify(partial)
            files.rename(partial, path)
        except (OSError, CheckpointError, ValueError):
            files.remove(partial)
            raise
        files.sync_folder(folder)
    except OSError as e:
        raise CheckpointError(f"{_place(e, folder)}: step {step} is not saved; earlier checkpoints are whole") from e
    try:
        _retain(folder, path, keep)
    except OSError as e:
        raise CheckpointError(f"{_place(e, folder)}: {path} is saved, but older ones cannot be deleted") from e
    return path


def load_latest(folder: Path) -> Checkpoint | None:
    """The newest good checkpoint; None only where none was ever published.

    Raises CheckpointError naming every file and reason when there are checkpoints and all are damaged.
    """
    skipped: list[str] = []
    for path in _published(Path(folder)):
        try:
            content = _content(path)
            tensors: dict[str, Tensor] = {}
            for name, entry in content["files"].items():
                tensors |= _checked(path / name, entry, tensors)
            return Checkpoint(content["step"], tensors, content["state"], path, tuple(skipped))
        except CheckpointError as e:
            skipped.append(str(e))
        except OSError as e:
            skipped.append(_place(e, path))
    if skipped:
        raise CheckpointError(f"{folder}: every checkpoint is damaged:\n" + "\n".join(skipped))
    return None


def _prepare(folder: Path, needed: int) -> None:
    """The folder, without leftovers of killed saves, on a disk with room."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    for path in reversed(missing):
        files.make_folder(path)
        files.sync_folder(path.parent)
    for name in sorted(os.listdir(folder)):
        if name.startswith(".") and name.endswith(files.PARTIAL):
            files.remove(folder / name)
    free = files.free_bytes(folder)
    if free < needed + SPARE_BYTES:
        raise CheckpointError(
            f"{folder}: a checkpoint needs {needed + SPARE_BYTES:,} bytes and the disk has {free:,} free; earlier "
            f"checkpoints are whole. Free {needed + SPARE_BYTES - free:,} bytes and resume"
        )


def _new_path(folder: Path, step: int) -> Path:
    """The first name for `step` that is not taken."""
    path, attempt = folder / f"step-{step:06d}", 1
    while os.path.lexists(path):
        attempt += 1
        path = folder / f"step-{step:06d}-{attempt}"
    return path


def _write(partial: Path, step: int, tensors: Mapping[str, Tensor], state: dict[str, Any]) -> None:
    entries = {}
    for number, shard in enumerate(_shards(tensors), start=1):
        name = f"tensors-{number:05d}.safetensors"
        written = tensor_files.write(partial / name, shard)
        described = {n: tensor_files.described(t) for n, t in shard.items()}
        entries[name] = {"bytes": written.bytes, "sha256": written.sha256, "tensors": described}
    content = {"format_version": manifest.FORMAT_VERSION, "step": step, "state": state, "files": entries}
    files.write_file(partial / manifest.NAME, [manifest.render(content)])
    files.sync_folder(partial)


def _shards(tensors: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    size = 0
    for name, t in tensors.items():
        if shard and size + t.nbytes > SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = t
        size += t.nbytes
    if shard:
        yield shard


def _content(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that claims to be the one its name says."""
    content = manifest.read(path / manifest.NAME)
    if content["step"] != _step(path):
        raise CheckpointError(f"{path / manifest.NAME}: belongs to step {content['step']}")
    return content


def _step(path: Path) -> int:
    """The step that a folder's name, partial or published, claims."""
    return int(path.name.removeprefix(".").split("-")[1].removesuffix(files.PARTIAL))


def _checked(path: Path, entry: dict[str, Any], seen: Mapping[str, Tensor]) -> dict[str, Tensor]:
    tensors = tensor_files.read(path, Written(entry["bytes"], entry["sha256"]))
    if {n: tensor_files.described(t) for n, t in tensors.items()} != entry["tensors"]:
        raise CheckpointError(f"{path}: names, dtypes or shapes of tensors differ from the manifest's")
    if twice := seen.keys() & tensors.keys():
        raise CheckpointError(f"{path}: tensor {min(twice)} stands in another file as well")
    return tensors


def _verify(path: Path) -> None:
    """Read a checkpoint back from the disk and compare every digest. Raises CheckpointError or OSError."""
    for name, entry in _content(path)["files"].items():
        found = tensor_files.digest(path / name)
        if found != Written(entry["bytes"], entry["sha256"]):
            raise CheckpointError(f"{path / name}: {found.bytes:,} bytes read back differ from those written")


def _published(folder: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    matches = [m for m in map(_STEP.fullmatch, names) if m]
    matches.sort(key=lambda m: (int(m[1]), int(m[2] or 1)), reverse=True)
    return [folder / m[0] for m in matches]


def _retain(folder: Path, new: Path, keep: int) -> None:
    """Delete what is older than the `keep`-th good checkpoint, counting from the verified `new` one.

    The others are verified before they count, so that damage never makes the last good one go. Damaged ones stay, for
    the next resume to name, until they are older than what is kept.
    """
    good, doomed = 1, []
    published = _published(folder)
    for path in published[published.index(new) + 1 :]:
        if good >= keep or _step(path) == _step(new):
            doomed.append(path)
            continue
        try:
            _verify(path)
            good += 1
        except (CheckpointError, OSError):
            continue
    partials = [folder / f".{path.name}{files.PARTIAL}" for path in doomed]
    for path, partial in zip(doomed, partials, strict=True):
        files.rename(path, partial)
    if doomed:
        files.sync_folder(folder)
    for partial in partials:
        files.remove(partial)


def _place(e: OSError, otherwise: Path) -> str:
    return f"{e.filename or otherwise}: {e.strerror or e}"
