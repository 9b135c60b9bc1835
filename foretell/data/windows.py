"""Rows of texts with labels, and of questions with windows over their contexts: what an encoder with a head is asked.

    [CLS] text [SEP]                       asked: the number of the label
    [CLS] question [SEP] context [SEP]     asked: where the answer begins and ends; 0, at [CLS]: it is not here

Where the tokenizer has no [CLS] and [SEP], the end of a text stands in their place. A text that is longer than a row
keeps its beginning. A context that is longer is met in windows (Devlin et al., 2019), `stride` tokens from one to the
next; an answer that a window cuts is not in it. An epoch takes each row once, in an order of its own.

Beside each token of a row stands a byte: REAL at what is no padding, SECOND in the context, CHOICE where an answer may
begin and end.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from foretell.data import loader
from foretell.data.labelled import END, LOST, START
from foretell.data.shards import Data
from foretell.errors import ConfigError, DataError
from foretell.tokenizer import Tokenizer

REAL, SECOND, CHOICE = 1, 2, 4
FEWEST = 8  # tokens of the context that a window must hold
_AROUND = 3  # [CLS], and a [SEP] behind each side
# The layouts that were last asked for: they depend on nothing but the data.
_known: dict[tuple[str, str, str, int], np.ndarray] = {}


class Row(NamedTuple):
    """Tokens and the byte beside each. begins: where the second side begins among them, 0 where there is none."""

    tokens: np.ndarray
    marks: np.ndarray
    begins: int = 0


class Padded(NamedTuple):
    """inputs (B, T) int64; marks (B, T) uint8; targets int64 (B, 1) label numbers, or (B, 2) positions."""

    inputs: np.ndarray
    marks: np.ndarray
    targets: np.ndarray


def text_row(own: Tokenizer, ids: np.ndarray, context: int) -> Row:
    """A text between its marks, cut to `context` tokens in all."""
    first, last = _marks(own)
    tokens = np.concatenate([[first], ids[: context - 2], [last]]).astype(np.int64)
    return Row(tokens, np.full(len(tokens), REAL, np.uint8))


def asked_row(own: Tokenizer, question: np.ndarray, part: np.ndarray, context: int) -> Row:
    """A question and a part of its context, between their marks; the question keeps at most half of the row."""
    first, last = _marks(own)
    question = question[: _question_room(context)]
    tokens = np.concatenate([[first], question, [last], part, [last]]).astype(np.int64)
    begins = len(question) + 2
    marks = np.full(len(tokens), REAL, np.uint8)
    marks[begins:] |= SECOND
    marks[begins:-1] |= CHOICE
    marks[0] |= CHOICE
    return Row(tokens, marks, begins)


def parts(length: int, question: int, context: int, stride: int | None) -> list[tuple[int, int]]:
    """The windows (start, end) over `length` tokens beside a question of so many, in rows of `context`."""
    room = context - _AROUND - min(question, _question_room(context))
    step = min(stride or max(1, room // 2), room)
    starts = range(0, max(1, length - room + step), step)
    return [(start, min(start + room, length)) for start in starts]


def check_context(context: int) -> None:
    """ConfigError where a row has no room for a question and a window."""
    least = 2 * FEWEST + _AROUND
    if context < least:
        raise ConfigError(f"train.context ({context}) has no room for a question and its context; {least} is the least")


def _question_room(context: int) -> int:
    return (context - _AROUND) // 2


def _marks(own: Tokenizer) -> tuple[int, int]:
    end = own.eot_id or 0
    return (end if own.bos_id is None else own.bos_id), end


def padded(rows: Sequence[Row], targets: np.ndarray, width: int, padding: int) -> Padded:
    """Rows side by side."""
    inputs = np.full((len(rows), width), padding, np.int64)
    marks = np.zeros((len(rows), width), np.uint8)
    for n, row in enumerate(rows):
        inputs[n, : len(row.tokens)], marks[n, : len(row.tokens)] = row.tokens, row.marks
    return Padded(inputs, marks, targets)


def count(data: Data, split: str, context: int) -> int:
    """Rows of an epoch."""
    return len(data.document_ends(split)) if data.task == "labels" else len(layout(data, split, context))


def layout(data: Data, split: str, context: int) -> np.ndarray:
    """The windows of a split, (windows, 4) int64: start, question's end, part's start and end, among its tokens."""
    key = (str(data.path), data.index["fingerprint"], split, context)
    if key not in _known:
        while len(_known) > 8:
            del _known[next(iter(_known))]
        _known[key] = _laid_out(data, split, context)
        if not len(_known[key]):
            raise DataError(f"the {split} split has no question whose answer has tokens")
    return _known[key]


def _laid_out(data: Data, split: str, context: int) -> np.ndarray:
    check_context(context)
    tokens, beside = data.tokens(split)[:], data.answers(split)[:]
    stride, found, start = data.index["task"].get("stride"), list[tuple[int, int, int, int]](), 0
    for end in data.document_ends(split).tolist():
        between = start + int(np.flatnonzero(tokens[start:end] == (data.tokenizer.eot_id or 0))[0])
        if not beside[start] & LOST:
            begins = between + 1
            for a, b in parts(end - 1 - begins, between - start, context, stride):
                found.append((start, between, begins + a, begins + b))
        start = end
    return np.array(found, np.int64).reshape(-1, 4)


def rows(data: Data, split: str, samples: Sequence[int], context: int, seed: int) -> Padded:
    """Rows by their numbers in the run."""
    n, make = count(data, split, context), _text if data.task == "labels" else _window
    made: list[tuple[Row, list[int]]] = []
    for sample in samples:
        epoch, place = divmod(sample, n)
        which = int(loader.permuted(np.array([place]), n, loader.key_of(seed, epoch, str(data.task)))[0])
        made.append(make(data, split, which, context))
    targets = np.array([t for _, t in made], np.int64)
    return padded([row for row, _ in made], targets, context, data.tokenizer.eot_id or 0)


def _text(data: Data, split: str, which: int, context: int) -> tuple[Row, list[int]]:
    ends = data.document_ends(split)
    label, *ids = data.tokens(split)[int(ends[which - 1]) if which else 0 : int(ends[which]) - 1].tolist()
    return text_row(data.tokenizer, np.array(ids, np.int64), context), [label]


def _window(data: Data, split: str, which: int, context: int) -> tuple[Row, list[int]]:
    start, between, a, b = layout(data, split, context)[which].tolist()
    tokens, beside = data.tokens(split), data.answers(split)[a:b]
    row = asked_row(data.tokenizer, tokens[start:between], tokens[a:b], context)
    first, last = np.flatnonzero(beside & START), np.flatnonzero(beside & END)
    whole = len(first) == len(last) == 1  # else the window has none of it, or a part
    return row, [row.begins + int(first[0]), row.begins + int(last[0])] if whole else [0, 0]
