"""Sums over items drawn again, the ground of every interval, and the interval of a ratio of two sums.

A score such as bits per byte or BLEU is a function of sums over items: documents, sentences, questions. Its
uncertainty comes from which items happened to be in the set, so items are what is drawn again (Efron and Tibshirani,
1993, chapter 13, percentile interval; Dror et al., 2018, for language). Percentile intervals are too narrow for a
handful of items, and there is none for one item.
"""

from __future__ import annotations

import numpy as np

COVERAGE = 0.9
RESAMPLES = 1000
# More items than this are first summed in as many random groups: the interval is the same, the cost is bounded.
_GROUPS = 4096
_DRAWS_AT_ONCE = 1 << 20


def ratio_interval(
    numerator: np.ndarray,
    denominator: np.ndarray,
    *,
    coverage: float = COVERAGE,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Central interval of sum(numerator) / sum(denominator) under resampling of their common index, the document.

    None below two documents, or where no resample has a positive denominator. The same seed draws the same documents,
    so intervals of several ratios over one set of documents belong together.
    """
    rows = np.stack([np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)], axis=1)
    if len(rows) < 2:
        return None
    above, below = resampled_sums(rows, resamples=resamples, seed=seed).T
    return central(above[below > 0] / below[below > 0], coverage)


def central(values: np.ndarray, coverage: float) -> tuple[float, float] | None:
    """The quantiles that leave out as much on either side. Of no values there are none."""
    if not len(values):
        return None
    low, high = np.quantile(values, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def resampled_sums(rows: np.ndarray, *, resamples: int, seed: int) -> np.ndarray:
    """Sums of as many rows [N, S] as there are, drawn with replacement, once for each resample: [resamples, S]."""
    rng = np.random.default_rng(seed)
    rows = grouped(rows, rng)
    n = len(rows)
    sums = []
    for size in sizes(resamples, n):
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        sums.append(np.bincount(drawn.ravel(), minlength=size * n).reshape(size, n).astype(np.float64) @ rows)
    return np.concatenate(sums)


def grouped(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The rows [N, S] in float64; where they are many, summed in random groups of equal size, or nearly so."""
    if len(rows) <= _GROUPS:
        return np.asarray(rows, np.float64)
    group = rng.permutation(len(rows)) % _GROUPS
    starts = np.searchsorted(np.sort(group), np.arange(_GROUPS))
    return np.add.reduceat(rows[np.argsort(group, kind="stable")], starts, axis=0, dtype=np.float64)


def sizes(total: int, n: int) -> list[int]:
    """`total` resamples of n items in parts that memory holds."""
    most = max(1, _DRAWS_AT_ONCE // n)
    return [min(most, total - i) for i in range(0, total, most)]
