"""The file layer: the few operations through which everything that must survive a crash is written and read back.

Each operation is one system call, so that tests can stop after any of them, fail any of them, and drop what was not yet
forced to disk. Callers use `files.write(...)`, never a name imported from here, so that a test can stand in for it.

What a power cut may undo: data of a file until `sync`, and names in a folder until `sync_folder` (Pillai et al., 2014,
"All File Systems Are Not Created Equal"). Not handled: two processes that write the same path at the same time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from collections.abc import Iterable
from pathlib import Path

# Names that only unfinished work carries; whoever finds one may delete it.
PARTIAL = ".partial"
_CHUNK_BYTES = 1 << 20
_NO_FOLDER_SYNC = {errno.EINVAL, errno.ENOTSUP}


def create(path: Path) -> int:
    """Open a new or emptied file for writing; returns its descriptor."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)


def write(fd: int, data: memoryview) -> int:
    """Write some of `data`; returns how many bytes, which may be fewer than asked."""
    return os.write(fd, data)


def sync(fd: int) -> None:
    """Force a file's data to disk."""
    full = getattr(fcntl, "F_FULLFSYNC", None)  # macOS, where fsync alone stops at the drive's cache
    if full is None:
        os.fsync(fd)
    else:
        fcntl.fcntl(fd, full)


def close(fd: int) -> None:
    """Close a descriptor."""
    os.close(fd)


def open_existing(path: Path) -> int:
    """Open a regular file for reading. Raises OSError for anything else: a pipe would wait for ever."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return fd


def size_bytes(fd: int) -> int:
    """The size of an open file."""
    return os.fstat(fd).st_size


def read_into(fd: int, buffer: memoryview) -> int:
    """Read some bytes into `buffer`; returns how many, 0 at the end."""
    return os.readv(fd, [buffer])


def seek(fd: int, offset: int) -> None:
    """Let the next read begin `offset` bytes behind the start."""
    os.lseek(fd, offset, os.SEEK_SET)


def forget_cached(fd: int) -> None:
    """Let the next read come from the disk instead of memory, where the system can be asked that."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def rename(old: Path, new: Path) -> None:
    """Rename within one file system: the old name or the new one, never neither."""
    os.rename(old, new)


def make_folder(path: Path) -> None:
    """Make one folder; its parent must exist."""
    os.mkdir(path)


def unlink(path: Path) -> None:
    """Remove a file."""
    os.unlink(path)


def remove_folder(path: Path) -> None:
    """Remove an empty folder."""
    os.rmdir(path)


def sync_folder(path: Path) -> None:
    """Force the names in a folder to disk."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    except OSError as e:
        if e.errno not in _NO_FOLDER_SYNC:  # some network file systems know no such thing
            raise


def names(path: Path) -> list[str]:
    """The names in a folder, sorted."""
    return sorted(os.listdir(path))


def exists(path: Path) -> bool:
    """Whether a name is there, be it a link to nothing."""
    return os.path.lexists(path)


def pause(seconds: float) -> None:
    """Wait for another process."""
    time.sleep(seconds)


def free_bytes(path: Path) -> int:
    """Bytes an ordinary user may still write to the file system of `path`."""
    s = os.statvfs(path)
    return s.f_bavail * s.f_frsize


def write_all(fd: int, data: memoryview) -> None:
    """Write all of `data`, in as many calls as it takes."""
    while data.nbytes:
        written = write(fd, data[:_CHUNK_BYTES])
        if written <= 0:
            raise OSError(errno.EIO, "the file system accepts no more bytes")
        data = data[written:]


def read_exactly(fd: int, buffer: memoryview) -> None:
    """Fill `buffer`. Raises EOFError when the file ends before."""
    while buffer.nbytes:
        got = read_into(fd, buffer[:_CHUNK_BYTES])
        if got <= 0:
            raise EOFError(f"the file ends {buffer.nbytes:,} bytes early")
        buffer = buffer[got:]


def write_file(path: Path, parts: Iterable[memoryview | bytes]) -> None:
    """Write a file and force it to disk. It appears under `path` from the start: use it inside a partial folder."""
    fd = create(path)
    try:
        for part in parts:
            write_all(fd, memoryview(part))
        sync(fd)
    finally:
        close(fd)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace the file at `path`: after a crash at any moment it holds the old bytes or the new ones."""
    path = Path(path)
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        write_file(partial, [data])
        rename(partial, path)
    except OSError:
        remove(partial)
        raise
    sync_folder(path.parent)


def remove(path: Path) -> None:
    """Delete a file, or a folder of files, if it is there; another process may delete it at the same time."""
    if path.is_dir() and not path.is_symlink():
        with contextlib.suppress(FileNotFoundError):
            for name in names(path):
                remove(path / name)
            remove_folder(path)
    elif exists(path):
        with contextlib.suppress(FileNotFoundError):
            unlink(path)
