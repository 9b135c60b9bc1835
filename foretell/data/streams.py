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
from typing import Any

from foretell.data.records import Damaged
from foretell.errors import MissingExtra

BLOCK_BYTES = 1 << 20
_INPUT_BYTES = 1 << 16
_RATIO_LIMIT = 200
_RATIO_FREE_BYTES = 1 << 24
_ZSTD_WINDOW_BYTES = 1 << 27
_ZSTD_INPUT_BYTES = 1 << 10


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
            before = inflate.copy()
            try:
                block = inflate.decompress(pending, BLOCK_BYTES)
            except zlib.error as e:
                rest = _salvaged(before, pending)
                written += len(rest)
                if rest:
                    yield rest
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


def _salvaged(inflate: Any, data: bytes) -> bytes:
    """What a damaged stretch gives before the damage: zlib returns nothing of a call that fails, so byte by byte."""
    good = bytearray()
    try:
        for n in range(len(data)):
            good += inflate.decompress(data[n : n + 1], BLOCK_BYTES)
            if len(good) >= BLOCK_BYTES:
                break
    except zlib.error:
        pass
    return bytes(good)


def _zstandard(path: Path) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError:
        raise MissingExtra("reading .zst", "data") from None
    read = written = 0
    gathered: list[bytes] = []
    unpack = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
    frame: Any = None
    with path.open("rb") as f:
        # 1 KiB at a time: the library has no bound on what one call gives back, and 1 KiB cannot give more than 32 MiB.
        while data := f.read(_ZSTD_INPUT_BYTES):
            read += len(data)
            try:
                while data:
                    frame = frame or unpack.decompressobj()
                    gathered.append(frame.decompress(data))
                    written += len(gathered[-1])
                    data, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
            except zstandard.ZstdError as e:
                yield from gathered
                raise Damaged(f"not zstandard, or damaged after {written:,} unpacked bytes: {e}") from None
            if sum(map(len, gathered)) >= _INPUT_BYTES:
                yield b"".join(gathered)
                gathered = []
            _check_ratio(read, written)
    yield b"".join(gathered)
    if frame is not None:
        raise Damaged(f"zstandard ends early, after {written:,} unpacked bytes")
