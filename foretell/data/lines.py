"""Cutting a byte stream at line ends, within fixed memory, without letting one bad line harm its neighbours.

A `Run` is a stretch of whole lines (about 1 MiB), decoded; or one line that could not be decoded, with the reason.
Lines end at LF in UTF-8 and in GB18030, whose trailing bytes never are 0x0A. A line beyond the bound is either cut
(prose) or rejected (records), and only it.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass

from foretell.data.encodings import Decoder

RECORD_BYTES = 1 << 24  # longest line of a record format
_PROSE_BYTES = 1 << 20  # longest line of prose before it is cut


@dataclass(frozen=True, slots=True)
class Run:
    """`data`: whole lines at byte `offset`. `reason` instead of data: a line too long to be held."""

    data: bytes
    offset: int
    reason: str = ""


def byte_runs(blocks: Iterator[bytes], *, longest: int) -> Iterator[Run]:
    """Whole lines, some blocks at a time. A line longer than `longest` bytes gives one Run with a reason."""
    pending, offset = b"", 0
    skipped = 0  # bytes of an overlong line already given up
    for block in blocks:
        if skipped:
            end = block.find(b"\n") + 1
            skipped += end or len(block)
            if not end:
                continue
            yield Run(b"", offset, f"line of {skipped:,} bytes is longer than {longest:,}")
            offset, skipped, block = offset + skipped, 0, block[end:]
        end = block.rfind(b"\n") + 1
        if end:
            data = pending + block[:end]
            pending = b""
            if len(data) > longest:
                yield from _split_overlong(data, offset, longest)
            else:
                yield Run(data, offset)
            offset += len(data)
        pending += block[end:]
        if len(pending) > longest:
            skipped, pending = len(pending), b""
    if skipped:
        yield Run(b"", offset, f"line of {skipped:,} bytes is longer than {longest:,}")
    elif pending:
        yield Run(pending, offset)


def _split_overlong(data: bytes, offset: int, longest: int) -> Iterator[Run]:
    """The same for a stretch in which some line may be too long."""
    for line in _keep_lf(data):
        too_long = len(line) > longest
        yield Run(
            b"" if too_long else line, offset, f"line of {len(line):,} bytes is longer than {longest:,}" * too_long
        )
        offset += len(line)


def _keep_lf(data: bytes) -> Iterator[bytes]:
    """Lines by LF alone, ends kept."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end


def prose_runs(blocks: Iterator[bytes], decoder: Decoder) -> Iterator[Run]:
    """Like `byte_runs`, but a line beyond 1 MiB is cut between two characters instead of being given up."""
    pending, offset = b"", 0
    for block in blocks:
        pending += block
        end = pending.rfind(b"\n") + 1
        if not end and len(pending) >= _PROSE_BYTES:
            decoder.choose(pending)
            end = _character_end(pending, decoder.encoding or "utf-8")
        if end:
            yield Run(pending[:end], offset)
            pending, offset = pending[end:], offset + end
    if pending:
        yield Run(pending, offset)


def _character_end(data: bytes, encoding: str) -> int:
    """Length of the longest prefix of whole characters that does not end inside CRLF; all of it when it is damaged."""
    incremental = codecs.getincrementaldecoder(encoding)()
    try:
        incremental.decode(data)
    except UnicodeDecodeError:
        return len(data)
    end = len(data) - len(incremental.getstate()[0])
    return end - 1 if data[end - 1 : end] == b"\r" and end > 1 else end


def decoded(run: Run, decoder: Decoder) -> Iterator[tuple[int, str, str]]:
    """(offset, text, reason): the run's text in as few stretches as its bad lines allow; text or reason is empty."""
    if run.reason:
        yield run.offset, "", run.reason
        return
    decoder.choose(run.data)
    try:
        yield run.offset, decoder.decode(run.data), ""
        return
    except ValueError:
        pass
    good, start, offset = [], run.offset, run.offset
    for line in _keep_lf(run.data):
        try:
            good.append(decoder.decode(line))
        except ValueError as e:
            if good:
                yield start, "".join(good), ""
            yield offset, "", str(e)
            good, start = [], offset + len(line)
        offset += len(line)
    if good:
        yield start, "".join(good), ""


def decoded_lines(run: Run, decoder: Decoder) -> Iterator[tuple[int, str, str]]:
    """(offset, line, reason) for every line of the run, ends kept; a bad line comes with the reason and its remains."""
    if run.reason:
        yield run.offset, "", run.reason
        return
    decoder.choose(run.data)
    offset = run.offset
    for line in _keep_lf(run.data):
        try:
            yield offset, decoder.decode(line), ""
        except ValueError as e:
            yield offset, decoder.salvaged(line), str(e)
        offset += len(line)
