"""Questions answered by likelihood: the counts are those of lm-eval's own `acc` on the same files."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from tiny import bpe, trained

from foretell.errors import DataError
from foretell.evaluate import questions

FOX = "The quick brown fox jumps over the"
SETS: dict[str, list[dict[str, Any]]] = {
    "continuation": [
        {"context": FOX, "continuation": " lazy dog"},
        {"context": "The quick brown fox ", "continuation": "jumps"},
        {"context": "The quick", "continuation": " lazy"},
        {"context": "话说天下大势", "continuation": "，分久必合"},
    ],
    "endings": [
        {"context": FOX, "choices": [" brown fox", " lazy dog"], "gold": 1},
        {"context": "The quick ", "choices": ["brown", "lazy", "over"], "gold": 0},
        {"context": "The quick", "choices": [" dog", " brown"], "gold": 0},
        {"context": "话说天下大势", "choices": ["，合久必分", "，分久必合"], "gold": 1},
    ],
    "choices": [
        {"query": FOX, "choices": ["lazy dog", "brown fox"], "gold": 0},
        {"query": "The quick", "choices": ["brown", "lazy", "over"], "gold": 2},
        {"query": "话说天下大势", "choices": ["分久必合", "合久必分"], "gold": 1},
    ],
}


def write(file: Path, kind: str) -> Path:
    file.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in SETS[kind]), encoding="utf-8")
    return file


@pytest.mark.parametrize("kind", questions.KINDS)
def test_the_counts_are_those_of_lm_eval(tmp_path: Path, kind: str) -> None:
    pytest.importorskip("lm_eval")
    from foretell.evaluate import lm_eval

    file = write(tmp_path / f"{kind}.jsonl", kind)
    asked = questions.read(file)
    assert (asked.kind, len(asked)) == (kind, len(SETS[kind]))
    got = questions.right(trained(), bpe(), asked)
    theirs = lm_eval.run(lm_eval.Scorer(trained(), bpe()), [kind], file)[kind]
    assert sum(got) / len(got) == pytest.approx(theirs["acc"])
    assert 0 < sum(got) < len(got)  # the model can tell, and is wrong where the gold is


def test_chance_counts_the_choices_of_each_question(tmp_path: Path) -> None:
    assert questions.read(write(tmp_path / "a.jsonl", "continuation")).chance == 0
    assert questions.read(write(tmp_path / "b.jsonl", "endings")).chance == pytest.approx((3 / 2 + 1 / 3) / 4)
    assert questions.read(tmp_path / "b.jsonl", 2).chance == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_the_digest_is_of_what_is_asked(tmp_path: Path) -> None:
    whole = questions.read(write(tmp_path / "a.jsonl", "endings"))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "a.jsonl").read_bytes()))
    assert questions.read(tmp_path / "b.jsonl.gz").digest == whole.digest
    assert questions.read(tmp_path / "a.jsonl", 3).digest != whole.digest


def test_a_token_across_the_cut_is_the_continuations() -> None:
    text = FOX + " lazy dog"
    ids = bpe().encode(text)
    for cut in range(1, len(text)):
        before, after = questions.encoded(bpe(), text[:cut], text[cut:])
        assert [*before, *after] == ids
        assert text[:cut].rstrip().startswith(bpe().decode(before))
        assert after


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"question": "a"}', "its first record has question; a task has context, continuation"),
        ("{", "cannot be read as JSON lines"),
        ('{"context": "a", "choices": ["b", "c"], "gold": 2}', "gold is 2, and there are 2 choices"),
        ("", "its first record has ; a task has"),
    ],
)
def test_a_file_without_questions_is_refused(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "a.jsonl").write_text(line)
    with pytest.raises(DataError, match=told):
        questions.read(tmp_path / "a.jsonl")
