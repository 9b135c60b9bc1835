"""Checkpoints: exact round trips, and damage of every kind, which is named and passed over.

The independent truth is the safetensors library, which reads what is written here and writes what is read here.
"""

import hashlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saved import check_is, same, save, save_on

from foretell import checkpoint
from foretell.checkpoint import files, manifest
from foretell.checkpoint import tensors as tensor_files
from foretell.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("small_files")


def some_tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Every layout a caller may have; all bit patterns, NaN among them."""
    g = torch.Generator().manual_seed(1)
    bits = torch.randint(0, 256, (6, 4 * dtype.itemsize), dtype=torch.uint8, generator=g)
    t = (bits[:, :4] % 2).bool() if dtype == torch.bool else bits.view(dtype)
    return {"plain": t, "turned": t.mT, "cut": t[::2, 1:], "empty": t[:0], "scalar": t[0, 0], 'odd "é"/.name': t[1]}


@pytest.mark.parametrize("dtype", list(tensor_files.DTYPES.values()), ids=str)
def test_every_dtype_and_layout_round_trips(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = some_tensors(dtype)
    path = checkpoint.save(tmp_path, 1, tensors, {}, keep=1)
    loaded = checkpoint.load_latest(tmp_path)
    assert loaded is not None
    assert same(loaded.tensors, tensors)
    by_library: dict[str, torch.Tensor] = {}
    for file in path.glob("*.safetensors"):
        by_library |= safetensors.torch.load_file(file)
    assert same(by_library, tensors)


def test_files_of_the_library_are_read(tmp_path: Path) -> None:
    tensors = {f"{k}.{d}": t.contiguous() for d in tensor_files.DTYPES.values() for k, t in some_tensors(d).items()}
    tensors = {name: t.clone() for name, t in tensors.items()}  # the library refuses shared memory
    path = tmp_path / "x.safetensors"
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})
    assert same(tensor_files.read(path, tensor_files.digest(path)), tensors)


def test_what_cannot_be_stored_is_refused_before_anything_appears(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tensor a: torch\.complex64"):
        checkpoint.save(tmp_path, 1, {"a": torch.zeros(2, dtype=torch.complex64)}, {}, keep=1)
    bad_states: list[dict[Any, Any]] = [{"a": float("nan")}, {"a": (1, 2)}, {1: 2}]
    for state in bad_states:
        with pytest.raises(ValueError):
            checkpoint.save(tmp_path, 1, {}, state, keep=1)
    assert os.listdir(tmp_path) == []
    assert checkpoint.load_latest(tmp_path) is None


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**200), 2**200)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(state=st.dictionaries(st.text(), JSON, max_size=5))
@settings(max_examples=200, deadline=None)
def test_state_round_trips_exactly(tmp_path_factory: pytest.TempPathFactory, state: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "manifest.json"
    path.write_bytes(manifest.render({"format_version": 1, "step": 0, "state": state, "files": {}}))
    # Rendering tells 1 from 1.0 from true, and 0.0 from -0.0; equality does not.
    assert json.dumps(manifest.read(path)["state"], sort_keys=True) == json.dumps(state, sort_keys=True)


def test_nothing_saved_is_none_and_nothing_whole_is_an_error(tmp_path: Path) -> None:
    assert checkpoint.load_latest(tmp_path / "absent") is None
    (tmp_path / ".step-000005.partial").mkdir()
    (tmp_path / "step-000005-copy").mkdir()
    assert checkpoint.load_latest(tmp_path) is None
    (tmp_path / "step-000005").mkdir()
    with pytest.raises(CheckpointError, match=r"every checkpoint is damaged:\n.*manifest.json: No such file"):
        checkpoint.load_latest(tmp_path)


# --------------------------------------------------------------------------------------------------------- damage
# Each kind changes the newest checkpoint (step 10) of a folder that also holds step 5, and returns what the report of
# it must contain: the name of the file, and the reason where it is always the same.

SHARDS = ("tensors-00000-00001.safetensors", "tensors-00000-00002.safetensors")
FILES = (*SHARDS, "manifest.json")
Damage = Callable[[Path, random.Random], tuple[str, str]]


def flip(path: Path, r: random.Random) -> tuple[str, str]:
    name = r.choice(FILES)
    data = bytearray((path / name).read_bytes())
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)
    (path / name).write_bytes(data)
    return name, ""


def truncate(path: Path, r: random.Random) -> tuple[str, str]:
    name = r.choice(FILES)
    data = (path / name).read_bytes()
    (path / name).write_bytes(data[: r.randrange(len(data))])
    return name, ""


def zero(path: Path, r: random.Random) -> tuple[str, str]:
    """Up to 4 KiB zeroed, from anywhere."""
    name = r.choice(FILES)
    data = (path / name).read_bytes()
    start = r.randrange(len(data))
    zeroed = data[:start] + bytes(len(data[start : start + 4096])) + data[start + 4096 :]
    if zeroed == data:
        return flip(path, r)
    (path / name).write_bytes(zeroed)
    return name, ""


def append(path: Path, r: random.Random) -> tuple[str, str]:
    name = r.choice(FILES)
    with (path / name).open("ab") as f:
        f.write(r.choice([b"\0", b"\n", b" ", r.randbytes(r.randrange(1, 5000))]))
    return name, ""


def swap(path: Path, r: random.Random) -> tuple[str, str]:
    a, b = (path / s for s in SHARDS)
    one, other = a.read_bytes(), b.read_bytes()
    a.write_bytes(other)
    b.write_bytes(one)
    return SHARDS[0], "the manifest says"


def stale(path: Path, r: random.Random) -> tuple[str, str]:
    """A file of step 5."""
    name = r.choice(FILES)
    shutil.copy(path.parent / "step-000005" / name, path / name)
    return name, "step 5" if name == "manifest.json" else "sha256"


def missing(path: Path, r: random.Random) -> tuple[str, str]:
    name = r.choice(FILES)
    (path / name).unlink()
    return name, "No such file"


def not_a_file(path: Path, r: random.Random) -> tuple[str, str]:
    name = r.choice(FILES)
    (path / name).unlink()
    kind = r.choice(["folder", "pipe", "loop"])
    if kind == "folder":
        (path / name).mkdir()
    elif kind == "pipe":
        os.mkfifo(path / name)
    else:
        (path / name).symlink_to(name)
    return name, "Too many levels" if kind == "loop" else "not a regular file"


def forged(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """A manifest with another content and a digest that fits it."""
    found = manifest.read(path / "manifest.json")
    change(found)
    (path / "manifest.json").write_bytes(manifest.render(found))


def newer(path: Path, r: random.Random) -> tuple[str, str]:
    forged(path, lambda m: m.update(format_version=r.randrange(3, 99)))
    return "manifest.json", "is newer than this Foretell reads (2)"


def outside(path: Path, r: random.Random) -> tuple[str, str]:
    """The entry of a file that is there and whole, but elsewhere."""
    name = r.choice(
        ["../step-000005/" + SHARDS[0], str(path / SHARDS[0]), "./" + SHARDS[0], "..", SHARDS[0] + "\n", ""]
    )

    def change(m: dict[str, Any]) -> None:
        m["files"][name] = m["files"].pop(SHARDS[0])

    forged(path, change)
    return "manifest.json", "is not the name of a checkpoint's file"


def mistyped(path: Path, r: random.Random) -> tuple[str, str]:
    key = r.choice(["format_version", "step", "state", "files"])
    value = r.choice([None, "1", 1.5, True, []])
    forged(path, lambda m: m.update({key: value}))
    return "manifest.json", f"`{key}` is absent or not of type"


def mistyped_entry(path: Path, r: random.Random) -> tuple[str, str]:
    key = r.choice(["bytes", "sha256", "tensors", "more"])
    forged(path, lambda m: m["files"][SHARDS[1]].update({key: r.choice([None, True, 1.5])}))
    return "manifest.json", SHARDS[1]


def not_canonical(path: Path, r: random.Random) -> tuple[str, str]:
    """The same content in another form, with a key that stands twice, or with a number that JSON does not know."""
    text = (path / "manifest.json").read_text()
    kind = r.randrange(4)
    if kind == 0:
        text = json.dumps(json.loads(text))
    elif kind == 1:
        text = text.replace('{\n "files"', '{\n "step": 10,\n "files"', 1)
    elif kind == 2:
        text = text.replace("-0.0", "-Infinity")
    else:
        text = "[" * 100_000 + text
    (path / "manifest.json").write_text(text)
    return "manifest.json", ""


def huge_manifest(path: Path, r: random.Random) -> tuple[str, str]:
    os.truncate(path / "manifest.json", 1 << 40)
    return "manifest.json", "too many for a manifest"


def header(path: Path, r: random.Random) -> tuple[str, str]:
    """A header that says another dtype, shape, name or place; file and manifest agree on the digest."""
    name = r.choice(SHARDS)
    data = (path / name).read_bytes()
    length = int.from_bytes(data[:8], "little")
    head = json.loads(data[8 : 8 + length])
    key = r.choice(list(head))
    entry = head[key]
    kind = r.choice(["dtype", "shape", "name", "offsets", "more", "odd"])
    if kind == "dtype":
        entry["dtype"] = r.choice([d for d in [*tensor_files.DTYPES, "C64", "pickle", None] if d != entry["dtype"]])
    elif kind == "shape":
        shapes = [[*reversed(entry["shape"]), 1], [2**62, 0, 2**62], [-1], [1.0], "8", [10**30]]
        entry["shape"] = r.choice(shapes)
    elif kind == "name":
        head["else"] = head.pop(key)
    elif kind == "offsets":
        entry["data_offsets"] = r.choice([[0, 10**15], [-8, 8], [4, 0], [1], None, [0, 0], [2**64, 2**64]])
    elif kind == "more":
        head["ghost"] = {"dtype": "U8", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}
    else:
        head = r.choice([[], {"x": 1}, {"x": {}}, "text", None])
    changed = json.dumps(head).encode()
    claimed = r.choice([len(changed)] * 9 + [2**63])
    data = claimed.to_bytes(8, "little") + changed + data[8 + length :]
    (path / name).write_bytes(data)
    digest = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    forged(path, lambda m: m["files"][name].update(digest))
    return name, ""


def twice(path: Path, r: random.Random) -> tuple[str, str]:
    """One tensor in two files."""
    shutil.copy(path / SHARDS[0], path / SHARDS[1])
    forged(path, lambda m: m["files"].update({SHARDS[1]: m["files"][SHARDS[0]]}))
    return "manifest.json", f"in {SHARDS[1]} overlap"


def piece(path: Path, r: random.Random) -> tuple[str, str]:
    """A piece that the manifest puts elsewhere, calls part of another tensor, leaves out, or does not describe."""
    found = manifest.read(path / "manifest.json")
    file = r.choice(sorted(found["files"]))
    tensors = found["files"][file]["tensors"]
    name = r.choice(sorted(tensors))
    t = tensors[name]
    kind = r.choice(["offset", "global_shape", "dtype", "left out", "file left out", "mistyped"])
    if kind == "left out":
        del tensors[name]
    elif kind == "file left out":
        del found["files"][file]
    elif kind == "mistyped":
        t[r.choice(sorted(t))] = r.choice([None, [-1], [1.0], [True], "C64", 7])
    elif kind == "dtype":
        t["dtype"] = r.choice([d for d in tensor_files.DTYPES if d != t["dtype"]])
    elif t["shape"]:
        t[kind][r.randrange(len(t["shape"]))] += r.choice([1, 3, 2**40])
    else:
        t[kind] = [0]
    if kind in ("left out", "file left out"):  # whole ones may be left out of a forged manifest without a trace
        pieces = [n for e in found["files"].values() for n in e["tensors"]]
        if kind == "file left out" or name not in pieces:
            return flip(path, r)
    (path / "manifest.json").write_bytes(manifest.render(found))
    return "" if kind in ("dtype", "left out") else "manifest.json", ""


KINDS: list[Damage] = [
    flip, truncate, zero, append, swap, stale, missing, not_a_file, newer, outside, mistyped, mistyped_entry,
    not_canonical, huge_manifest, header, twice, piece,
]  # fmt: skip


def check_damage(where: Path, damage: Damage, r: random.Random) -> None:
    """Apply one damage to the newest checkpoint of a fresh folder: it is named, and the older one loaded instead."""
    path = where / "step-000010"
    before = {p.name: p.read_bytes() for p in path.iterdir()}
    name, reason = damage(path, r)
    opened: list[Path] = []
    with pytest.MonkeyPatch.context() as patch:
        real = files.open_existing
        patch.setattr(files, "open_existing", lambda p: (opened.append(p), real(p))[1])
        loaded = checkpoint.load_latest(where)
    check_is(loaded, 5)
    assert loaded is not None
    (report,) = loaded.skipped
    assert str(path / name) in report
    assert reason in report
    assert path.name in report
    assert len(report) > len(str(path / name)) + 10
    assert {p.parent for p in opened} <= {path, where / "step-000005"}
    for old in path.iterdir():
        old.rmdir() if old.is_dir() and not old.is_symlink() else old.unlink()
    for old_name, data in before.items():
        (path / old_name).write_bytes(data)


@pytest.fixture
def two(tmp_path: Path) -> Path:
    for step in (5, 10):
        save(tmp_path, step)
    return tmp_path


@pytest.fixture(params=[1, 3], ids=["one rank", "three ranks"])
def sharded(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Steps 5 and 10; of several ranks any file may be the one that is damaged."""
    for step in (5, 10):
        assert save_on(tmp_path, step, request.param, f"s{step}") == [None] * request.param
    shards = sorted(n for n in os.listdir(tmp_path / "step-000010") if n != "manifest.json")
    monkeypatch.setattr(sys.modules[__name__], "SHARDS", (shards[0], shards[-1]))
    monkeypatch.setattr(sys.modules[__name__], "FILES", (*shards, "manifest.json"))
    return tmp_path


@pytest.mark.parametrize("damage", KINDS, ids=lambda d: d.__name__)
def test_damage_is_named_and_passed_over(sharded: Path, damage: Damage) -> None:
    for seed in range(60):
        check_damage(sharded, damage, random.Random(seed))
    check_is(checkpoint.load_latest(sharded), 10)


@pytest.mark.slow
@pytest.mark.parametrize("damage", KINDS, ids=lambda d: d.__name__)
def test_damage_is_named_and_passed_over_ten_thousand_times(sharded: Path, damage: Damage) -> None:
    for seed in range(1000, 1320):
        check_damage(sharded, damage, random.Random(seed))


def test_every_byte_counts(two: Path) -> None:
    """One flipped bit in each byte of every file, in turn."""
    path = two / "step-000010"
    for name in FILES:
        data = (path / name).read_bytes()
        read = manifest.read if name == "manifest.json" else None
        if read is None:
            entry = manifest.read(path / "manifest.json")["files"][name]
            written = tensor_files.Written(entry["bytes"], entry["sha256"])
        for place in range(len(data)):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            (path / name).write_bytes(flipped)
            with pytest.raises(CheckpointError, match=name):
                manifest.read(path / name) if read else tensor_files.read(path / name, written)
        (path / name).write_bytes(data)


def test_all_damaged_is_an_error_that_names_each(two: Path) -> None:
    (two / "step-000005" / SHARDS[1]).unlink()
    (two / "step-000010" / "manifest.json").write_bytes(b"")
    with pytest.raises(CheckpointError) as e:
        checkpoint.load_latest(two)
    assert str(two / "step-000005" / SHARDS[1]) in str(e.value)
    assert f"{two / 'step-000010' / 'manifest.json'}: the file is empty" in str(e.value)


def test_an_unreadable_file_is_damage_too(two: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        real = files.read_into
        calls = [0]

        def failing(fd: int, buffer: memoryview) -> int:
            calls[0] += 1
            if calls[0] == 9:
                raise OSError(5, "Input/output error")
            return real(fd, buffer)

        patch.setattr(files, "read_into", failing)
        loaded = checkpoint.load_latest(two)
    check_is(loaded, 5)
    assert loaded is not None
    assert "step-000010" in loaded.skipped[0]
    assert "Input/output error" in loaded.skipped[0]


def test_the_stored_example_of_format_1_is_still_read() -> None:
    """tests/data/checkpoint-1 was written by the first version of the format and never changes."""
    loaded = checkpoint.load_latest(Path(__file__).parent / "data" / "checkpoint-1")
    assert loaded is not None
    assert loaded.state == {"step": 7, "loss": 0.1, "losses": [1.0, -0.0], "note": "é"}
    assert torch.equal(loaded.tensors["model.w"], torch.arange(6, dtype=torch.float32).reshape(2, 3))
    assert torch.equal(loaded.tensors["model.b"], torch.tensor([0.5, -2.0], dtype=torch.bfloat16))


def test_the_stored_example_of_format_2_is_read() -> None:
    """tests/data/checkpoint-2 was written by two ranks and never changes: a matrix cut by columns, a whole vector."""
    loaded = checkpoint.load_latest(Path(__file__).parent / "data" / "checkpoint-2")
    assert loaded is not None
    assert loaded.state == {"step": 7, "loss": 0.1, "losses": [1.0, -0.0], "note": "é"}
    assert torch.equal(loaded.tensors["model.w"], torch.arange(6, dtype=torch.float32).reshape(2, 3))
    assert torch.equal(loaded.tensors["model.b"], torch.tensor([0.5, -2.0], dtype=torch.bfloat16))
