"""Near-duplicates: against brute force over sets of strings, in any order and process, in English, Chinese and both.

The truth is `shingles` of benchmarks/near_duplicates.py, a second implementation that knows no hashes.
"""

import hashlib
import importlib.util
import os
import random
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.data import near
from foretell.errors import ConfigError, DataError

ROOT = Path(__file__).parent.parent
SPEC = importlib.util.spec_from_file_location("near_duplicates", ROOT / "benchmarks" / "near_duplicates.py")
assert SPEC
assert SPEC.loader
truth = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(truth)

WORDS = ["the", "Zug", "naïve", "of", "2,000", "œuvre", "дом", "한국어", "हिन्दी", "a"] + [f"w{n}" for n in range(400)]
HAN = [chr(0x4E00 + n) for n in range(600)] + list("かな，。")


def text(rng: random.Random, units: int, han: float = 0.0) -> list[str]:
    """Pieces that joined are a text: words with a space, or with probability `han` characters without."""
    return [rng.choice(HAN) if rng.random() < han else rng.choice(WORDS) + " " for _ in range(units)]


def edited(rng: random.Random, pieces: list[str], rate: float) -> list[str]:
    return [rng.choice(WORDS) + " " if rng.random() < rate else p for p in pieces]


def exact(a: str, b: str) -> float:
    return truth.jaccard(truth.shingles(a), truth.shingles(b))


def estimate(a: str, b: str) -> float:
    return float(near.similarity(near.signature(a), near.signature(b)))


def signatures(texts: list[str]) -> np.ndarray:
    return np.stack([near.signature(t) for t in texts])


def corpus(seed: int, families: int) -> list[str]:
    """Texts of 1 to 400 units with 0 to 3 changed copies each, English, Chinese and mixed, shuffled."""
    rng, texts = random.Random(seed), []
    for _ in range(families):
        pieces = text(rng, rng.choice([1, 4, 9, 30, 100, 400]), rng.choice([0.0, 1.0, 0.5]))
        texts.append("".join(pieces))
        texts += ["".join(edited(rng, pieces, rng.choice([0, 0.004, 0.02, 0.1]))) for _ in range(rng.randrange(4))]
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("han", [0.0, 1.0, 0.6])
@pytest.mark.parametrize("units", [30, 300, 3000])
def test_the_estimate_is_that_of_counting(units: int, han: float) -> None:
    """No single error beyond 4.5 binomial standard errors, and none on average: 40 pairs from 0.2 to 1."""
    rng, errors = random.Random(units), []
    for n in range(40):
        pieces = text(rng, units, han)
        a, b = "".join(pieces), "".join(edited(rng, pieces, n / 200))
        j = exact(a, b)
        error = np.sqrt(j * (1 - j) / near.BINS)
        errors.append((estimate(a, b) - j) / max(error, 1e-9) if 0 < j < 1 else 0.0)
        assert abs(estimate(a, b) - j) <= 4.5 * error + 1e-3
    assert abs(np.mean(errors)) < 4 / np.sqrt(len(errors))


def test_the_error_is_no_larger_than_said() -> None:
    """Root mean square over pairs near 0.8, of short texts and of long ones, is below the binomial one."""
    rng, means = random.Random(1), {}
    for units in (40, 2000):
        errors = []
        for _ in range(60):
            pieces = text(rng, units)
            a, b = "".join(pieces), "".join(pieces[: -units // 5])
            errors.append(estimate(a, b) - exact(a, b))
        means[units] = float(np.sqrt(np.mean(np.square(errors))))
    assert max(means.values()) < 1.1 * np.sqrt(0.8 * 0.2 / near.BINS)


@given(st.text(max_size=60))
def test_equal_sets_of_shingles_have_equal_signatures(string: str) -> None:
    """What is said to be normalised makes no difference; and a set of its own makes one of its own."""
    for other in (unicodedata.normalize("NFKC", string), unicodedata.normalize("NFD", string)):
        assert np.array_equal(near.signature(string), near.signature(f" \n{other}\u200b.\u00ad"))
    if all(ord(c) < 0x2000 for c in string):  # the truth knows words only by their category
        assert bool(truth.shingles(string)) == bool((near.signature(string) < 128).any())


def test_the_table_of_characters_is_nfkc() -> None:
    """Every 7th of the characters that normalisation changes is the same as its parts and as they are composed."""
    several = 0
    for code in range(0, 0x32400, 7):
        c = chr(code)
        for form in ("NFD", "NFKD"):
            parts = unicodedata.normalize(form, c)
            if parts != c:
                several += len(parts) > 1
                signed = near.signature(f"x {c} y")
                for same in (parts, unicodedata.normalize("NFKC", c)):
                    assert np.array_equal(near.signature(f"x {same} y"), signed), hex(code)
    assert several > 1000


def test_what_counts_as_the_same() -> None:
    plain = "It was the best of times, it was the worst of times; it was the age of wisdom"
    for other in (
        plain.upper(),
        plain.replace(" ", "\n\u3000 - "),
        plain.replace("times", "ti\u00admes"),
        f"«{plain}»",
    ):
        assert estimate(plain, other) == 1
    assert estimate(plain, plain.replace("best", "bests")) < 1
    han = "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。"
    assert estimate(han, han.replace("，", "\n").replace("。", " ")) == 1
    assert estimate("Ａ１ ﬁne ｶﾞ Å word six", "a1 fine ガ å word six") == 1
    assert estimate("word中文 word", "word 中 文 word") == 1
    thai = "สวัสดีครับยินดีที่ได้รู้จัก"
    assert estimate(thai, thai.replace("ครับ", "\u200bครับ ")) == 1
    assert estimate(thai[:8], thai[:9]) == 0.5
    assert estimate("नमस्ते दुनिया", "नम\u00adस्ते दुनिया") == 1
    assert estimate("ab c d e f", "a bc d e f") == 0
    assert estimate("a b c d e", "e d c b a") == 0
    assert estimate("天下大势分久必合", "天下大势分久必分") == 0


def test_a_shingle_is_five_words_or_eight_characters() -> None:
    """Texts of one shingle are alike only if equal; one unit more is a second shingle: 1 of 2 shared."""
    assert estimate("a b c d e", "a b c d e f") == 0.5
    assert estimate("a b c d", "a b c d e") == 0
    assert estimate("天下大势分久必合", "天下大势分久必合分") == 0.5
    assert estimate("天下大势分久必", "天下大势分久必合") == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_duplicates_against_all_pairs(seed: int) -> None:
    """Every decision is the right one by exact similarity, but for pairs within the error of the threshold."""
    texts = corpus(seed, 220)
    sets = [truth.shingles(t) for t in texts]
    repeats = near.duplicates(signatures(texts), 0.8)
    kept = repeats < 0
    assert (~kept).sum() > 50
    for n, repeated in enumerate(repeats):
        if repeated >= 0:
            assert repeated < n
            assert kept[repeated]
            assert truth.jaccard(sets[n], sets[repeated]) > 0.74
        else:
            assert not any(truth.jaccard(sets[n], sets[m]) > 0.86 for m in np.flatnonzero(kept[:n]))


def crowd(seed: int) -> list[str]:
    """30 texts about 0.7 alike with 29 copies each, shuffled: more have a band in common than are compared in it."""
    rng = random.Random(seed)
    pieces = text(rng, 300)
    several = [edited(rng, pieces, 0.02) for _ in range(30)]
    texts = ["".join(edited(rng, several[n % 30], 0.002)) for n in range(900)]
    rng.shuffle(texts)
    return texts


@pytest.mark.parametrize("texts", [corpus(3, 150), crowd(1)], ids=["families", "crowd"])
def test_equal_decisions_as_the_rule_in_plain_words(texts: list[str]) -> None:
    """The rule applied to all pairs of estimates, one after another, without bands and sorting."""
    signed = signatures(texts)
    expected = np.full(len(signed), -1)
    for n in range(len(signed)):
        before = np.flatnonzero(expected[:n] < 0)
        alike = near.similarity(signed[before], signed[n])
        if len(before) and alike.max() >= 0.8:
            expected[n] = before[alike.argmax()]
    assert np.array_equal(near.duplicates(signed), expected)


def test_a_chain_keeps_its_ends() -> None:
    """A is like B and B like C, but C not like A: B goes, C stays."""
    pieces = [f"word{n} " for n in range(360)]
    a, b, c = ("".join(pieces[n : n + 300]) for n in (0, 25, 50))
    other = "".join(f"other{n} " for n in range(300))
    assert exact(a, b) > 0.83
    assert exact(b, c) > 0.83
    assert exact(a, c) < 0.75
    assert near.duplicates(signatures([a, other, b, c])).tolist() == [-1, -1, 0, -1]
    assert near.duplicates(signatures([b, a, c, other])).tolist() == [-1, 0, 0, -1]


def test_the_most_similar_is_named() -> None:
    pieces = [f"word{n} " for n in range(330)]
    a, c, b = ("".join(pieces[n : n + 300]) for n in (0, 40, 25))
    assert near.duplicates(signatures([a, c, b])).tolist() == [-1, -1, 1]


def test_documents_without_words_repeat_nothing() -> None:
    texts = ["", " \n", "...!", "\u200b", "one", "two", "One!", "", "中", "中。", "one two"]
    assert near.duplicates(signatures(texts)).tolist() == [-1, -1, -1, -1, -1, -1, 4, -1, -1, 8, -1]
    assert near.duplicates(np.zeros((0, near.BINS), np.uint8)).tolist() == []
    assert near.similarity(near.signature(""), near.signature("")) == 0


def test_short_texts_are_told_apart() -> None:
    """3,000 different texts of one shingle: none is taken for another."""
    signed = signatures([f"number {n}" for n in range(3000)])
    assert (near.duplicates(signed) == -1).all()


def test_many_copies_of_one_text() -> None:
    """More than are compared with one another: the first stays, and its relatives among them are still found."""
    rng = random.Random(4)
    pieces = text(rng, 200)
    copies = ["".join(edited(rng, pieces, 0.002)) for _ in range(300)]
    repeats = near.duplicates(signatures(copies))
    assert repeats[0] == -1
    assert (repeats >= 0).sum() >= 298


def test_memory_is_bounded_without_another_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small blocks and many passes over a mapped file give what one pass in memory gives."""
    signed = signatures(corpus(5, 100))
    expected = near.duplicates(signed)
    (tmp_path / "signatures").write_bytes(signed.tobytes())
    mapped = np.memmap(tmp_path / "signatures", np.uint8, "r", shape=signed.shape)
    for name, value in (("_KEYS_BYTES", 3 * 8 * len(signed)), ("_PAIRS_AT_ONCE", 7), ("_ROWS_AT_ONCE", 11)):
        monkeypatch.setattr(near, name, value)
    assert np.array_equal(near.duplicates(mapped), expected)


def test_the_order_of_unrelated_documents_does_not_matter() -> None:
    """Only the order within a family does."""
    rng = random.Random(6)
    families = []
    for n in range(60):
        pieces = text(rng, 150, n % 2)
        families.append(["".join(pieces), "".join(edited(rng, pieces, 0.004)), "".join(edited(rng, pieces, 0.02))])
    one = [t for f in families for t in f]
    other = [f[n] for n in range(3) for f in reversed(families)]
    named = []
    for texts in (one, other):
        repeats = near.duplicates(signatures(texts))
        named.append({texts[n]: texts[r] for n, r in enumerate(repeats) if r >= 0})
    assert named[0] == named[1]
    assert len(named[0]) > 60


def test_a_long_text_is_hashed_in_pieces() -> None:
    """Borders of pieces cost a few shingles: the estimate still is that of counting."""
    rng = random.Random(7)
    pieces = text(rng, 60_000, 0.3)
    a, b = "".join(pieces), "".join(pieces[9000:])
    assert len(a) > 3 * (1 << 16)
    assert abs(estimate(a, b) - exact(a, b)) < 4.5 * 0.0177


def test_every_process_signs_alike() -> None:
    """Two interpreters with other seeds for `hash`, and this one. The digest is of what this release writes."""
    code = (
        "import sys, hashlib; from foretell.data import near;"
        "print(hashlib.sha256(b''.join(near.signature(t).tobytes() for t in sys.argv[1:])).hexdigest())"
    )
    texts = [
        "The quick brown fox jumps over the lazy dog",
        "话说天下大势，分久必合，合久必分",
        "a",
        "",
        "ｶﾞ हिन्दी " * 30,
    ]
    found = {hashlib.sha256(signatures(texts).tobytes()).hexdigest()}
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", code, *texts]
        found.add(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip())
    assert found == {"17e2544ce8ea9b4dc5b32dcbde600a39111398f88188a4cf8fe7511584745815"}


@pytest.mark.parametrize("threshold", [0.0, 1.01, -1.0, float("nan")])
def test_thresholds_that_mean_nothing(threshold: float) -> None:
    with pytest.raises(ConfigError, match="threshold"):
        near.duplicates(signatures(["a"]), threshold)


@pytest.mark.parametrize("shape", [(3,), (3, 256)])
def test_signatures_of_another_form(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="uint8"):
        near.duplicates(np.zeros(shape, np.uint8))


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7, 0.8, 0.9, 1.0])
def test_bands_reach_the_wanted_recall(threshold: float) -> None:
    """At the threshold itself; and with one row more they would not, so no time is wasted on candidates."""
    number, rows = near.bands(threshold)
    assert number * rows <= near.BINS
    assert 1 - (1 - threshold**rows) ** number >= 0.99
    if threshold < 1:
        assert 1 - (1 - threshold ** (rows + 1)) ** (near.BINS // (rows + 1)) < 0.99
