"""The history of forecasts: shares that held, and lessons that mend a bias without trusting few runs."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from foretell.cli import app
from foretell.config import ModelConfig, TrainConfig
from foretell.plan import history
from foretell.plan.time import step_seconds

MODEL = ModelConfig(hidden_size=64, num_hidden_layers=2).resolved(300, 64)
TRAIN = TrainConfig(context=64, global_batch_tokens=256, micro_batch_size=4, steps=10)


def pair(ratio: float, plan: dict[str, Any] | None = None, **measured: Any) -> history.Pair:
    forecast = {"steps": 10, "trial": {}, "step_seconds": {"value": 2.0, "low": 1.8, "high": 2.2}, "lessons": {}}
    return "run", {**forecast, **(plan or {})}, {"steps": 10, "step_seconds": 2.0 * ratio, **measured}


def test_shares_and_errors_over_runs() -> None:
    found = history.gathered([pair(1.0), pair(1.05), pair(1.5), pair(0.8)])
    steps = next(q for q in found["quantities"] if q["name"] == "step_seconds")
    assert steps == {
        "name": "step_seconds",
        "runs": 4,
        "held_share": 0.5,
        "median_error_percent": pytest.approx(2.5),
        "worst_error_percent": pytest.approx(50),
    }
    assert found["held_share"] == 0.5


@settings(deadline=None)
@given(st.floats(0.5, 2.0), st.lists(st.floats(-0.05, 0.05), min_size=20, max_size=40))
def test_a_bias_is_learned_and_not_learned_twice(bias: float, noise: list[float]) -> None:
    raw = [pair(bias * math.exp(e)) for e in noise]
    lesson = history.lessons(raw)["step_seconds.trial"]
    assert abs(math.log(lesson["factor"] / bias)) < 0.05 + abs(math.log(bias)) * 2 / 20
    # The same runs, forecast with the lesson: what is measured stays, what was forecast moved.
    f = lesson["factor"]
    moved = {"step_seconds": {"value": 2 * f, "low": f, "high": 4 * f}, "lessons": {"step_seconds.trial": f}}
    again = history.lessons([pair(bias * math.exp(e), moved) for e in noise])["step_seconds.trial"]
    assert again["factor"] == pytest.approx(lesson["factor"], rel=1e-9)
    assert again["half_width"] == pytest.approx(lesson["half_width"], rel=1e-6)


def test_few_runs_stopped_ones_and_other_grounds_teach_nothing() -> None:
    assert history.lessons([pair(1.3)] * 3) == {}
    assert history.lessons([pair(1.3, stopped="stopped at step 3 of 10")] * 9) == {}
    assert set(history.lessons([pair(1.3, {"trial": None})] * 4)) == {"step_seconds.record"}


def test_the_width_holds_the_next_run_nine_times_in_ten() -> None:
    import numpy as np

    draw, held = np.random.default_rng(0), 0
    for _ in range(2000):
        *seen, coming = draw.normal(0.0, 0.1, 9)
        lesson = history._lesson(list(seen))
        held += abs(coming - math.log(lesson["factor"])) <= lesson["half_width"]
    assert 0.87 < held / 2000 < 0.95


def test_a_forecast_uses_what_was_learned() -> None:
    machine: dict[str, Any] = {"flops_per_second": {"float32": {"peak": 1e11}}, "threads": 1}
    plain = step_seconds(MODEL, TRAIN, machine, None)
    lesson = {"step_seconds.record": {"factor": 1.2, "half_width": 0.1, "runs": 8}}
    taught = step_seconds(MODEL, TRAIN, {**machine, "lessons": lesson}, None)
    assert taught["value"] == pytest.approx(1.2 * plain["value"])
    assert taught["high"] / taught["value"] == pytest.approx(math.exp(0.1))
    assert step_seconds(MODEL, TRAIN, {**machine, "lessons": lesson}, {"step_seconds": 1.0})["value"] != 1.2


def test_the_verb_shows_a_folder_of_runs_and_keeps_its_lessons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "home"))
    for n in range(5):
        _, plan, measured = pair(1.1 + n / 100)
        run = tmp_path / "runs" / f"r{n}"
        run.mkdir(parents=True)
        (run / "plan.json").write_text(json.dumps(plan))
        (run / "measured.json").write_text(json.dumps(measured))
    (tmp_path / "runs" / "data").mkdir()
    found = CliRunner().invoke(app, ["verify", str(tmp_path / "runs"), "--recalibrate", "--json"])
    result = json.loads(found.stdout)
    assert len(result["runs"]) == 5
    assert result["lessons"]["step_seconds.trial"]["factor"] == pytest.approx(1.12 ** (5 / 7), rel=0.01)
    from foretell.cli.steps import lessons

    assert lessons() == result["lessons"]
    none = CliRunner().invoke(app, ["verify", str(tmp_path / "home")])
    assert "needs a finished run folder" in str(none.exception)
