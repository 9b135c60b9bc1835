"""`foretell train` on several processes: the run of one, whatever the layout, stopped and moved between layouts."""

import json
from pathlib import Path

import pytest
from runs import KEYS, layout, losses, session
from training import MACHINE

from foretell import config as run_config
from foretell.data import open_data
from foretell.errors import ConfigError
from foretell.models import hf
from foretell.train import begin


@pytest.fixture(scope="module", params=["adamw", "muon"])
def alone(request: pytest.FixtureRequest, lines: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    run = tmp_path_factory.mktemp("alone") / "run"
    session(run, lines, 1, [f"train.optimizer={request.param}"])
    return f"train.optimizer={request.param}", run


def test_a_run_moves_from_layout_to_layout(lines: Path, tmp_path: Path, alone: tuple[str, Path]) -> None:
    optimizer, whole = alone
    run = tmp_path / "run"
    moves = [
        (4, layout(dp_shard=4), 5),
        (2, layout(tp=2), 11),
        (1, layout(), 14),
        (4, layout(dp_replicate=2, cp=2), 17),
        (4, layout(pp=2, dp_shard=2), 20),
        (4, layout(dp_shard=2, tp=2), None),
    ]
    for ranks, axes, stop_at in moves:
        results = session(run, lines, ranks, [optimizer, *axes], stop_at)
        assert all(isinstance(r, str) == (stop_at is not None) for r in results)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4 if "muon" in optimizer else 2e-5)
    assert len(losses(run)) == len(losses(whole))
    measured, expected = (json.loads((r / "measured.json").read_text()) for r in (run, whole))
    assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert measured["validation"]["accuracy"] == pytest.approx(expected["validation"]["accuracy"], rel=1e-2)
    ours, theirs = (dict(hf.load(r / "model")[0].named_parameters()) for r in (run, whole))
    for name, p in theirs.items():
        assert (ours[name] - p).abs().max() <= 2e-3 * p.abs().max()


def test_a_run_whose_state_is_kept_on_the_host_goes_on_without_it(lines: Path, tmp_path: Path) -> None:
    session(tmp_path / "whole", lines, 1, [])
    run, offload = tmp_path / "run", "parallel.offload=true"
    session(run, lines, 2, [*layout(dp_shard=2), offload], stop_at=5)
    session(run, lines, 1, [*layout(), offload], stop_at=11)
    session(run, lines, 1, layout())
    assert losses(run) == pytest.approx(losses(tmp_path / "whole"), rel=2e-5)


def test_the_forecast_of_several_processes_has_every_byte_they_send(lines: Path, tmp_path: Path) -> None:
    for name, axes, ranks in (("a", layout(dp_shard=2), 2), ("b", layout(tp=2), 2), ("c", layout(pp=2, dp_shard=2), 4)):
        run = tmp_path / name
        session(run, lines, ranks, ["train.optimizer=muon", *axes])
        plan, measured = (json.loads((run / f"{n}.json").read_text()) for n in ("plan", "measured"))
        assert plan["layout"]["world_size"] == ranks
        assert plan["comm_step_bytes"] == measured["comm_step_bytes"] > 0


def strict(copies: int) -> list[str]:
    return ["parallel.strict=true", *layout(dp_replicate=copies), "train.dropout=0.1", "train.optimizer=muon"]


def test_a_strict_run_is_the_same_bits_on_one_two_and_four_processes(lines: Path, tmp_path: Path) -> None:
    runs = [tmp_path / f"{n}" for n in (1, 2, 4)]
    for run, copies in zip(runs, (1, 2, 4), strict=True):
        session(run, lines, copies, strict(copies))
    moved = tmp_path / "moved"
    session(moved, lines, 4, strict(4), stop_at=9)
    session(moved, lines, 1, strict(1))
    weights = (runs[0] / "model" / "model.safetensors").read_bytes()
    for run in (*runs[1:], moved):
        assert losses(run) == losses(runs[0])
        assert (run / "model" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize(
    "keys",
    [
        ["parallel.reduce=int8"],
        ["parallel.local_steps=4", "train.save_every=100"],
        ["parallel.local_steps=4", "parallel.reduce=bfloat16", "parallel.outer_momentum=0.5"],
    ],
)
def test_reduced_communication_learns_and_resumes_bit_for_bit(lines: Path, tmp_path: Path, keys: list[str]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    keys = [*keys, *layout(dp_replicate=2), "train.dropout=0.1"]
    session(whole, lines, 2, keys)
    for stop_at in (6, 17, None):
        session(broken, lines, 2, keys, stop_at)
    assert losses(broken) == losses(whole)
    assert losses(whole)[-1] < losses(whole)[0] - 0.5
    one, two = ((r / "model" / "model.safetensors").read_bytes() for r in (whole, broken))
    assert one == two


def test_a_number_of_processes_that_does_not_fit_is_refused(lines: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tp 3 .*= 3 does not divide the 2 processes"):
        session(tmp_path / "a", lines, 2, ["parallel.tp=3"])
    with pytest.raises(ConfigError, match=r"= 2, but there are 1 processes; start as many \(--nproc 2\)"):
        session(tmp_path / "b", lines, 1, ["parallel.tp=2", "parallel.dp_shard=1"])
    with pytest.raises(
        ConfigError, match=r"model.vocab_size \(271\) must be a multiple of parallel.tp = 2; the next is 272"
    ):
        session(tmp_path / "d", lines, 2, ["parallel.tp=2", "model.vocab_size=271"])
    assert not (tmp_path / "d" / "config.toml").exists()
    with pytest.raises(ConfigError, match="compile=on"):
        session(tmp_path / "c", lines, 2, ["train.compile=on"])


@pytest.mark.parametrize(
    "axes",
    [
        layout(dp_shard=2),
        layout(tp=2),
        [*layout(cp=2), "parallel.context_exchange=ring"],
        layout(pp=2),
    ],
    ids=["dp_shard", "tp", "ring", "pp"],
)
def test_bfloat16_trains_and_validates_on_several_processes(lines: Path, tmp_path: Path, axes: list[str]) -> None:
    keys = ["train.dtype=bfloat16", "train.optimizer=adamw", "train.steps=8", "train.eval_every=4"]
    session(tmp_path / "one", lines, 1, keys)
    session(tmp_path / "two", lines, 2, [*keys, *axes])
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=5e-3)


def test_another_number_of_processes_is_a_drift_that_must_be_allowed(lines: Path, tmp_path: Path) -> None:
    c = run_config.updated(run_config.load(None, KEYS), data={"source": str(lines)})
    begin(c, open_data(lines), tmp_path / "run", 1, machine=MACHINE)
    with pytest.raises(ConfigError, match=r"processes: 1 then, 2 now. Accept this with --allow-drift"):
        begin(c, open_data(lines), tmp_path / "run", 2, machine=MACHINE, resume=True)
    begin(c, open_data(lines), tmp_path / "run", 2, machine=MACHINE, resume=True, allow_drift=True)
    begin(c, open_data(lines), tmp_path / "run", 2, machine=MACHINE, resume=True)
