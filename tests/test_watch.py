"""Whom the watch ends, told by beats of real processes and a clock that the test moves."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from foretell.distributed import watch
from foretell.distributed.watch import IDLE_SECONDS, LEAST_SECONDS, Watch

STEP = 0.5  # between two looks; shorter than what counts as not having run


@pytest.fixture(autouse=True)
def no_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    """These processes cannot answer a wish for their stacks."""
    monkeypatch.setattr(watch, "_DUMP_SECONDS", 0.0)


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(100)"]) for _ in range(3)]
    yield started
    for process in started:
        process.kill()
        process.wait()


def beat(folder: Path, rank: int, pid: int, **line: Any) -> None:
    content = {"rank": rank, "pid": pid, "step_seconds": 0.0, "collectives": 7, "waits": True, **line}
    (folder / f"beat-{rank}").write_text(json.dumps(content))


def ended(process: subprocess.Popen[bytes]) -> bool:
    try:
        return process.wait(0.2) == -signal.SIGKILL
    except subprocess.TimeoutExpired:
        return False


@pytest.mark.parametrize(("step_seconds", "patience"), [(0.1, LEAST_SECONDS), (4.0, 12.0)])
def test_a_silent_rank_is_ended_after_its_patience_and_no_other(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]], step_seconds: float, patience: float
) -> None:
    w, now, beats = Watch(tmp_path, None, lambda text: None), 0.0, 0
    while not w.found:
        now, beats = now + STEP, beats + 1
        assert now < patience + 3 * STEP
        for rank, process in enumerate(processes):
            spoke = 1 if rank == 1 else beats
            beat(tmp_path, rank, process.pid, beats=spoke, collectives=beats, step_seconds=step_seconds)
        w.look(now)
    assert patience < now
    assert w.found[0].startswith(f"rank 1 (process {processes[1].pid}) has not answered for")
    assert [ended(p) for p in processes] == [False, True, False]


def test_one_that_keeps_all_others_waiting_is_ended_and_one_that_works_on_is_not(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    w, now, beats = Watch(tmp_path, None, lambda text: None), 0.0, 0

    def looks(until: float, moving: bool) -> None:
        nonlocal now, beats
        while now < until and not w.found:
            now, beats = now + STEP, beats + 1
            for rank, process in enumerate(processes):
                moved = beats if moving else 7
                beat(tmp_path, rank, process.pid, beats=beats, waits=rank != 2, collectives=moved)
            w.look(now)

    looks(2 * IDLE_SECONDS, moving=True)
    assert not w.found
    looks(now + IDLE_SECONDS - 10, moving=False)
    assert not w.found
    looks(now + 20, moving=False)
    assert "rank 2" in w.found[0]
    assert "has kept all others waiting for 1,500 s" in w.found[0]
    assert [ended(p) for p in processes] == [False, False, True]


def test_nobody_is_to_blame_when_the_watch_itself_did_not_run(
    tmp_path: Path, processes: list[subprocess.Popen[bytes]]
) -> None:
    w = Watch(tmp_path, None, lambda text: None)
    for now in (0.5, 1.0, 60.0, 60.5):  # a laptop that slept
        beat(tmp_path, 0, processes[0].pid, beats=1)
        w.look(now)
    assert w.found == []
