"""Preparing, shards and batches: every record accounted for, nothing lost to a kill, order from (seed, step) alone."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foretell import tokenizer
from foretell.config import DataConfig, TokenizerConfig
from foretell.data import (
    batch,
    build,
    claims,
    dedup,
    intake,
    job,
    loader,
    open_data,
    prepare,
    readers,
    render_funnel,
    shards,
    splits,
    tasks,
)
from foretell.data.sample import Sample
from foretell.data.shards import SPLITS, Data, SplitWriter, Tokens
from foretell.errors import ConfigError, DataError

BYTES = TokenizerConfig(kind="bytes")
WORDS = ["the", "model", "reads", "what", "people", "wrote", "and", "语言", "模型", "预测", "下一个", "字\n"]


def text(n: int, words: int = 40) -> str:
    rng = random.Random(n)
    return f"{n} " + " ".join(rng.choice(WORDS) for _ in range(words)) + "\n"


def corpus(folder: Path, documents: int = 40, words: int = 40) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for n in range(documents):
        (folder / f"{n:04d}.txt").write_text(text(n, words), encoding="utf-8")
    return folder


def make(source: Path, out: Path, kind: TokenizerConfig = BYTES, workers: int = 1, **config: Any) -> dict[str, Any]:
    return prepare([str(source)], out, kind, DataConfig(**config), workers=workers)


def stored(data: Data, split: str) -> list[str]:
    """The documents of a split, read back from the shards."""
    tokens, start, found = data.tokens(split), 0, []
    for end in data.document_ends(split).tolist():
        assert tokens[end - 1] == data.tokenizer.eot_id
        found.append(data.tokenizer.decode(tokens[start : end - 1]))
        start = end
    assert start == len(tokens)
    return found


def conserved(funnel: dict[str, Any]) -> bool:
    return funnel["documents_in"] == funnel["documents_out"] + funnel["quarantined"] + sum(funnel["dropped"].values())


def contents(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


# --- the funnel ------------------------------------------------------------------------------------------------------


def nasty(folder: Path) -> Path:
    corpus(folder, 30)
    (folder / "duplicate.txt").write_text(text(3), encoding="utf-8")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "blank.txt").write_text(" \n\n")
    (folder / "picture.png").write_bytes(b"\x89PNG" + bytes(range(256)))
    (folder / "mixed.txt").write_bytes(b"good before\nbad \xff\ngood after\n")
    rows = ['{"text": "a row"}', '{"text": ""}', '{"broken', '{"text": "a row"}', '{"x": 1}']
    (folder / "rows.jsonl").write_text("\n".join(rows))
    (folder / ".hidden").write_text("not read")
    (folder / "link.txt").symlink_to(folder / "nowhere")
    return folder


def test_every_record_is_accounted_for(tmp_path: Path) -> None:
    result = make(nasty(tmp_path / "in"), tmp_path / "out", split="hash")
    assert conserved(result)
    assert result["documents_in"] == 30 + 1 + 1 + 1 + 1 + 3 + 5 + 1
    assert result["dropped"] == {"duplicate": 2, "empty": 2}
    assert result["duplicates"] == 2
    assert result["quarantined"] == 6
    assert result["hidden"] == 1
    data = open_data(tmp_path / "out", check_digests=True)
    listed = data.index["funnel"]["quarantine"]
    assert Counter(Path(q["source"]).name for q in listed) == Counter(
        ["empty.txt", "picture.png", "mixed.txt", "rows.jsonl", "rows.jsonl", "link.txt"]
    )
    assert next(q["offset"] for q in listed if q["source"].endswith("mixed.txt")) == 12
    documents = [d for split in SPLITS for d in stored(data, split)]
    assert Counter(documents) == Counter([*(text(n) for n in range(30)), "good before\n", "good after\n", "a row"])
    assert sum(int(data.document_bytes(s).sum()) for s in SPLITS) == result["bytes_out"]
    assert "2 dropped: duplicate" in render_funnel(result)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(max_size=60) | st.sampled_from([b"", b" ", b"same\n", b'{"text": "same\\n"}']), max_size=30))
def test_conservation_whatever_comes(tmp_path_factory: pytest.TempPathFactory, files: list[bytes]) -> None:
    folder = tmp_path_factory.mktemp("in")
    for n, content in enumerate(files):
        (folder / f"{n}{random.Random(n).choice(['.txt', '.jsonl', '.csv', '.html', ''])}").write_bytes(content)
    (folder / "z.txt").write_text("something to keep\n")
    funnel = intake.Funnel()
    inputs = readers.expand([str(folder)])
    kept = [t for chunk in intake.chunks(inputs.entries, None, 100, funnel, lambda done: None) for t in chunk.texts]
    funnel.documents_out = len(kept)
    assert conserved(funnel.summary())
    assert funnel.bytes_in == sum(map(len, files)) + 18


def test_nothing_usable_says_what_was_there(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"\x89PNG" + bytes(100))
    with pytest.raises(DataError, match=r"1 records quarantined.*a\.png: binary file"):
        make(tmp_path / "a.png", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_standard_input(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from foretell.data import prepare;"
        "from foretell.config import *; r = prepare(['-'], Path(sys.argv[1]), TokenizerConfig(kind='bytes'),"
        "DataConfig()); print(r['documents_in'], r['unchanged'])"
    )
    rows = "".join(json.dumps({"text": text(n)}) + "\n" for n in range(30))
    for expected in ("30 False", "30 True"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "out")], input=rows.encode(), capture_output=True, check=True
        )
        assert done.stdout.decode().strip() == expected


def test_output_inside_its_source_is_not_read_back(tmp_path: Path) -> None:
    corpus(tmp_path, 25)
    first = make(tmp_path, tmp_path / "out")
    assert make(tmp_path, tmp_path / "out")["unchanged"]
    assert first["files"] == 25
    assert first["hidden"] == 0  # the working folder beside the output is nobody's


def test_a_folder_can_be_left_out(tmp_path: Path) -> None:
    corpus(tmp_path, 25)
    corpus(tmp_path / "runs", 3)
    apart = prepare([str(tmp_path)], tmp_path / "out", BYTES, DataConfig(), without=tmp_path / "runs")
    assert apart["files"] == 25


# --- again, interrupted, in parallel ---------------------------------------------------------------------------------


def test_again_is_a_no_op_until_something_changes(tmp_path: Path) -> None:
    source, out = corpus(tmp_path / "in"), tmp_path / "out"
    assert not make(source, out)["unchanged"]
    before = contents(out)
    stamp = (out / "index.json").stat().st_mtime_ns
    again = make(source, out)
    assert again["unchanged"]
    assert (out / "index.json").stat().st_mtime_ns == stamp
    assert not make(source, out, valid_fraction=0.1)["unchanged"]
    assert make(source, out)["unchanged"] is False
    assert contents(out) == before
    (source / "0000.txt").write_text("changed\n")
    assert not make(source, out)["unchanged"]
    assert contents(out) != before
    (out / "train.bytes").write_bytes(b"damaged")
    assert not make(source, out)["unchanged"]
    open_data(out, check_digests=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out"]


def test_what_is_not_ours_is_not_replaced(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("ten years")
    with pytest.raises(DataError, match="not a prepared folder"):
        make(source, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.doc").read_text() == "ten years"


def test_a_stranger_in_a_prepared_folder_is_not_deleted(tmp_path: Path) -> None:
    source, out = corpus(tmp_path / "in"), tmp_path / "out"
    make(source, out)
    (out / "notes.txt").write_text("mine")
    assert make(source, out)["unchanged"]
    with pytest.raises(DataError, match=r"holds notes\.txt; move that away"):
        make(source, out, valid_fraction=0.1)
    (out / "notes.txt").unlink()
    assert not make(source, out, valid_fraction=0.1)["unchanged"]
    (out / "tokenizer.json").write_text("damaged")
    assert not make(source, out, valid_fraction=0.1)["unchanged"]


@pytest.mark.parametrize(
    "index", [{"format_version": 1}, {"format_version": "1"}, {"format_version": True}, {"format_version": 0}, []]
)
def test_an_index_of_something_else_is_refused(tmp_path: Path, index: Any) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match="not an index of prepared data"):
        make(corpus(tmp_path / "in"), tmp_path / "out")


def test_a_mistake_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text(" ")
    for source in ("nowhere", "empty.txt"):
        with pytest.raises(DataError):
            make(tmp_path / source, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["empty.txt"]


def test_two_at_once_do_not_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    source = corpus(tmp_path / "in")
    monkeypatch.setattr(build, "_PATIENCE_SECONDS", 0.1)
    (tmp_path / ".out.partial").mkdir()
    with (tmp_path / ".out.partial" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another process is beginning"):
            make(source, tmp_path / "out")
    (tmp_path / ".out.partial" / "plan.json").write_text('{"fingerprint": "of something else"}')
    with (
        claims.Claims(tmp_path / ".out.partial" / "claims").held("member-x"),
        pytest.raises(DataError, match="is preparing it from other text"),
    ):
        make(source, tmp_path / "out")
    make(source, tmp_path / "out")


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small bounds, so that a small corpus has many tasks, chunks and shards."""
    monkeypatch.setattr(tasks, "CHUNK_BYTES", 3_000)
    monkeypatch.setattr(build, "_SMALL_BYTES", 0)
    monkeypatch.setattr(tasks, "GROUP_BYTES", 8_000)
    monkeypatch.setattr(shards, "SHARD_TOKENS", 4_001)


def test_workers_do_not_show_in_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    source = corpus(tmp_path / "in", 150)
    kind = TokenizerConfig(vocab_size=300)
    for workers in (1, 2, 3):
        make(source, tmp_path / str(workers), kind, workers)
    assert contents(tmp_path / "1") == contents(tmp_path / "2") == contents(tmp_path / "3")
    data = open_data(tmp_path / "2", check_digests=True)
    assert len(data.index["splits"]["train"]["shards"]) > 2
    assert Counter(d for s in SPLITS for d in stored(data, s)) == Counter(text(n) for n in range(150))
    of_shards = sum(s["documents"] for s in data.index["splits"]["train"]["shards"])
    assert of_shards == data.index["splits"]["train"]["documents"] == len(data.document_ends("train"))


class Kill(BaseException):
    pass


@pytest.mark.parametrize("stop", ["survey", "tokenizer", "encode"])
def test_an_interrupted_preparation_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str) -> None:
    """Stopped at every progress event in turn; the result is the same, and what was encoded is not encoded again."""
    shrink(monkeypatch)
    monkeypatch.setattr(job, "_REPORT_SECONDS", 0.0)
    source = corpus(tmp_path / "in", 60)
    kind = TokenizerConfig(vocab_size=300)
    make(source, tmp_path / "quiet", kind)
    events: list[str] = []
    encoded: list[int] = []
    inner = tokenizer.Tokenizer.encode_flat
    monkeypatch.setattr(
        tokenizer.Tokenizer, "encode_flat", lambda self, texts: encoded.append(len(texts)) or inner(self, texts)
    )
    for attempt in range(100):
        seen = 0

        def progress(event: dict[str, Any], limit: int = attempt + 1) -> None:
            nonlocal seen
            events.append(event["stage"])
            seen += event["stage"] == stop
            if seen >= limit:
                raise Kill

        try:
            prepare([str(source)], tmp_path / "out", kind, DataConfig(), workers=1, progress=progress)
            break
        except Kill:
            assert not (tmp_path / "out").exists()
    assert contents(tmp_path / "out") == contents(tmp_path / "quiet")
    if stop == "encode":
        assert events.count("tokenizer") == 1
        assert sum(encoded) <= 60 + 20  # what was cut off in the midst of a chunk, at most once an attempt
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "quiet"]


PREPARE = """
import sys; from pathlib import Path
from foretell.data import build, prepare, shards, tasks; from foretell.config import *
tasks.CHUNK_BYTES, build._SMALL_BYTES, tasks.GROUP_BYTES, shards.SHARD_TOKENS = 3_000, 0, 8_000, 4_001
print("begins", flush=True)
prepare([sys.argv[1]], Path(sys.argv[2]), TokenizerConfig(vocab_size=300), DataConfig(), workers=2)
"""


def kills(tmp_path: Path, rounds: int) -> None:
    source = corpus(tmp_path / "in", 400)
    command = [sys.executable, "-c", PREPARE, str(source)]

    def begun(out: Path) -> subprocess.Popen[bytes]:
        """A process that has imported what it needs: the time after this is the preparation's own."""
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"begins\n"
        process.stdout.close()
        return process

    quiet = begun(tmp_path / "quiet")
    began = time.monotonic()
    assert quiet.wait() == 0
    whole = time.monotonic() - began
    rng = random.Random(0)
    killed = 0
    for n in range(rounds):
        process = begun(tmp_path / "out")
        try:
            # The first is sure to come before the end, however the machine's load changes.
            process.wait(rng.uniform(0.0, 0.9 if n else 0.1) * whole)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
            killed += 1
        if (tmp_path / "out").exists() or n == rounds - 1:
            subprocess.run([*command, str(tmp_path / "out")], check=True, stdout=subprocess.DEVNULL)
            assert contents(tmp_path / "out") == contents(tmp_path / "quiet")
            for path in (tmp_path / "out").iterdir():
                path.unlink()
            (tmp_path / "out").rmdir()
    assert killed


def test_sigkill_at_random_moments(tmp_path: Path) -> None:
    kills(tmp_path, 4)


@pytest.mark.slow
def test_sigkill_many_times(tmp_path: Path) -> None:
    kills(tmp_path, 60)


def test_a_lost_worker_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from foretell.data import workers

    shrink(monkeypatch)
    monkeypatch.setattr(workers, "_START", "import sys; sys.exit(9)")
    with pytest.raises(DataError, match="code 9"):
        make(corpus(tmp_path / "in"), tmp_path / "out", workers=2)


# --- splits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("documents", [3, 5, 20, 21, 60])
def test_hash_fills_every_split_or_says_so(tmp_path: Path, documents: int) -> None:
    for n in range(6):
        folder = tmp_path / f"in{n}"
        folder.mkdir()
        rows = [json.dumps({"text": text(1000 * n + k)}) for k in range(documents)]
        (folder / "a.jsonl").write_text("\n".join(rows))
        try:
            result = make(folder, tmp_path / f"out{n}", split="hash")
        except DataError:
            assert documents < 20
        else:
            assert all(result["tokens"].values())


def test_hash_keeps_a_document_in_its_split(tmp_path: Path) -> None:
    make(corpus(tmp_path / "in", 200), tmp_path / "a", split="hash")
    make(corpus(tmp_path / "in", 400), tmp_path / "b", split="hash")
    few, many = open_data(tmp_path / "a"), open_data(tmp_path / "b")
    for split in SPLITS:
        assert set(stored(few, split)) <= set(stored(many, split))
    shares = [len(stored(many, s)) / 400 for s in SPLITS]
    assert shares[0] == pytest.approx(0.9, abs=0.06)


def test_too_few_documents_for_hash(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"2 distinct documents cannot fill 3 splits by hash; use data\.split=tail"):
        make(corpus(tmp_path / "in", 2), tmp_path / "out", split="hash")


def test_tail_divides_one_text_in_order(tmp_path: Path) -> None:
    whole = "".join(text(n) for n in range(300))
    (tmp_path / "novel.txt").write_text(whole, encoding="utf-8")
    make(tmp_path / "novel.txt", tmp_path / "out")
    data = open_data(tmp_path / "out")
    assert data.index["split_rule"]["kind"] == "tail"
    parts = [stored(data, split) for split in SPLITS]
    assert ["".join(p) for p in parts] == [p[0] for p in parts]
    assert "".join(p[0] for p in parts) == whole
    for split, fraction in (("valid", 0.05), ("test", 0.05)):
        size = len(stored(data, split)[0].encode())
        assert size / len(whole.encode()) == pytest.approx(fraction, abs=0.01)
    assert all(p[0].endswith("\n") for p in parts)  # cut at lines


@settings(max_examples=40, deadline=None)
@given(data=st.text(st.sampled_from("ab字\n😀"), min_size=60, max_size=400), valid=st.floats(0.05, 0.3))
def test_tail_cuts_are_exhaustive_and_never_inside_a_character(data: str, valid: float) -> None:
    raw = data.encode()
    tally = splits.Tally(0.1, valid)
    document = intake.Text(raw, dedup.digest(raw), "")
    tally.add([document.digest], len(raw))
    parts, of_split = splits.divided([document], 0, tally.rule("tail"))
    assert b"".join(parts) == raw
    assert [SPLITS[n] for n in of_split] == ["train", "valid", "test"]
    for part in parts:
        part.decode()


def test_one_long_line_and_too_little_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("字" * 4000, encoding="utf-8")
    assert all(make(tmp_path / "a.txt", tmp_path / "out")["tokens"].values())
    (tmp_path / "b.txt").write_text("tiny")
    with pytest.raises(DataError, match="4 bytes of text are too few"):
        make(tmp_path / "b.txt", tmp_path / "out2")


def test_the_caller_may_split(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", 30)

    def by_name(name: str) -> str:
        return SPLITS[int(Path(name).stem) % 3]

    result = prepare([str(source)], tmp_path / "out", BYTES, DataConfig(), workers=1, split_of=by_name)
    data = open_data(tmp_path / "out")
    assert stored(data, "valid") == [text(n) for n in range(1, 30, 3)]
    assert result["documents_out"] == 30
    with pytest.raises(DataError, match="must be one of train, valid, test"):
        prepare([str(source)], tmp_path / "bad", BYTES, DataConfig(), split_of=lambda _: "dev")
    with pytest.raises(DataError, match="valid split is empty"):
        prepare([str(source)], tmp_path / "bad2", BYTES, DataConfig(), split_of=lambda _: "train")


# --- pieces ----------------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(st.integers(0, 60), max_size=30), max_size=15))
def test_dedup_is_a_set(tmp_path: Path, batches: list[list[int]]) -> None:
    seen = dedup.Seen(tmp_path / "scratch")
    known: set[int] = set()
    for numbers in batches:
        # Digests that end in zero bytes, which numpy's strings would hide if anything did.
        digests = [bytes([n]) + b"\0" * 15 if n % 2 else dedup.digest(bytes([n])) for n in numbers]
        expected = []
        for n in numbers:
            expected.append(n not in known)
            known.add(n)
        assert seen.first_times(digests).tolist() == expected
    assert not list((tmp_path / "scratch").iterdir())


@given(st.lists(st.integers(1, 300_000), min_size=1, max_size=12), st.integers(1000, 400_000))
@settings(max_examples=25, deadline=None)
def test_samples_are_bounded_and_whole_when_they_fit(sizes: list[int], limit: int) -> None:
    sample = Sample(limit)
    start = 0
    for n, size in enumerate(sizes):
        raw = (f"{n}é\n" * (size // 4 + 1)).encode()[: size // 5 * 5 + 5]
        raw = raw.decode(errors="ignore").encode()
        sample.add(intake.Text(raw, dedup.digest(raw), ""), start)
        start += len(raw)
    kept = sum(len(c.text.data) for c in sample.chunks())
    assert kept <= limit + (1 << 16)
    assert kept >= min(limit, start)
    for chunk in sample.chunks():
        chunk.text.data.decode()


def test_a_given_tokenizer_is_used_and_needs_an_end(tmp_path: Path) -> None:
    own = tokenizer.train_bpe([text(n) for n in range(50)], 300)
    own.save(tmp_path / "tokenizer.json")
    source = corpus(tmp_path / "in")
    result = make(source, tmp_path / "out", TokenizerConfig(path=str(tmp_path)))
    assert open_data(tmp_path / "out").tokenizer.digest == own.digest
    assert result["vocab_size"] == own.vocab_size
    broken = json.loads((tmp_path / "tokenizer.json").read_text())
    broken["added_tokens"] = []
    del broken["model"]["vocab"]["<|endoftext|>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(broken))
    with pytest.raises(ConfigError, match="no end-of-text token"):
        make(source, tmp_path / "out2", TokenizerConfig(path=str(tmp_path)))


@pytest.mark.parametrize(
    "kind",
    [{"kind": "bytes", "vocab_size": 300}, {"path": "x", "vocab_size": 300}, {"path": "x", "kind": "bytes"}],
)
def test_a_tokenizer_key_without_effect_is_refused(tmp_path: Path, kind: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"leave (it|one) out"):
        make(corpus(tmp_path / "in"), tmp_path / "out", TokenizerConfig(**kind))


def test_special_tokens_in_documents_stay_text(tmp_path: Path) -> None:
    rows = "\n".join(json.dumps({"text": f"{n} before <|endoftext|> after"}) for n in range(40))
    (tmp_path / "a.jsonl").write_text(rows)
    for kind in (BYTES, TokenizerConfig(vocab_size=280)):
        make(tmp_path / "a.jsonl", tmp_path / kind.kind, kind)
        data = open_data(tmp_path / kind.kind)
        for split in SPLITS:
            tokens = data.tokens(split)[:]
            assert (tokens == data.tokenizer.eot_id).sum() == len(data.document_ends(split))
            assert all(d.endswith("<|endoftext|> after") for d in stored(data, split))


# --- shards ----------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 11), st.data())
@settings(max_examples=80, deadline=None)
def test_tokens_over_shards_are_one_array(values: list[int], size: int, data: st.DataObject) -> None:
    flat = np.array(values, np.uint16)
    tokens = Tokens([flat[n : n + size] for n in range(0, len(flat), size)], flat.dtype)
    assert len(tokens) == len(flat)
    key = data.draw(
        st.slices(len(flat)) | st.lists(st.integers(-len(flat), len(flat) - 1)).map(lambda k: np.array(k, np.int64))
    )
    np.testing.assert_array_equal(tokens[key], flat[key])
    one = data.draw(st.integers(-len(flat), len(flat) - 1))
    assert tokens[one] == flat[one]
    with pytest.raises(IndexError):
        tokens[len(flat)]


def test_wide_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    assert [shards.token_dtype(n).str for n in (257, 65_536, 65_537)] == ["<u2", "<u2", "<u4"]
    writer = SplitWriter(tmp_path, "train", shards.token_dtype(100_000))
    writer.append(np.array([99_999, 1], np.uint32), np.array([2]), np.array([5]))
    entry = writer.finish()
    assert np.fromfile(tmp_path / entry["shards"][0]["file"], "<u4").tolist() == [99_999, 1]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.write_bytes(bytes(raw))


def newer(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 99}))


def elsewhere(path: Path) -> None:
    index = json.loads(path.read_text())
    index["splits"]["train"]["shards"][0]["file"] = "../in/0000.txt"
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("key", ["shards", "documents"])
def test_a_split_that_lacks_a_key_is_named(tmp_path: Path, key: str) -> None:
    make(corpus(tmp_path / "in"), tmp_path / "out")
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    del index["splits"]["valid"][key]
    (tmp_path / "out" / "index.json").write_text(json.dumps(index))
    with pytest.raises(DataError, match=f"not an index of prepared data: KeyError '{key}'"):
        open_data(tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("index.json", elsewhere, "is not the name of a file in the folder"),
        ("train-00000.tokens", truncate, "bytes, expected"),
        ("train-00000.tokens", Path.unlink, "is missing"),
        ("train-00000.tokens", flip, "SHA-256"),
        ("valid.ends", truncate, "bytes, expected"),
        ("index.json", truncate, "not an index"),
        ("index.json", newer, "format_version 99 is newer"),
        ("index.json", Path.unlink, "not a prepared folder"),
        ("tokenizer.json", lambda p: tokenizer.train_bpe(["ab" * 9], 300).save(p), "not the tokenizer"),
    ],
)
def test_damage_is_named(tmp_path: Path, name: str, damage: Callable[[Path], Any], message: str) -> None:
    make(corpus(tmp_path / "in"), tmp_path / "out")
    damage(tmp_path / "out" / name)
    with pytest.raises(DataError, match=message):
        open_data(tmp_path / "out", check_digests=True)


def test_unknown_split(tmp_path: Path) -> None:
    make(corpus(tmp_path / "in"), tmp_path / "out")
    with pytest.raises(DataError, match="no split `dev`; there are train, valid, test"):
        open_data(tmp_path / "out").tokens("dev")


def test_stored_example_of_version_1_is_read(tmp_path: Path) -> None:
    """A folder made when the format was fixed; later versions must go on reading it."""
    example = Path(__file__).parent / "data" / "shards-v1"
    data = open_data(example, check_digests=True)
    assert stored(data, "train")[0] == "One fish.\n"
    assert data.index["format_version"] == 1


# --- batches ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Data:
    folder = tmp_path_factory.mktemp("batches")
    make(corpus(folder / "in", 60, 12), folder / "out")
    return open_data(folder / "out")


@given(n=st.integers(1, 3000), key=st.integers(0, 2**63 - 1))
@settings(deadline=None)
def test_the_order_is_a_permutation(n: int, key: int) -> None:
    image = loader.permuted(np.arange(n), n, key)
    assert sorted(image.tolist()) == list(range(n))


def test_the_order_looks_random() -> None:
    n = 10_000
    image = loader.permuted(np.arange(n), n, 7)
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 0.05
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 0.05
    assert (image == loader.permuted(np.arange(n), n, 8)).sum() < 20


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), batch_size=st.integers(1, 9), context=st.integers(2, 90))
def test_an_epoch_visits_each_window_once(prepared: Data, seed: int, batch_size: int, context: int) -> None:
    """Windows are followed by what they hold: every stream position is a target at most once, and nearly all are."""
    stream = prepared.tokens("train")[:].astype(np.int64)
    windows = loader.window_count(len(stream), context)
    steps = -(-2 * windows // batch_size)
    rows = [batch(prepared, "train", seed=seed, step=s, batch_size=batch_size, context=context) for s in range(steps)]
    inputs, targets = (np.concatenate([r[k] for r in rows])[: 2 * windows] for k in (0, 1))
    np.testing.assert_array_equal(inputs[:, 1:], targets[:, :-1])
    doubled = np.concatenate([stream, stream])
    every = np.lib.stride_tricks.sliding_window_view(doubled, context)[: len(stream)]
    for epoch in range(2):
        expected = (loader.key_of(seed, epoch, "offset") + context * np.arange(windows)) % len(stream)
        got = targets[epoch * windows : (epoch + 1) * windows]
        assert sorted(map(bytes, got)) == sorted(map(bytes, every[expected]))


def test_a_batch_depends_on_seed_and_step_alone(prepared: Data) -> None:
    def at(step: int, seed: int = 3, size: int = 4) -> np.ndarray:
        return batch(prepared, "train", seed=seed, step=step, batch_size=size, context=16)[1]

    later = at(50)
    np.testing.assert_array_equal(at(0), at(0))
    np.testing.assert_array_equal(at(50), later)
    assert (at(0) != at(0, seed=4)).any()
    assert (at(0) != at(1)).any()
    # Two ranks that take half a batch each read what one would: sample numbers count on.
    np.testing.assert_array_equal(np.concatenate([at(0, size=2), at(1, size=2)]), at(0, size=4))


def test_segments_are_the_documents(prepared: Data) -> None:
    """The input before a document's first token is <|endoftext|>, also around the end of the stream."""
    ends = prepared.document_ends("train")
    stream = prepared.tokens("train")[:].astype(np.int64)
    where = {tuple(stream[np.arange(p, p + 40) % len(stream)]): p for p in range(len(stream))}
    wrapped = 0
    for step in range(150):
        inputs, targets, segments = batch(prepared, "train", seed=1, step=step, batch_size=8, context=40)
        for x, y, s in zip(inputs, targets, segments, strict=True):
            places = where[tuple(y)] + np.arange(40)
            wrapped += places[-1] >= len(stream)
            document = np.searchsorted(ends, places % len(stream), "right") + len(ends) * (places >= len(stream))
            np.testing.assert_array_equal(np.diff(s), np.diff(document))
            first = np.isin(places % len(stream), [0, *ends[:-1]])
            np.testing.assert_array_equal(x == prepared.tokenizer.eot_id, first)
    assert wrapped


def test_too_short_a_split_says_so(prepared: Data) -> None:
    with pytest.raises(DataError, match=r"the valid split has .* less than one context of 100,000"):
        batch(prepared, "valid", seed=0, step=0, batch_size=1, context=100_000)


# --- real text -------------------------------------------------------------------------------------------------------


def test_real_text_end_to_end(shared_data: Path, tmp_path: Path) -> None:
    sources = [str(shared_data / "lm-zh" / "sanguo"), str(shared_data / "cls-en" / "banking77" / "test.csv.gz")]
    result = prepare(sources, tmp_path / "out", TokenizerConfig(vocab_size=2048), DataConfig(), workers=2)
    assert conserved(result)
    assert result["documents_in"] == 3 + 3080
    data = open_data(tmp_path / "out", check_digests=True)
    kept = Counter(d for s in SPLITS for d in stored(data, s))
    assert kept == Counter({d.text for d in readers.documents(sources)})
