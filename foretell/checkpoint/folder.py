"""The folder of a run's checkpoints: names, what is published, what stays and what goes.

A published checkpoint is a folder `step-000400`, whole by construction: it got that name by one rename. A name is never
reused: where step 400 exists already (a damaged one that a resume passed over), the new one is `step-000400-2`. Names
that end in `.partial` are unfinished work. Older checkpoints go only after the new one is there and verified; they are
renamed to a partial name first, so that no half-deleted one is ever seen.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from foretell.checkpoint import files, manifest
from foretell.checkpoint import tensors as tensor_files
from foretell.errors import CheckpointError

# A file holds at least one tensor and otherwise stays below this, so that no file system's limit is met.
SHARD_BYTES = 1 << 30
# Room left on a disk after a save: headers, manifest, the log.
SPARE_BYTES = 1 << 20
_STEP = re.compile(r"step-([0-9]{6,})(?:-([0-9]+))?")


def published(folder: Path) -> list[Path]:
    """The checkpoint folders of a run, newest first; damaged ones too."""
    try:
        names = files.names(folder)
    except FileNotFoundError:
        return []
    matches = [m for m in map(_STEP.fullmatch, names) if m]
    matches.sort(key=lambda m: (int(m[1]), int(m[2] or 1)), reverse=True)
    return [folder / m[0] for m in matches]


def content(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint that claims to be the one its name says. Raises CheckpointError or OSError."""
    found = manifest.read(path / manifest.NAME)
    if found["step"] != _step(path):
        raise CheckpointError(f"{path / manifest.NAME}: belongs to step {found['step']}")
    return found


def check_file(path: Path, entry: dict[str, Any]) -> None:
    """Compare the digest of a tensor file on the disk with the manifest's. Raises CheckpointError or OSError."""
    written, _ = manifest.in_file(entry)
    found = tensor_files.digest(path)
    if found != written:
        raise CheckpointError(f"{path}: {found.bytes:,} bytes read back differ from those written")


def make(folder: Path) -> None:
    """The folder and its parents, where they are not there yet."""
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    for path in reversed(missing):
        files.make_folder(path)
        files.sync_folder(path.parent)


def clear(folder: Path, spared: str | None) -> None:
    """Remove what killed or failed saves left behind, except names with `spared` in them."""
    for name in files.names(folder):
        if name.startswith(".") and name.endswith(files.PARTIAL) and not (spared and spared in name):
            files.remove(folder / name)


def check_room(folder: Path, needed: int) -> None:
    """Raises CheckpointError when the disk has too little room for `needed` bytes more."""
    free = files.free_bytes(folder)
    if free < needed + SPARE_BYTES:
        raise CheckpointError(
            f"{folder}: a checkpoint needs {needed + SPARE_BYTES:,} bytes and the disk has {free:,} free; free "
            f"{needed + SPARE_BYTES - free:,} bytes and resume"
        )


def new_path(folder: Path, step: int) -> Path:
    """The first name for `step` that is not taken."""
    path, attempt = folder / f"step-{step:06d}", 1
    while files.exists(path):
        attempt += 1
        path = folder / f"step-{step:06d}-{attempt}"
    return path


def retain(folder: Path, new: Path, keep: int) -> None:
    """Delete what is older than the `keep`-th good checkpoint, counting from the verified `new` one.

    The others are verified before they count, so that damage never makes the last good one go. Damaged ones stay, for
    the next resume to name, until they are older than what is kept.
    """
    good, doomed = 1, []
    found = published(folder)
    for path in found[found.index(new) + 1 :]:
        if good >= keep or _step(path) == _step(new):
            doomed.append(path)
            continue
        try:
            for name, entry in content(path)["files"].items():
                check_file(path / name, entry)
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


def place(e: OSError, otherwise: Path) -> str:
    """Where a system call failed and why."""
    return f"{e.filename or otherwise}: {e.strerror or e}"


def _step(path: Path) -> int:
    """The step that the name of a published folder claims."""
    return int(path.name.split("-")[1])
