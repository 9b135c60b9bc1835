"""What a file of examples becomes: articles in one split, cut texts told; and answers that are compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from test_tasks import PLAIN, lines, run, written

from foretell import evaluate
from foretell.config import TaskConfig
from foretell.errors import DataError
from foretell.tasks import checks, examples, records
from foretell.tasks.examples import Example, Keys


def test_questions_of_one_article_stay_together(tmp_path: Path) -> None:
    def article(n: int, **more: str) -> dict[str, Any]:
        passages = [f"Passage {n} {letter} is long." for letter in "ab"]
        asked = [{"question": f"{k}?", "answers": [{"text": "Passage", "answer_start": 0}]} for k in range(3)]
        return more | {"paragraphs": [{"context": c, "qas": asked} for c in passages]}

    whole = {"data": [article(n) for n in range(9)] + [article(n, title="Rome") for n in (9, 10)]}
    found = examples.read(written(tmp_path / "s.json", json.dumps(whole)), "qa").examples
    assert len(found) == 66
    assert len({e.group for e in found}) == 10
    made = records.divided(found, ["valid", "test"], {"test": 0.3})
    articles = {split: {e.group for e in those} for split, those in made.items()}
    assert sum(map(len, articles.values())) == 10
    assert all(len(those) % 6 == 0 for those in made.values())
    assert 12 <= len(made["test"]) <= 20 < len(made["train"])
    assert len(made["valid"]) <= 12  # one article, Rome being two
    few = [e for e in found if e.group in ("1", "2")]
    with pytest.raises(DataError, match="2 different articles are too few for 3 splits"):
        records.divided(few, ["valid", "test"])
    flat = [{"question": f"{n}?", "context": "One passage.", "answers": ["One"]} for n in range(4)]
    assert len({e.group for e in examples.read(lines(tmp_path / "f.jsonl", *flat), "qa").examples}) == 1


def test_what_is_cut_is_told_and_chinese_is_recognised(tmp_path: Path) -> None:
    pairs = [(f"第{n}段。{tiny.CHINESE * (1 + 6 * (n == 3))}", f"第{n}个标题") for n in range(12)]
    file = lines(tmp_path / "a.jsonl", *({"source": s, "target": t} for s, t in pairs))
    paths: dict[str, str | None] = {"train": file, "valid": file, "test": file}
    own = tiny.bpe()
    longest = max(len(own.encode(s)) for n, (s, _) in enumerate(pairs) if n != 3) + 60
    reader = records.Reader(PLAIN, own, longest)
    task = TaskConfig(kind="summarization")
    with pytest.raises(DataError, match="nothing is left"):  # all of it stands in the test file
        records.made(paths, Keys(), task, "chat", reader, tmp_path / "data")
    made = records.made({"train": file, "valid": None, "test": None}, Keys(), task, "chat", reader, tmp_path / "data")
    assert made.task.target_language == "zh"
    told = [json.loads(line) for line in (made.folder / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all("用一句话概括" in r["messages"][0]["content"] for r in told)
    cut = [line for line in made.told if "lose their ends" in line]
    assert cut == ["train: 1 texts lose their ends, to fit train.context (raise it to keep them)"]


def test_an_answer_in_words_of_its_own_is_learned_too() -> None:
    reader = records.Reader(PLAIN, tiny.bpe(), 90)
    long, task = "It rained. " * 60 + "Then came Ann.", TaskConfig(kind="qa")
    own_words = Example("f", "Why wet?", ("Because of rain",), context=long)
    (record,) = records.training(own_words, task, "chat", reader)
    assert isinstance(record, records.Cut)
    behind = own_words._replace(targets=("Ann",))
    assert list(records.training(behind, task, "chat", reader)) == ["whose answer stands behind what fits"]


def test_passages_that_stand_in_two_files_are_told() -> None:
    def of(*asked: str) -> examples.Read:
        return examples.Read([Example("f", q, ("x",), context="A passage with x.") for q in asked])

    kept, told = checks.checked({"train": of("a", "b"), "test": of("b", "c")}, "qa")
    assert [e.source for e in kept["train"]] == ["a"]
    assert told[-1].startswith("train: 1 questions are on passages of another split")


def test_kept_answers_are_compared_item_by_item(tmp_path: Path) -> None:
    pytest.importorskip("rouge_score")
    asked = [Example(f"f:{n}", f"text {n}\u2028", (f"number {n} of many",)) for n in range(40)]
    good = [e.targets[0] for e in asked]
    poor = [t if n % 2 else f"number {n}" for n, t in enumerate(good)]

    def keep(file: Path, answers: list[str]) -> None:
        told = zip(asked, answers, strict=False)
        evaluate.write_answers(
            file, [{"name": e.name, "source": e.source, "wanted": list(e.targets), "answer": a} for e, a in told]
        )

    one, two = tmp_path / "one.jsonl", tmp_path / "runs" / "r" / "answers-summarization.jsonl"
    keep(one, poor)
    keep(two, good)
    words = ("evaluate", str(one), "--task", "summarization", "--compare")
    said = run(*words, str(tmp_path / "runs" / "r"))[0]
    assert said["items"] == 40
    first = said["metrics"]["rouge1"]
    # half of the answers have two of four words: F1 is 2/3 of them
    assert (first["first"], first["second"]) == (pytest.approx(100 * (1 + 2 / 3) / 2), 100.0)
    assert first["low"] > 0
    assert first["p_randomisation"] < 0.001
    same = run(*words, str(one))[0]["metrics"]["rougeL"]
    assert (same["difference"], same["p_randomisation"]) == (0.0, 1.0)
    keep(two, good[:39])
    with pytest.raises(DataError, match=r"has 40 answers and .* 39: score the same"):
        run(*words, str(two), code=2)
    asked[39] = asked[39]._replace(source="another")
    keep(two, good)
    with pytest.raises(DataError, match="first in line 40"):
        run(*words, str(two), code=2)
    with pytest.raises(DataError, match="no answers are kept there"):
        run(*words, str(tmp_path), code=2)
    for bad in ('{"answer": 3, "name": "", "source": "", "wanted": []}\n', "[1]\n", "", "[" * 5000):
        two.write_text(bad)
        with pytest.raises(DataError, match=r"answers-summarization\.jsonl"):
            run(*words, str(two), code=2)
