"""The command line as a person or a script meets it: quick help, one clear message, exit codes, JSON that is JSON."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny

from foretell import __version__, config
from foretell.cli.display import Display
from foretell.cli.options import console
from foretell.cli.steps import complete, prepared, train_and_report, visible
from foretell.errors import ConfigError
from foretell.models import hf

ROOT = Path(__file__).parent.parent
VERBS = [
    "demo",
    "prepare",
    "plan",
    "train",
    "verify",
    "evaluate",
    "generate",
    "report",
    "calibrate",
    "ladder",
    "vectors",
]


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
    "unknown table": (["prepare", "text.txt", "--out", "d", "tokeniser.kind=bytes"], "nearest: `tokenizer`"),
    "key of another verb": (["prepare", "text.txt", "--out", "d", "train.steps=3"], "train.steps=3"),
    "two ways to name a source": (["prepare", "text.txt", "--out", "d", "data.source=x"], "data.source=x"),
    "out below a file": (["prepare", "text.txt", "--out", "text.txt/d"], "text.txt"),
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


ODD = "n\udcff[/]\U0001f600.txt"  # a byte that is no UTF-8, what rich takes for markup, and what GBK lacks


@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8:surrogateescape", "gbk:strict"])
def test_a_name_in_no_encoding_is_still_json(tmp_path: Path, encoding: str) -> None:
    done = foretell("prepare", ODD, "--out", "d", "--json", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 2, done.stderr
    assert json.loads(done.stdout)["error"].startswith(f"{ODD}: no such file")


@pytest.mark.parametrize("encoding", ["utf-8:strict", "gbk:strict"])
def test_generate_prints_in_any_encoding(tmp_path: Path, encoding: str) -> None:
    hf.save(tiny.model(257), tiny.byte_level(), tmp_path / "m")
    few = ("--max-new-tokens", "3")
    done = foretell("generate", "m", "--prompt", "\U0001f600", *few, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    done = foretell("generate", "m", "--prompt", "a\udcff", *few, cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert done.returncode == 2
    assert "lone surrogate" in done.stderr
    long = foretell("generate", "m", "--prompt", "word " * 40, *few, cwd=tmp_path)
    assert "the first 169 tokens of the prompt do not fit" in long.stderr


def test_no_model_commands_the_terminal() -> None:
    shown = visible("\x1b]0;title\x07red\x9b31m\r\x7f\n\tend 红楼梦\u00e9")
    assert shown == "\u241b]0;title\u2407red\ufffd31m\u240d\u2421\n\tend 红楼梦\u00e9"


def test_on_a_terminal_only_text_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    for terminal, shown in ((True, "\u241b[2J"), (False, "\x1b[2J")):
        monkeypatch.setattr(sys.stdout, "isatty", lambda answer=terminal: answer)
        complete(tiny.model(257), tiny.byte_level(), "\x1b[2J", {"max_new_tokens": 1})
        assert capsys.readouterr().out.startswith(shown)


def test_names_are_no_markup(tmp_path: Path) -> None:
    hf.save(tiny.model(257), tiny.byte_level(), tmp_path / "m")
    name = "a [draft][/dim].txt"
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_text("some text\n" * 50)
    done = foretell("evaluate", "m", "--data", name, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert name in done.stderr
    out = "far/" * 40 + "[/x]"
    (tmp_path / "empty.txt").touch()
    done = foretell("prepare", name, "empty.txt", "--out", out, "tokenizer.kind=bytes", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"(reasons in {out}/index.json)" in done.stdout  # on one line, and as it is


def test_nothing_at_all_is_said_to_be_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    done = foretell("prepare", "empty.txt", "--out", "d", cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "First: empty.txt: empty file" in done.stderr


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_told(tmp_path: Path, signum: int, code: int) -> None:
    """`prepare` waits for standard input, which does not come."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "foretell.cli", "prepare", "-", "--out", "d", "--json"]
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tmp_path, env=env, text=True, **ends) as process:
        while not (tmp_path / ".d.partial" / "stdin.json").exists():
            time.sleep(0.02)
        process.send_signal(signum)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert json.loads(stdout)["exit_code"] == code
    assert "Traceback" not in stderr


def test_runs_in_the_folder_of_the_text_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("Some words to read.\n" * 500)
    c = config.load(None, ["tokenizer.kind=bytes", "data.source=."])
    display = Display(console(), quiet=True)
    first = prepared(c, Path("runs"), display)
    (tmp_path / "runs" / "a").mkdir()
    (tmp_path / "runs" / "a" / "log.jsonl").write_text('{"text": "no text of the user"}\n')
    again = prepared(c, Path("runs"), display)
    assert again.index == first.index
    assert again.index["funnel"]["files"] == 1
    (tmp_path / "runs" / "b.txt").write_text("Text that is named is read.\n" * 500)
    named = prepared(config.updated(c, data={"source": "runs/b.txt"}), Path("runs"), display)
    assert named.index["funnel"]["files"] == 1


def test_text_in_a_folder_called_data_needs_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "data-run").mkdir(parents=True)
    (tmp_path / "runs" / "data-run" / "config.toml").touch()
    c = config.load(None, ["data.source=data"])
    with pytest.raises(ConfigError, match="data-run exists already"):
        train_and_report(c, Path("runs"), None, False, False, Display(console(), quiet=True))


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f"{sys.executable} -m foretell.cli --help | true"
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
