"""A folder of model files appears whole: built beside its place, forced to disk, put there by one rename.

Where the folder exists already, Linux exchanges the two names in one step (renameat2), so that at every moment one
whole folder stands there. Elsewhere the old one steps aside first; should the machine stop between the two renames, it
is still there under `.NAME.old`. Not handled: two processes that write the same folder at the same time.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@contextlib.contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """Gives an empty folder to fill; puts it at `folder` when the block ends well, removes it when it does not."""
    folder = Path(os.path.abspath(folder))
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial, old = (folder.with_name(f".{folder.name}.{what}") for what in ("partial", "old"))
    shutil.rmtree(partial, ignore_errors=True)  # left behind by a process that was killed
    partial.mkdir()
    try:
        yield partial
        for path in [*partial.iterdir(), partial]:
            _sync(path)
        _publish(partial, folder, old)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    _sync(folder.parent)
    for left in (partial, old):
        shutil.rmtree(left, ignore_errors=True)


def _publish(partial: Path, folder: Path, old: Path) -> None:
    if not folder.exists():
        os.rename(partial, folder)
    elif not _exchanged(partial, folder):
        shutil.rmtree(old, ignore_errors=True)
        os.rename(folder, old)
        try:
            os.rename(partial, folder)
        except OSError:
            os.rename(old, folder)
            raise


def _exchanged(a: Path, b: Path) -> bool:
    """Exchange two names in one step; False where the system cannot."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return call(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE) == 0


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    except OSError:  # some file systems cannot sync a folder
        if not path.is_dir():
            raise
    finally:
        os.close(fd)
