"""Exact deduplication by 16-byte BLAKE2b digests of the text, in flat memory.

Digests are kept in sorted runs on disk that are merged like the digits of a binary counter (a log-structured merge tree
in its simplest form), memory-mapped and searched by bisection: 16 bytes of disk a distinct document, and memory for one
merge of the runs' pages, which the system may drop. Two different texts share a digest with probability n^2 / 2^129.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

DIGEST_BYTES = 16
_DIGEST = np.dtype("S16")  # compares as memcmp: the zero padding numpy ignores is the same on both sides


def digest(text: bytes) -> bytes:
    """What stands for a text among the texts seen: equal texts, equal digests."""
    return hashlib.blake2b(text, digest_size=DIGEST_BYTES).digest()


class Seen:
    """The set of digests met so far, in files of `folder`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for old in folder.glob("*.digests"):
            old.unlink()
        self._folder = folder
        self._runs: list[np.ndarray] = []
        self._made = 0

    def first_times(self, digests: list[bytes]) -> np.ndarray:
        """Boolean mask: True where a digest was never met before, here or in earlier calls."""
        batch = np.array(digests, _DIGEST)
        values, first = np.unique(batch, return_index=True)
        new = np.ones(len(values), bool)
        for run in self._runs:
            at = np.minimum(np.searchsorted(run, values), len(run) - 1)
            new &= run[at] != values
        mask = np.zeros(len(batch), bool)
        mask[first[new]] = True
        if new.any():
            self._add(values[new])
        return mask

    def _add(self, values: np.ndarray) -> None:
        while self._runs and len(self._runs[-1]) < 2 * len(values):
            values = np.sort(np.concatenate([self._runs.pop(), values]), kind="stable")
        path = self._folder / f"{self._made}.digests"
        self._made += 1
        values.tofile(path)
        self._runs.append(np.memmap(path, _DIGEST, "r"))
        path.unlink()  # the mapping keeps it alive, and nothing is left behind after a kill
