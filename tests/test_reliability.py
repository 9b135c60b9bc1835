"""Failures and checkpoints against brute force, and what a run costs."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.plan import cost, hardware, reliability

HOUR = 3600.0


def simulated(rng: random.Random, work: float, interval: float, save: float, restart: float, mtbf: float) -> float:
    """Seconds of one run, event by event: a segment of work and its save either ends before a failure or is lost."""
    clock, done = 0.0, 0.0
    while done < work:
        segment = min(interval, work - done) + save
        failure = rng.expovariate(1 / mtbf)
        if failure >= segment:
            clock, done = clock + segment, done + min(interval, work - done)
            continue
        clock += failure
        while (failure := rng.expovariate(1 / mtbf)) < restart:  # a failure while it restarts: it restarts again
            clock += failure
        clock += restart
    return clock


@pytest.mark.parametrize(("interval", "save", "restart", "mtbf"), [(900, 60, 300, 3600), (300, 20, 600, 10_000)])
def test_the_expected_time_is_that_of_runs(interval: float, save: float, restart: float, mtbf: float) -> None:
    rng, work = random.Random(1), 40 * interval
    times = [simulated(rng, work, interval, save, restart, mtbf) for _ in range(1500)]
    mean = sum(times) / len(times)
    error = math.sqrt(sum((t - mean) ** 2 for t in times)) / len(times)
    expected = reliability.expected_seconds(work, interval, save, restart, mtbf)
    assert abs(mean - expected) < 4 * error
    assert 4 * error < 0.05 * expected  # so that the line above can fail


@given(st.floats(1, 3000), st.floats(100, 1e6))
def test_no_interval_is_better_than_the_best(save: float, mtbf: float) -> None:
    best = reliability.best_interval(save, mtbf)

    def expected(interval: float) -> float:
        return reliability.expected_seconds(1.0, interval, save, 0.0, mtbf)

    least = expected(best)
    assert all(expected(best * f) >= least * (1 - 1e-12) for f in (0.5, 0.9, 0.99, 1.01, 1.1, 2))
    x = best / mtbf
    assert (1 - x) * math.exp(x) == pytest.approx(math.exp(-save / mtbf), rel=1e-9)  # Lambert's equation


@given(st.floats(1, 60), st.floats(5000, 1e6))
def test_the_classic_formulas_come_near(save: float, mtbf: float) -> None:
    best = reliability.best_interval(save, mtbf)
    assert reliability.daly_interval(save, mtbf) == pytest.approx(best, rel=0.005)
    assert reliability.young_interval(save, mtbf) == pytest.approx(best, rel=0.06)


def test_where_saving_takes_longer_than_failures_let_it() -> None:
    assert reliability.daly_interval(500.0, 200.0) == 200.0
    assert 0 < reliability.best_interval(500.0, 200.0) < 200.0
    assert reliability.best_interval(0.0, 200.0) == 0.0
    assert math.isinf(reliability.best_interval(10.0, math.inf))
    assert reliability.expected_seconds(100.0, 10.0, 1.0, 5.0, math.inf) == pytest.approx(110.0)


def test_llama_3() -> None:
    """54 days, 16,384 devices, 419 unexpected interruptions, one every 3.09 hours, more than 90% effective time.

    A checkpoint: 12 bytes a parameter of 405B at the 2 TB/s that their storage sustains (Grattafiori et al., 2024).
    """
    rate = 419 / (54 * 16.384)
    assert rate == pytest.approx(reliability.FAILURES_PER_1000_DEVICE_DAYS, abs=5e-5)
    assert reliability.mean_time_between_failures(16_384) / HOUR == pytest.approx(3.093, abs=0.001)
    checkpoint = 405e9 * 12 / 2e12
    found = reliability.goodput(16_384, checkpoint, 600.0, 466 / (54 * 16.384))  # planned ones too
    assert 0.90 < found["share"]["value"] < 0.97
    assert found["share"]["low"] < found["share"]["value"] < found["share"]["high"] < 1
    assert found["interval_seconds"] == pytest.approx(math.sqrt(2 * checkpoint * found["mtbf_seconds"]), rel=0.02)


def test_no_failures_no_loss() -> None:
    found = reliability.goodput(8, 10.0, 60.0, per_1000_device_days=0.0)
    assert found["share"]["value"] == 1.0
    assert math.isinf(found["mtbf_seconds"])
    given_interval = reliability.goodput(8, 10.0, 60.0, per_1000_device_days=0.0, interval=100.0)
    assert given_interval["share"]["value"] == pytest.approx(100 / 110)


def test_energy_carbon_and_money() -> None:
    h100 = hardware.load("h100-sxm")
    day = 24 * HOUR
    node = cost.energy_kwh(h100, 8, day, pue=1.0, draw=1.0)
    assert node == pytest.approx(10.2 * 24)
    assert cost.energy_kwh(h100, 8, day) == pytest.approx(node * cost.PUE * cost.DRAW)
    assert cost.co2_kg(1000.0) == pytest.approx(436.0)
    assert cost.price(h100, 8, day) == pytest.approx(8 * 24 * h100.price_per_hour)
    assert cost.price(h100, 8, day, price_per_hour=2.0) == pytest.approx(384.0)


def test_the_energy_of_llama_3_1() -> None:
    """39.3 million hours of H100 at 700 W, 11,390 t of CO2 (its model card): the card counts devices alone."""
    h100, hours = hardware.load("h100-sxm"), 39.3e6
    devices_alone = hours * 0.7
    whole = cost.energy_kwh(h100, 1, hours * HOUR)
    assert devices_alone < whole < 2.5 * devices_alone
    assert cost.co2_kg(devices_alone) / 1000 == pytest.approx(11_390, rel=0.08)
