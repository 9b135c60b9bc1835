"""Bytes of a file as blocks of at most 1 MiB: plain, gzip, zstandard; memory stays flat whatever the file claims.

A truncated or corrupt archive gives everything that was decoded before the damage, then `Damaged`. A stream that
unpacks to more than 200 times its size (beyond the first 16 MiB) is taken for a bomb and ends the same way; text stays
below 100. Formats: RFC 1952 (several members may follow each other), RFC 8878. Not handled: archives of several files
(zip, tar).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

from foretell.data.records import Damaged
from foretell.errors import MissingExtra

BLOCK_BYTES = 1 << 20
_INPUT_BYTES = 1 << 16
_RATIO_LIMIT = 200
_RATIO_FREE_BYTES = 1 << 24
_ZSTD_WINDOW_BYTES = 1 << 27


def blocks(path: Path) -> Iterator[bytes]:
    """Decompressed blocks, by the file's extension. Raises Damaged after the last good one, OSError as usual."""
    suffix = path.suffix.lower()
    if suffix == ".gz":
        yield from _gzip(path)
    elif suffix == ".zst":
        yield from _zstandard(path)
    else:
        with path.open("rb") as f:
            while block := f.read(BLOCK_BYTES):
                yield block


def _check_ratio(read: int, written: int) -> None:
    if written > _RATIO_FREE_BYTES and written > _RATIO_LIMIT * read:
        raise Damaged(f"unpacks to more than {_RATIO_LIMIT} times its size ({written:,} from {read:,} bytes): a bomb?")


def _gzip(path: Path) -> Iterator[bytes]:
    read = written = 0
    with path.open("rb") as f:
        inflate = zlib.decompressobj(wbits=31)
        fresh = True  # between members
        pending = b""
        while True:
            if not pending:
                pending = f.read(_INPUT_BYTES)
                read += len(pending)
                if not pending:
                    break
            if fresh and written and not pending.strip(b"\0"):
                pending = b""  # zero padding after the last member, as gzip(1) allows
                continue
            try:
                block = inflate.decompress(pending, BLOCK_BYTES)
            except zlib.error as e:
                raise Damaged(f"not gzip, or damaged after {written:,} unpacked bytes: {e}") from None
            fresh = False
            written += len(block)
            if block:
                yield block
            _check_ratio(read, written)
            pending = inflate.unconsumed_tail
            if inflate.eof:
                pending = inflate.unused_data
                inflate = zlib.decompressobj(wbits=31)
                fresh = True
        if not fresh:
            raise Damaged(f"gzip ends early, after {written:,} unpacked bytes")


def _zstandard(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("reading .zst", "data") from None
    written = 0
    size = path.stat().st_size
    with path.open("rb") as f:
        unpack = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        with unpack.stream_reader(f, read_across_frames=True) as stream:
            while True:
                try:
                    block = stream.read(BLOCK_BYTES)
                except zstandard.ZstdError as e:
                    raise Damaged(f"not zstandard, or damaged after {written:,} unpacked bytes: {e}") from None
                if not block:
                    break
                written += len(block)
                yield block
                _check_ratio(size, written)
