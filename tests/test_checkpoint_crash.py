"""Checkpoints when the machine stops behind any operation, and when any call fails.

The operations of real saves are recorded at the file layer; tests/disk.py then rebuilds what a disk may hold behind
each of them.
"""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from disk import Disk, Recording, Tree, intercepted, write_tree
from saved import check_is, save

from foretell import checkpoint
from foretell.checkpoint import files
from foretell.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("small_files")


class Stop(BaseException):
    """The process ends here."""


def fingerprint(tree: Tree) -> Any:
    return frozenset((k, v if isinstance(v, bytes) else fingerprint(v)) for k, v in tree.items())


def no_sync(patch: pytest.MonkeyPatch) -> None:
    """The rebuilt trees are small and many; forcing them to a real disk would only take time."""
    patch.setattr(files, "sync", lambda fd: None)
    patch.setattr(files, "sync_folder", os.stat)  # a folder that is not there is still an error


def whole_steps(where: Path) -> list[int]:
    """The steps of the published checkpoints, newest first, none of which may be damaged."""
    steps, hidden = [], {}
    while (loaded := checkpoint.load_latest(where)) is not None:
        assert loaded.skipped == ()
        check_is(loaded, loaded.step)
        steps.append(loaded.step)
        hidden[loaded.path] = loaded.path.with_name(f"hidden-{loaded.path.name}")
        loaded.path.rename(hidden[loaded.path])
    for path, elsewhere in hidden.items():
        elsewhere.rename(path)
    return steps


@pytest.mark.parametrize(
    ("keep", "saves"),
    [
        (1, (5, 10)),
        (2, (5, 10)),
        pytest.param(1, (5, 10, 15, 15), marks=pytest.mark.slow),
        pytest.param(2, (5, 10, 15, 15), marks=pytest.mark.slow),
    ],
)
def test_a_power_cut_behind_any_operation_costs_at_most_the_save_in_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int, saves: tuple[int, ...]
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    recording, bounds = Recording(), [(0, 0, 0)]  # operations so far, last step saved, step in progress behind them
    with intercepted(recording.around):
        for step in saves:
            bounds[-1] = (*bounds[-1][:2], step)
            save(root / "checkpoints", step, keep)
            bounds.append((len(recording.operations), step, step))
    no_sync(monkeypatch)
    disk, seen = Disk(root), set()
    for count in range(len(recording.operations) + 1):
        if count:
            disk.replay(*recording.operations[count - 1])
        _, done, coming = max(b for b in bounds if b[0] <= count)
        for tree in disk.after_power_cut():
            key = (done, coming, fingerprint(tree))
            if key in seen:
                continue
            seen.add(key)
            found = tmp_path / f"found-{len(seen)}"
            write_tree(tree, found)
            steps = whole_steps(found / "checkpoints")
            assert steps[0] in (done, coming) if steps else done == 0
            # Life goes on from there, and what the stop left behind is gone.
            save(found / "checkpoints", 20, keep)
            check_is(checkpoint.load_latest(found / "checkpoints"), 20)
            names = os.listdir(found / "checkpoints")
            assert not [n for n in names if n.endswith(files.PARTIAL)]
            assert len(names) == min(keep, 2 if steps else 1)
            shutil.rmtree(found)
    assert len(seen) > 100, "the model of the disk found too few states to mean anything"


def test_a_power_cut_behind_any_operation_of_write_atomic_leaves_old_or_new(tmp_path: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    old, new = b"old" * 200, b"the new one" * 100
    recording = Recording()
    with intercepted(recording.around):
        files.write_atomic(root / "plan.json", old)
        first = len(recording.operations)
        files.write_atomic(root / "plan.json", new)
    disk = Disk(root)
    for count, operation in enumerate(recording.operations, start=1):
        disk.replay(*operation)
        for tree in disk.after_power_cut():
            if count == len(recording.operations):
                assert tree == {"plan.json": new}
            elif count < first:
                assert tree.get("plan.json") in (None, old)
            else:
                assert tree["plan.json"] in (old, new)


def fail_from(start: int, error: int | None, lasting: bool, counter: list[int]) -> Callable[..., Any]:
    """Make call number `start` fail, or, when lasting, all like it from there on. error None: writes come up short."""

    def around(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        counter[0] += 1
        due = counter[0] - 1 == start or (lasting and counter[0] > start)
        if not due or name in ("close", "forget_cached"):
            return real(*arguments)
        if error is None:
            return real(arguments[0], arguments[1][:1]) if name == "write" else real(*arguments)
        full_disk = error in (errno.ENOSPC, errno.EDQUOT)
        if lasting and full_disk and name in ("unlink", "remove_folder", "open_existing", "size_bytes", "read_into"):
            return real(*arguments)
        if lasting and error == errno.EROFS and name in ("open_existing", "size_bytes", "read_into", "free_bytes"):
            return real(*arguments)
        raise OSError(error, os.strerror(error))

    return around


FAULTS = {
    "disk full for good": (errno.ENOSPC, True),
    "disk full once": (errno.ENOSPC, False),
    "quota once": (errno.EDQUOT, False),
    "broken for good": (errno.EIO, True),
    "broken once": (errno.EIO, False),
    "read-only for good": (errno.EROFS, True),
    "short writes": (None, True),
}


@pytest.mark.parametrize(("error", "lasting"), FAULTS.values(), ids=FAULTS.keys())
def test_a_failing_call_never_harms_what_is_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: int | None, lasting: bool
) -> None:
    no_sync(monkeypatch)
    origin = tmp_path / "origin"
    for step in (5, 10):
        save(origin, step)
    calls = [0]
    shutil.copytree(origin, tmp_path / "counted")
    with intercepted(fail_from(-1, error, False, calls)):
        save(tmp_path / "counted", 15)
    failed = 0
    for start in range(calls[0]):
        where = tmp_path / f"try-{start}"
        shutil.copytree(origin, where)
        message = None
        with intercepted(fail_from(start, error, lasting, [0])):
            try:
                save(where, 15)
            except CheckpointError as e:
                message = str(e)
                failed += 1
        assert message is None or (str(where) in message and os.strerror(error or 0) in message)
        loaded = checkpoint.load_latest(where)
        assert loaded is not None
        assert loaded.skipped == ()
        assert loaded.step in ((15,) if message is None else (10, 15))
        check_is(loaded, loaded.step)
        save(where, 20)
        check_is(checkpoint.load_latest(where), 20)
        assert not [n for n in os.listdir(where) if n.endswith(files.PARTIAL)]
        shutil.rmtree(where)
    assert failed == 0 if error is None else failed > calls[0] // 2


def test_a_file_system_that_takes_nothing_more_is_an_error_not_an_endless_loop(tmp_path: Path) -> None:
    save(tmp_path, 5)
    with (
        intercepted(lambda name, real, a: 0 if name == "write" else real(*a)),
        pytest.raises(CheckpointError, match="accepts no more bytes"),
    ):
        save(tmp_path, 10)
    check_is(checkpoint.load_latest(tmp_path), 5)


def test_the_kernels_own_file_size_limit(tmp_path: Path) -> None:
    """RLIMIT_FSIZE makes a real write come up short and the next one fail."""
    save(tmp_path, 5)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, hard))
    try:
        with pytest.raises(CheckpointError, match="File too large"):
            save(tmp_path, 10)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_is(checkpoint.load_latest(tmp_path), 5)
    assert os.listdir(tmp_path) == ["step-000005"]


def test_free_space_is_looked_at_before_anything_is_written(tmp_path: Path) -> None:
    save(tmp_path, 5)
    names = []

    def around(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        names.append(name)
        return 1000 if name == "free_bytes" else real(*arguments)

    with intercepted(around), pytest.raises(CheckpointError, match=r"needs 1,049,382 bytes.* has 1,000 free"):
        save(tmp_path, 10)
    assert names == ["free_bytes"]
    check_is(checkpoint.load_latest(tmp_path), 5)


def test_a_disk_that_gives_back_other_bytes_is_not_trusted(tmp_path: Path) -> None:
    save(tmp_path, 5)

    def around(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        got = real(*arguments)
        if name == "read_into" and got > 100:
            arguments[1][50] ^= 1
        return got

    with intercepted(around), pytest.raises(CheckpointError, match=r"step-000010"):
        save(tmp_path, 10)
    check_is(checkpoint.load_latest(tmp_path), 5)
    assert os.listdir(tmp_path) == ["step-000005"]


def test_a_stopped_process_leaves_leftovers_that_the_next_save_removes(tmp_path: Path) -> None:
    save(tmp_path, 5)

    def around(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        if name == "rename":
            raise Stop
        return real(*arguments)

    with intercepted(around), pytest.raises(Stop):
        save(tmp_path, 10)
    assert sorted(os.listdir(tmp_path)) == [".step-000010.partial", "step-000005"]
    check_is(checkpoint.load_latest(tmp_path), 5)
    save(tmp_path, 10)
    assert sorted(os.listdir(tmp_path)) == ["step-000005", "step-000010"]


def test_damaged_ones_do_not_count_as_kept(tmp_path: Path) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    victim = tmp_path / "step-000010" / "tensors-00000-00001.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1] + b"x")
    save(tmp_path, 15)
    assert sorted(os.listdir(tmp_path)) == ["step-000005", "step-000010", "step-000015"]
    save(tmp_path, 20)
    assert sorted(os.listdir(tmp_path)) == ["step-000015", "step-000020"]


def test_a_taken_name_is_not_reused(tmp_path: Path) -> None:
    """The same step saved again, as after a damaged one was passed over; the number is no limit either."""
    for step in (5, 10):
        save(tmp_path, step)
    (tmp_path / "step-000010" / "manifest.json").unlink()
    assert save(tmp_path, 10).name == "step-000010-2"
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    assert loaded.path.name == "step-000010-2"
    assert loaded.skipped == ()
    assert save(tmp_path, 10).name == "step-000010"
    assert save(tmp_path, 1_234_567).name == "step-1234567"
    check_is(checkpoint.load_latest(tmp_path), 1_234_567)
