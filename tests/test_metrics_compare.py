"""Intervals and comparisons of any metric against sacreBLEU's own, plain loops, the normal theory and simulation."""

import json
import random

import numpy as np
import pytest
from excerpts import damaged, translations
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.significance import PairedTest

from foretell import metrics
from foretell.errors import DataError
from foretell.metrics.measure import jackknifed


def two_systems(shares: tuple[float, float], times: int = 1) -> tuple[list[str], list[str], list[str]]:
    """References and two damaged copies of them."""
    rng = random.Random(4)
    references = [r[0] for r in translations("en")[1]] * times
    one, two = ([damaged(r, share, rng) for r in references] for share in shares)
    return references, one, two


def test_bleu_interval_is_that_of_sacrebleu() -> None:
    references, system, _ = two_systems((0.3, 0.3), times=4)
    theirs = BLEU().corpus_score(system, [references], n_bootstrap=2000)
    ours = metrics.score(metrics.bleu(system, references), resamples=2000)
    assert ours.value == pytest.approx(theirs.score, abs=1e-10)
    assert ours.low is not None
    assert ours.high is not None
    half = (ours.high - ours.low) / 2
    assert half == pytest.approx(theirs._ci, rel=0.08)
    assert (ours.low + ours.high) / 2 == pytest.approx(theirs._mean, abs=0.15 * half)


@pytest.mark.parametrize("shares", [(0.3, 0.29), (0.3, 0.26), (0.3, 0.2)])
@pytest.mark.parametrize("kind", ["bs", "ar"])
def test_p_values_are_those_of_sacrebleu(shares: tuple[float, float], kind: str) -> None:
    references, one, two = two_systems(shares, times=2)
    scores = {"BLEU": BLEU(), "chrF": CHRF()}
    systems = [("one", one), ("two", two)]
    _, theirs = PairedTest(systems, scores, [references], test_type=kind, n_samples=2000)()
    for name, metric in (("BLEU", metrics.bleu), ("chrF2", metrics.chrf)):
        found = metrics.compare(metric(one, references), metric(two, references), resamples=2000, shuffles=2000)
        p = found.p_bootstrap if kind == "bs" else found.p_randomisation
        wanted = theirs[name][1].p_value  # type: ignore[union-attr]
        # Three standard errors of the difference of two shares of 2,000.
        error = 3 * np.sqrt(2 * max(wanted * (1 - wanted), 0.001) / 2000)
        assert p == pytest.approx(wanted, abs=error)
        assert found.difference == pytest.approx(theirs[name][1].score - theirs[name][0].score, abs=1e-10)  # type: ignore[union-attr]


def test_a_system_against_itself_and_against_a_much_better_one() -> None:
    references, one, two = two_systems((0.5, 0.02))
    poor, good = metrics.bleu(one, references), metrics.bleu(two, references)
    same = metrics.compare(poor, poor)
    assert (same.difference, same.p_randomisation) == (0.0, 1.0)
    found = metrics.compare(poor, good)
    assert found.p_bootstrap < 0.01
    assert found.p_randomisation < 0.001
    assert (found.low or 0) > 0
    mirrored = metrics.compare(good, poor)
    assert mirrored.difference == -found.difference
    assert mirrored.low == pytest.approx(-(found.high or 0))


def test_randomisation_keeps_its_level() -> None:
    """Where two systems are alike, one comparison in twenty has p <= 0.05."""
    rng = np.random.default_rng(11)
    found = []
    for trial in range(400):
        one, two = (metrics.ratio("accuracy", rng.random(80) < 0.6, None, "") for _ in range(2))
        found.append(metrics.compare(one, two, resamples=10, shuffles=400, seed=trial).p_randomisation)
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.08


def test_comparison_refuses_what_does_not_belong_together() -> None:
    references, one, _ = two_systems((0.3, 0.3))
    whole, half = metrics.bleu(one, references), metrics.bleu(one[:30], references[:30])
    with pytest.raises(DataError, match=r"of 60 items against 30"):
        metrics.compare(whole, half)
    with pytest.raises(DataError, match="compare one metric with itself"):
        metrics.compare(whole, metrics.bleu(one, references, lowercase=True))
    with pytest.raises(DataError, match="60 hypotheses but 59 references"):
        metrics.bleu(one, references[1:])
    with pytest.raises(DataError, match="no hypotheses"):
        metrics.bleu([], [])


@given(st.integers(2, 60), st.integers(0, 5))
@settings(max_examples=30, deadline=None)
def test_mean_has_the_interval_of_a_plain_loop(n: int, seed: int) -> None:
    values = np.random.default_rng(seed + 100).random(n)
    draws = np.random.default_rng(seed)
    means = [values[draws.integers(n, size=n)].mean() for _ in range(200)]
    found = metrics.score(metrics.ratio("mean", values, None, ""), resamples=200, seed=seed)
    assert found.value == pytest.approx(values.mean())
    assert [found.low, found.high] == pytest.approx(np.quantile(means, [0.025, 0.975]))


def test_many_items_are_grouped_and_nothing_changes() -> None:
    rng = np.random.default_rng(3)
    one = rng.random(20_000) < 0.70
    two = np.where(rng.random(20_000) < 0.9, one, rng.random(20_000) < 0.72)
    found = metrics.compare(
        metrics.ratio("accuracy", one, None, ""), metrics.ratio("accuracy", two, None, ""), shuffles=2000
    )
    change = two.astype(float) - one
    deviation = change.std() / np.sqrt(20_000)
    assert found.difference == pytest.approx(change.mean())
    assert [found.low, found.high] == pytest.approx(
        change.mean() + 1.96 * deviation * np.array([-1, 1]), abs=deviation / 4
    )


def test_a_card_is_plain_json_and_one_item_has_no_interval() -> None:
    hit = metrics.accuracy(["a"], ["a"])
    table = metrics.card({"accuracy": hit, "rep_4": metrics.repetition(["a b c d e", "b b b b b"])}, seed=3)
    assert json.loads(json.dumps(table)) == table
    assert table["accuracy"] | {"how": ""} == {
        "name": "accuracy", "value": 1.0, "low": None, "high": None, "n": 1, "how": "",
        "interval": "95%|bootstrap:percentile|resamples:1000|seed:3",
    }  # fmt: skip
    assert table["rep_4"]["value"] == pytest.approx((0 + 0.5) / 2)


@pytest.mark.parametrize("what", ["distinct", "calibration"])
def test_jackknife_intervals_cover_what_they_should(what: str) -> None:
    """About 95% of many sets of one size hold the mean score of such sets within their intervals."""
    rng = np.random.default_rng(8)
    words = (1 / np.arange(1, 400)) / (1 / np.arange(1, 400)).sum()

    def measure() -> metrics.Measure:
        if what == "distinct":
            return metrics.distinct([list(rng.choice(399, size=rng.integers(4, 12), p=words)) for _ in range(60)], 1)
        confidence = rng.random(400)
        return metrics.calibration_error(confidence, rng.random(400) < confidence**2, bins=10)

    wanted = np.mean([measure().value for _ in range(300)])
    scores = [metrics.score(measure(), resamples=300, seed=i) for i in range(150)]
    held = np.mean([(s.low or 0) <= wanted <= (s.high or 0) for s in scores])
    assert 0.9 <= held <= 0.995


def test_jackknife_of_a_mean_is_the_mean() -> None:
    values = np.random.default_rng(1).random(30)
    without = (values.sum() - values) / 29
    assert jackknifed("x", float(values.mean()), without, "").rows[:, 0] == pytest.approx(values)
