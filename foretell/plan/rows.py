"""How long the rows of an objective are and how much of them is asked for: arithmetic that the rows themselves obey.

`data/objectives.py` makes the rows by it, the forecast counts what ranks send each other by it.
"""

from __future__ import annotations

from typing import NamedTuple

MASKED_SHARE, SPAN_TOKENS = 0.15, 3.0
MULTIPLE = 8  # sources and targets are padded to a multiple, so that tensor parallelism divides them
# Of these a row's tokens are not all scored; these give an encoder-decoder a source.
PARTLY = frozenset({"masked", "span_corruption", "seq2seq", "prefix", "answers", "dpo", "labels", "spans"})
WITH_SOURCE = frozenset({"span_corruption", "seq2seq"})


class Row(NamedTuple):
    """Tokens of a row: of its source (0 without one), of its inputs and targets, and of these that are asked for.

    exact: whether every row asks for as many; else it is what a row asks for on average, or at most. drawn: whether
    the texts decide the lengths too, and these are the longest.
    """

    source: int
    target: int
    scored: int
    exact: bool = True
    drawn: bool = False


def padded(tokens: int) -> int:
    """The next multiple of `MULTIPLE`."""
    return -(-tokens // MULTIPLE) * MULTIPLE


def masked_count(length: int) -> int:
    """Tokens that `masked` asks for in a row of that length."""
    return max(1, round(MASKED_SHARE * length))


def span_counts(length: int) -> tuple[int, int]:
    """Tokens that `span_corruption` cuts out of a row of that length, and in how many stretches."""
    noise = min(max(round(MASKED_SHARE * length), 1), length - 1)
    return noise, min(max(round(noise / SPAN_TOKENS), 1), length - noise)


def row(objective: str, context: int) -> Row:
    """A row of `context` tokens. With a source each of the two ends with an end, and is padded."""
    if objective == "masked":
        return Row(0, context, masked_count(context))
    if objective == "labels":
        return Row(0, context, 1)
    if objective == "spans":  # of every place it is asked how an answer begins and ends there
        return Row(0, context, context)
    if objective == "span_corruption":
        noise, spans = span_counts(context)
        return Row(padded(context - noise + spans + 1), padded(noise + spans + 1), noise + spans + 1)
    if objective == "seq2seq":
        return Row(padded(context), padded(context), context, exact=False, drawn=True)
    if objective == "prefix":
        return Row(0, context, context // 2 + 1, exact=False)
    return Row(0, context, context, exact=objective not in PARTLY)
