"""Checkpoints of several ranks: cut anyhow, saved together or not at all, read back cut in any other way."""

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saved import check_is, content, part, same, save, save_on
from torch import Tensor
from turns import silent_pauses

from foretell import checkpoint
from foretell.checkpoint import Described, Piece, Saver, files, manifest
from foretell.checkpoint import folder as folders
from foretell.checkpoint import tensors as tensor_files
from foretell.checkpoint.pieces import Box, Stored, check_tiling
from foretell.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("small_files")


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_what_several_ranks_save_is_one_checkpoint(tmp_path: Path, ranks: int) -> None:
    for step in (5, 10, 15):
        assert save_on(tmp_path, step, ranks, f"start-{step}") == [None] * ranks
    assert sorted(os.listdir(tmp_path)) == ["step-000010", "step-000015"]
    assert {n[:13] for n in os.listdir(tmp_path / "step-000015")} >= {f"tensors-{r:05d}" for r in range(ranks)}
    check_is(checkpoint.load_latest(tmp_path), 15)


# ------------------------------------------------------------------------------------------- any cut into any other

DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.uint8, torch.bool]


@st.composite
def cuts(draw: st.DrawFn, shape: tuple[int, ...], most: int) -> list[Box]:
    """Boxes, at most `most`, that tile `shape`: one of them is cut in two again and again, anywhere."""
    boxes: list[Box] = [((0,) * len(shape), shape)]
    for _ in range(draw(st.integers(0, most - 1)) if shape else 0):
        offset, size = boxes.pop(draw(st.integers(0, len(boxes) - 1)))
        d = draw(st.integers(0, len(shape) - 1))
        at = draw(st.integers(0, size[d]))
        low, high = list(size), list(size)
        low[d], high[d] = at, size[d] - at
        moved = list(offset)
        moved[d] += at
        boxes += [(offset, tuple(low)), (tuple(moved), tuple(high))]
    return boxes


@st.composite
def layouts(draw: st.DrawFn) -> tuple[dict[str, Tensor], list[dict[str, Piece]], list[dict[str, Box]]]:
    """Tensors, what each of 1 to 4 ranks holds of them, and what each of 1 to 4 others wants."""
    writers, readers = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    tensors: dict[str, Tensor] = {}
    held: list[dict[str, Piece]] = [{} for _ in range(writers)]
    wanted: list[dict[str, Box]] = [{} for _ in range(readers)]
    for number in range(draw(st.integers(1, 4))):
        name, shape = f"t{number}", tuple(draw(st.lists(st.integers(0, 7), max_size=3)))
        dtype = draw(st.sampled_from(DTYPES))
        bits = torch.randint(0, 256, (*shape, dtype.itemsize), dtype=torch.uint8)
        t = bits.view(dtype).reshape(shape) if dtype != torch.bool else (bits % 2).bool().reshape(shape)
        tensors[name] = t
        for ranks, put in ((writers, held), (readers, wanted)):
            boxes = draw(cuts(shape, ranks))
            owners = draw(st.permutations(range(ranks)))
            for rank, (offset, size) in zip(owners, boxes, strict=False):
                inside = t[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))]
                put[rank][name] = Piece(inside, offset, shape) if put is held else (offset, size)  # type: ignore[assignment]
    return tensors, held, wanted


@given(layouts())
@settings(max_examples=150, deadline=None)
def test_any_cut_is_read_back_as_any_other(
    tmp_path_factory: pytest.TempPathFactory, layout: tuple[Any, list[Any], list[Any]]
) -> None:
    tensors, held, wanted = layout
    where = tmp_path_factory.mktemp("cut")
    savers = [Saver(where, 1, rank=r, ranks=len(held), session="x", patience_seconds=60) for r in range(len(held))]
    for saver, pieces in zip(savers, held, strict=True):
        saver.save(3, pieces, {})
    for saver in savers:
        saver.wait()
        assert saver.poll() == 3
    for rank, boxes in enumerate(wanted):
        loaded = checkpoint.load_latest(where, lambda held, b=boxes: b, rank=rank, ranks=len(wanted))
        assert loaded is not None
        cut = {n: tensors[n][tuple(slice(o, o + s) for o, s in zip(*box, strict=True))] for n, box in boxes.items()}
        assert same(loaded.tensors, cut)
        assert all(t.is_contiguous() for t in loaded.tensors.values())
    opened = checkpoint.open_latest(where)
    assert opened is not None
    assert same(dict(opened.tensors()), tensors)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_tiling_is_told_from_all_else(data: st.DataObject) -> None:
    """Counting how often each element is covered is the truth."""
    shape = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3)))
    boxes = data.draw(cuts(shape, 6))
    for _ in range(data.draw(st.integers(0, 2))):
        change = data.draw(st.sampled_from(["drop", "twice", "move"]))
        chosen = data.draw(st.integers(0, len(boxes) - 1)) if boxes else 0
        if change == "move" and boxes and shape:
            offset, size = boxes[chosen]
            d = data.draw(st.integers(0, len(shape) - 1))
            boxes[chosen] = (tuple(o + (i == d) for i, o in enumerate(offset)), size)
        elif boxes:
            boxes = [*boxes, boxes[chosen]] if change == "twice" else boxes[:chosen] + boxes[chosen + 1 :]
    counts = torch.zeros([n + 3 for n in shape], dtype=torch.int64)
    for offset, size in boxes:
        counts[tuple(slice(o, o + s) for o, s in zip(offset, size, strict=True))] += 1
    inside = counts[tuple(slice(0, n) for n in shape)]
    sticks_out = any(o + s > n for offset, size in boxes for o, s, n in zip(offset, size, shape, strict=True))
    good = bool((inside == 1).all()) and counts.sum() == inside.sum() and not sticks_out
    stored = [Stored(f"file {i}", box) for i, box in enumerate(boxes)]
    if good:
        check_tiling("t", shape, stored)
    else:
        with pytest.raises(CheckpointError, match="tensor t"):
            check_tiling("t", shape, stored)


# --------------------------------------------------------------------------------------------------------- reading


def opened_by(read: Callable[[], Any]) -> set[str]:
    """The names of the files that a piece of work opens."""
    seen: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        real = files.open_existing
        patch.setattr(files, "open_existing", lambda p: (seen.add(p.name), real(p))[1])
        read()
    return seen - {"manifest.json"}


def test_only_files_with_something_wanted_are_read_and_all_are_verified_by_someone(tmp_path: Path) -> None:
    save_on(tmp_path, 5, 4, "x")
    every = {n for n in os.listdir(tmp_path / "step-000005") if n != "manifest.json"}

    def corner(held: Mapping[str, Described]) -> dict[str, Box | None]:
        assert held["model.w"].dtype == torch.float32
        assert held["model.w"].shape == (8, 9)
        return {"model.w": ((1, 1), (2, 2)), "optimizer.step": None}

    assert opened_by(lambda: checkpoint.load_latest(tmp_path, corner)) == {"tensors-00000-00001.safetensors"}
    shares = [
        opened_by(lambda r=rank: checkpoint.load_latest(tmp_path, lambda held: {}, rank=r, ranks=3))
        for rank in range(3)
    ]
    assert set.union(*shares) == every
    assert not any(a & b for a, b in itertools.combinations(shares, 2))
    loaded = checkpoint.load_latest(tmp_path, corner)
    assert loaded is not None
    assert list(loaded.tensors) == ["model.w", "optimizer.step"]
    assert torch.equal(loaded.tensors["model.w"], content(5)[0]["model.w"][1:3, 1:3])


def test_wishes_that_cannot_be_met_are_errors_not_damage(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for wish, words in [
        ({"model.x": None}, "holds no tensor model.x"),
        ({"model.w": ((0, 0), (9, 9))}, r"model.w is \[8, 9\]"),
        ({"model.w": ((0,), (2,))}, r"model.w is \[8, 9\]"),
    ]:
        with pytest.raises(CheckpointError, match=words):
            checkpoint.load_latest(tmp_path, lambda held, w=wish: w)  # type: ignore[arg-type, return-value]


def test_all_ranks_take_the_same_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damage that one rank alone sees makes all go on to the next; what one does not see in the folder as well."""
    for step in (5, 10, 15):
        save_on(tmp_path, step, 2, f"s{step}", keep=3)
    victim = tmp_path / "step-000010" / "tensors-00001-00001.safetensors"
    victim.write_bytes(victim.read_bytes()[:-1])
    among = checkpoint.published(tmp_path)
    assert [p.name for p in among] == ["step-000015", "step-000010", "step-000005"]
    (tmp_path / "step-000015" / "tensors-00000-00001.safetensors").rename(tmp_path / "elsewhere")
    barrier, votes = threading.Barrier(2, timeout=60), [True, True]
    loaded: list[checkpoint.Checkpoint | None] = [None, None]
    asked = [0, 0]

    def one(rank: int) -> None:
        def agree(ok: bool) -> bool:
            asked[rank] += 1
            votes[rank] = ok
            barrier.wait()
            all_good = all(votes)
            barrier.wait()
            return all_good

        mine = [f"tensors-{rank:05d}-00001.safetensors"]
        loaded[rank] = checkpoint.load_latest(
            tmp_path,
            lambda held: {n: d.pieces[rank].box for n, d in held.items() if n == "model.w" and mine},
            rank=rank,
            ranks=2,
            agree=agree,
            among=among,
        )

    threads = [threading.Thread(target=one, args=(r,)) for r in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert asked == [3, 3]
    for rank in range(2):
        got = loaded[rank]
        assert got is not None
        assert got.step == 5
        assert torch.equal(got.tensors["model.w"], content(5)[0]["model.w"][4 * rank : 4 * rank + 4])
        assert len(got.skipped) == 2
    assert loaded[0] is not None
    assert loaded[1] is not None
    told = loaded[0].skipped + loaded[1].skipped
    assert any("tensors-00001-00001.safetensors: " in line for line in told)
    assert f"{tmp_path / 'step-000010'}: another rank found a part of it damaged" in told


def test_an_export_passes_over_damage_but_not_over_what_it_does_not_read(tmp_path: Path) -> None:
    assert checkpoint.open_latest(tmp_path) is None
    for step in (5, 10):
        save_on(tmp_path, step, 2, f"s{step}")
    held = manifest.catalogue(folders.content(tmp_path / "step-000010"), tmp_path)
    (tmp_path / "step-000010" / held["random.cpu"].pieces[0].file).write_bytes(b"")
    opened = checkpoint.open_latest(tmp_path, "model.")
    assert opened is not None
    assert opened.step == 10
    assert same(dict(opened.tensors("model.")), {n[6:]: t for n, t in content(10)[0].items() if n[:6] == "model."})
    (tmp_path / "step-000010" / held["model.w"].pieces[1].file).unlink()
    opened = checkpoint.open_latest(tmp_path, "model.")
    assert opened is not None
    assert (opened.step, opened.state) == (5, content(5)[1])
    assert held["model.w"].pieces[1].file in opened.skipped[0]
    (tmp_path / "step-000005" / "manifest.json").unlink()
    with pytest.raises(CheckpointError, match="every checkpoint is damaged"):
        checkpoint.open_latest(tmp_path)


# ---------------------------------------------------------------------------------------------------------- saving


def test_a_save_is_a_snapshot_and_goes_on_in_the_background(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hold, real = threading.Event(), tensor_files.write

    def held_up(*a: Any) -> Any:
        assert hold.wait(60)
        return real(*a)

    monkeypatch.setattr(tensor_files, "write", held_up)
    saver = Saver(tmp_path, 2)
    tensors, state = content(5)
    given_tensors = {n: t.clone() for n, t in tensors.items()}
    saver.save(5, given_tensors, state)
    assert saver.poll() is None
    assert checkpoint.load_latest(tmp_path) is None
    for t in given_tensors.values():  # the run goes on
        t.zero_()
    state["losses"].clear()
    hold.set()
    saver.wait()
    check_is(checkpoint.load_latest(tmp_path), 5)
    saver.save(10, content(10)[0], content(10)[1])  # into the same host memory
    saver.wait()
    check_is(checkpoint.load_latest(tmp_path), 10)
    assert [saver.poll(), saver.poll(), saver.poll()] == [5, 10, None]


def polled(saver: Saver) -> None:
    while saver.poll() is None:
        pass


@pytest.mark.parametrize("how", ["wait", "poll", "save"])
def test_a_failed_save_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    saver = Saver(tmp_path, 2)
    monkeypatch.setattr(files, "free_bytes", lambda path: 1)
    saver.save(5, *content(5))
    asked = {"wait": saver.wait, "save": lambda: saver.save(6, *content(6)), "poll": lambda: polled(saver)}
    with pytest.raises(CheckpointError, match="has 1 free"):
        asked[how]()
    saver.wait()
    assert saver.poll() is None
    monkeypatch.undo()
    saver.save(10, *content(10))
    saver.wait()
    assert saver.poll() == 10
    assert os.listdir(tmp_path) == ["step-000010"]


def other_dtype(held: dict[str, Any]) -> None:
    p = held["model.w"]
    held["model.w"] = Piece(p.tensor.bfloat16(), p.offset, p.shape)


def other_shape(held: dict[str, Any]) -> None:
    p = held["model.w"]
    held["model.w"] = Piece(p.tensor, p.offset, (9, 9))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda held: held.update({"optimizer.step": torch.tensor(5.0)}), "tensor optimizer.step: .* overlap"),
        (lambda held: held.pop("model.w"), r"tensor model.w: its pieces cover 36 of 72 elements"),
        (other_dtype, r"tensor model.w is torch.float32 \[8, 9\] in .*, torch.bfloat16 \[8, 9\] in tensors-00001"),
        (other_shape, r"tensor model.w is torch.float32 \[8, 9\] in .*, torch.float32 \[9, 9\] in tensors-00001"),
        (lambda held: held.update(x=torch.zeros(2, dtype=torch.complex64)), r"tensor x: torch.complex64"),
    ],
    ids=["twice", "gap", "dtype", "shape", "unstorable"],
)
def test_pieces_that_do_not_fit_are_refused_on_every_rank(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], words: str
) -> None:
    assert save_on(tmp_path, 5, 2, "before") == [None, None]
    savers = [Saver(tmp_path, 2, rank=r, ranks=2, session="x", patience_seconds=60) for r in range(2)]
    parts = [part(10, r, 2) for r in range(2)]
    change(parts[1])
    for saver, held in zip(savers, parts, strict=True):
        with contextlib.suppress(CheckpointError):  # what the format cannot hold is refused at once
            saver.save(10, held, {})
    for saver in savers[:1] if "complex64" in words else savers:
        with pytest.raises(CheckpointError, match=f"{words}.*: step 10 is not saved"):
            saver.wait()
    check_is(checkpoint.load_latest(tmp_path), 5)
    assert save_on(tmp_path, 15, 2, "after") == [None, None]
    assert sorted(os.listdir(tmp_path)) == ["step-000005", "step-000015"]


def test_a_missing_rank_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    silent_pauses(monkeypatch)
    savers = [Saver(tmp_path, 2, rank=r, ranks=4, session="x", patience_seconds=2) for r in (0, 2)]
    for saver, rank in zip(savers, (0, 2), strict=True):
        saver.save(5, part(5, rank, 4), {})
    for saver in savers:
        with pytest.raises(CheckpointError, match=r"nothing came from 2 of 4 ranks \(1, 3\)"):
            saver.wait()
    alone = Saver(tmp_path, 2, rank=1, ranks=4, session="y", patience_seconds=1)
    alone.save(5, part(5, 1, 4), {})
    with pytest.raises(CheckpointError, match="rank 0 has not begun"):
        alone.wait()
    assert checkpoint.load_latest(tmp_path) is None


def test_leftovers_of_a_killed_start_are_not_taken_for_this_one(tmp_path: Path) -> None:
    """A whole part of rank 1, of the same step, from a start that was killed."""
    save_on(tmp_path, 10, 2, "old")
    old = tmp_path / ".step-000010.old.1.partial"
    (tmp_path / "step-000010").rename(old)
    (old / "part-00001.json").write_bytes((old / "manifest.json").read_bytes())
    assert save_on(tmp_path, 10, 2, "new") == [None, None]
    assert os.listdir(tmp_path) == ["step-000010"]
    check_is(checkpoint.load_latest(tmp_path), 10)


def test_ranks_need_a_session() -> None:
    for session in ("", "a/b", "..", "a.b"):
        with pytest.raises(ValueError, match="session"):
            Saver(Path(), 1, rank=0, ranks=2, session=session)
    with pytest.raises(ValueError, match="rank 2 is not one of 2"):
        Saver(Path(), 1, rank=2, ranks=2, session="x")
