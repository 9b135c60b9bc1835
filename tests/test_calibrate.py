"""The machine record: figures of the right order, bounded time where a dtype is slow, stored, renewed and versioned."""

import json
import time
from pathlib import Path

import pytest
import torch

from foretell import calibrate, plan, runtime
from foretell import config as run_config
from foretell.calibrate import machine, timing
from foretell.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Measuring replaced by a counter: for the tests of storing."""
    calls = {"n": 0}

    def measure(level: str) -> dict[str, object]:
        calls["n"] += 1
        parts = {"parts": [{"part": "layer"}], "parts_created": "then"} if level == "full" else {}
        return {"format_version": 2, "level": level, "n": calls["n"], **parts}

    monkeypatch.setattr(calibrate, "measure", measure)
    return calls


def test_a_record_is_measured_once_and_renewed_on_demand(home: Path, quick: dict[str, int]) -> None:
    assert calibrate.stored() is None
    assert calibrate.record()["n"] == 1
    assert calibrate.record()["n"] == 1
    assert calibrate.record(renew=True)["n"] == 2
    assert calibrate.stored() == {"format_version": 2, "level": "quick", "n": 2}
    assert calibrate.path().is_relative_to(home)
    assert runtime.machine_key() in calibrate.path().name


def test_a_quick_record_keeps_the_parts_of_a_full_one(home: Path, quick: dict[str, int]) -> None:
    calibrate.record(level="full")
    kept = {"level": "full", "parts": [{"part": "layer"}], "parts_created": "then"}
    assert calibrate.record(renew=True) == {"format_version": 2, "n": 2, **kept}
    assert calibrate.stored() == {"format_version": 2, "n": 2, **kept}


def test_a_damaged_record_is_measured_again_and_a_newer_one_refused(home: Path, quick: dict[str, int]) -> None:
    calibrate.record()
    for damage in ("", "{", "[1]", '"x"', "\x00"):
        calibrate.path().write_text(damage)
        assert calibrate.stored() is None, damage
    calibrate.path().write_text(json.dumps({"format_version": 99}))
    with pytest.raises(ConfigError, match="99"):
        calibrate.stored()


def test_a_home_that_cannot_be_written_costs_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quick: dict
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "file"))
    assert calibrate.record()["n"] == 1


def test_a_slow_dtype_takes_no_longer_than_it_may(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product 300 times slower than float32, as bfloat16 is on processors without AVX-512."""
    rate = 3.3e8
    sides = []

    def slow(m: int, k: int, n: int, dtype: torch.dtype) -> float:
        sides.append(max(m, k, n))
        seconds = 2 * m * k * n / rate
        clock["now"] += 3 * seconds
        return seconds

    clock = {"now": 0.0}
    monkeypatch.setattr(machine, "_product_seconds", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])
    rates = machine.product_rates("bfloat16")
    assert rates["peak"] == pytest.approx(rate)
    assert max(sides) <= 512
    assert clock["now"] < 1.0


def test_the_measured_rate_is_that_of_a_long_product() -> None:
    """Against the best plain timing of one large product: of the same order, for the machine is shared."""
    a = torch.randn(512, 512)

    def plain() -> float:
        began = time.perf_counter()
        a @ a
        return 2 * 512**3 / (time.perf_counter() - began)

    before = max(plain() for _ in range(8))
    rates = machine.product_rates("float32")
    best = max(before, *(plain() for _ in range(8)))
    assert best / 10 < rates["peak"] < 10 * best
    assert rates["peak"] == max(rates.values())


def test_a_whole_record_serves_the_forecast(home: Path) -> None:
    record = calibrate.record()
    assert record["format_version"] == calibrate.FORMAT_VERSION
    assert record["processor"] == runtime.processor()
    assert 5e7 < record["process_bytes"] < 2e9
    assert 1e8 < record["memory_bytes_per_second"]["copy"] < 1e13
    assert 1e-8 < record["op_seconds"] < 1e-2
    assert 1e5 < record["checkpoint_bytes_per_second"] < 1e12
    assert json.loads(json.dumps(record)) == record
    shape = {"hidden_size": 64, "num_hidden_layers": 2}
    config = run_config.updated(run_config.RunConfig(), model=shape, train={"steps": 10})
    forecast = plan.forecast(config, machine=record)
    assert forecast["peak_flops_per_second"] == max(r["peak"] for r in record["flops_per_second"].values())
    assert forecast["memory_bytes"]["peak"]["value"] > record["process_bytes"]
    assert "GFLOP/s" in _text(record)
    assert record["level"] == "quick"
    assert all(1e-7 < s < 10 for s in record["speed"].values())


def test_a_timing_is_the_median_of_calls_that_have_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock of our own: of three calls to settle each is quicker, of three that count one is disturbed."""
    clock = {"now": 0.0}
    lasting = iter([0.4, 0.2, 0.01, 0.01, 0.07, 0.012])

    def work() -> None:
        clock["now"] += next(lasting)

    speeds = iter([timing.Speed(1.0, 2.0, 3.0), timing.Speed(3.0, 4.0, 5.0)])
    monkeypatch.setattr(timing, "References", lambda: type("R", (), {"speed": lambda self: next(speeds)})())
    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    monkeypatch.setattr(timing, "WORK_SECONDS", 100.0)
    seconds, speed = timing.Stopwatch().beside(work, 0.05)
    assert seconds == pytest.approx(0.012)
    assert speed == timing.Speed(2.0, 3.0, 4.0)
    assert timing.median([timing.Speed(1, 5, 9), timing.Speed(2, 6, 7), timing.Speed(3, 4, 8)]) == {
        "product_seconds": 2,
        "operator_seconds": 5,
        "stream_seconds": 8,
    }


def _text(record: dict) -> str:
    from rich.console import Console

    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=100, file=nowhere)
        console.print(calibrate.render(record))
    return console.export_text()
