"""The machine record: figures of the right order, bounded time where a dtype is slow, stored, renewed and versioned."""

import json
import time
from pathlib import Path

import pytest
import torch

from foretell import calibrate, plan, runtime
from foretell import config as run_config
from foretell.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Measuring replaced by a counter: for the tests of storing."""
    calls = {"n": 0}

    def measure() -> dict[str, object]:
        calls["n"] += 1
        return {"format_version": 1, "n": calls["n"]}

    monkeypatch.setattr(calibrate, "measure", measure)
    return calls


def test_a_record_is_measured_once_and_renewed_on_demand(home: Path, quick: dict[str, int]) -> None:
    assert calibrate.stored() is None
    assert calibrate.record()["n"] == 1
    assert calibrate.record()["n"] == 1
    assert calibrate.record(renew=True)["n"] == 2
    assert calibrate.stored() == {"format_version": 1, "n": 2}
    assert calibrate.path().is_relative_to(home)
    assert runtime.machine_key() in calibrate.path().name


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
    monkeypatch.setattr(calibrate, "_product_seconds", slow)
    monkeypatch.setattr(time, "perf_counter", lambda: clock["now"])
    rates = calibrate.product_rates("bfloat16")
    assert rates["peak"] == pytest.approx(rate)
    assert max(sides) <= 512
    assert clock["now"] < 1.0


def test_the_measured_rate_is_that_of_a_long_product() -> None:
    """Against a plain timing of one large product: within a factor of three, for the machine is shared."""
    a = torch.randn(512, 512)
    a @ a
    began = time.perf_counter()
    for _ in range(4):
        a @ a
    plain = 4 * 2 * 512**3 / (time.perf_counter() - began)
    rates = calibrate.product_rates("float32")
    assert plain / 3 < rates["peak"] < 3 * plain
    assert rates["peak"] == max(rates.values())


def test_a_whole_record_serves_the_forecast(home: Path) -> None:
    began = time.perf_counter()
    record = calibrate.record()
    assert time.perf_counter() - began < 60
    assert record["seconds"] < 60
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


def _text(record: dict) -> str:
    from rich.console import Console

    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=100, file=nowhere)
        console.print(calibrate.render(record))
    return console.export_text()
