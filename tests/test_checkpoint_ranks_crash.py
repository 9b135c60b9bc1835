"""A save of two ranks when the machine, one rank or one call stops behind any operation of either.

The ranks are threads whose operations come one at a time in a chosen order (tests/turns.py). What a disk may hold after
a power cut is rebuilt from that order (tests/disk.py).
"""

import errno
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk import CHANGING, Disk, Recording, Tree, write_tree
from saved import check_is, save_on
from test_checkpoint_crash import FAULTS, Stop, fail_from, fingerprint, no_sync, whole_steps
from turns import LOOKING, Choose, by_chance, first, in_turn, own_rank

from foretell import checkpoint
from foretell.checkpoint import files
from foretell.errors import CheckpointError

SCHEDULES: dict[str, Callable[[], Choose]] = {
    "rank 0 first": lambda: first(0),
    "rank 1 first": lambda: first(1),
    "by chance": lambda: by_chance(1),
}
ORDERS = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@pytest.fixture(autouse=True)
def few_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two writes a file, so that a file may be half there."""
    monkeypatch.setattr(files, "_CHUNK_BYTES", 512)


def goes_on(where: Path, step: int, keep: int = 2) -> None:
    """Another start saves as if nothing had been, and leaves nothing lying about."""
    assert save_on(where, step, 2, f"then-{step}", keep) == [None, None]
    check_is(checkpoint.load_latest(where), step)
    assert not [n for n in os.listdir(where) if n.endswith(files.PARTIAL)]


def published_part(tree: Tree) -> Any:
    return fingerprint({k: v for k, v in tree.items() if not k.startswith(".")})


@pytest.mark.parametrize(
    "orders",
    [
        pytest.param(list(SCHEDULES.values()), id="three orders"),
        pytest.param([lambda s=s: by_chance(s) for s in range(100, 130)], marks=pytest.mark.slow, id="thirty orders"),
    ],
)
def test_a_power_cut_behind_any_operation_of_two_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orders: list[Callable[[], Choose]]
) -> None:
    seen: dict[Any, set[Any]] = {}
    r, trees, courses = random.Random(3), 0, []
    for number, order in enumerate(orders):
        root = tmp_path / f"run-{number}"
        root.mkdir()
        recording, bounds = Recording(), [(0, 0, 5)]
        for step in (5, 10):
            with in_turn(2, order(), recording.around):
                assert save_on(root / "checkpoints", step, 2, f"start{step}", keep=1) == [None, None]
            bounds[-1] = (*bounds[-1][:2], step)
            bounds.append((len(recording.operations), step, step))
        disk = Disk(root)
        courses.append((disk, recording, bounds))
    no_sync(monkeypatch)
    for disk, recording, bounds in courses:
        for count in range(len(recording.operations) + 1):
            if count:
                disk.replay(*recording.operations[count - 1])
            _, done, coming = max(b for b in bounds if b[0] <= count)
            for tree in disk.after_power_cut():
                trees += 1
                key = (done, coming, published_part(tree.get("checkpoints", {})))
                of_key = seen.setdefault(key, set())
                # What is published decides; of what is not, a sample shows that nobody looks at it.
                whole = fingerprint(tree)
                if whole in of_key or (len(of_key) > 5 and r.random() > 0.1):
                    continue
                of_key.add(whole)
                found = tmp_path / "found"
                write_tree(tree, found)
                steps = whole_steps(found / "checkpoints")
                assert steps[0] in (done, coming) if steps else done == 0
                goes_on(found / "checkpoints", 20, keep=1)
                shutil.rmtree(found)
    assert len(seen) >= 5
    assert trees > 1000, "the model of the disk found too few states to mean anything"


def stopping(rank: int, after: int, counts: list[int]) -> Callable[..., Any]:
    """One rank's process ends behind its `after`-th changing operation."""

    def around(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if own_rank() is not None and name in CHANGING:
            counts[own_rank() or 0] += 1
            if own_rank() == rank and counts[rank] > after:
                raise Stop
        return real(*arguments)

    return around


@ORDERS
def test_one_rank_stops_behind_any_operation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, schedule: Callable[[], Choose]
) -> None:
    """The other finds the checkpoint published, or gives up and says whom it waited for."""
    no_sync(monkeypatch)
    origin = tmp_path / "origin"
    assert save_on(origin, 5, 2, "first") == [None, None]
    counts = [0, 0]
    shutil.copytree(origin, tmp_path / "counted")
    with in_turn(2, schedule(), stopping(-1, 0, counts)):
        assert save_on(tmp_path / "counted", 10, 2, "second") == [None, None]
    assert min(counts) >= 7
    for rank in range(2):
        ends = set()
        for after in range(counts[rank]):
            where = tmp_path / f"stopped-{rank}-{after}"
            shutil.copytree(origin, where)
            with in_turn(2, schedule(), stopping(rank, after, [0, 0])):
                raised = save_on(where, 10, 2, "second", patience_seconds=30.0)
            assert isinstance(raised[rank], Stop)
            steps = whole_steps(where)
            assert steps in ([5], [10, 5])
            other = raised[1 - rank]
            ends.add(type(other))
            if other is None:
                assert steps == [10, 5]
            else:
                assert isinstance(other, CheckpointError)
                asked = "is rank 0 alive" if rank == 0 else "nothing came from 1 of 2 ranks (1)"
                assert asked in str(other) or "rank 0 has not begun" in str(other)
                assert steps == [5]
            goes_on(where, 15)
            shutil.rmtree(where)
        # The last of rank 1's operations delivers its part; rank 0 has some left behind the commit.
        assert ends == ({type(None), CheckpointError} if rank == 0 else {CheckpointError})


def failing(rank: int, around: Callable[..., Any]) -> Callable[..., Any]:
    """A fault that one rank alone meets; looking and waiting always work."""

    def only(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        return around(name, real, arguments) if own_rank() == rank and name not in LOOKING else real(*arguments)

    return only


def check_fault(
    tmp_path: Path, schedule: Callable[[], Choose], rank: int, fault: str, every: int
) -> tuple[int, int, int]:
    """Let each `every`-th call of one rank fail: how often the save failed, the reason reached both, calls tried."""
    error, lasting = FAULTS[fault]
    origin, calls = tmp_path / "origin", [0]
    if not origin.exists():
        assert save_on(origin, 5, 2, "first") == [None, None]
    counted = tmp_path / f"counted-{rank}"
    shutil.copytree(origin, counted)
    with in_turn(2, schedule(), failing(rank, fail_from(-1, error, False, calls))):
        assert save_on(counted, 10, 2, "second") == [None, None]
    shutil.rmtree(counted)
    failed = told = 0
    tries = range(random.Random(fault).randrange(every), calls[0], every)
    for start in tries:
        where = tmp_path / "tried"
        shutil.copytree(origin, where)
        with in_turn(2, schedule(), failing(rank, fail_from(start, error, lasting, [0]))):
            raised = save_on(where, 10, 2, "second", patience_seconds=30.0)
        steps = whole_steps(where)
        assert all(e is None or isinstance(e, CheckpointError) for e in raised)
        assert steps in ([5], [10, 5], [10])
        if steps == [5]:
            assert None not in raised
            failed += 1
            told += all(os.strerror(error or 0) in str(e) for e in raised)
            left = [p for p in where.rglob("tensors-*") if p.parent.name.startswith(".")]
            assert not left or lasting, "what was half written is taken back where the disk allows it"
        elif rank == 1 or error is None:  # published: only rank 0's last operations may fail behind that
            assert raised[0] is None
        goes_on(where, 15)
        shutil.rmtree(where)
    return failed, told, len(tries)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_failing_call_of_one_rank_fails_all_and_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, fault: str
) -> None:
    no_sync(monkeypatch)
    failed, told, tried = check_fault(tmp_path, SCHEDULES["rank 1 first"], rank, fault, every=3)
    error, lasting = FAULTS[fault]
    if error is None:
        assert failed == 0
    else:
        assert failed > tried // 3
        assert told > failed // 2 or lasting


@pytest.mark.slow
@ORDERS
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("rank", [0, 1])
def test_each_call_of_each_rank_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, fault: str, schedule: Callable[[], Choose]
) -> None:
    no_sync(monkeypatch)
    check_fault(tmp_path, schedule, rank, fault, every=1)


def test_where_not_even_a_note_can_be_left_the_others_still_learn_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 finds the disk full for good, when it makes its file."""
    no_sync(monkeypatch)

    def full(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if own_rank() == 1 and name in ("create", "write", "make_folder"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments)

    with in_turn(2, first(1), full):
        raised = save_on(tmp_path, 10, 2, "x")
    assert "No space left on device" in str(raised[1])
    assert isinstance(raised[0], CheckpointError)
    assert "could not say why" in str(raised[0])
    assert os.listdir(tmp_path) == []
