"""A run that was killed and resumed is the run that was not: weights, logged losses, every byte of the model file.

The truth is one uninterrupted run of the same config; the training runs here are real ones, in processes of their own
(tests/training.py), killed by real signals.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from disk import CHANGING, intercepted
from training import MACHINE, TINY, killed_after, session

from foretell import checkpoint
from foretell import config as run_config
from foretell.checkpoint import folder
from foretell.config import DataConfig, TokenizerConfig
from foretell.data import open_data, prepare
from foretell.train import loop, trial
from foretell.train.alone import Alone


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 30 kB of made-up sentences as bytes."""
    r = random.Random(1)
    words = [
        *("the", "a", "small", "large", "red", "old", "quick", "run", "of", "plan", "step", "cat", "house"),
        *("river", "sees", "keeps", "loses", "finds", "and"),
    ]
    sentences = (" ".join(r.choices(words, k=r.randrange(4, 12))).capitalize() + "." for _ in range(900))
    source = tmp_path_factory.mktemp("text") / "text.txt"
    source.write_text("\n".join(sentences))
    out = source.parent / "prepared"
    prepare([str(source)], out, TokenizerConfig(kind="bytes"), DataConfig(), workers=1, progress=None)
    return out


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Path:
    """The run folder of the uninterrupted run."""
    run = tmp_path_factory.mktemp("runs") / "unbroken"
    end = session(run, data)
    assert end.code == 0, end.stderr
    return run


def course(run: Path) -> list[dict[str, Any]]:
    """The log without its clock."""
    clock = {"seconds", "tokens_per_second", "mfu"}
    lines = (run / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k not in clock} for line in lines]


def check_same(run: Path, unbroken: Path) -> None:
    """Every logged number and every byte of the model equal those of the uninterrupted run."""
    assert course(run) == course(unbroken)
    a, b = ((r / "model" / "model.safetensors").read_bytes() for r in (run, unbroken))
    assert hashlib.sha256(a).hexdigest() == hashlib.sha256(b).hexdigest()
    one, other = (checkpoint.load_latest(r / "checkpoints") for r in (run, unbroken))
    assert one is not None
    assert other is not None
    assert one.tensors.keys() == other.tensors.keys()
    assert all(torch.equal(one.tensors[k], other.tensors[k]) for k in one.tensors)
    assert {**one.state, "seconds": 0} == {**other.state, "seconds": 0}


def step_of(run: Path) -> int:
    loaded = checkpoint.load_latest(run / "checkpoints")
    return loaded.step if loaded else 0


def test_the_uninterrupted_run_is_what_the_others_are_compared_with(unbroken: Path) -> None:
    steps = [e for e in course(unbroken) if e["event"] == "step"]
    assert [e["step"] for e in steps] == list(range(1, 41))
    assert steps[-1]["loss"] < steps[0]["loss"] - 1
    assert [e["step"] for e in course(unbroken) if e["event"] == "eval"] == [8, 16, 24, 32, 40]
    assert sorted(os.listdir(unbroken / "checkpoints")) == ["step-000035", "step-000040"]


@pytest.fixture(scope="module")
def session_seconds(tmp_path_factory: pytest.TempPathFactory, data: Path, unbroken: Path) -> float:
    """What a whole session takes once the server is warm."""
    started = time.monotonic()
    run = tmp_path_factory.mktemp("timed") / "timed"
    assert session(run, data).code == 0
    check_same(run, unbroken)
    return time.monotonic() - started


def kill_until_done(run: Path, data: Path, whole: float, r: random.Random) -> int:
    """SIGKILL at random moments, each time going on from there, until a session ends by itself. Returns the kills."""
    for kills in range(1000):
        end = killed_after(r.uniform(0, whole), run, data)
        if end.code == 0:
            return kills
        assert end.code == -signal.SIGKILL, end.stderr
    raise TimeoutError(f"{run}: 1000 kills and no end")


def kill(kills: int, where: Path, data: Path, unbroken: Path, whole: float) -> None:
    seed = time.time_ns()
    print(f"seed {seed}")  # shown when the test fails
    r, spent, runs = random.Random(seed), 0, 0
    while spent < kills:
        run = where / f"killed-{runs}"
        spent += kill_until_done(run, data, whole, r)
        check_same(run, unbroken)
        shutil.rmtree(run)
        runs += 1


def test_sigkill_at_random_moments(tmp_path: Path, data: Path, unbroken: Path, session_seconds: float) -> None:
    kill(20, tmp_path, data, unbroken, session_seconds)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_sigkill_at_hundreds_of_random_moments(
    tmp_path: Path, data: Path, unbroken: Path, session_seconds: float
) -> None:
    kill(300, tmp_path, data, unbroken, session_seconds)


# ------------------------------------------------------------------------------------------- at every file operation


class Stop(BaseException):
    """The process ends here."""


def train_in(where: Path, data: Path, stop_at: int | None = None) -> dict[str, torch.Tensor]:
    """Start, or go on with, six steps that save every two, through the loop alone; returns the weights at the end."""
    config = run_config.load(None, [*TINY, "train.steps=6", "train.save_every=2", "train.eval_every=3"])
    prepared = open_data(data)
    sizes = config.model.resolved(prepared.tokenizer.vocab_size, config.train.context)
    model = trial.built(sizes, config.train.dropout, config.train.seed)
    job = loop.Job(config.train, prepared, where, "across", torch.float32, False, 1.0, 1.0)

    def display(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == stop_at:
            raise Stop

    where.mkdir(exist_ok=True)
    loop.run(Alone(model), job, resume=True, display=display)
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def dying_after(operations: int, counter: list[int]) -> Callable[..., Any]:
    """Let some changing file operations happen, then none."""

    def around(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name in CHANGING:
            counter[0] += 1
            if counter[0] > operations:
                raise Stop
        return real(*arguments)

    return around


def test_stopped_behind_every_file_operation(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 2 of 6 on: rewinding the log, and two saves, which also delete a checkpoint."""
    monkeypatch.setattr(folder, "SHARD_BYTES", 600_000)
    weights = train_in(tmp_path / "whole", data)
    origin = tmp_path / "origin"
    with pytest.raises(Stop):
        train_in(origin, data, stop_at=3)
    until = time.monotonic() + 20  # what was being saved when it stopped goes on in this process
    while any((origin / "checkpoints").glob(".*")) and time.monotonic() < until:
        time.sleep(0.01)
    counter = [0]
    shutil.copytree(origin, tmp_path / "counted")
    with intercepted(dying_after(10**9, counter)):
        train_in(tmp_path / "counted", data)
    assert counter[0] > 50
    for operations in range(counter[0]):
        where = tmp_path / f"stopped-{operations}"
        shutil.copytree(origin, where)
        with intercepted(dying_after(operations, [0])), pytest.raises(Stop):
            train_in(where, data)
        again = train_in(where, data)
        assert all(torch.equal(again[n], weights[n]) for n in weights)
        assert course(where) == course(tmp_path / "whole")
        assert sorted(os.listdir(where / "checkpoints"))[-1].startswith("step-000006")
        shutil.rmtree(where)


# ------------------------------------------------------------------------------------------------ signals and damage


@pytest.mark.parametrize(
    ("signum", "step", "code"),
    [(signal.SIGTERM, 13, 143), (signal.SIGINT, 13, 130), (signal.SIGINT, 15, 130), (signal.SIGTERM, 40, 143)],
)
def test_a_signal_saves_where_it_is(
    tmp_path: Path, data: Path, unbroken: Path, signum: int, step: int, code: int
) -> None:
    """Between saves, at one, and at the last step."""
    run = tmp_path / "run"
    end = session(run, data, die=(step, signum))
    assert end.code == code, end.stderr
    assert f"interrupted at step {step} of 40; everything is saved" in end.stderr
    assert step_of(run) == step
    assert course(run) == [e for e in course(unbroken) if e["step"] <= step]
    end = session(run, data, resume=True)
    assert end.code == 0, end.stderr
    assert end.result is not None
    assert end.result["resumed_from"] == step
    check_same(run, unbroken)


def killed_at(step: int, run: Path, data: Path) -> None:
    assert session(run, data, die=(step, signal.SIGKILL)).code == -signal.SIGKILL


def test_damage_is_named_and_the_older_checkpoint_leads_to_the_same_end(
    tmp_path: Path, data: Path, unbroken: Path
) -> None:
    run = tmp_path / "run"
    killed_at(23, run, data)
    newest = run / "checkpoints" / "step-000020" / "tensors-00000-00001.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 4
    newest.write_bytes(content)
    end = session(run, data, resume=True)
    assert end.code == 0, end.stderr
    assert end.result is not None
    assert end.result["resumed_from"] == 15
    assert f"{newest}: sha256 is" in end.stderr
    check_same(run, unbroken)


def test_all_damaged_is_an_error_not_a_fresh_start(tmp_path: Path, data: Path) -> None:
    run = tmp_path / "run"
    killed_at(8, run, data)
    manifest = run / "checkpoints" / "step-000005" / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:100])
    log = (run / "log.jsonl").read_bytes()
    end = session(run, data, resume=True)
    assert end.code == 2
    assert "every checkpoint is damaged" in end.stderr
    assert str(manifest) in end.stderr
    assert (run / "log.jsonl").read_bytes() == log


# ------------------------------------------------------------------------------------------- what a resume may change


def test_another_execution_path_is_refused(tmp_path: Path, data: Path, unbroken: Path) -> None:
    run = tmp_path / "run"
    killed_at(23, run, data)
    for change, words in [
        ("train.dtype=bfloat16", "train.dtype: float32 then, bfloat16 now"),
        ("train.compile=on", "train.compile: off then, on now"),
        ("train.lr=0.5", "train.lr"),
    ]:
        end = session(run, data, [*TINY, change], resume=True)
        assert end.code == 2, end.stderr
        assert words in end.stderr
        assert "--allow-drift" in end.stderr
    end = session(run, data, resume=True, machine={**MACHINE, "threads": 8})
    assert end.code == 2
    assert "threads: 1 then, 8 now" in end.stderr
    assert step_of(run) == 20, "a refusal changes nothing"
    # What is not said again stays as it was, whatever the defaults are.
    end = session(run, data, [], resume=True)
    assert end.code == 0, end.stderr
    check_same(run, unbroken)


def test_drift_is_allowed_when_asked_for(tmp_path: Path, data: Path, unbroken: Path) -> None:
    run = tmp_path / "run"
    killed_at(23, run, data)
    end = session(run, data, [*TINY, "train.dtype=bfloat16", "train.lr=0.011"], resume=True, allow_drift=True)
    assert end.code == 0, end.stderr
    before = [e for e in course(unbroken) if e["step"] <= 20]
    assert course(run)[: len(before)] == before
    assert course(run) != course(unbroken)
    written = run_config.load(run / "config.toml").train
    assert (written.dtype, written.lr) == ("bfloat16", 0.011), "what was accepted is applied and written down"


def test_resume_of_nothing_and_of_a_finished_run(tmp_path: Path, data: Path, unbroken: Path) -> None:
    run = tmp_path / "run"
    fresh = session(run, data, resume=True)
    assert fresh.code == 0, fresh.stderr
    assert fresh.result is not None
    assert fresh.result["resumed_from"] is None
    check_same(run, unbroken)
    names = {p: p.stat().st_mtime_ns for p in run.rglob("*")}
    again = session(run, data, resume=True)
    assert again.code == 0, again.stderr
    assert again.result == fresh.result
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == names
    end = session(run, data)
    assert end.code == 2
    assert "--resume" in end.stderr
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*")} == names


def test_a_run_killed_before_its_first_checkpoint_starts_again(tmp_path: Path, data: Path, unbroken: Path) -> None:
    run = tmp_path / "run"
    killed_at(3, run, data)
    assert session(run, data).code == 2
    end = session(run, data, resume=True)
    assert end.code == 0, end.stderr
    check_same(run, unbroken)
