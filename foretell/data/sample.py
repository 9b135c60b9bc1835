"""A bounded random sample of the text, drawn in one pass, the same for the same text.

Documents are cut into chunks of at most 64 KiB; each chunk's priority is a hash of its document's digest and its
number, and the chunks of lowest priority are kept (bottom-k sampling, so every byte is as likely as any other). The
tokenizer is trained on those that fall into the training split, and a part of them gives the text's xz bits per byte.
"""

from __future__ import annotations

import hashlib
import heapq
from dataclasses import dataclass

from foretell.data.intake import Text

_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """`text.data` are the chunk's bytes; `start` is the place of its first byte in all text."""

    start: int
    text: Text


class Sample:
    """At most about `limit` bytes of all that is added."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._size = 0
        self._heap: list[tuple[int, int, Text]] = []  # (-priority, -start, text): the root is the one to give up

    def add(self, text: Text, start: int) -> None:
        if len(text.data) <= _CHUNK_BYTES:
            self._offer(int.from_bytes(text.digest[8:], "big"), start, text)
            return
        for n, (low, high) in enumerate(_cuts(text.data)):
            key = hashlib.blake2b(n.to_bytes(8, "little"), key=text.digest, digest_size=8).digest()
            chunk = Text(text.data[low:high], text.digest, text.source)
            self._offer(int.from_bytes(key, "big"), start + low, chunk)

    def _offer(self, priority: int, start: int, text: Text) -> None:
        if self._size >= self._limit and (-priority, -start) <= self._heap[0][:2]:
            return
        heapq.heappush(self._heap, (-priority, -start, text))
        self._size += len(text.data)
        while self._size - len(self._heap[0][2].data) >= self._limit:
            self._size -= len(heapq.heappop(self._heap)[2].data)

    def chunks(self) -> list[Chunk]:
        """In order of priority: any prefix is itself a sample."""
        return [Chunk(-start, text) for _, start, text in sorted(self._heap, reverse=True)]


def _cuts(data: bytes) -> list[tuple[int, int]]:
    """Chunks that begin at a character, and at a line where one begins in the last quarter."""
    cuts, start = [], 0
    while len(data) - start > _CHUNK_BYTES:
        end = data.rfind(b"\n", start + _CHUNK_BYTES * 3 // 4, start + _CHUNK_BYTES) + 1
        if not end:
            end = start + _CHUNK_BYTES
            while data[end] & 0xC0 == 0x80:
                end -= 1
        cuts.append((start, end))
        start = end
    return [*cuts, (start, len(data))]
