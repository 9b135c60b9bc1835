"""Metrics and their intervals; no torch. So far: bootstrap intervals for ratios of sums over documents.

A score such as bits per byte is a ratio of two sums over documents. Its uncertainty comes from which documents happened
to be in the text, so documents are what is drawn again (Efron and Tibshirani, 1993, chapter 13, percentile interval;
Dror et al., 2018, for language). Percentile intervals are too narrow for a handful of documents, and there is none for
one document.
"""

from __future__ import annotations

import numpy as np

COVERAGE = 0.9
RESAMPLES = 1000
# More documents than this are first summed in as many random groups: the interval is the same, the cost is bounded.
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
    top, bottom = np.asarray(numerator, np.float64), np.asarray(denominator, np.float64)
    n = len(top)
    if n < 2:
        return None
    rng = np.random.default_rng(seed)
    if n > _GROUPS:
        group = rng.permutation(n) % _GROUPS
        top, bottom = (np.bincount(group, values, _GROUPS).astype(np.float64) for values in (top, bottom))
        n = _GROUPS
    tops, bottoms = [], []
    for size in _sizes(resamples, max(1, _DRAWS_AT_ONCE // n)):
        drawn = rng.integers(n, size=(size, n))
        tops.append(top[drawn].sum(1))
        bottoms.append(bottom[drawn].sum(1))
    above, below = np.concatenate(tops), np.concatenate(bottoms)
    ratios = above[below > 0] / below[below > 0]
    if not len(ratios):
        return None
    low, high = np.quantile(ratios, [(1 - coverage) / 2, (1 + coverage) / 2])
    return float(low), float(high)


def _sizes(total: int, most: int) -> list[int]:
    """`total` in parts of at most `most`."""
    return [min(most, total - i) for i in range(0, total, most)]
