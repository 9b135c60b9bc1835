"""log.jsonl: one JSON object a line, the only record of a run's course. Everything else is drawn from it.

Floats are written with `repr`, so they read back to the same bits. After a crash the log may be ahead of the checkpoint
that a resume starts from; `rewind` cuts it back, so that a resumed run's log equals an unbroken run's.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foretell.checkpoint import files


class Log:
    """Appends events to a run's log.jsonl. A reader that passes over a partial last line sees whole events only."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("a", encoding="utf-8")

    def write(self, **event: Any) -> None:
        self._file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Force the log to disk: done before a checkpoint is published, so that the log is never behind it."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The events of a log; a half-written last line is passed over."""
    if path.exists():
        with path.open(encoding="utf-8", errors="replace") as f:
            for line in f:
                try:
                    event = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if isinstance(event, dict):
                    yield event


def rewind(path: Path, step: int) -> None:
    """Drop every event after `step`."""
    kept = [e for e in read(path) if e.get("step", 0) <= step]
    files.write_atomic(path, "".join(json.dumps(e, ensure_ascii=False) + "\n" for e in kept).encode())
