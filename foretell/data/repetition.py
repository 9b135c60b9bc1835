"""How much of a text repeats itself: the numbers behind Gopher's repetition rules (Rae et al. 2021, section A.1.1).

Tokens are words or characters, whatever the caller counts by. An n-gram that occurs twice begins and ends with an
(n-1)-gram that does, so each length looks only at the places that were left by the one before: most texts have few.
"""

from __future__ import annotations

import numpy as np

TOP = (2, 3, 4)
REPEATED = (5, 6, 7, 8, 9, 10)
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


def repeats(parts: list[str]) -> tuple[float, float]:
    """Of lines or paragraphs: the share that stood there before, and the share of all characters that is in them."""
    seen: set[str] = set()
    count = size = 0
    for part in parts:
        if part in seen:
            count += 1
            size += len(part)
        seen.add(part)
    return (count / len(parts), size / max(1, sum(map(len, parts)))) if count else (0.0, 0.0)


def ngram_shares(tokens: np.ndarray, sizes: np.ndarray) -> dict[int, float]:
    """Shares of the text's characters, by n: for n in TOP, of those in the most frequent n-gram, if it occurs twice;
    for n in REPEATED, of those in an n-gram that stood there before, however many of them overlap.

    tokens: (T,) whole numbers that are equal where the tokens are; sizes: (T,) characters of each.
    """
    shares = dict.fromkeys((*TOP, *REPEATED), 0.0)
    numbers = tokens.astype(np.uint64)
    ends = np.concatenate([[0], np.cumsum(sizes)])
    total = max(1, int(ends[-1]))
    at, code = np.arange(len(numbers)), numbers
    for n in range(2, REPEATED[-1] + 1):
        inside = at <= len(numbers) - n
        at, code = at[inside], code[inside]
        code = code * _FACTOR + numbers[at + (n - 1)]
        order = code.argsort(kind="stable")  # of equal n-grams the first in the text comes first
        ordered = code[order]
        same = ordered[1:] == ordered[:-1]
        if not same.any():
            break
        before, later = order[:-1][same], order[1:][same]
        if n in TOP:
            first, count = _longest_run(same)
            start = at[order[first]]
            shares[n] = min(1.0, float(count * (ends[start + n] - ends[start]) / total))
        if n in REPEATED:
            shares[n] = _covered(at[later], n, sizes) / total
        shared = np.zeros(len(at), bool)
        shared[before] = shared[later] = True
        at, code = at[shared], code[shared]
    return shares


def _longest_run(same: np.ndarray) -> tuple[int, int]:
    """Where the longest row of equals begins, and how many stand in it. same: whether each equals the next."""
    breaks = np.concatenate([[-1], np.flatnonzero(~same), [len(same)]])
    lengths = breaks[1:] - breaks[:-1]
    longest = int(lengths.argmax())
    return int(breaks[longest]) + 1, int(lengths[longest])


def _covered(starts: np.ndarray, n: int, sizes: np.ndarray) -> int:
    """Characters of the tokens that lie in one of the n-grams."""
    inside = np.zeros(len(sizes), bool)
    inside[(starts[:, None] + np.arange(n)).ravel()] = True
    return int(sizes[inside].sum())


def word_tokens(words: list[str]) -> np.ndarray:
    """(T,) numbers: equal words, equal numbers."""
    number = dict(zip(words, range(len(words)), strict=True))
    return np.fromiter(map(number.__getitem__, words), np.int64, len(words))
