"""Scores of text against sacreBLEU, rouge-score, plain loops and numpy, in English and Chinese."""

import gzip
import itertools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import sacrebleu
from excerpts import damaged, excerpts, translations
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from foretell import metrics
from foretell.errors import DataError
from foretell.metrics.divergence import area

WORDS = st.lists(st.sampled_from(["a", "b", "c", "d", "die", "猫"]), max_size=9).map(" ".join)


def streams(references: list[list[str]]) -> list[list[str | None]]:
    """As sacreBLEU takes them."""
    return [list(s) for s in itertools.zip_longest(*references)]


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.4, 0.9])
def test_bleu_and_chrf_are_sacrebleus(language: str, share: float) -> None:
    rng = random.Random(2)
    references = translations(language)[1]
    system = [damaged(r[-1], share, rng) for r in references]
    ours = metrics.bleu(system, references, language=language)
    reference = sacrebleu.BLEU(tokenize="zh" if language == "zh" else "13a")
    assert ours.value == pytest.approx(reference.corpus_score(system, streams(references)).score, abs=1e-11)
    assert ours.how == str(reference.get_signature())
    assert ("tok:zh" in ours.how) == (language == "zh")
    for order in (0, 2):
        ours, reference = metrics.chrf(system, references, word_order=order), sacrebleu.CHRF(word_order=order)
        assert ours.value == pytest.approx(reference.corpus_score(system, streams(references)).score, abs=1e-11)
        assert ours.how == str(reference.get_signature())


@given(st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=3)), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_bleu_and_chrf_of_anything(items: list[tuple[str, list[str]]]) -> None:
    """Empty sentences, no match at some order, nothing at all."""
    system, references = [i[0] for i in items], [i[1] for i in items]
    ours = metrics.bleu(system, references, tokenize="13a")
    assert ours.value == pytest.approx(sacrebleu.BLEU().corpus_score(system, streams(references)).score, abs=1e-10)
    each = [sacrebleu.BLEU().corpus_score([s], [[x] for x in r]).score for s, r in items]
    assert ours.each() == pytest.approx(each, abs=1e-10)
    ours = metrics.chrf(system, references)
    assert ours.value == pytest.approx(sacrebleu.CHRF().corpus_score(system, streams(references)).score, abs=1e-10)


def unpacked(path: Path) -> list[str]:
    """The lines of a packed file."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [line.rstrip("\n") for line in file]


def test_copying_multi30k_is_the_known_floor(shared_data: Path) -> None:
    folder = shared_data / "mt-en-de" / "multi30k"
    en, de = (unpacked(folder / f"test_2016_flickr.{x}.gz") for x in ("en", "de"))
    assert metrics.bleu(en, de, language="de").value == pytest.approx(0.47828790014374517, abs=1e-12)
    assert metrics.bleu(de, de, language="de").value == pytest.approx(100)


@pytest.mark.parametrize("stemmer", [True, False])
def test_rouge_in_english_is_rouge_scores(stemmer: bool) -> None:
    items = excerpts()["summaries_en"]["items"]
    leads, references = [i["lead"] for i in items], [i["references"] for i in items]
    assert max(map(len, references)) > 1
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=stemmer)
    found = metrics.rouge(leads, references, stemmer=stemmer)
    for kind, measure in found.items():
        best = [
            max(scorer.score(r, lead)[kind].fmeasure for r in refs)
            for lead, refs in zip(leads, references, strict=True)
        ]
        assert measure.value == pytest.approx(100 * sum(best) / len(best), abs=1e-11)
        assert measure.each() == pytest.approx(100 * np.array(best))
    assert 0 < found["rouge2"].value < found["rougeL"].value < found["rouge1"].value < 100


def by_hand(summary: str, reference: str) -> list[float]:
    """ROUGE-1, -2 and -L of Chinese, from its definition; letters and digits are cut out by other means than ours."""
    cut = []
    for text in (summary, reference):
        spread = "".join(f" {c} " if "\u4e00" <= c <= "\u9fff" else c if c.isalnum() else " " for c in text.lower())
        cut.append(spread.split())
    ours, theirs = cut
    shared = []
    for n in (1, 2):
        a, b = (Counter(tuple(x[i : i + n]) for i in range(len(x) - n + 1)) for x in cut)
        shared.append(((a & b).total(), a.total(), b.total()))
    longest = [0] * (len(theirs) + 1)
    for token in ours:
        before = longest[:]
        for j, other in enumerate(theirs, 1):
            longest[j] = before[j - 1] + 1 if token == other else max(before[j], longest[j - 1])
    shared.append((longest[-1], len(ours), len(theirs)))
    return [200 * same / (a + b) if same else 0.0 for same, a, b in shared]


def test_rouge_in_chinese_is_by_character() -> None:
    items = excerpts()["summaries_zh"]["items"]
    leads, references = [i["lead"] for i in items], [i["references"] for i in items]
    found = metrics.rouge(leads, references, language="zh")
    wanted = np.array([by_hand(lead, r[0]) for lead, r in zip(leads, references, strict=True)])
    for column, measure in enumerate(found.values()):
        assert measure.each() == pytest.approx(wanted[:, column])
    assert found["rouge1"].value > 20
    silent = RougeScorer(["rouge1"]).score("猫坐在垫子上", "猫坐在垫子上")["rouge1"].fmeasure
    assert silent == 0.0  # why the language matters
    assert metrics.rouge(["猫坐在垫子上"], ["猫坐在垫子上"], language="zh")["rouge1"].value == 100


def test_chinese_scored_as_english_is_refused() -> None:
    text = ["猫坐在垫子上。"]
    for scored in (
        lambda: metrics.rouge(text, text),
        lambda: metrics.bleu(text, text, language="de"),
        lambda: metrics.squad(text, [text]),
    ):
        with pytest.raises(DataError, match=r"6 of 6 letters are Han or kana.*give language='zh'"):
            scored()


def test_tokens() -> None:
    assert metrics.words("2024年，我们用GPT-4翻译Straße_x!") == [
        "2024",
        *"年我们用",
        "gpt",
        "4",
        *"翻译",
        "straße",
        "x",
    ]
    assert metrics.units("你好，world! a_b カナ") == [*"你好，", "world", "!", "a", "_", "b", *"カナ"]
    assert metrics.words("हिन्दी भाषा, cafe\u0301・カ。") == ["हिन्दी", "भाषा", "cafe\u0301", "カ"]
    assert metrics.units("हिन्दी, a") == ["हिन्दी", ",", "a"]


def test_items_without_reference_are_counted() -> None:
    for metric in (metrics.bleu, metrics.chrf, metrics.rouge):
        with pytest.raises(DataError, match="2 of 3 items have no reference, the first is item 1"):
            metric(["a", "b", "c"], ["a", [], []])  # type: ignore[operator]


TEXTS = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=9), min_size=2, max_size=6)


@given(TEXTS, st.integers(1, 3))
@settings(max_examples=100, deadline=None)
def test_distinct_and_repetition_by_counting(texts: list[list[int]], n: int) -> None:
    grams = [[tuple(t[i : i + n]) for i in range(len(t) - n + 1)] for t in texts]
    together = [g for gs in grams for g in gs]
    if not together:
        with pytest.raises(DataError, match="tokens"):
            metrics.distinct(texts, n)
        return
    found = metrics.distinct(texts, n)
    assert found.value == pytest.approx(len(set(together)) / len(together))
    repeated = [1 - len(set(gs)) / len(gs) for gs in grams if gs]
    assert metrics.repetition(texts, n).value == pytest.approx(np.mean(repeated))
    # What each text moves is the score without it.
    for i, row in enumerate(found.rows):
        rest = [g for j, gs in enumerate(grams) if j != i for g in gs]
        without = len(set(rest)) / len(rest) if rest else found.value
        others = np.delete(found.rows[:, 0], i)
        assert row[0] - others.mean() == pytest.approx(
            len(texts) * (mean_without(grams, found.value) - without), abs=1e-9
        )


def mean_without(grams: list[list[tuple[int, ...]]], value: float) -> float:
    """The mean of the scores without each text."""
    rests = [[g for j, gs in enumerate(grams) if j != i for g in gs] for i in range(len(grams))]
    return float(np.mean([len(set(r)) / len(r) if r else value for r in rests]))


def test_self_bleu_is_sacrebleus_with_all_others_as_references() -> None:
    for language in ("en", "zh"):
        texts = [r[0] for r in translations(language)[1]] + ["the the the the", "the the"]
        cut = [" ".join(metrics.units(t)) for t in texts]
        judge = sacrebleu.BLEU(tokenize="none")
        wanted = [judge.corpus_score([t], [[o] for o in cut[:i] + cut[i + 1 :]]).score for i, t in enumerate(cut)]
        assert metrics.self_bleu(texts).each() == pytest.approx(wanted, abs=1e-10)
    with pytest.raises(DataError, match="at least two"):
        metrics.self_bleu(["one"])


def plain_area(p: np.ndarray, q: np.ndarray) -> float:
    """The area under MAUVE's curve from its formula: mixtures one by one, the trapezoid rule from both sides."""
    points = [(0.0, 1.0), (1.0, 0.0)]
    for w in np.linspace(1e-6, 1 - 1e-6, 25):
        r = w * p + (1 - w) * q
        kl = [sum(a * np.log(a / b) for a, b in zip(side, r, strict=True) if a > 0) for side in (q, p)]
        points.append((np.exp(-5 * kl[0]), np.exp(-5 * kl[1])))
    across, up = sorted(points, key=lambda x: (x[0], -x[1])), sorted(points, key=lambda x: (x[1], -x[0]))
    return (
        sum(
            float(sum((b[i] - a[i]) * (a[1 - i] + b[1 - i]) / 2 for a, b in itertools.pairwise(curve)))
            for i, curve in ((0, across), (1, up))
        )
        / 2
    )


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=8))
@settings(max_examples=100, deadline=None)
def test_mauve_is_the_area_of_its_formula(pairs: list[tuple[int, int]]) -> None:
    counts = np.array([(3, 4), *pairs]).T
    p, q = counts[0] / counts[0].sum(), counts[1] / counts[1].sum()
    assert area(counts.reshape(-1)) == pytest.approx(plain_area(p, q), abs=1e-9)


def test_mauve_of_vectors() -> None:
    rng = np.random.default_rng(0)
    human = rng.normal(size=(300, 16))
    scores = []
    for shift in (0.0, 1.0, 4.0):
        model = rng.normal(size=(250, 16))
        model[:, :4] += shift
        found = metrics.score(metrics.mauve(human, model))
        assert (found.low or 0) <= found.value <= (found.high or 0)
        assert found.n == 550
        scores.append(found.value)
    assert scores[0] > 0.9
    assert scores[0] > scores[1] + 0.1
    assert scores[2] < 0.05
    assert metrics.mauve(human, human).value == pytest.approx(1.0)
    assert metrics.mauve(human, human[::-1] + 1, seed=4).value == metrics.mauve(human, human[::-1] + 1, seed=4).value
    with pytest.raises(DataError, match=r"\(300, 16\) and \(300, 8\)"):
        metrics.mauve(human, human[:, :8])


@pytest.mark.slow
def test_lead_of_scitldr(shared_data: Path) -> None:
    """The whole test set: the baseline that every recipe is printed beside."""
    items = [json.loads(line) for line in unpacked(shared_data / "sum-en" / "scitldr-a" / "test.jsonl.gz")]
    found = metrics.rouge([i["source"][0] for i in items], [i["target"] for i in items])
    assert len(items) == 618
    assert 20 < found["rouge1"].value < 35
