"""`foretell train` on several processes: the run of one, whatever the layout, stopped and moved between layouts."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from ranks import on
from training import MACHINE, TINY

from foretell import config as run_config
from foretell.data import open_data, prepare
from foretell.errors import ConfigError, Interrupted
from foretell.models import hf
from foretell.train import begin, go_on

STEPS = 24
KEYS = [k for k in TINY if not k.startswith(("train.steps", "train.dropout", "train.micro"))]
KEYS += [
    f"train.steps={STEPS}",
    "train.dropout=0",
    "train.micro_batch_size=1",
    "model.num_key_value_heads=2",
    "model.vocab_size=272",
]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    lines = (f"line {i} of {i * i % 97} and {i * 7919 % 1000}\n" for i in range(3000))
    (folder / "text.txt").write_text("".join(lines))
    tokenizer = run_config.TokenizerConfig(vocab_size=320)
    prepare([str(folder / "text.txt")], folder / "data", tokenizer, run_config.DataConfig(), workers=1)
    return folder / "data"


def trained(run: Path, data: Path, stop_at: int | None) -> dict[str, Any] | str:
    """One rank's part of a run, which the last rank asks to stop behind a step."""
    import torch.distributed as dist

    last = dist.get_rank() == dist.get_world_size() - 1

    def display(event: dict[str, Any]) -> None:
        if last and event["event"] == "step" and event["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        return go_on(run, open_data(data), resume=True, display=display)
    except Interrupted as e:
        return str(e)


def session(run: Path, data: Path, ranks: int, layout: list[str], stop_at: int | None = None) -> list[Any]:
    """Begin or go on with a run on so many ranks in that layout, which may be another than before."""
    c = run_config.updated(run_config.load(None, [*KEYS, *layout]), data={"source": str(data)})
    begin(c, open_data(data), run, ranks, machine=MACHINE, resume=True, allow_drift=True)
    return on(ranks, trained, run, data, stop_at)


def losses(run: Path) -> list[float]:
    events = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [e["loss"] for e in events if e["event"] in ("step", "eval")]


@pytest.fixture(scope="module", params=["adamw", "muon"])
def alone(request: pytest.FixtureRequest, text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    run = tmp_path_factory.mktemp("alone") / "run"
    session(run, text, 1, [f"train.optimizer={request.param}"])
    return f"train.optimizer={request.param}", run


def layout(**degrees: int) -> list[str]:
    return [f"parallel.{k}={degrees.get(k, 1)}" for k in ("dp_replicate", "dp_shard", "tp", "pp", "cp", "ep")]


def test_a_run_moves_from_layout_to_layout(text: Path, tmp_path: Path, alone: tuple[str, Path]) -> None:
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
        results = session(run, text, ranks, [optimizer, *axes], stop_at)
        assert all(isinstance(r, str) == (stop_at is not None) for r in results)
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4 if "muon" in optimizer else 2e-5)
    assert len(losses(run)) == len(losses(whole))
    measured, expected = (json.loads((r / "measured.json").read_text()) for r in (run, whole))
    assert measured["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert measured["validation"]["accuracy"] == pytest.approx(expected["validation"]["accuracy"], rel=1e-2)
    ours, theirs = (dict(hf.load(r / "model")[0].named_parameters()) for r in (run, whole))
    for name, p in theirs.items():
        assert (ours[name] - p).abs().max() <= 2e-3 * p.abs().max()


def strict(copies: int) -> list[str]:
    return ["parallel.strict=true", *layout(dp_replicate=copies), "train.dropout=0.1", "train.optimizer=muon"]


def test_a_strict_run_is_the_same_bits_on_one_two_and_four_processes(text: Path, tmp_path: Path) -> None:
    runs = [tmp_path / f"{n}" for n in (1, 2, 4)]
    for run, copies in zip(runs, (1, 2, 4), strict=True):
        session(run, text, copies, strict(copies))
    moved = tmp_path / "moved"
    session(moved, text, 4, strict(4), stop_at=9)
    session(moved, text, 1, strict(1))
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
def test_reduced_communication_learns_and_resumes_bit_for_bit(text: Path, tmp_path: Path, keys: list[str]) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    keys = [*keys, *layout(dp_replicate=2), "train.dropout=0.1"]
    session(whole, text, 2, keys)
    for stop_at in (6, 17, None):
        session(broken, text, 2, keys, stop_at)
    assert losses(broken) == losses(whole)
    assert losses(whole)[-1] < losses(whole)[0] - 0.5
    one, two = ((r / "model" / "model.safetensors").read_bytes() for r in (whole, broken))
    assert one == two


def test_a_number_of_processes_that_does_not_fit_is_refused(text: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"tp 3 .*= 3 does not divide the 2 processes"):
        session(tmp_path / "a", text, 2, ["parallel.tp=3"])
    with pytest.raises(ConfigError, match=r"= 2, but there are 1 processes; start as many \(--nproc 2\)"):
        session(tmp_path / "b", text, 1, ["parallel.tp=2", "parallel.dp_shard=1"])
    with pytest.raises(
        ConfigError, match=r"model.vocab_size \(271\) must be a multiple of parallel.tp = 2; the next is 272"
    ):
        session(tmp_path / "d", text, 2, ["parallel.tp=2", "model.vocab_size=271"])
    assert not (tmp_path / "d" / "config.toml").exists()
    with pytest.raises(ConfigError, match="compile=on"):
        session(tmp_path / "c", text, 2, ["train.compile=on"])
