"""Tasks shared out among processes that have nothing in common but a folder, on one machine or many.

A task is claimed by creating a file that must not exist yet. While it is at work its holder touches the file; a claim
that nobody has touched for `STALE_SECONDS`, or whose process is gone from this machine, is removed and free again.
Ages are told by the file system's own clock, from a file touched at that moment: the clocks of machines need not agree.
What a task gives appears under its name by a rename, and the same inputs give the same bytes. So it does no harm when,
after a long pause of a machine, two hold the same claim: both give the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from foretell import runtime

STALE_SECONDS = 30.0
_TOUCH_SECONDS = 2.0


class Claims:
    """The claims in one folder, as seen by one process. `done`: bytes that the holder says it has done of a task."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._host, self._own = socket.gethostname(), f"clock-{secrets.token_hex(8)}"

    @contextmanager
    def held(self, name: str) -> Iterator[Held | None]:
        """Claim `name` while entered; None where another holds it, or all is over and the folder gone."""
        path = self._folder / name
        content = {"host": self._host, "pid": os.getpid(), "done": 0}
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        except (FileExistsError, FileNotFoundError):
            yield None
            return
        with os.fdopen(descriptor, "w") as f:
            json.dump(content, f)
        try:
            with Held(path, content) as held:
                yield held
        finally:
            path.unlink(missing_ok=True)

    def free_the_lost(self) -> None:
        """Remove claims whose holders are gone or silent."""
        for name, (age, content) in self.all().items():
            gone = content.get("host") == self._host and not runtime.is_alive(int(content.get("pid", 0)))
            if gone or age > STALE_SECONDS:
                aside = self._folder / f"{self._own}-lost"
                # By a rename, so that of several that judge so only one removes it.
                with contextlib.suppress(FileNotFoundError):
                    (self._folder / name).rename(aside)
                    aside.unlink()

    def all(self) -> dict[str, tuple[float, dict[str, Any]]]:
        """By name: the seconds since a claim was touched, and what its holder wrote."""
        clock = self._folder / self._own
        try:
            clock.touch()
            now = clock.stat().st_mtime
            clock.unlink()
            names = [n for n in os.listdir(self._folder) if not n.startswith(("clock-", "."))]
        except FileNotFoundError:
            return {}
        found = {}
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                age = now - (self._folder / name).stat().st_mtime
                try:
                    found[name] = (age, json.loads((self._folder / name).read_text()))
                except ValueError:  # claimed at this moment
                    found[name] = (age, {})
        return found


class Held:
    """A claim of this process: touched while entered, with what `done` was set to."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.done = 0
        self._path, self._content = path, content
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._touch, name=f"claim {path.name}", daemon=True)

    def note(self, done: int) -> None:
        """So many bytes of the task are done."""
        self.done = done

    def __enter__(self) -> Held:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        self._thread.join()

    def _touch(self) -> None:
        while not self._over.wait(_TOUCH_SECONDS / 4 if self.done != self._content["done"] else _TOUCH_SECONDS):
            self._content["done"] = self.done
            partial = _beside(self._path)
            with contextlib.suppress(FileNotFoundError):
                partial.write_text(json.dumps(self._content))
                if self._path.exists():  # not where it was taken for lost
                    partial.rename(self._path)
                else:
                    partial.unlink()


@contextmanager
def appearing(path: Path) -> Iterator[IO[bytes]]:
    """A file that appears under its name by a rename, whole and forced to disk, or not at all."""
    partial = _beside(path)
    try:
        with partial.open("wb") as f:
            yield f
            f.flush()
            os.fsync(f.fileno())
        partial.rename(path)
    finally:
        partial.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    """A name that no other process uses, on any machine."""
    return path.with_name(f".{path.name}-{secrets.token_hex(8)}")
