"""The machine as the program sees it, and the one restart that keeps the process id."""

import ast
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foretell import runtime
from foretell.errors import ConfigError

ROOT = Path(__file__).parent.parent
GLIBC = sys.platform == "linux" and platform.libc_ver()[0] == "glibc"
needs_glibc = pytest.mark.skipif(not GLIBC, reason="only glibc has these settings")

# Python runs this file at every start, before anything else: so every start is written down.
WITNESS = """
import os
with open(os.environ["WITNESS_FILE"], "a") as f:
    f.write(f"{os.getpid()} {os.environ.get('FORETELL_TUNED', '')} {'GLIBC_TUNABLES' in os.environ}\\n")
"""


def starts(tmp_path: Path, *arguments: str, **environment: str) -> tuple[subprocess.Popen[str], list[list[str]]]:
    """Run Python to its end; the process, and of each of its starts: process id, tuned, with allocator settings."""
    (tmp_path / "sitecustomize.py").write_text(WITNESS)
    seen = tmp_path / "starts"
    seen.write_text("")
    kept = {k: v for k, v in os.environ.items() if k not in {"FORETELL_TUNED", *runtime._ALLOCATOR}}
    env = {**kept, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "WITNESS_FILE": str(seen), **environment}
    command = [sys.executable, *arguments]
    process = subprocess.Popen(
        command,
        env=env,
        cwd=tmp_path,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.wait()
    return process, [line.split(" ") for line in seen.read_text().splitlines()]


@needs_glibc
@pytest.mark.parametrize("verb", ["train", "demo"])
def test_the_restart_keeps_the_process_and_happens_once(tmp_path: Path, verb: str) -> None:
    process, seen = starts(tmp_path, "-W", "error", "-m", "foretell.cli", verb, "--no-such-option")
    out, err = process.communicate()
    assert [pid for pid, _, _ in seen] == [str(process.pid)] * 2, err
    assert [row[1:] for row in seen] == [["", "False"], ["1", "True"]]
    assert process.returncode == 2
    assert "--no-such-option" in err
    assert out == ""


@needs_glibc
def test_arguments_and_flags_survive_the_restart(tmp_path: Path) -> None:
    process, seen = starts(
        tmp_path, "-W", "error", "-X", "utf8", "-m", "foretell.cli", "train", "a b.toml", "--name", "数"
    )
    assert len(seen) == 2
    assert "a b.toml: no such file" in process.communicate()[1]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["plan", "none.toml"], ["verify", "nothing"]])
def test_other_verbs_start_once(tmp_path: Path, arguments: list[str]) -> None:
    assert len(starts(tmp_path, "-m", "foretell.cli", *arguments)[1]) == 1


@pytest.mark.parametrize(
    "setting", [{"MALLOC_ARENA_MAX": "4"}, {"GLIBC_TUNABLES": "glibc.malloc.check=0"}, {"FORETELL_TUNED": "1"}]
)
def test_settings_of_the_user_are_left_alone(tmp_path: Path, setting: dict[str, str]) -> None:
    assert len(starts(tmp_path, "-m", "foretell.cli", "train", "none.toml", **setting)[1]) == 1


def test_python_programs_are_not_restarted(tmp_path: Path) -> None:
    program = "import foretell.cli, foretell.runtime, foretell.config; print('went on')"
    process, seen = starts(tmp_path, "-c", program)
    assert process.communicate()[0] == "went on\n"
    assert len(seen) == 1


def test_nothing_restarts_once_torch_is_there(tmp_path: Path) -> None:
    program = "import sys, types; sys.modules['torch'] = types.ModuleType('torch')\n"
    program += "from foretell import runtime; runtime.tune_process(); print('went on')"
    process, seen = starts(tmp_path, "-c", program)
    assert process.communicate()[0] == "went on\n"
    assert len(seen) == 1


def test_only_the_command_line_restarts() -> None:
    calls = [
        (str(path.relative_to(ROOT)), function.name)
        for path in (ROOT / "foretell").rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("tune_process")
    ]
    assert calls == [("foretell/cli/__init__.py", "main")]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_cores_are_those_this_process_may_use() -> None:
    program = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    program += "from foretell import runtime; print(runtime.cores(), runtime.threads())"
    env = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.parametrize(("wanted", "threads"), [("3", 3), ("5,2", 5), ("0", None), ("many", None), ("", None)])
def test_threads_follow_the_variable(monkeypatch: pytest.MonkeyPatch, wanted: str, threads: int | None) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert runtime.threads() == (threads or runtime.cores())


def test_the_cache_is_where_the_user_wants_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path / "own"))
    assert runtime.cache_dir() == tmp_path / "own"
    monkeypatch.delenv("FORETELL_HOME")
    assert runtime.cache_dir() == tmp_path / "xdg" / "foretell"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert runtime.cache_dir() == tmp_path / ".cache" / "foretell"


def test_a_machine_record_is_named_by_processor_threads_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for threads, torch in (("1", "2.13.0"), ("2", "2.13.0"), ("1", "2.14.0")):
        runtime.machine_key.cache_clear()
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        monkeypatch.setattr(runtime.metadata, "version", lambda name, v=torch: v)
        names.add(runtime.machine_key())
        assert all(c.isalnum() or c == "-" for c in runtime.machine_key())
    runtime.machine_key.cache_clear()
    assert len(names) == 3


def test_devices_and_types_have_names(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setenv("FORETELL_DEVICE", "meta")
    assert runtime.device() == torch.device("meta")
    assert runtime.dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ConfigError, match="float7"):
        runtime.dtype("float7")


def test_a_seed_repeats_what_is_drawn() -> None:
    import torch

    with torch.random.fork_rng(devices=[]):
        runtime.seed_all(7)
        first = torch.rand(3)
        runtime.seed_all(7)
        assert torch.equal(first, torch.rand(3))


PEAK = """
from foretell import runtime
before = runtime.peak_memory_bytes()
block = bytearray(b"x") * 80_000_000
high = runtime.peak_memory_bytes()
del block
runtime.reset_peak_memory()
print(high - before, high - runtime.peak_memory_bytes(), runtime.resident_memory_bytes(), runtime.memory_total_bytes())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak can be started anew on Linux only")
def test_the_peak_is_seen_and_can_start_anew() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], cwd=ROOT, capture_output=True, text=True, check=True)
    grown, fallen, resident, total = map(int, done.stdout.split())
    assert 75e6 < grown < 100e6
    assert fallen > 70e6
    assert 0 < resident < total


def test_a_stop_is_noted_and_the_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with runtime.StopRequest() as stop:
        assert stop.signum == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


STOPS = """
import os, signal, sys
from foretell import runtime
with runtime.StopRequest() as stop:
    os.kill(os.getpid(), signal.SIGTERM)
    print("once", stop.signum, flush=True)
    os.kill(os.getpid(), signal.SIGTERM)
    print("twice", flush=True)
"""


def test_a_second_stop_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", STOPS], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout == f"once {int(signal.SIGTERM)}\n"
    assert done.returncode == -signal.SIGTERM


def test_a_worker_takes_a_second_stop_within_seconds_for_the_same_wish() -> None:
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2"}
    done = subprocess.run([sys.executable, "-c", STOPS], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == f"once {int(signal.SIGTERM)}\ntwice\n"
    assert done.returncode == 0


def test_a_process_is_alive_until_it_has_ended_though_nobody_waited_for_it() -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    assert runtime.is_alive(child.pid)
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # leaves it a zombie
    assert not runtime.is_alive(child.pid)
    child.wait()
    assert not runtime.is_alive(child.pid)
