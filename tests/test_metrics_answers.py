"""Answers against the rules of the official scripts, written anew here; labels against scikit-learn."""

import gzip
import itertools
import json
import random
import re
import string
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
from excerpts import answered, excerpts
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell import metrics
from foretell.errors import DataError, MissingExtra

Cut = Callable[[str], list[str]]


def squad_tokens(text: str) -> list[str]:
    """SQuAD: lower, then no punctuation, then no articles, then white space."""
    bare = text.lower().translate({ord(c): None for c in string.punctuation})
    return re.sub(r"\b(a|an|the)\b", " ", bare, flags=re.UNICODE).split()


def mlqa_tokens(text: str) -> list[str]:
    """MLQA for Chinese: punctuation of Unicode and ASCII goes, characters of U+4E00 to U+9FA5 stand alone."""
    tokens, word = [], ""
    for c in text.lower():
        if c in string.punctuation or unicodedata.category(c).startswith("P"):
            continue
        if 0x4E00 <= ord(c) <= 0x9FA5:
            tokens += [*word.split(), c]
            word = ""
        else:
            word += c
    return tokens + word.split()


def f1(ours: list[str], theirs: list[str], version: int) -> float:
    if version == 2 and (not ours or not theirs):
        return float(ours == theirs)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def official(predictions: list[str], references: list[list[str]], cut: Cut, version: int) -> list[tuple[float, float]]:
    scores = []
    for prediction, answers in zip(predictions, references, strict=True):
        right = [cut(a) for a in answers]
        if version == 2:
            right = [r for r in right if r] or [[]]
        ours = cut(prediction)
        scores.append((max(float(ours == r) for r in right), max(f1(ours, r, version) for r in right)))
    return scores


@pytest.mark.parametrize(("language", "cut"), [("en", squad_tokens), ("zh", mlqa_tokens)])
@pytest.mark.parametrize("version", [1, 2])
def test_answers_by_the_official_rules(language: str, cut: Cut, version: int) -> None:
    predictions, references = answered(language)
    if version == 2:
        references = [[] if i % 3 == 0 else r for i, r in enumerate(references)]
    wanted = 100 * np.array(official(predictions, references, cut, version))
    found = metrics.squad(predictions, references, language=language, version=version)
    assert found["exact_match"].each() == pytest.approx(wanted[:, 0])
    assert found["f1"].each() == pytest.approx(wanted[:, 1])
    assert (found["exact_match"].value, found["f1"].value) == pytest.approx(tuple(wanted.mean(0)), abs=1e-11)
    if version == 1:
        assert 20 < found["exact_match"].value < found["f1"].value < 95
    if version == 2:
        none = np.arange(len(wanted)) % 3 == 0
        assert found["no_answer_f1"].value == pytest.approx(wanted[none, 1].mean())
        assert found["has_answer_exact_match"].value == pytest.approx(wanted[~none, 0].mean())


PIECES = st.lists(
    st.sampled_from(["the ", "a", "An ", "cat", "。", "，", "'s ", "-", "猫", "中国", "GPT", " ", "2024"]), max_size=6
)


@given(PIECES.map("".join), st.lists(PIECES.map("".join), min_size=1, max_size=3), st.sampled_from([1, 2]))
@settings(max_examples=100, deadline=None)
def test_answers_of_anything(prediction: str, answers: list[str], version: int) -> None:
    (exact, share), *_ = official([prediction], [answers], mlqa_tokens, version)
    found = metrics.squad([prediction], [answers], language="zh", version=version)
    assert (found["exact_match"].value, found["f1"].value) == pytest.approx((100 * exact, 100 * share))
    assert metrics.answer_tokens(prediction) == squad_tokens(prediction)


def test_the_languages_differ_in_articles_and_punctuation() -> None:
    assert metrics.answer_tokens("Der „Hund“ und die Katze", "de") == ["hund", "und", "katze"]
    assert metrics.answer_tokens("¿El gato?", "es") == ["gato"]
    assert metrics.answer_tokens("«le chat»", "fr") == ["le", "chat"]
    assert metrics.answer_tokens("“The” cat’s", "en") == ["“", "”", "cat’s"]  # SQuAD knows ASCII punctuation alone
    assert metrics.answer_tokens("北京（Beijing）2008年", "zh") == ["北", "京", "beijing2008", "年"]


def test_the_best_threshold_is_the_best_of_all() -> None:
    rng = random.Random(7)
    predictions, references = answered("en")
    references = [[] if rng.random() < 0.4 else r for r in references]
    numbers = [rng.random() * 0.7 + 0.3 * (not r) for r in references]
    found = metrics.best_threshold(predictions, references, numbers)
    for name in ("exact_match", "f1"):
        tried = {
            t: metrics.squad(predictions, references, version=2, no_answer=numbers, threshold=t)[name].value
            for t in [-1.0, *numbers]
        }
        best, threshold = found[name]
        assert best == pytest.approx(max(tried.values()))
        assert tried[threshold] == pytest.approx(best)
        assert best > tried[-1.0]
    # Without a threshold the answer stands, whatever its number.
    plain = metrics.squad(predictions, references, version=2)
    assert plain["f1"].value == pytest.approx(
        metrics.squad(predictions, references, version=2, no_answer=numbers)["f1"].value
    )


def test_answers_that_cannot_be_scored() -> None:
    with pytest.raises(DataError, match=r"1 of 2 questions have no right answer, the first is question 1.*version=2"):
        metrics.squad(["a", "b"], [["a"], []])
    with pytest.raises(DataError, match="2 predictions but 1 numbers for no answer"):
        metrics.squad(["a", "b"], [["a"], ["b"]], no_answer=[0.5])


def test_the_right_answers_of_xquad_score_100(shared_data: Path) -> None:
    for language in ("en", "zh"):
        with gzip.open(shared_data / "qa" / "xquad" / f"xquad.{language}.json.gz", "rt", encoding="utf-8") as file:
            articles = json.load(file)["data"]
        right = [[a["text"] for a in q["answers"]] for x in articles for p in x["paragraphs"] for q in p["qas"]]
        assert len(right) == 1190
        found = metrics.squad([r[0] for r in right], right, language=language)
        assert [m.value for m in found.values()] == [100.0, 100.0]
        near = [r[0][:-1] for r in right]
        wanted = np.mean(official(near, right, squad_tokens if language == "en" else mlqa_tokens, 1), axis=0)
        assert [m.value for m in metrics.squad(near, right, language=language).values()] == pytest.approx(100 * wanted)


NEVER_RIGHT = "a class that is never right"


def guesses(seed: int = 1) -> tuple[list[str], list[str]]:
    rng = random.Random(seed)
    gold = excerpts()["labels"]["gold"]
    names = sorted(set(gold))[:60]
    return [NEVER_RIGHT, *(g if rng.random() < 0.7 else rng.choice(names) for g in gold[1:])], gold


def test_labels_are_scikit_learns() -> None:
    predicted, gold = guesses()
    assert metrics.accuracy(predicted, gold).value == pytest.approx(sklearn.metrics.accuracy_score(gold, predicted))
    wanted = sklearn.metrics.f1_score(gold, predicted, average="macro", zero_division=0.0)
    measure = metrics.macro_f1(predicted, gold)
    assert measure.value == pytest.approx(wanted, abs=1e-12)
    drawn = np.random.default_rng(0).integers(len(gold), size=len(gold))
    again = sklearn.metrics.f1_score(
        [gold[i] for i in drawn], [predicted[i] for i in drawn], average="macro", zero_division=0.0
    )
    assert measure.of(measure.rows[drawn].sum(0, dtype=float)) == pytest.approx(again, abs=1e-12)
    table = metrics.per_class(predicted, gold)
    assert np.mean([row["f1"] for row in table.values()]) == pytest.approx(wanted)
    assert sum(row["items"] for row in table.values()) == len(gold)
    names, counts = metrics.confusion(predicted, gold)
    assert names == list(table)
    assert counts.trace() == sum(p == g for p, g in zip(predicted, gold, strict=True))
    i, j = names.index(gold[0]), names.index(NEVER_RIGHT)
    assert counts[j].sum() == 0
    assert counts[i].sum() == gold.count(gold[0])
    assert counts[i, j] == 1


def test_macro_f1_of_given_labels() -> None:
    predicted, gold = guesses()
    labels = sorted(set(gold))
    wanted = sklearn.metrics.f1_score(gold, predicted, labels=labels, average="macro", zero_division=0.0)
    one = metrics.macro_f1(predicted, gold, labels=labels)
    assert one.value == pytest.approx(wanted, abs=1e-12)
    assert one.value > metrics.macro_f1(predicted, gold).value
    assert metrics.macro_f1(predicted, gold, labels=[*labels, "of no item"]).value == pytest.approx(wanted)
    other = metrics.macro_f1(guesses(2)[0], gold, labels=labels)
    assert metrics.compare(one, other).difference == pytest.approx(other.value - one.value)
    with pytest.raises(DataError, match="compare one metric with itself"):
        metrics.compare(metrics.macro_f1(["a", "x"], ["a", "b"]), metrics.macro_f1(["a", "y"], ["a", "b"]))
    with pytest.raises(DataError, match="right label 'b' is none of the 2 labels"):
        metrics.macro_f1(["a"], ["b"], labels=["a", "c"])


@pytest.mark.parametrize(
    ("library", "scored"),
    [
        ("sacrebleu", lambda: metrics.bleu(["a"], ["a"])),
        ("rouge_score.rouge_scorer", lambda: metrics.rouge(["a"], ["a"])),
        ("sklearn", lambda: metrics.per_class(["a"], ["a"])),
        ("sklearn", lambda: metrics.mauve(np.ones((9, 2)), np.ones((9, 2)))),
    ],
)
def test_a_missing_library_is_one_sentence(
    library: str, scored: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(MissingExtra, match=r"foretell\[tasks\]"):
        scored()


def test_numbers_are_labels_too() -> None:
    assert metrics.macro_f1([1, 2, 2], [1, 2, 3]).value == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert metrics.confusion([1, 2, 2], [1, 2, 3])[1].tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 0]]


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40), st.integers(1, 20))
@settings(max_examples=100, deadline=None)
def test_calibration_error_bin_by_bin(items: list[tuple[float, bool]], bins: int) -> None:
    edges = [b / bins for b in range(bins + 1)]
    wanted = 0.0
    for low, high in itertools.pairwise(edges):
        inside = [(c, r) for c, r in items if low < c <= high or (c == 0 and low == 0)]
        wanted += abs(sum(c for c, _ in inside) - sum(r for _, r in inside)) / len(items)
    confidence, right = (list(x) for x in zip(*items, strict=True))
    on_an_edge = any(abs(c * bins - round(c * bins)) < 1e-9 and 0 < c < 1 for c in confidence)
    found = metrics.calibration_error(confidence, right, bins=bins)  # type: ignore[arg-type]
    assert on_an_edge or found.value == pytest.approx(wanted, abs=1e-12)


def test_calibration_error_of_known_models() -> None:
    assert metrics.calibration_error([0.0, 1.0], [False, True]).value == 0
    assert metrics.calibration_error([1.0] * 4, [True, True, True, False]).value == pytest.approx(0.25)
    with pytest.raises(DataError, match=r"confidence 1.5 of item 1 is no probability"):
        metrics.calibration_error([0.5, 1.5], [True, False])


def test_selection_from_ranks() -> None:
    found = metrics.selection([1, 2, 4, 1], candidates=10)
    assert (found["accuracy"].value, found["mrr"].value) == (0.5, (1 + 0.5 + 0.25 + 1) / 4)
    assert metrics.rank(np.array([0.3, 0.9, 0.3, -1.0])) == 3  # behind the best, and behind its equal
    assert metrics.rank(np.array([0.3, 0.9]), right=1) == 1
    with pytest.raises(DataError, match=r"rank 0 of item 1 is not within 1..10"):
        metrics.selection([1, 0], candidates=10)
