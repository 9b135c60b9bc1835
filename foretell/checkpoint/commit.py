"""One save of one rank: write, verify, and either all ranks' parts become a checkpoint by one rename or none does.

Ranks share only a file system. Rank 0 makes a partial folder whose name holds the run's session and the number of the
save, so that nothing of a killed attempt is taken for the present one. Each rank writes its tensor files there, forces
them to disk, reads them back, and publishes the description of its part by a rename inside that folder. When rank 0 has
every part and the pieces tile every tensor exactly once, it writes the one manifest and renames the folder: the commit.

A rank that fails takes its files back and leaves a note with the reason, which all others raise too. Where not even a
note can be written, it removes the whole partial folder, which says the same without the reason. Once a rank's part may
be there, its files are rank 0's: nobody else deletes them, so nothing is ever missing from what rank 0 commits, until
rank 0 itself says that it failed.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretell.checkpoint import files, manifest
from foretell.checkpoint import folder as folders
from foretell.checkpoint import tensors as tensor_files
from foretell.checkpoint.pieces import Piece
from foretell.errors import CheckpointError

NOTE = "failed.json"
_PART = re.compile(r"part-([0-9]{5,})\.json")
_FIRST_PAUSE_SECONDS = 0.005
_LONGEST_PAUSE_SECONDS = 0.5
_NOTE_BYTES_MAX = 1 << 16
_SILENT = "another rank failed and could not say why"


@dataclass(frozen=True)
class Note:
    """Which rank failed, as far as it could be read, and why."""

    rank: int | None
    reason: str


@dataclass(frozen=True)
class Save:
    """What one rank brings to a save. number: the how-manieth of the session, equal on all ranks."""

    folder: Path
    keep: int
    rank: int
    ranks: int
    session: str
    number: int
    patience_seconds: float
    step: int
    pieces: Mapping[str, Piece]
    state: dict[str, Any]

    def run(self, failure: Exception | None = None) -> Path:
        """Returns the published folder. Raises CheckpointError: nothing is saved, earlier checkpoints are whole.

        failure: what kept this rank from taking part; the others are told, and it is raised.
        """
        try:
            if self.rank == 0:
                path = self._lead(failure)
            else:
                path = self._follow(failure)
        except (OSError, CheckpointError) as e:
            why = folders.place(e, self.folder) if isinstance(e, OSError) else str(e)
            raise CheckpointError(f"{why}: step {self.step} is not saved; earlier checkpoints are whole") from e
        if self.rank == 0:
            try:
                folders.retain(self.folder, path, self.keep)
                folders.clear(self.folder, None)
            except OSError as e:
                where = folders.place(e, self.folder)
                raise CheckpointError(f"{where}: {path} is saved, but older ones cannot be deleted") from e
        return path

    # ------------------------------------------------------------------------------------------------------ rank 0

    def _lead(self, failure: Exception | None) -> Path:
        folders.make(self.folder)
        if self.ranks == 1:  # there is nobody to be told of a failure: before anything appears
            folders.clear(self.folder, None)
            folders.check_room(self.folder, self._bytes)
        path = folders.new_path(self.folder, self.step)
        partial = self.folder / f".{path.name}{self._tag}"
        files.make_folder(partial)
        try:
            if self.ranks > 1:  # a note of the save before may still be unread
                folders.clear(self.folder, f".{self.session}.")
            content = self._content(self._gathered(partial, self._written(partial, failure)), partial)
            files.write_file(partial / manifest.NAME, [manifest.render(content)])
            files.sync_folder(partial)
            manifest.read(partial / manifest.NAME)
            files.rename(partial, path)
        except Exception as e:
            cause = self._cause(partial, e)
            self._take_back(partial, cause)
            if cause is e:
                raise
            raise cause from e
        files.sync_folder(self.folder)
        return path

    def _gathered(self, partial: Path, own: dict[str, Any]) -> dict[str, Any]:
        """The entries of all ranks' files, as soon as all are there."""
        parts: dict[int, dict[str, Any]] = {0: own}
        for _ in self._polls(self.patience_seconds):
            names = files.names(partial)
            self._heed(partial)
            for name in names:
                match = _PART.fullmatch(name)
                if match and int(match[1]) not in parts:
                    parts[int(match[1])] = self._part(partial / name)
            if len(parts) == self.ranks:
                break
        else:
            missing = [str(r) for r in range(self.ranks) if r not in parts]
            raise CheckpointError(
                f"{partial}: after {self.patience_seconds:,.0f} s nothing came from {len(missing)} of {self.ranks} "
                f"ranks ({', '.join(missing[:20])}); are they alive, and do all ranks see this folder?"
            )
        for rank in range(1, self.ranks):
            files.unlink(partial / _part_name(rank))
        return {name: entry for rank in sorted(parts) for name, entry in parts[rank].items()}

    def _part(self, path: Path) -> dict[str, Any]:
        part = manifest.read(path)
        if part["step"] != self.step:
            raise CheckpointError(f"{path}: this rank saves step {part['step']}, rank 0 step {self.step}")
        entries: dict[str, Any] = part["files"]
        return entries

    def _content(self, entries: dict[str, Any], partial: Path) -> dict[str, Any]:
        content = {
            "format_version": manifest.FORMAT_VERSION,
            "step": self.step,
            "state": self.state,
            "files": entries,
        }
        manifest.catalogue(content, partial)
        return content

    # ------------------------------------------------------------------------------------------------- other ranks

    def _follow(self, failure: Exception | None) -> Path:
        partial = self._found()
        path = self.folder / partial.name.removeprefix(".").removesuffix(self._tag)
        delivered = False
        try:
            entries = self._written(partial, failure)
            content = {"format_version": manifest.FORMAT_VERSION, "step": self.step, "state": {}, "files": entries}
            name = _part_name(self.rank)
            files.write_file(partial / f".{name}", [manifest.render(content)])
            files.sync_folder(partial)
            delivered = True  # from here on it may be, whatever is raised, and rank 0 may rename the folder
            files.rename(partial / f".{name}", partial / name)
        except Exception as e:
            cause = self._cause(partial, e)
            self._take_back(partial, cause, delivered)
            if cause is e:
                raise
            raise cause from e
        for _ in self._polls(2 * self.patience_seconds):  # so that rank 0 is the first to give up, and says why
            if files.exists(partial):
                note = self._note(partial)
                if note is not None and note.rank == 0:  # which publishes nothing any more
                    self._take_back(partial, CheckpointError(note.reason))
                if note is not None:
                    raise CheckpointError(note.reason)
            elif files.exists(path):
                return path
            else:
                raise CheckpointError(f"{partial}: {_SILENT}")
        raise CheckpointError(f"{partial}: after {2 * self.patience_seconds:,.0f} s not published; is rank 0 alive?")

    def _found(self) -> Path:
        """The partial folder that rank 0 makes."""
        for _ in self._polls(self.patience_seconds):
            with contextlib.suppress(FileNotFoundError):
                for name in files.names(self.folder):
                    if name.endswith(self._tag):
                        return self.folder / name
        raise CheckpointError(
            f"{self.folder}: after {self.patience_seconds:,.0f} s rank 0 has not begun; is it alive, and do all ranks "
            "see this folder?"
        )

    # --------------------------------------------------------------------------------------------------- all ranks

    @property
    def _tag(self) -> str:
        """How the name of this save's partial folder ends."""
        return f".{self.session}.{self.number}{files.PARTIAL}" if self.ranks > 1 else files.PARTIAL

    @property
    def _bytes(self) -> int:
        return sum(p.tensor.nbytes for p in self.pieces.values())

    def _written(self, partial: Path, failure: Exception | None) -> dict[str, Any]:
        """Write this rank's files, then read them back; returns their entries."""
        if failure is not None:
            raise failure
        if self.ranks > 1:
            folders.check_room(self.folder, self._bytes)
        entries: dict[str, Any] = {}
        for number, shard in enumerate(self._shards(), start=1):
            self._heed(partial)
            name = f"tensors-{self.rank:05d}-{number:05d}.safetensors"
            written = tensor_files.write(partial / name, {n: p.tensor for n, p in shard.items()})
            entries[name] = manifest.file_entry(written, shard)
        for name, entry in entries.items():
            self._heed(partial)
            folders.check_file(partial / name, entry)
        return entries

    def _shards(self) -> Iterator[dict[str, Piece]]:
        shard: dict[str, Piece] = {}
        size = 0
        for name, p in self.pieces.items():
            if shard and size + p.tensor.nbytes > folders.SHARD_BYTES:
                yield shard
                shard, size = {}, 0
            shard[name] = p
            size += p.tensor.nbytes
        if shard:
            yield shard

    def _polls(self, patience_seconds: float) -> Iterator[None]:
        """Comes again and again, with pauses between, until the patience is over."""
        pause, waited = _FIRST_PAUSE_SECONDS, 0.0
        yield
        while waited < patience_seconds:
            files.pause(pause)
            waited += pause
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
            yield

    def _heed(self, partial: Path) -> None:
        """Raises what another rank's note says."""
        note = self._note(partial)
        if note is not None:
            raise CheckpointError(note.reason)

    def _note(self, partial: Path) -> Note | None:
        if self.ranks == 1 or not files.exists(partial / NOTE):
            return None
        try:
            content = json.loads((partial / NOTE).read_bytes()[:_NOTE_BYTES_MAX])
            return Note(int(content["rank"]), str(content["reason"]))
        except (OSError, ValueError, KeyError, TypeError):
            return Note(None, "another rank failed and left a note that cannot be read")

    def _cause(self, partial: Path, e: Exception) -> Exception:
        """Why it failed here: because another rank did, if that one said so or took the folder away."""
        note = self._note(partial)
        if note is not None:
            return CheckpointError(note.reason)
        return e if self.ranks == 1 or files.exists(partial) else CheckpointError(f"{partial}: {_SILENT}")

    def _take_back(self, partial: Path, e: Exception, delivered: bool = False) -> None:
        """Delete what a failed save wrote and leave the reason to the other ranks, as far as the disk lets us."""
        if self.ranks == 1:
            with contextlib.suppress(OSError):
                files.remove(partial)
            return
        own = (f"tensors-{self.rank:05d}-", f".{_part_name(self.rank)}")
        try:
            for name in files.names(partial):
                if name != NOTE and not delivered and (self.rank == 0 or name.startswith(own)):
                    with contextlib.suppress(OSError):
                        files.remove(partial / name)
            if not files.exists(partial / NOTE):
                text = folders.place(e, partial) if isinstance(e, OSError) else str(e)
                note = {"rank": self.rank, "reason": f"rank {self.rank}: {text}"}
                files.write_atomic(partial / NOTE, json.dumps(note).encode())
        except OSError:
            if not delivered:
                with contextlib.suppress(OSError):
                    files.remove(partial)


def _part_name(rank: int) -> str:
    return f"part-{rank:05d}.json"
