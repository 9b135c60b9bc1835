"""Runs on several machines: here, commands that meet over the loopback; and the scripts for clusters, word for word."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import KEYS, layout, losses, session
from training import MACHINE
from typer.testing import CliRunner

from foretell import config as run_config
from foretell.cli import app
from foretell.data import open_data
from foretell.train import begin

SHAPE = [*layout(dp_shard=2), "train.optimizer=adamw"]
GOLDEN = Path(__file__).parent / "data" / "launch"
TOML = "[model]\nhidden_size = 64\n[train]\nsteps = 10\n[parallel]\ntp = 8\n"


def node(lines: Path, out: Path, port: int, *words: str) -> subprocess.Popen[str]:
    """One of two machines."""
    command = [sys.executable, "-m", "foretell.cli", "train", *KEYS, *SHAPE, "--data", str(lines), "--out", str(out)]
    command += ["--name", "run", "--nodes", "2", "--rendezvous", f"127.0.0.1:{port}", "--quiet", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def steps_done(run: Path) -> int:
    try:
        return sum('"event": "step"' in line for line in (run / "log.jsonl").read_text().splitlines())
    except FileNotFoundError:
        return 0


@pytest.mark.slow
@pytest.mark.parametrize("signalled", [0, 1], ids=["one", "the other"])
def test_two_machines_are_one_run_and_go_on_after_a_signal(lines: Path, tmp_path: Path, signalled: int) -> None:
    """SIGTERM to one of the two commands: both save and say so; started again they go on to the same losses."""
    session(tmp_path / "whole", lines, 2, SHAPE)
    port = 29511 + 2 * signalled
    nodes = [node(lines, tmp_path, port) for _ in range(2)]
    while steps_done(tmp_path / "run") < 7:
        assert all(n.poll() is None for n in nodes), nodes[0].communicate()
        time.sleep(0.02)
    nodes[signalled].send_signal(signal.SIGTERM)
    said = [n.communicate(timeout=60) for n in nodes]
    assert [n.returncode for n in nodes] == [143, 143], said
    assert all("everything is saved" in error for _, error in said)
    nodes = [node(lines, tmp_path, port + 1, "--resume") for _ in range(2)]
    said = [n.communicate(timeout=100) for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], said
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)
    assert not (tmp_path / ".run.launch").exists()


@pytest.mark.slow
def test_a_killed_worker_of_one_machine_starts_both_anew(lines: Path, tmp_path: Path) -> None:
    session(tmp_path / "whole", lines, 2, SHAPE)
    nodes = [node(lines, tmp_path, 29521) for _ in range(2)]
    while steps_done(tmp_path / "run") < 7:
        assert all(n.poll() is None for n in nodes), nodes[0].communicate()
        time.sleep(0.02)
    children = Path(f"/proc/{nodes[0].pid}/task/{nodes[0].pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    said = [n.communicate(timeout=200) for n in nodes]
    assert [n.returncode for n in nodes] == [0, 0], said
    assert losses(tmp_path / "run") == pytest.approx(losses(tmp_path / "whole"), rel=1e-6)


def test_several_machines_need_a_name_and_a_place_to_meet() -> None:
    result = CliRunner().invoke(app, ["train", "--data", "x", "--nodes", "2"])
    assert "--nodes 2 needs --name and --rendezvous" in str(result.exception)


@pytest.mark.parametrize("kind", ["slurm", "torchrun", "ray"])
def test_scripts_are_what_they_were_and_a_shell_can_read_them(kind: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(TOML)
    words = ["launch", kind, "run.toml", "train.lr=0.01", "--nodes", "16", "--nproc", "8", "--out", "/shared/runs"]
    if kind == "slurm":
        words += ["--time", "24:00:00", "--partition", "gpu"]
    command = [sys.executable, "-m", "foretell.cli", *words]
    script = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert script == (GOLDEN / f"{kind}.sh").read_text()
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_script_for_a_wrong_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("[train]\nstepz = 10\n")
    result = CliRunner().invoke(app, ["launch", "slurm", str(tmp_path / "run.toml")])
    assert "stepz" in str(result.exception)
    result = CliRunner().invoke(app, ["launch", "pbs", "--name", "x"])
    assert "there are slurm, torchrun, ray" in str(result.exception)


@pytest.mark.slow
def test_torchrun_and_ray_train_what_was_begun(lines: Path, tmp_path: Path) -> None:
    """Both give the losses of our own launcher exactly; Ray where it is installed."""
    session(tmp_path / "whole", lines, 2, SHAPE)
    c = run_config.updated(run_config.load(None, [*KEYS, *SHAPE]), data={"source": str(lines)})
    names = ["torchrun"]
    try:
        import ray  # noqa: F401

        names.append("ray")
    except ImportError:
        pass
    for name in names:
        begin(c, open_data(lines), tmp_path / name, 2, machine=MACHINE)
        program = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node",
            "2",
            "-m",
            "foretell.cli",
            "train",
        ]
        program += ["--out", str(tmp_path), "--name", name, "--quiet"]
        if name == "ray":
            program = [sys.executable, "-m", "foretell.train.ray", str(tmp_path / name), "--workers", "2"]
        subprocess.run(program, check=True, capture_output=True, timeout=240)
        assert losses(tmp_path / name) == losses(tmp_path / "whole")
        assert json.loads((tmp_path / name / "measured.json").read_text())["steps"] == 24
