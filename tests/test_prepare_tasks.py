"""Tasks of a preparation over processes and commands: the same bytes, nothing done twice, nobody's claim stolen."""

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_data import BYTES, contents, corpus, shrink

from foretell.config import DataConfig, TokenizerConfig
from foretell.data import claims, open_data, prepare
from foretell.data.claims import Claims
from foretell.data.steps import Kept

KIND = TokenizerConfig(vocab_size=300)
COMMAND = """
import sys; from pathlib import Path
from foretell.data import build, prepare, shards, tasks; from foretell.config import *
tasks.CHUNK_BYTES, build._SMALL_BYTES, tasks.GROUP_BYTES, shards.SHARD_TOKENS = 3_000, 0, 8_000, 4_001
source, out, workers = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
result = prepare([source], out, TokenizerConfig(vocab_size=300), DataConfig(), workers=workers)
print(result["unchanged"])
"""


def begun(source: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    """A command of its own, as on another machine."""
    command = [sys.executable, "-c", COMMAND, str(source), str(out), str(workers)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def test_two_commands_share_one_preparation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    source = corpus(tmp_path / "in", 1200)
    prepare([str(source)], tmp_path / "quiet", KIND, DataConfig(), workers=1)
    commands = [begun(source, tmp_path / "out", 1) for _ in range(2)]
    for command in commands:
        said, error = command.communicate(timeout=120)
        assert command.returncode == 0, error
        assert said in ("False\n", "True\n")  # True: it came when all was done
    assert contents(tmp_path / "out") == contents(tmp_path / "quiet")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in", "out", "quiet"]


def test_one_of_two_commands_is_killed_with_its_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shrink(monkeypatch)
    source = corpus(tmp_path / "in", 1500)
    prepare([str(source)], tmp_path / "quiet", KIND, DataConfig(), workers=1)
    first, second = (begun(source, tmp_path / "out", 1) for _ in range(2))
    held = tmp_path / ".out.partial" / "claims"
    while first.poll() is None and not (held.is_dir() and any(held.glob("read-*"))):
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    os.killpg(first.pid, signal.SIGKILL)
    _, error = second.communicate(timeout=120)
    assert second.returncode == 0, error
    first.communicate()
    assert contents(tmp_path / "out") == contents(tmp_path / "quiet")


def test_a_claim_is_held_by_one_and_free_again_when_its_holder_is_gone_or_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "_TOUCH_SECONDS", 0.05)
    one, other = Claims(tmp_path), Claims(tmp_path)
    with one.held("task") as mine:
        assert mine is not None
        mine.note(7)
        with other.held("task") as none:
            assert none is None
        deadline = time.monotonic() + 10
        while other.all()["task"][1]["done"] != 7:
            assert time.monotonic() < deadline
        monkeypatch.setattr(claims, "STALE_SECONDS", 5.0)
        other.free_the_lost()
        assert "task" in other.all()
    assert other.all() == {}

    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    here = {"host": one._host, "pid": gone.pid, "done": 0}
    (tmp_path / "of a dead process").write_text(json.dumps(here))
    (tmp_path / "of another machine").write_text(json.dumps({**here, "host": "elsewhere"}))
    (tmp_path / "silent").write_text(json.dumps({**here, "host": "elsewhere"}))
    os.utime(tmp_path / "silent", (time.time() - 60, time.time() - 60))
    other.free_the_lost()
    assert list(other.all()) == ["of another machine"]
    with other.held("silent") as mine:
        assert mine is not None


def test_a_raised_error_gives_the_claim_back(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Claims(tmp_path).held("task"):
        raise KeyboardInterrupt
    assert Claims(tmp_path).all() == {}


def test_near_duplicates_are_dropped_and_listed(tmp_path: Path) -> None:
    source = corpus(tmp_path / "in", 30, words=200)
    first = (source / "0003.txt").read_text()
    (source / "9.txt").write_text(first.replace("people", "persons", 1) + "and one more line\n")
    before = prepare([str(source)], tmp_path / "all", BYTES, DataConfig())
    result = prepare([str(source)], tmp_path / "out", BYTES, DataConfig(near_duplicates=0.8))
    assert before["documents_out"] == 31
    assert result["documents_out"] == 30
    assert result["dropped"] == {"near-duplicate": 1}
    index = open_data(tmp_path / "out", check_digests=True).index
    assert index["dropped"] == ["dropped-near-duplicate.jsonl.gz"]
    (line,) = gzip.decompress((tmp_path / "out" / index["dropped"][0]).read_bytes()).splitlines()
    record = json.loads(line)
    assert record["source"].endswith("9.txt")
    assert first.startswith(record["begins"][:20])
    again = prepare([str(source)], tmp_path / "out", BYTES, DataConfig(near_duplicates=0.8))
    assert again["unchanged"]


MAIL = "wei@example.org"
JUNK = (
    f"Write to {MAIL} now.\n"
    + "You can buy the best of all shoes in the shop that has the best price of the year.\n" * 20
)
QUESTION = (
    "How do you carefully remove the stone from a ripe avocado without squashing the flesh that is around it at all"
)


def prose(count: int) -> list[str]:
    """Pages of Python's own documentation that quality and language would keep."""
    from pydoc_data.topics import topics

    from foretell.data import language, quality

    english, rules = language.only(["en"]), quality.rules()
    paragraphs = [
        " ".join(p.split()) for t in topics.values() for p in t.split("\n\n") if p[:1].isupper() and p.endswith(".")
    ]
    pages = ("\n".join(paragraphs[n : n + 8]) for n in range(0, len(paragraphs), 8))
    good = (p for p in pages if isinstance(rules(p), Kept) and isinstance(english(p), Kept))
    kept = [page for _, page in zip(range(count), good, strict=False)]
    assert len(kept) == count
    return kept


@pytest.mark.parametrize("mode", ["mask", "drop"])
def test_each_cleaning_step_has_its_row_and_its_file_whatever_the_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    pytest.importorskip("py3langid")
    shrink(monkeypatch)
    source = tmp_path / "in"
    source.mkdir()
    pages = prose(12)
    for n, page in enumerate(pages[2:]):
        (source / f"{n:03d}.txt").write_text(page)
    (source / "a.txt").write_text("Die Katze sitzt auf der Matte und schaut aus dem Fenster in den Garten. " * 9)
    (source / "b.txt").write_text(JUNK)
    (source / "c.txt").write_text(pages[0] + "\n" + QUESTION.upper() + ".\n")
    (source / "d.txt").write_text(pages[1] + f"\nThe letter was sent to {MAIL} in the winter of that year.\n")
    (tmp_path / "questions.jsonl").write_text(json.dumps({"text": QUESTION}) + "\n")
    config = DataConfig(
        languages=["en"],
        quality=True,
        decontaminate=[str(tmp_path / "questions.jsonl")],
        personal_data=mode,  # type: ignore[arg-type]
    )
    outs = [tmp_path / str(n) for n in (1, 2)]
    results = [prepare([str(source)], out, BYTES, config, workers=n) for n, out in enumerate(outs, start=1)]
    assert contents(outs[0]) == contents(outs[1])
    dropped = results[0]["dropped"]
    assert dropped["language"] == 1
    assert sum(count for reason, count in dropped.items() if reason.startswith("quality: ")) == 1
    files = {
        p.name.removeprefix("dropped-").split(".")[0]: gzip.decompress(p.read_bytes())
        for p in outs[0].glob("dropped-*")
    }
    expected = {"language": "a.txt", "quality": "b.txt", "contaminated": "c.txt"}
    if mode == "drop":
        expected["personal-data"] = "d.txt"
    else:
        assert results[0]["changed"] == {"e-mail": 1}
    assert set(files) == set(expected)
    for name, document in expected.items():
        (record,) = map(json.loads, files[name].splitlines())
        assert record["source"].endswith(document)
        assert record["detail"]
    assert results[0]["documents_out"] == 10 + (mode == "mask")
    everything = b"".join(p.read_bytes() for p in outs[0].iterdir() if p.suffix != ".gz") + b"".join(files.values())
    assert MAIL.encode() not in everything


@pytest.mark.slow
def test_workers_on_ray_give_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    source = corpus(tmp_path / "in", 200)
    prepare([str(source)], tmp_path / "quiet", KIND, DataConfig(), workers=1)
    prepare([str(source)], tmp_path / "out", KIND, DataConfig(), workers=2, engine="ray")
    assert contents(tmp_path / "out") == contents(tmp_path / "quiet")
