"""Reading checkpoints: the newest good one, whole or any boxes of it, on any number of ranks, whatever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from foretell.checkpoint import folder as folders
from foretell.checkpoint import manifest
from foretell.checkpoint import tensors as tensor_files
from foretell.checkpoint.pieces import Box, Described, common, copy_common, is_inside
from foretell.errors import CheckpointError

Wanted = Callable[[Mapping[str, Described]], Mapping[str, Box | None]]


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. skipped: one line, with file and reason, for each newer one that is damaged."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path
    skipped: tuple[str, ...] = ()


def load_latest(
    folder: Path,
    wanted: Wanted | None = None,
    *,
    rank: int = 0,
    ranks: int = 1,
    agree: Callable[[bool], bool] = lambda ok: ok,
    among: Sequence[Path] | None = None,
) -> Checkpoint | None:
    """The newest good checkpoint, with what this rank wants of it; None only where none was ever published.

    wanted: from what the checkpoint holds, by name, to the box (offset, size) of each tensor to read, None for all of
    it; by default everything. Files without any of it are not read, but of several ranks the i-th file is verified by
    rank i % ranks. agree: says whether all ranks found their part good; called once for each candidate, and where it
    says no all go on to the next. among: the candidates, newest first, where ranks may see a folder differently: what
    rank 0's `published` gave. Raises CheckpointError naming every file and reason when there are checkpoints and all
    are damaged, and for a wish that the checkpoint cannot meet.
    """
    skipped: list[str] = []
    for path in folders.published(Path(folder)) if among is None else among:
        reason, content, tensors = None, {}, {}
        try:
            content = folders.content(path)
            catalogue = manifest.catalogue(content, path / manifest.NAME)
        except (CheckpointError, OSError) as e:
            reason = _reason(e, path)
        else:
            boxes = _boxes(path, catalogue, wanted)
            try:
                tensors = _read(path, content["files"], catalogue, boxes, (rank, ranks))
            except (CheckpointError, OSError) as e:
                reason = _reason(e, path)
        if agree(reason is None):
            return Checkpoint(content["step"], tensors, content["state"], path, tuple(skipped))
        skipped.append(reason or f"{path}: another rank found a part of it damaged")
    if skipped:
        raise CheckpointError(f"{folder}: every checkpoint is damaged:\n" + "\n".join(skipped))
    return None


@dataclass(frozen=True)
class Opened:
    """A checkpoint whose files are verified; its tensors are read when asked for. Later damage is not seen."""

    step: int
    state: dict[str, Any]
    path: Path
    skipped: tuple[str, ...]
    catalogue: Mapping[str, Described] = field(repr=False)

    def tensor(self, name: str) -> Tensor:
        """A whole tensor, on the CPU, whatever pieces it was saved in."""
        d = self.catalogue[name]
        whole = (0,) * len(d.shape), d.shape
        if len(d.pieces) == 1:
            return tensor_files.read_one(self.path / d.pieces[0].file, name)
        result = tensor_files.empty(d.shape, d.dtype, self.path / manifest.NAME)
        for p in d.pieces:
            copy_common(result, whole, tensor_files.read_one(self.path / p.file, name), p.box)
        return result

    def tensors(self, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
        """Names, without `prefix`, and whole tensors of all that begin with it, one in memory at a time."""
        for name in self.catalogue:
            if name.startswith(prefix):
                yield name.removeprefix(prefix), self.tensor(name)


def open_latest(folder: Path, prefix: str = "") -> Opened | None:
    """The newest checkpoint whose tensors that begin with `prefix` are good. None and errors like `load_latest`."""
    skipped: list[str] = []
    for path in folders.published(Path(folder)):
        try:
            content = folders.content(path)
            found = manifest.catalogue(content, path / manifest.NAME)
            catalogue = {n: d for n, d in found.items() if n.startswith(prefix)}
            for name in sorted({p.file for d in catalogue.values() for p in d.pieces}):
                folders.check_file(path / name, content["files"][name])
        except (CheckpointError, OSError) as e:
            skipped.append(_reason(e, path))
            continue
        return Opened(content["step"], content["state"], path, tuple(skipped), catalogue)
    if skipped:
        raise CheckpointError(f"{folder}: every checkpoint is damaged:\n" + "\n".join(skipped))
    return None


def _boxes(path: Path, catalogue: Mapping[str, Described], wanted: Wanted | None) -> dict[str, Box]:
    """The box of each tensor to be read."""
    asked = dict.fromkeys(catalogue) if wanted is None else wanted(catalogue)
    boxes: dict[str, Box] = {}
    for name, box in asked.items():
        if name not in catalogue:
            raise CheckpointError(f"{path}: holds no tensor {name}")
        shape = catalogue[name].shape
        boxes[name] = box if box is not None else ((0,) * len(shape), shape)
        if not is_inside(boxes[name], shape):
            raise CheckpointError(f"{path}: {name} is {list(shape)}; {boxes[name]} is not inside")
    return boxes


def _read(
    path: Path,
    entries: Mapping[str, Any],
    catalogue: Mapping[str, Described],
    boxes: Mapping[str, Box],
    share: tuple[int, int],
) -> dict[str, Tensor]:
    """The tensors of `boxes`, out of verified files only; at most one file is held beyond them."""
    result: dict[str, Tensor] = {}
    rank, ranks = share
    everything = len(boxes) == len(catalogue) and all(boxes[n][1] == d.shape for n, d in catalogue.items())
    for number, (file, entry) in enumerate(entries.items()):
        held = {n: p.box for n in entry["tensors"] if n in boxes for p in catalogue[n].pieces if p.file == file}
        held = {n: box for n, box in held.items() if box == boxes[n] or common(box, boxes[n]) is not None}
        if not (held or everything or (ranks > 1 and number % ranks == rank)):
            continue
        written, described = manifest.in_file(entry)
        tensors = tensor_files.read(path / file, written, described, held)
        while tensors:
            name, t = tensors.popitem()
            if held[name] == boxes[name]:
                result[name] = t
                continue
            if name not in result:
                result[name] = tensor_files.empty(boxes[name][1], catalogue[name].dtype, path / manifest.NAME)
            copy_common(result[name], boxes[name], t, held[name])
    for name in boxes.keys() - result.keys():  # without an element
        result[name] = tensor_files.empty(boxes[name][1], catalogue[name].dtype, path / manifest.NAME)
    return {name: result[name] for name in boxes}


def _reason(e: CheckpointError | OSError, path: Path) -> str:
    return folders.place(e, path) if isinstance(e, OSError) else str(e)
