"""How often words stand near each other: X_ij, the sum of 1 / distance over all places within a window.

X_ij = sum over ordered positions p, q of one document, 0 < |p - q| <= window, word p = i, word q = j, of 1 / |p - q|
(Pennington et al., 2014). X is symmetric, so a pair is kept once, i <= j.

A pair is one number, multiplied by a random odd one modulo a power of two: that can be undone, and sorting by it both
brings equal pairs together and leaves the pairs in an order that has nothing to do with the words. So the file that
comes out needs no shuffling before training. Sums are formed per block, merged as they come, and put on disk when more
than `limit` pairs wait; the runs on disk are merged by ranges of that number. Memory is bounded by the limit, not the
text.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from foretell.errors import ConfigError

PAIR = np.dtype([("i", "<i4"), ("j", "<i4"), ("x", "<f4")])
LONGEST_WINDOW = 255
_LIMIT = 1 << 24  # pairs that wait in memory, 16 bytes each
Run = tuple[np.ndarray, np.ndarray]  # sorted numbers of pairs, their sums


def count(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], size: int, window: int, work: Path, seed: int, limit: int = _LIMIT
) -> np.ndarray:
    """All pairs with i <= j and X_ij > 0, each once, in random order: a memory-mapped array of `PAIR`, in `work`.

    blocks: (ids, number of the document of each), both (n,); size: words; window: at most LONGEST_WINDOW.
    """
    scramble = Scramble(size, seed)
    waiting: list[Run] = []
    spilled: list[Run] = []
    for ids, document in blocks:
        waiting.append(_of_block(ids, document, window, scramble))
        if sum(len(k) for k, _ in waiting) > limit:
            waiting = [_merged(waiting)]
            if len(waiting[0][0]) > limit // 2:
                spilled.append(_on_disk(waiting.pop(), work, len(spilled)))
    with (work / "pairs").open("wb") as file:
        for keys, sums in _ranges([*spilled, *waiting], scramble, limit):
            pairs = np.empty(len(keys), PAIR)
            pairs["i"], pairs["j"] = scramble.pairs(keys)
            pairs["x"] = sums
            pairs.tofile(file)
    if not (work / "pairs").stat().st_size:
        return np.empty(0, PAIR)
    return np.memmap(work / "pairs", PAIR, "r")


class Scramble:
    """A one-to-one map from pairs (i, j) of `size` words to numbers below 2^bits, without order."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.bits = size, max(8, (size * size - 1).bit_length())
        if self.bits > 56:
            raise ConfigError(f"{size:,} words are too many to count pairs of; raise --min-count (at most 2^28)")
        odd = int(np.random.default_rng(seed).integers(1 << (self.bits - 2), 1 << (self.bits - 1))) * 2 + 1
        self._factor, self._back = np.uint64(odd), np.uint64(pow(odd, -1, 1 << self.bits))
        self._mask = np.uint64((1 << self.bits) - 1)

    def keys(self, i: np.ndarray, j: np.ndarray) -> np.ndarray:
        """Of pairs in either order, (n,) uint64."""
        low, high = np.minimum(i, j).astype(np.uint64), np.maximum(i, j).astype(np.uint64)
        return ((low * np.uint64(self.size) + high) * self._factor) & self._mask

    def pairs(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """i and j of each key, i <= j."""
        plain = (keys * self._back) & self._mask
        return plain // np.uint64(self.size), plain % np.uint64(self.size)


def _of_block(ids: np.ndarray, document: np.ndarray, window: int, scramble: Scramble) -> Run:
    """The sums of one block. The distance rides in the lowest eight bits through one plain sort."""
    parts = [np.zeros(0, np.uint64)]
    for d in range(1, min(window, len(ids) - 1) + 1):
        inside = document[d:] == document[:-d]
        keys = scramble.keys(ids[d:][inside], ids[:-d][inside])
        parts.append((keys << np.uint64(8)) | np.uint64(d))
    together = np.concatenate(parts)
    together.sort()
    distance = (together & np.uint64(255)).astype(np.float64)
    return _summed(together >> np.uint64(8), 1.0 / distance, scramble)


def _summed(keys: np.ndarray, values: np.ndarray, scramble: Scramble | None = None) -> Run:
    """Sorted keys, each once, with the sum of its values; a word beside itself is met from both sides."""
    if not len(keys):
        return keys, values
    starts = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    keys, sums = keys[starts], np.add.reduceat(values, starts)
    if scramble is not None:
        i, j = scramble.pairs(keys)
        sums = np.where(i == j, 2.0 * sums, sums)
    return keys, sums


def _merged(runs: list[Run]) -> Run:
    if len(runs) == 1:
        return runs[0]
    keys, values = np.concatenate([k for k, _ in runs]), np.concatenate([v for _, v in runs])
    order = np.argsort(keys, kind="stable")
    return _summed(keys[order], values[order])


def _on_disk(run: Run, work: Path, n: int) -> Run:
    paths = [work / f"run-{n}.{what}" for what in ("keys", "sums")]
    for path, array in zip(paths, run, strict=True):
        array.tofile(path)
    return np.memmap(paths[0], np.uint64, "r"), np.memmap(paths[1], np.float64, "r")


def _ranges(runs: list[Run], scramble: Scramble, limit: int) -> Iterator[Run]:
    """All runs merged, a range of keys at a time: keys are spread evenly, so ranges are about equally full."""
    total = sum(len(k) for k, _ in runs)
    pieces = -(-total // max(1, limit // 2)) if len(runs) > 1 else 1
    edges = [(n << scramble.bits) // pieces for n in range(1, pieces)] if pieces else []
    cuts = [[0, *np.searchsorted(k, np.array(edges, np.uint64)).tolist(), len(k)] for k, _ in runs]
    for n in range(pieces):
        inside = [(k[c[n] : c[n + 1]], v[c[n] : c[n + 1]]) for (k, v), c in zip(runs, cuts, strict=True)]
        if inside:
            yield _merged(inside)
