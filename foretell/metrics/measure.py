"""The one shape of a metric: statistics of each item, and the function from their sum to the score.

Corpus BLEU is a function of summed n-gram counts, macro-F1 of summed hits by class, a mean of a sum and a number of
items. Given in this shape, each of them has an interval (the items are drawn again) and a paired comparison of two
systems (`foretell.metrics.compare`), and neither knows what is measured.

A few scores are no function of sums, or one that the bootstrap biases: the share of distinct n-grams falls when items
are drawn twice, a distance between histograms grows with their noise. `jackknifed` gives these the same shape by the
score without each item in turn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial

import numpy as np

from foretell.errors import DataError
from foretell.metrics.resample import RESAMPLES, central, resampled_sums

COVERAGE_OF_SCORES = 0.95


@dataclass(frozen=True)
class Measure:
    """A metric taken of N items.

    `rows` [N, S]: the statistics of each item. `of`: from sums of rows [..., S] to scores [...]. `how`: what somebody
    needs to compute the same number (tokenizer, options, library and version). `within`: the range of the score.
    """

    name: str
    rows: np.ndarray
    of: Callable[[np.ndarray], np.ndarray]
    how: str
    within: tuple[float, float] = (0.0, 100.0)

    @property
    def value(self) -> float:
        """The score of all items together."""
        return float(self.of(self.rows.sum(0, dtype=np.float64)))

    def each(self) -> np.ndarray:
        """The score of every item alone, [N]; NaN where an item alone has none. To find the best and the worst ones."""
        return self.of(self.rows.astype(np.float64))


@dataclass(frozen=True)
class Score:
    """A score with its interval (None where one item, or none, was measured) and how both were computed."""

    name: str
    value: float
    low: float | None
    high: float | None
    n: int
    how: str
    interval: str


def score(
    measure: Measure, *, coverage: float = COVERAGE_OF_SCORES, resamples: int = RESAMPLES, seed: int = 0
) -> Score:
    """The score of a measure with its percentile bootstrap interval over items."""
    n = len(measure.rows)
    bounds = None
    if n > 1:
        values = measure.of(resampled_sums(measure.rows, resamples=resamples, seed=seed))
        bounds = central(np.clip(values[~np.isnan(values)], *measure.within), coverage)
    low, high = bounds or (None, None)
    interval = f"{coverage:.0%}|bootstrap:percentile|resamples:{resamples}|seed:{seed}"
    return Score(measure.name, measure.value, low, high, n, measure.how, interval)


def card(measures: Mapping[str, Measure], **options: int | float) -> dict[str, dict[str, object]]:
    """The scores of some measures as JSON can hold them, by name: the section of `eval.json`. Options as of `score`."""
    return {name: asdict(score(m, **options)) for name, m in measures.items()}  # type: ignore[arg-type]


def ratio(name: str, numerator: np.ndarray, denominator: np.ndarray | None, how: str, *, scale: float = 1.0) -> Measure:
    """The measure scale * sum(numerator) / sum(denominator) of two arrays [N]; without a denominator, the mean."""
    top = np.asarray(numerator, np.float64)
    bottom = np.ones_like(top) if denominator is None else np.asarray(denominator, np.float64)
    return Measure(name, np.stack([top, bottom], axis=1), partial(_ratio, scale=scale), how, (0.0, scale))


def jackknifed(name: str, value: float, without: np.ndarray, how: str, *, scale: float = 1.0) -> Measure:
    """A measure of the given value whose items weigh as the jackknife says; `without` [N]: the score without each.

    Each row is the score and how far the item moves it: the mean is the score, and the variance of that mean is the
    jackknife's (Efron and Tibshirani, 1993, chapter 11).
    """
    n = len(without)
    moved = (n - 1) * (without.mean() - without)
    rows = np.stack([value + moved, np.ones(n)], axis=1)
    return Measure(name, rows, partial(_ratio, scale=1.0), f"{how}|rows:jackknife", (0.0, scale))


def same_length(what: str, one: Sequence[object] | np.ndarray, other: str, two: Sequence[object] | np.ndarray) -> None:
    """DataError where two sequences that belong together differ in length, or have none."""
    if len(one) != len(two):
        raise DataError(f"{len(one):,} {what} but {len(two):,} {other}: give one for each")
    if not len(one):
        raise DataError(f"no {what} to score: give at least one")


def listed(references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    """Each item's references as a list. DataError where an item has none."""
    several = [[r] if isinstance(r, str) else list(r) for r in references]
    if none := [i for i, r in enumerate(several) if not r]:
        raise DataError(f"{len(none):,} of {len(several):,} items have no reference, the first is item {none[0]}")
    return several


def _ratio(sums: np.ndarray, scale: float) -> np.ndarray:
    top, bottom = sums[..., 0], sums[..., 1]
    return np.divide(scale * top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)
