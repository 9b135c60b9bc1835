"""Intervals: against a plain loop, against the normal theory, and their coverage."""

import numpy as np
import pytest

from foretell import metrics


def test_interval_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(1)
    top, bottom = rng.gamma(2.0, size=40), rng.integers(1, 50, 40)
    draws = np.random.default_rng(7)
    ratios = []
    for _ in range(500):
        chosen = draws.integers(40, size=40)
        ratios.append(sum(top[i] for i in chosen) / sum(bottom[i] for i in chosen))
    ratios.sort()
    low, high = metrics.ratio_interval(top, bottom, resamples=500, seed=7) or (0, 0)
    assert low == pytest.approx(np.quantile(ratios, 0.05), rel=1e-12)
    assert high == pytest.approx(np.quantile(ratios, 0.95), rel=1e-12)


@pytest.mark.parametrize("n", [300, 20_000])
def test_interval_is_near_the_delta_method(n: int) -> None:
    """Beyond 4,096 documents they are summed in groups; the width must not change."""
    rng = np.random.default_rng(2)
    bottom = rng.integers(10, 100, n).astype(float)
    top = bottom * rng.normal(3.0, 0.5, n)
    ratio = top.sum() / bottom.sum()
    deviation = np.sqrt(((top - ratio * bottom) ** 2).sum()) / bottom.sum()
    low, high = metrics.ratio_interval(top, bottom) or (0, 0)
    assert low == pytest.approx(ratio - 1.645 * deviation, abs=0.15 * deviation)
    assert high == pytest.approx(ratio + 1.645 * deviation, abs=0.15 * deviation)


def test_coverage_is_near_what_it_says() -> None:
    rng = np.random.default_rng(3)
    held = 0
    for trial in range(300):
        bottom = rng.integers(5, 60, 60).astype(float)
        top = bottom * rng.gamma(4.0, 0.5, 60)
        low, high = metrics.ratio_interval(top, bottom, resamples=300, seed=trial) or (0, 0)
        held += low <= 2.0 <= high
    assert 0.83 <= held / 300 <= 0.95


def test_no_interval_where_none_can_be() -> None:
    assert metrics.ratio_interval(np.ones(1), np.ones(1)) is None
    assert metrics.ratio_interval(np.ones(0), np.ones(0)) is None
    assert metrics.ratio_interval(np.ones(3), np.zeros(3)) is None
    low, high = metrics.ratio_interval(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.0, 1.0])) or (0, 0)
    assert np.isfinite([low, high]).all()


def test_same_seed_same_interval_and_global_random_state_is_left_alone() -> None:
    before = np.random.get_state()[1].tolist()
    pairs = {metrics.ratio_interval(np.arange(9.0), np.ones(9), seed=5) for _ in range(2)}
    assert len(pairs) == 1
    assert metrics.ratio_interval(np.arange(9.0), np.ones(9), seed=6) not in pairs
    assert np.random.get_state()[1].tolist() == before
