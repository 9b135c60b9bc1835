"""Evaluation text is found in whatever dress, down to one n-gram; other text is left alone; the table can be saved.

Truth: items planted by hand, and sets of tuples of words.
"""

import gzip
import json
import pickle
import random
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell.data import decontaminate
from foretell.data.decontaminate import against
from foretell.data.steps import Dropped, Kept
from foretell.errors import ConfigError, DataError

RECORDS = [
    {
        "query": "Question: To keep sand out of a picnic basket on the beach,\nAnswer:",
        "choices": [
            "Carry the basket by its handle over your head, and sing to the gulls until they've all gone.",
            "Sew a lid of old sailcloth to its rim, and shake it out before you sit down to eat.",
        ],
        "gold": 1,
    },
    {"query": "Which of these is a well-known mineral?", "choices": ["oak", "quartz", "wool"], "gold": 1},
    {
        "context": {"paragraph": ["潮水退去以后，渔民们在岸边修补渔网，等待下一次出海的时机到来。"]},
        "answers": [{"text": "渔网"}],
    },
    {"question": "月亮为什么有时候是圆的，有时候又缺了一半？"},
    {"query": "Why?", "choices": ["yes", "no"]},
]
HOST = (
    "The ferry leaves the harbour at seven in the morning, and nobody waits for those who are late. {} The captain "
    "stands on the bridge with a cup of tea and looks at the hills; he has seen worse weather in spring."
)
CHINESE_HOST = "渡轮早上七点离开港口，没有人会等迟到的人。{}船长站在桥楼上看着远处的山，他说这样的天气并不少见。"
WORDS = [a + b for a in ("ba", "do", "fi", "ku", "le") for b in ("mar", "net", "pol", "sun", "tik")]  # 25


def write(path: Path, *records: object) -> str:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return str(path)


@pytest.fixture
def tasks(tmp_path: Path) -> str:
    return write(tmp_path / "tasks.jsonl", *RECORDS)


def other_marks(text: str) -> str:
    return re.sub(r"[,.?!;:](?=\s|$)|(?<=\w)-(?=\w)", " — ", text)


DRESSES: dict[str, Callable[[str], str]] = {
    "as it is": str,
    "capitals": str.upper,
    "small letters": str.lower,
    "other spaces": lambda text: re.sub(r"\s+", " \t\n\u00a0", text),
    "other marks": other_marks,
    "no marks": lambda text: re.sub(r"[,.?!;:'，。？]", "", text),
    "curly apostrophes": lambda text: text.replace("'", "’"),
    "wide letters": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "Markdown": lambda text: "**" + re.sub(r" (\w+)", r" _\1_", text, count=5) + "**",
    "broken lines": lambda text: "\n".join(text[n : n + 7] for n in range(0, len(text), 7)) if "，" in text else text,
}


@pytest.mark.parametrize("dress", DRESSES)
def test_every_planted_item_is_found(tasks: str, dress: str) -> None:
    step = against([tasks])
    assert step.too_short == 1
    for number, record in enumerate(RECORDS[:4], 1):
        strings = list(decontaminate._strings(record))
        for host in (HOST, CHINESE_HOST):
            dropped = step(host.format(" " + DRESSES[dress](" ".join(strings)) + " "))
            assert isinstance(dropped, Dropped), record
            assert dropped.reason == "evaluation text"
            assert dropped.detail.endswith(f"of {tasks}, record {number}, none allowed")


def test_each_long_string_is_an_item(tasks: str) -> None:
    step = against([tasks])
    for text in (*RECORDS[0]["choices"], RECORDS[0]["query"]):  # type: ignore[misc]
        assert isinstance(step(HOST.format(text)), Dropped)


def test_other_text_is_left_alone(tasks: str) -> None:
    step = against([tasks])
    for text in (HOST, CHINESE_HOST, "", " ", "Why? yes no", "渔网，渔网", "Which of these is oak?", HOST * 50):
        assert step(text) == Kept(text)


@pytest.mark.parametrize(("words", "least"), [(25, 13), (13, 13), (12, 8), (8, 8)])
def test_so_many_words_in_a_row_are_found(tmp_path: Path, words: int, least: int) -> None:
    step = against([write(tmp_path / "a.jsonl", {"q": " ".join(WORDS[:words])})])
    for start in range(words - least + 1):
        held = WORDS[start : start + least]
        assert isinstance(step(f"x {' '.join(held)} y"), Dropped)
        assert isinstance(step(f"x {' '.join(held[1:])} y {held[0]}"), Kept)


@pytest.mark.parametrize(("characters", "least"), [(30, 21), (21, 21), (20, 13), (13, 13)])
def test_so_many_characters_in_a_row_are_found(tmp_path: Path, characters: int, least: int) -> None:
    text = "".join(chr(0x5200 + 7 * n) for n in range(characters))
    step = against([write(tmp_path / "a.jsonl", {"q": text})])
    for start in range(characters - least + 1):
        held = text[start : start + least]
        assert isinstance(step(f"山{held[:5]}，5 pm {held[5:]}水"), Dropped)
        assert isinstance(step(f"山{held[1:]}水"), Kept)


def test_a_share_of_an_item_may_be_allowed(tmp_path: Path) -> None:
    """An item of 20 words has 8 13-grams; 15 words of it have 3."""
    source = write(tmp_path / "a.jsonl", {"q": "nothing"}, {"q": " ".join(WORDS[:20])})
    text = f"x {' '.join(WORDS[2:17])} y"
    assert against([source])(text) == Dropped("evaluation text", f"3 of 8 n-grams of {source}, record 2, none allowed")
    told = f"3 of 8 n-grams of {source}, record 2, fewer than 0.375 of them allowed"
    assert against([source], share=0.375)(text) == Dropped("evaluation text", told)
    assert against([source], share=0.4)(text) == Kept(text)
    assert against([source], share=1)(f"{WORDS[3]} {' '.join(WORDS[:20])}") != Kept(text)


def test_the_item_that_is_held_most_is_named(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", {"q": " ".join(WORDS[:20])}, {"q": " ".join(WORDS[5:])})
    second = write(tmp_path / "b.jsonl", {"q": "short"}, {"q": "short"}, {"q": " ".join(WORDS[6:20])})
    dropped = against([first, second])(" ".join(WORDS[4:20]))
    assert dropped == Dropped("evaluation text", f"2 of 2 n-grams of {second}, record 3, none allowed")


letters = st.sampled_from(["aa", "bb", "c", "dd", "e"])


@given(st.lists(st.lists(letters, min_size=3, max_size=9), min_size=1, max_size=4), st.lists(letters, max_size=30))
@settings(deadline=None, max_examples=60)
def test_hashes_find_what_sets_of_words_find(
    tmp_path_factory: pytest.TempPathFactory, items: list[list[str]], words: list[str]
) -> None:
    def grams(w: list[str]) -> set[tuple[str, ...]]:
        return {tuple(w[i : i + 3]) for i in range(len(w) - 2)}

    source = write(tmp_path_factory.mktemp("x") / "a.jsonl", *({"text": " ".join(w)} for w in items))
    shares = [len(grams(words) & grams(w)) / len(grams(w)) for w in items]
    text = ". ".join(words)
    for share in (0.0, 0.5, 1.0):
        expected = max(shares) > 0 and max(shares) >= share
        assert isinstance(against([source], n=3, share=share)(text), Dropped) == expected


ITEM = " ".join(WORDS[:15])


def squad(text: str) -> dict[str, object]:
    return {"version": "1.1", "data": [{"paragraphs": [{"context": text, "qas": [{"question": "Who?"}]}]}]}


FILES: dict[str, bytes] = {
    "lines.jsonl": json.dumps({"doc": {"q": ITEM}}).encode() + b"\n\n",
    "lines.jsonl.gz": gzip.compress(json.dumps({"q": ["a", ITEM]}).encode()),
    "list.json": json.dumps([{"q": "a"}, {"q": ITEM}], indent=1).encode(),
    "squad.json": json.dumps(squad(ITEM)).encode(),
    "marked.json": b"\xef\xbb\xbf" + json.dumps(squad(ITEM), indent=2).encode(),
    "prose.txt": ITEM.encode(),
    "table.csv": f"id,text\n1,{ITEM}\n".encode(),
    "wide.jsonl": json.dumps({"q": ITEM}).encode("utf-16"),
}


@pytest.mark.parametrize("name", FILES)
def test_evaluation_sets_come_in_many_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    assert isinstance(against([str(tmp_path)])(HOST.format(ITEM)), Dropped)


BAD: dict[str, bytes] = {
    "cut.jsonl": json.dumps({"q": ITEM}).encode() + b'\n{"q": "',
    "cut.jsonl.gz": gzip.compress(json.dumps({"q": ITEM}).encode())[:-9],
    "latin.jsonl": json.dumps({"q": f"{ITEM} é"}, ensure_ascii=False).encode("latin1"),
    "no-text.csv": f"id,text\n1,{ITEM}\n2\n".encode(),
    "binary.txt": b"\x89PNG" + bytes(range(256)),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_whole_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(BAD[name])
    with pytest.raises(DataError, match=f"{name}.*evaluation text is read whole"):
        against([str(tmp_path)])


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.jsonl", {"q": "too short"}, {"q": "this too"})
    with pytest.raises(DataError, match="all 2 records"):
        against([source])
    with pytest.raises(DataError, match="no such file"):
        against([str(tmp_path / "b.jsonl")])
    for n, share in ((0, 0.0), (13, -0.1), (13, 1.1)):
        with pytest.raises(ConfigError, match="at least 1 word"):
            against([source], n=n, share=share)


def test_a_table_is_saved_and_mapped(tasks: str, tmp_path: Path) -> None:
    step = against([tasks], share=0.25)
    step.save(tmp_path / "table")
    loaded = decontaminate.load(tmp_path / "table")
    assert all(isinstance(values, np.memmap) for values in loaded._table)
    copies = [loaded, pickle.loads(pickle.dumps(loaded)), pickle.loads(pickle.dumps(step))]
    assert len(pickle.dumps(loaded)) < 500
    for text in (HOST, *(HOST.format(json.dumps(r, ensure_ascii=False)) for r in RECORDS)):
        assert [c(text) for c in copies] == [step(text)] * 3
    assert [c.too_short for c in copies] == [1] * 3
    (tmp_path / "table" / "grams.npy").unlink()
    with pytest.raises(DataError, match="holds no table of evaluation text"):
        decontaminate.load(tmp_path / "table")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> decontaminate.Against:
    return against([write(tmp_path_factory.mktemp("x") / "tasks.jsonl", *RECORDS)])


@settings(deadline=None)
@given(text=st.text(st.characters(codec=None), max_size=300) | st.text("潮水退去以后。, aA'-", max_size=200))
def test_any_text_has_one_fate(table: decontaminate.Against, text: str) -> None:
    assert table(text) == table(text)
    planted = table(text + "\n" + unicodedata.normalize("NFD", str(RECORDS[1])) + "\n" + text)
    assert isinstance(planted, Dropped)


def test_every_item_of_real_tasks_is_found_in_real_pages(shared_data: Path) -> None:
    """PIQA and ARC-easy, each item in another page of C4; and no page without one is dropped."""
    with gzip.open(shared_data / "lm-en/c4-mini/train.jsonl.gz", "rt", encoding="utf-8") as f:
        pages = [json.loads(line)["text"] for line in f]
    for name, too_short in (("piqa", 12), ("arc_easy", 0)):
        source = shared_data / f"lmeval/{name}.jsonl.gz"
        step = against([str(source)])
        with gzip.open(source, "rt", encoding="utf-8") as f:
            items = [" ".join(decontaminate._strings(json.loads(line))) for line in f]
        choose = random.Random(7)
        dressed = [choose.choice([str.upper, str.lower, other_marks])(item) for item in items]
        kept = [n for n, d in enumerate(dressed) if isinstance(step(f"{pages[n % 1000]}\n{d}\n{pages[n % 999]}"), Kept)]
        assert len(kept) == step.too_short == too_short
        assert [p[:50] for p in pages if isinstance(step(p), Dropped)] == []
