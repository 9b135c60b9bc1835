"""Saving while the run goes on: a snapshot into host memory, then a thread that writes, verifies and publishes it."""

from __future__ import annotations

import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretell.checkpoint import manifest
from foretell.checkpoint import tensors as tensor_files
from foretell.checkpoint.commit import Save
from foretell.checkpoint.pieces import Piece

# How long a rank waits for another before it takes it for dead.
PATIENCE_SECONDS = 600.0
_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")


class Saver:
    """Saves the checkpoints of a run in `folder` and keeps the newest `keep` good ones. One for each rank.

    A save blocks for as long as its snapshot takes; the bytes of a snapshot stay in host memory and are used again.
    Of several ranks every one calls `save` with the same steps in the same order. session: a token equal on all ranks
    and new for each start of the run. After an error the ranks may be at odds about what was saved: end the run, or go
    on with new savers of a new session. Call `wait` before the process ends.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        *,
        rank: int = 0,
        ranks: int = 1,
        session: str = "",
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} is not one of {ranks}")
        if ranks > 1 and not _SESSION.fullmatch(session):
            raise ValueError(f"several ranks need a session of letters, digits, - and _ in common, not {session!r}")
        self._last = Save(Path(folder), keep, rank, ranks, session, 0, patience_seconds, 0, {}, {})
        self._host: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._done: deque[int] = deque()

    def save(self, step: int, tensors: Mapping[str, Tensor | Piece], state: dict[str, Any]) -> None:
        """Wait for the save before, take a snapshot, and write it in the background.

        tensors: a Tensor is whole and one rank's alone; of one that is cut each rank gives its Piece. state: rank 0's,
        plain JSON that reads back equal (ValueError otherwise). Raises CheckpointError when the save before failed,
        which ends that one and begins none, and at once for a tensor that the format cannot hold.
        """
        self.wait()
        job = self._last = replace(self._last, number=self._last.number + 1, step=step)
        try:
            kept = manifest.copied(state) if job.rank == 0 else {}
            job = replace(job, pieces=self._snapshot(_pieces(tensors)), state=kept)
        except Exception as e:
            if job.ranks > 1:
                job.run(failure=e)  # tells the others, and raises it
            raise
        self._thread = threading.Thread(
            target=self._run,
            args=(job,),
            name=f"checkpoint-{job.rank}",
            daemon=job.ranks > 1,  # one process ends after its save; of several one must not wait for a dead one
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the last save is published. Raises CheckpointError, once, when it failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def poll(self) -> int | None:
        """The step of a save that was published, each once, oldest first; None when there is none to tell.

        Raises CheckpointError, once, when the last save failed.
        """
        if self._thread is not None and not self._thread.is_alive():
            self.wait()
        return self._done.popleft() if self._done else None

    def _run(self, job: Save) -> None:
        try:
            job.run()
            self._done.append(job.step)
        except BaseException as e:  # handed over to whoever asks next
            self._error = e

    @torch.no_grad()
    def _snapshot(self, pieces: dict[str, Piece]) -> dict[str, Piece]:
        """Copies in host memory that is used again, because fresh memory costs more than the copy."""
        self._host = {name: t for name, t in self._host.items() if name in pieces}
        copies: dict[str, Piece] = {}
        for name, p in pieces.items():
            t, host = p.tensor, self._host.get(name)
            if host is None or host.shape != t.shape or host.dtype != t.dtype:
                host = self._host[name] = torch.empty(t.shape, dtype=t.dtype, pin_memory=t.is_cuda)
            host.copy_(t, non_blocking=t.is_cuda)
            copies[name] = Piece(host, p.offset, p.shape)
        if any(p.tensor.is_cuda for p in pieces.values()):
            torch.cuda.synchronize()
        return copies


def save(folder: Path, step: int, tensors: Mapping[str, Tensor | Piece], state: dict[str, Any], keep: int) -> Path:
    """Store one checkpoint of one process at once, without a snapshot. Returns its path. Errors as of `Saver`."""
    pieces = _pieces(tensors)
    return Save(Path(folder), keep, 0, 1, "", 1, 0.0, step, pieces, manifest.copied(state)).run()


def _pieces(tensors: Mapping[str, Tensor | Piece]) -> dict[str, Piece]:
    """What is to be stored of what was given. Raises CheckpointError for a tensor that the format cannot hold."""
    pieces = {}
    for name, given in tensors.items():
        p = given if isinstance(given, Piece) else Piece(given, (0,) * given.dim(), tuple(given.shape))
        tensor_files.check_storable(name, p.tensor)
        if p.tensor.numel() or 0 in p.shape:  # else a rank that got nothing of a tensor cut unevenly
            pieces[name] = p
    return pieces
