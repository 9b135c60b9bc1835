"""The command line as a person or a script meets it: quick help, one clear message, exit codes, JSON that is JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from foretell import __version__

ROOT = Path(__file__).parent.parent
VERBS = ["demo", "prepare", "plan", "train", "verify", "evaluate", "generate", "report", "calibrate"]


def foretell(*arguments: str, cwd: Path, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a folder. FORETELL_TUNED spares the restart, which tests/test_runtime.py looks at."""
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "FORETELL_TUNED": "1",
        "FORETELL_HOME": str(cwd / "home"),
        **environment,
    }
    command = [sys.executable, "-m", "foretell.cli", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, input=stdin, capture_output=True, text=True, check=False)


HEAVY = """
import sys
sys.argv = ["foretell", *{arguments!r}]
from foretell.cli import main
try:
    main()
except SystemExit as e:
    code = e.code
else:
    code = 0
print("heavy:", code or 0, [m for m in ("torch", "numpy", "pyarrow", "transformers", "tokenizers") if m in sys.modules])
"""


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], *([v, "--help"] for v in VERBS)], ids=" ".join)
def test_help_loads_nothing_heavy(arguments: list[str], tmp_path: Path) -> None:
    """What makes `foretell --help` quick, without a clock: nothing that takes long to import is imported."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", HEAVY.format(arguments=arguments)]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-1:] == ["heavy: 0 []"], done.stdout + done.stderr


def test_help_names_every_verb(tmp_path: Path) -> None:
    done = foretell("--help", cwd=tmp_path, COLUMNS="100")
    assert done.returncode == 0
    assert all(f" {verb} " in done.stdout for verb in VERBS)
    assert done.stderr == ""


def test_the_version(tmp_path: Path) -> None:
    assert foretell("--version", cwd=tmp_path).stdout == f"{__version__}\n"


MISTAKES = {
    "unknown key": (["train", "train.stepz=3"], "train.steps"),
    "bad value": (["train", "train.steps=-3"], "train.steps"),
    "no config": (["train", "none.toml"], "none.toml"),
    "bad toml": (["plan", "bad.toml"], "bad.toml"),
    "newer format": (["plan", "newer.toml"], "format_version 99"),
    "no text": (["train"], "--data"),
    "text that is not there": (["prepare", "nowhere", "--out", "d"], "nowhere"),
    "resume of nothing named": (["train", "--resume"], "--name"),
    "no run": (["verify", "nowhere"], "nowhere"),
    "no run to report": (["report", "nowhere"], "nowhere"),
    "no model": (["generate", "nowhere", "--prompt", "x"], "nowhere"),
    "no model to score": (["evaluate", "nowhere", "--data", "text.txt"], "nowhere"),
    "unfinished run": (["generate", "unfinished", "--prompt", "x"], "--resume"),
}


def folder_of_mistakes(tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("a = ")
    (tmp_path / "newer.toml").write_text("format_version = 99\n")
    (tmp_path / "text.txt").write_text("some text\n")
    (tmp_path / "unfinished").mkdir()
    (tmp_path / "unfinished" / "config.toml").write_text("format_version = 1\n")


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_exit_code_2(tmp_path: Path, name: str) -> None:
    folder_of_mistakes(tmp_path)
    arguments, said = MISTAKES[name]
    done = foretell(*arguments, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert said in done.stderr
    assert sum(line.startswith("foretell: ") for line in done.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["unknown key", "no run", "text that is not there"])
def test_with_json_a_mistake_is_json_too(tmp_path: Path, name: str) -> None:
    folder_of_mistakes(tmp_path)
    arguments, said = MISTAKES[name]
    done = foretell(*arguments, "--json", cwd=tmp_path)
    assert done.returncode == 2
    told = json.loads(done.stdout)
    assert told["exit_code"] == 2
    assert said in told["error"]


@pytest.mark.parametrize(
    "arguments", [["no-such-verb"], ["train", "--no-such-option"], ["prepare", "x"], ["demo", "x"]]
)
def test_wrong_usage_is_exit_code_2(tmp_path: Path, arguments: list[str]) -> None:
    done = foretell(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_prepare_and_its_json(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for i in range(30):
        (tmp_path / "in" / f"{i}.txt").write_text(f"Text number {i % 29} says hello to the others.\n" * 20)
    (tmp_path / "in" / "bad.txt").write_bytes(b"\xff\x00\xfe\x01")
    done = foretell("prepare", "in", "--out", "d", "tokenizer.kind=bytes", "--workers", "1", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["documents_in"] == 31 == told["documents_out"] + told["quarantined"] + sum(told["dropped"].values())
    assert told["duplicates"] == told["dropped"]["duplicate"] == 1
    assert set(told["tokens"]) == {"train", "valid", "test"}
    again = foretell("prepare", "in", "--out", "d", "tokenizer.kind=bytes", cwd=tmp_path)
    assert again.returncode == 0
    assert "31" in again.stdout


def test_text_from_standard_input(tmp_path: Path) -> None:
    done = foretell("prepare", "-", "--out", "d", "--json", cwd=tmp_path, stdin="Some words to read.\n" * 500)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["documents_in"] == 1


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m foretell.cli --help | true"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
