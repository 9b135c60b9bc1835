"""From loss to a task: known curves are found again from drawn counts, and the interval holds as often as it says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.errors import PlanError
from foretell.plan import downstream
from foretell.plan.downstream import Curve, Graded

LOSSES = np.linspace(3.8, 4.6, 15)


def truth(chance: float, slope: float, middle: float, shape: str = "logistic") -> Curve:
    return Curve(shape, chance, middle, slope, 1.0, (3.8, 4.6), 15, {})


def counts(curve: Curve, losses: np.ndarray, items: int, rng: np.random.Generator, factor: float = 1) -> list[Graded]:
    """Models on the curve whose counts scatter by `factor` times what drawn questions do."""
    found = []
    for loss in losses:
        share = downstream.accuracy(curve, float(loss))
        if factor > 1:
            strength = (items - factor) / (factor - 1)
            share = rng.beta(share * strength, (1 - share) * strength)
        found.append(Graded(float(loss), int(rng.binomial(items, share)), items))
    return found


@settings(max_examples=15, deadline=None)
@given(
    chance=st.sampled_from([0.0, 0.25, 0.5]),
    slope=st.floats(1.5, 6),
    middle=st.floats(3.5, 4.8),
    shape=st.sampled_from(sorted(downstream.SHAPES)),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_known_curve_is_found_again(chance: float, slope: float, middle: float, shape: str, seed: int) -> None:
    curve = truth(chance, slope, middle, shape)
    found = downstream.fit(counts(curve, LOSSES, 20_000, np.random.default_rng(seed)), chance)
    for loss in LOSSES:
        assert downstream.accuracy(found, loss) == pytest.approx(downstream.accuracy(curve, loss), abs=0.02)
    assert sum(found.shapes.values()) == pytest.approx(1)


def test_the_shape_is_told_where_counts_can_tell_it() -> None:
    losses = np.linspace(2.5, 4.6, 15)
    for shape in downstream.SHAPES:
        models = counts(truth(0.0, 4.0, 3.5, shape), losses, 5_000, np.random.default_rng(1))
        found = downstream.fit(models, 0.0)
        assert found.shape == shape
        assert found.slope == pytest.approx(4, rel=0.1)
        assert found.middle == pytest.approx(3.5, abs=0.05)


@pytest.mark.parametrize(("chance", "factor"), [(0.25, 1), (0.0, 4)])
def test_the_interval_holds_as_often_as_it_says(chance: float, factor: float) -> None:
    """40 ladders each, the target 0.3 nats below the best rung, its loss foretold within 3%."""
    rng = np.random.default_rng(7)
    held, widths = [], []
    for _ in range(40):
        curve = truth(chance, rng.uniform(1, 4), rng.uniform(2.8, 3.8))
        target = counts(curve, np.array([3.5]), 500, rng, factor)[0]
        seen = 3.5 * np.exp(0.03 * rng.standard_normal())
        loss = {"value": seen, "low": seen * np.exp(-1.645 * 0.03), "high": seen * np.exp(1.645 * 0.03)}
        told, _ = downstream.forecast(counts(curve, LOSSES, 500, rng, factor), chance, loss, 500)
        held.append(told["low"] <= target.correct / 500 <= told["high"])
        widths.append(told["high"] - told["low"])
    assert np.mean(held) >= 0.8
    assert np.mean(widths) < 0.45


def test_models_that_scatter_more_or_less_are_told_apart() -> None:
    curve = truth(0.0, 3.0, 4.0)
    drawn = {f: counts(curve, LOSSES, 500, np.random.default_rng(2), f) for f in (1, 6)}
    exact = [Graded(m.loss, round(500 * downstream.accuracy(curve, m.loss)), 500) for m in drawn[1]]
    factors = [downstream.fit(m, 0.0).factor for m in (exact, drawn[1], drawn[6])]
    assert factors[0] < 0.5 < factors[1] < 2 < factors[2]
    known = {"value": 4.0}
    widths = [(t := downstream.forecast(m, 0.0, known, 500)[0])["high"] - t["low"] for m in (exact, drawn[1], drawn[6])]
    assert widths == sorted(widths)


def test_a_wider_loss_or_fewer_questions_widen_the_interval() -> None:
    models = counts(truth(0.25, 3.0, 3.7), LOSSES, 500, np.random.default_rng(3))

    def width(loss: dict[str, float], items: int = 500) -> float:
        told, _ = downstream.forecast(models, 0.25, loss, items)
        assert 0 <= told["low"] < told["value"] < told["high"] <= 1
        return told["high"] - told["low"]

    known = width({"value": 3.7})
    assert known < width({"value": 3.7}, 100)
    assert known < width({"value": 3.7, "low": 3.6, "high": 3.8}) < width({"value": 3.7, "low": 3.4, "high": 4.0})


def test_a_task_at_chance_is_foretold_near_chance_and_the_same_twice() -> None:
    models = [Graded(float(loss), 125 + i % 3 - 1, 500) for i, loss in enumerate(LOSSES)]
    loss = {"value": 3.7, "low": 3.6, "high": 3.8}
    told, curve = downstream.forecast(models, 0.25, loss, 500)
    assert told["value"] == pytest.approx(0.25, abs=0.02)
    assert (told, curve) == downstream.forecast(models, 0.25, loss, 500)


def test_what_determines_no_curve_is_refused() -> None:
    models = [Graded(3.0 + i, 5, 10) for i in range(6)]
    with pytest.raises(PlanError, match="4 models of 4 losses are too few"):
        downstream.fit(models[:4], 0.0)
    with pytest.raises(PlanError, match="5 models of 1 losses"):
        downstream.fit([models[0]] * 5, 0.0)
    with pytest.raises(PlanError, match="chance is 1"):
        downstream.fit(models, 1.0)
    with pytest.raises(PlanError, match="got 11 of 10"):
        downstream.fit([*models, Graded(3.5, 11, 10)], 0.0)
