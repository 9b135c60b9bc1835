"""Rows of conversations in which the answers alone are asked for, and rows of preferences.

Conversations are packed whole, several into one row, each seeing only itself; one that is longer than a row keeps its
beginning, and one whose answers all lie behind that is left out. Which stand together is a function of their lengths
(best fit, the longest first); an epoch takes each row once, in an order of its own.

Of preferences row 2n is the chosen one of a pair and row 2n + 1 the rejected one, each by itself.
"""

from __future__ import annotations

import bisect
from typing import NamedTuple

import numpy as np

from foretell.data import loader
from foretell.data.conversations import ANSWER, SECOND
from foretell.data.shards import Data
from foretell.errors import DataError

UNSCORED = -100
# The layouts that were last asked for: they depend on nothing but the data.
_known: dict[tuple[str, str, str, int], list[list[tuple[int, int]]]] = {}


class Arrays(NamedTuple):
    """inputs, targets, segments (B, T) int64; document (B,): of preferences, the number of the pair."""

    inputs: np.ndarray
    targets: np.ndarray
    segments: np.ndarray
    document: np.ndarray


def layout(data: Data, split: str, context: int) -> list[list[tuple[int, int]]]:
    """The rows of a split: in each the (start, end) of conversations among its tokens, as long as they fit."""
    key = (str(data.path), data.index["fingerprint"], split, context)
    if key not in _known:
        while len(_known) > 8:
            del _known[next(iter(_known))]
        _known[key] = _laid_out(data, split, context)
        if not _known[key]:
            raise DataError(
                f"no answer of the {split} split begins within {context:,} tokens; raise train.context, or give "
                "shorter conversations"
            )
    return _known[key]


def _laid_out(data: Data, split: str, context: int) -> list[list[tuple[int, int]]]:
    marks, ends = data.answers(split)[:], data.document_ends(split)
    answered = np.concatenate([[0], np.cumsum((marks & ANSWER) > 0)])
    spans: list[tuple[int, int]] = []
    start = 0
    for end in ends.tolist():
        cut = min(end, start + context + 1)  # so many inputs, and the target behind the last
        if answered[cut] > answered[start + 1]:
            spans.append((start, cut))
        start = end
    rows: list[list[tuple[int, int]]] = []
    rooms: list[tuple[int, int]] = []  # (tokens that are free, number of the row), sorted
    for span in sorted(spans, key=lambda s: (s[0] - s[1], s[0])):
        size = span[1] - span[0] - 1
        at = bisect.bisect_left(rooms, (size, -1))
        if at < len(rooms):
            room, row = rooms.pop(at)
            rows[row].append(span)
        else:
            room, row = context, len(rows)
            rows.append([span])
        if room > size:
            bisect.insort(rooms, (room - size, row))
    return rows


def rows(data: Data, split: str, samples: list[int], context: int, seed: int) -> Arrays:
    """Rows of conversations, by their numbers in the run."""
    every = layout(data, split, context)
    tokens, marks, pad = data.tokens(split), data.answers(split), data.tokenizer.eot_id or 0
    found = _blank(len(samples), context, pad)
    for n, sample in enumerate(samples):
        epoch, place = divmod(sample, len(every))
        which = int(loader.permuted(np.array([place]), len(every), loader.key_of(seed, epoch, "answers"))[0])
        at = 0
        for number, (start, end) in enumerate(every[which]):
            _write(found, n, at, tokens[start:end], marks[start:end], number)
            at += end - start - 1
        found.segments[n, at:] = len(every[which])
    return found


def pairs(data: Data, split: str, samples: list[int], context: int, seed: int) -> Arrays:
    """Rows of preferences, by their numbers in the run: an epoch takes each pair once."""
    n = len(data.document_ends(split))
    chosen: list[tuple[int, int]] = []
    for sample in samples:
        epoch, place = divmod(sample // 2, n)
        key = loader.key_of(seed, epoch, "preferences")
        chosen.append((int(loader.permuted(np.array([place]), n, key)[0]), sample % 2))
    return preferences(data, split, chosen, context)


def preferences(data: Data, split: str, chosen: list[tuple[int, int]], context: int) -> Arrays:
    """A row each: of the pair of that number the chosen one (0) or the rejected one (1), cut behind `context`."""
    tokens, marks, ends = data.tokens(split), data.answers(split), data.document_ends(split)
    found = _blank(len(chosen), context, data.tokenizer.eot_id or 0)
    for row, (n, side) in enumerate(chosen):
        start, end = int(ends[n - 1]) if n else 0, int(ends[n])
        own, mark = tokens[start:end], marks[start:end]
        second = int(np.flatnonzero(mark & SECOND)[0])
        part = slice(second, None) if side else slice(0, second)
        own, mark = own[part][: context + 1], mark[part][: context + 1]
        _write(found, row, 0, own, mark, 0)
        found.segments[row, len(own) - 1 :] = 1
        found.document[row] = n
    return found


def _blank(rows: int, context: int, pad: int) -> Arrays:
    return Arrays(
        np.full((rows, context), pad, np.int64),
        np.full((rows, context), UNSCORED, np.int64),
        np.zeros((rows, context), np.int64),
        np.zeros(rows, np.int64),
    )


def _write(found: Arrays, row: int, at: int, tokens: np.ndarray, marks: np.ndarray, number: int) -> None:
    """Put a conversation into a row: all of its tokens but the last are inputs, all but the first targets."""
    here = slice(at, at + len(tokens) - 1)
    found.inputs[row, here] = tokens[:-1]
    found.targets[row, here] = np.where(marks[1:] & ANSWER, tokens[1:].astype(np.int64), UNSCORED)
    found.segments[row, here] = number
