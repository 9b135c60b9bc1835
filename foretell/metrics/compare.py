"""Whether one system is better than another on the same items, or whether chance would do as much.

Two tests, both two-sided and both from the rows of `Measure`, so that they hold for any metric: the paired bootstrap
(Koehn, 2004) and approximate randomisation (Riezler and Maxwell, 2005), with the p-values that sacreBLEU computes.
The first asks how often a difference as large comes about when items are drawn again, the second when the systems'
outputs for an item are swapped at random. The second assumes less, and is the one to go by: sacreBLEU's bootstrap takes
the sizes of the drawn differences before it centres them, so where two systems hardly differ its p is too small
(a difference of a third of its standard error: 0.27 in place of 0.74).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from foretell.errors import DataError
from foretell.metrics.measure import COVERAGE_OF_SCORES, Measure
from foretell.metrics.resample import RESAMPLES, central, grouped, resampled_sums, sizes

SHUFFLES = 10_000


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same items: `difference` is second - first, `low`..`high` its 95% paired bootstrap interval.

    `p_bootstrap` and `p_randomisation`: how likely so large a difference would be if there were none.
    """

    name: str
    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p_bootstrap: float
    p_randomisation: float
    n: int
    how: str
    tests: str


def compare(
    first: Measure, second: Measure, *, resamples: int = RESAMPLES, shuffles: int = SHUFFLES, seed: int = 0
) -> Comparison:
    """Compare one metric of two systems, item by item.

    DataError where the two are not the same metric (name and `how`) over as many items.
    """
    if len(first.rows) != len(second.rows):
        raise DataError(
            f"`{first.name}` of {len(first.rows):,} items against {len(second.rows):,}: score the same ones"
        )
    if (first.name, first.how) != (second.name, second.how):
        raise DataError(
            f"`{first.name}` ({first.how}) against `{second.name}` ({second.how}): compare one metric with itself"
        )
    difference = second.value - first.value
    differences = _drawn(first, second, resamples, seed)
    low, high = central(differences, COVERAGE_OF_SCORES) or (None, None)
    return Comparison(
        name=first.name,
        first=first.value,
        second=second.value,
        difference=difference,
        low=low,
        high=high,
        p_bootstrap=_p(np.abs(differences) - np.abs(differences).mean(), abs(difference)),
        p_randomisation=_p(np.abs(_swapped(first, second, shuffles, seed)), abs(difference)),
        n=len(first.rows),
        how=first.how,
        tests=f"bootstrap:{resamples}|randomisation:{shuffles}|seed:{seed}",
    )


def _p(statistics: np.ndarray, observed: float) -> float:
    """The share of statistics beyond what was observed, counting the observed one: never 0 (as sacreBLEU has it).

    1 where no difference was observed: any is as large.
    """
    if observed <= 1e-12:
        return 1.0
    # Beyond by more than rounding: a swap that changes nothing is not beyond.
    beyond = statistics > observed + 1e-12 * max(1.0, observed)
    return float((beyond.sum() + 1) / (len(statistics) + 1))


def _drawn(first: Measure, second: Measure, resamples: int, seed: int) -> np.ndarray:
    """Differences of the two scores when the same items are drawn again for both."""
    width = first.rows.shape[1]
    both = np.concatenate([first.rows, second.rows], axis=1)
    sums = resampled_sums(both, resamples=resamples, seed=seed)
    return _numbers(second.of(sums[:, width:]) - first.of(sums[:, :width]))


def _swapped(first: Measure, second: Measure, shuffles: int, seed: int) -> np.ndarray:
    """Differences of the two scores when each item's two outputs are swapped or not, by a coin."""
    rng = np.random.default_rng(seed)
    width = first.rows.shape[1]
    both = grouped(np.concatenate([first.rows, second.rows], axis=1), rng)
    one, two = both[:, :width], both[:, width:]
    total = one.sum(0) + two.sum(0)
    differences = []
    for size in sizes(shuffles, len(both)):
        coin = rng.integers(2, size=(size, len(both)), dtype=np.int8).astype(np.float64)
        pseudo = two.sum(0) + coin @ (one - two)
        differences.append(second.of(total - pseudo) - first.of(pseudo))
    return _numbers(np.concatenate(differences))


def _numbers(values: np.ndarray) -> np.ndarray:
    return values[~np.isnan(values)]
