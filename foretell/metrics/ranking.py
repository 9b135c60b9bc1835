"""Choosing the right response among candidates: accuracy and mean reciprocal rank from the rank of the right one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foretell.errors import DataError
from foretell.metrics.measure import Measure, ratio


def selection(ranks: Sequence[int] | np.ndarray, candidates: int) -> dict[str, Measure]:
    """`accuracy` (the right one is first) and `mrr` (mean of 1 / rank), both 0 to 1.

    `ranks` [N] from 1: the place of the right one among `candidates`; see `rank`. Chance is 1 / candidates. DataError
    for a rank outside 1..candidates.
    """
    places = np.asarray(ranks)
    if not len(places):
        raise DataError("no ranks to score: give at least one")
    outside = (places < 1) | (places > candidates)
    if outside.any():
        raise DataError(f"rank {places[outside][0]} of item {outside.argmax()} is not within 1..{candidates}")
    how = f"candidates:{candidates}|ties:against"
    return {"accuracy": ratio("accuracy", places == 1, None, how), "mrr": ratio("mrr", 1 / places, None, how)}


def rank(scores: np.ndarray, right: int = 0) -> int:
    """The place, from 1, of the right candidate by its score [candidates], higher is better. A tie is a loss."""
    others = np.delete(np.asarray(scores), right)
    return 1 + int((others >= scores[right]).sum())
