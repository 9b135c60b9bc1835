"""Word vectors, against brute force, autograd, gensim, scipy and the word boundaries of Unicode.

The texts are English of the standard library's own documentation and a little Chinese, which a stranger's clone has.
"""

import importlib
import itertools
import json
import math
import struct
import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell import tokenizer, vectors
from foretell.config import ModelConfig
from foretell.errors import ConfigError, DataError, MissingExtra
from foretell.tokenizer.words import chinese_words
from foretell.vectors import cooccurrence, embedding, formats, glove, projection, scoring, units
from foretell.vectors.folder import Folder, open_folder
from foretell.vectors.formats import Vectors

CHINESE = "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。"
MIXED = "曹操 said “don't”, 3.14 and __init__; 刘备不信。"


@pytest.fixture(scope="module")
def english(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Half a megabyte of documentation that every Python carries."""
    import pydoc_data.topics

    path = tmp_path_factory.mktemp("english") / "topics.txt"
    path.write_text("\n\n".join(pydoc_data.topics.topics.values()), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def made(english: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GloVe vectors of that."""
    out = tmp_path_factory.mktemp("made") / "glove"
    vectors.train([str(english)], out, vectors.Settings(kind="glove", dim=24, epochs=4, threads=1))
    return out


def folder_of(words: list[str], matrix: np.ndarray, out: Path) -> Path:
    from foretell.vectors.folder import making

    with making(out) as (_, finish):
        meta = {"kind": "glove", "units": "words", "dim": matrix.shape[1], "words": len(words)}
        made = Folder(out, Vectors(words, matrix.astype(np.float32)), meta, None)
        finish(made, ("binary", "text", "glove"), None)
    return out


# Words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't stop: it's 3.14, or 1,000; U.S.A.", ["don't", "stop", "it's", "3.14", "or", "1,000", "u.s.a"]),
        ("__init__ foo_bar __ x2", ["__init__", "foo_bar", "x2"]),
        ("naïve cafe\u0301 Straße", ["naïve", "cafe\u0301", "straße"]),
        ("हिन्दी भाषा", ["हिन्दी", "भाषा"]),
        ("ひらがな カタカナ", ["ひ", "ら", "が", "な", "カタカナ"]),
        ("한국어 단어", ["한국어", "단어"]),
        ("", []),
        ("... --- !!!", []),
    ],
)
def test_words_are_those_of_unicode(text: str, expected: list[str]) -> None:
    assert units.words_of("characters")(text) == expected


def test_words_of_a_whole_text_are_those_of_the_regex_library(english: Path) -> None:
    """An independent implementation of UAX #29: its word boundaries, the pieces that hold a letter or digit."""
    regex = pytest.importorskip("regex")
    text = english.read_text(encoding="utf-8") + CHINESE + MIXED
    # Joined by what a word holds; connectors alone are no word.
    theirs = [w for w in regex.split(r"(?V1w)\b", text) if any(c.isalnum() for c in w)]
    assert units.words_of("characters", lower=False)(text) == theirs


def test_chinese_by_words_and_by_characters() -> None:
    pytest.importorskip("jieba")
    by_words = units.words_of("words")(MIXED)
    assert by_words[:2] == ["曹操", "said"]
    assert "刘备" in by_words
    assert units.words_of("characters")(MIXED)[:3] == ["曹", "操", "said"]
    assert "".join(units.words_of("words")(CHINESE)) == "".join(units.words_of("characters")(CHINESE))
    assert max(map(len, units.words_of("words")(CHINESE))) > 1


@pytest.mark.parametrize(("kind", "extra", "module"), [("word2vec", "vectors", "gensim"), ("glove", "zh", "jieba")])
def test_a_missing_extra_is_named(
    kind: Any, extra: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "天下大势 words and words " * 20
    (tmp_path / "t.txt").write_text(text if extra == "zh" else "words and words " * 20)
    chinese_words.cache_clear()
    for name in list(sys.modules):
        if name.split(".")[0] == module:
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"foretell\[{extra}\]"):
        vectors.train([str(tmp_path / "t.txt")], tmp_path / "out", vectors.Settings(kind=kind))
    assert [p.name for p in tmp_path.iterdir()] == ["t.txt"]
    chinese_words.cache_clear()


# Co-occurrences and GloVe


def brute_force(documents: list[list[int]], window: int) -> dict[tuple[int, int], float]:
    """X by its definition: all ordered pairs of places."""
    found: Counter[tuple[int, int]] = Counter()
    for d in documents:
        for p, i in enumerate(d):
            for q, j in enumerate(d):
                if p != q and abs(p - q) <= window and i <= j:
                    found[i, j] += 1 / abs(p - q)
    return dict(found)


def as_blocks(documents: list[list[int]], length: int) -> list[tuple[np.ndarray, np.ndarray]]:
    ids = np.concatenate([np.array(d, np.int64) for d in documents] or [np.zeros(0, np.int64)])
    owner = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
    cuts = [0]
    for n in range(1, len(ids) + 1):  # only where a document ends, as Corpus.blocks does when it can
        if n == len(ids) or (owner[n] != owner[n - 1] and n - cuts[-1] >= length):
            cuts.append(n)
    return [(ids[a:b], owner[a:b]) for a, b in itertools.pairwise(cuts)]


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 8), max_size=14), max_size=6),
    st.integers(1, 7),
    st.integers(1, 30),
    st.sampled_from([2, 5, 1 << 24]),
    st.integers(0, 3),
)
def test_counts_are_those_of_brute_force(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    window: int,
    length: int,
    limit: int,
    seed: int,
) -> None:
    """Whatever the blocks, and whether the counts fit into memory or go through runs on disk."""
    work = tmp_path_factory.mktemp("work")
    pairs = cooccurrence.count(as_blocks(documents, length), 9, window, work, seed, limit)
    found = {(int(i), int(j)): float(x) for i, j, x in zip(pairs["i"], pairs["j"], pairs["x"], strict=True)}
    assert len(found) == len(pairs)
    assert found == pytest.approx(brute_force(documents, window), rel=1e-6)


@given(st.integers(1, 1 << 28), st.integers(0, 5), st.data())
def test_a_pair_comes_back_from_its_number(size: int, seed: int, data: st.DataObject) -> None:
    scramble = cooccurrence.Scramble(size, seed)
    i, j = (np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=4, max_size=4))) for _ in range(2))
    low, high = scramble.pairs(scramble.keys(i, j))
    assert (low == np.minimum(i, j)).all()
    assert (high == np.maximum(i, j)).all()


def some_entries(seed: int = 0, size: int = 7, n: int = 40) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    i, j = torch.randint(size, (n,), generator=g), torch.randint(size, (n,), generator=g)
    x = torch.rand(n, generator=g, dtype=torch.float64) * 20 + 0.2
    return glove.directed(torch.minimum(i, j), torch.maximum(i, j), x, size, 10.0)


def test_the_gradient_of_glove_is_autograds() -> None:
    """Of the paper's loss, written out anew from its formula over both directions."""
    g = torch.Generator().manual_seed(1)
    table = torch.randn(14, 5, generator=g, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(14, generator=g, dtype=torch.float64, requires_grad=True)
    rows, contexts, log, weight = some_entries()
    expected = table.new_zeros(())
    for r, c, lx, f in zip(rows, contexts, log, weight, strict=True):
        expected = expected + 0.5 * f * (table[r] @ table[c] + bias[r] + bias[c] - lx) ** 2
    expected.backward()  # type: ignore[no-untyped-call]
    loss, met, by_vector, by_bias = glove.gradients(table.detach(), bias.detach(), rows, contexts, log, weight)
    assert float(loss) == pytest.approx(float(expected.detach()))
    assert table.grad is not None
    assert bias.grad is not None
    torch.testing.assert_close(by_vector, table.grad[met])
    torch.testing.assert_close(by_bias, bias.grad[met])
    rest = torch.ones(14, dtype=torch.bool)
    rest[met] = False
    assert not table.grad[rest].any()


def test_a_word_beside_itself_is_one_entry() -> None:
    one = glove.directed(torch.tensor([2]), torch.tensor([2]), torch.tensor([3.0]), 5, 10.0)
    assert one[3].tolist() == [pytest.approx(0.3**0.75), 0.0]


def test_a_step_is_torchs_adagrad() -> None:
    """With the squares beginning at one, as torch.optim.Adagrad can be told to."""
    tables = glove.Tables(7, 5, seed=3)
    table, bias = (t.clone().requires_grad_() for t in (tables.vectors, tables.biases))
    optimizer = torch.optim.Adagrad([table, bias], lr=glove.RATE, initial_accumulator_value=1.0, eps=0.0)
    for n in range(5):
        rows, contexts, log, weight = (t.float() if t.is_floating_point() else t for t in some_entries(n))
        glove.step(tables, (rows, contexts, log, weight))
        optimizer.zero_grad()
        difference = (table[rows] * table[contexts]).sum(1) + bias[rows] + bias[contexts] - log
        (0.5 * weight * difference.square()).sum().backward()
        optimizer.step()
    torch.testing.assert_close(tables.vectors, table.detach(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(tables.biases, bias.detach(), rtol=1e-4, atol=1e-6)


def test_pairs_may_lie_in_a_file_that_is_only_read() -> None:
    """One pair alone is a contiguous piece of the file's memory; torch warns of arrays that may not be written."""
    pairs = np.array([(0, 1, 2.5)], cooccurrence.PAIR)
    pairs.flags.writeable = False
    matrix, losses = glove.glove(pairs, 2, dim=3, epochs=2, x_max=10.0, seed=0, told=lambda share: None)
    assert matrix.shape == (2, 3)
    assert losses[1] < losses[0]


def test_glove_learns_and_repeats(english: Path, made: Path, tmp_path: Path) -> None:
    meta = json.loads((made / "meta.json").read_text(encoding="utf-8"))
    assert meta["losses"] == sorted(meta["losses"], reverse=True)
    assert meta["losses"][-1] < 0.5 * meta["losses"][0]
    vectors.train([str(english)], tmp_path / "again", vectors.Settings(kind="glove", dim=24, epochs=4, threads=1))
    assert (tmp_path / "again" / "vectors.bin").read_bytes() == (made / "vectors.bin").read_bytes()


# Word2Vec


def test_word2vec_is_gensims_own(english: Path, tmp_path: Path) -> None:
    """One thread: the same numbers as gensim gives that counts the same words itself."""
    word2vec = pytest.importorskip("gensim.models").Word2Vec
    settings = vectors.Settings(dim=16, epochs=2, threads=1, min_count=20, architecture="cbow")
    result = vectors.train([str(english)], tmp_path / "out", settings)
    ours = vectors.load(tmp_path / "out")
    from foretell.data import documents

    cut = units.words_of("words")
    text = [cut(d.text) for d in documents(str(english))]
    counts = Counter(w for d in text for w in d)
    assert result["units_total"] == sum(counts.values())
    kept = {w for w, n in counts.items() if n >= 20}
    assert set(ours.words) == kept
    assert [counts[w] for w in ours.words] == sorted((counts[w] for w in kept), reverse=True)
    pieces = [[w for w in d if w in kept] for d in text]
    pieces = [d[s : s + 10_000] for d in pieces for s in range(0, len(d), 10_000)]
    theirs = word2vec(vector_size=16, window=5, negative=5, sg=0, min_count=1, seed=0, workers=1)
    theirs.build_vocab_from_freq({w: counts[w] for w in ours.words})
    theirs.train(pieces, total_words=sum(map(len, pieces)), epochs=2)
    assert np.array_equal(ours.matrix, np.stack([theirs.wv[w] for w in ours.words]))


# Files


def test_files_are_read_by_gensim_and_its_files_by_us(made: Path, tmp_path: Path) -> None:
    keyed = pytest.importorskip("gensim.models").KeyedVectors
    ours = vectors.load(made)
    for name, options in {
        "vectors.bin": {"binary": True},
        "vectors.txt": {"binary": False},
        "vectors.glove.txt": {"binary": False, "no_header": True},
    }.items():
        theirs = keyed.load_word2vec_format(str(made / name), **options)
        assert theirs.index_to_key == ours.words
        assert np.array_equal(theirs.vectors, ours.matrix), name
        own = vectors.load(made / name)
        assert own.words == ours.words
        assert np.array_equal(own.matrix, ours.matrix), name
    theirs.save_word2vec_format(str(tmp_path / "theirs.bin"), binary=True)
    theirs.save_word2vec_format(str(tmp_path / "theirs.txt"), binary=False)
    for name in ("theirs.bin", "theirs.txt"):
        back = vectors.load(tmp_path / name)
        assert back.words == ours.words
        assert np.allclose(back.matrix, ours.matrix, rtol=1e-6, atol=1e-7)


words_with_rows = st.integers(1, 4).flatmap(
    lambda dim: st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs", "Zs", "Zl", "Zp", "Cc"]), min_size=1, max_size=5),
        st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=dim, max_size=dim),
        min_size=1,
        max_size=6,
    )
)


@given(words_with_rows)
@settings(deadline=None)
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, table: dict[str, list[float]]) -> None:
    given_ = Vectors(list(table), np.array(list(table.values()), np.float32))
    folder = tmp_path_factory.mktemp("f")
    for name, parts in formats.files(given_, ("binary", "text", "glove")).items():
        path = folder / name
        path.write_bytes(b"".join(parts))
        if name == "vectors.glove.txt" and given_.matrix.shape[1] == 1 and given_.words[0].isdigit():
            continue  # such a line is also a header
        back = formats.read(path)
        assert back.words == given_.words
        assert np.array_equal(back.matrix, given_.matrix), name


ROW = struct.pack("<2f", 0.5, -1.0)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.bin", b"", "no first line"),
        ("a.bin", b"x" * 100, "no first line"),
        ("a.bin", b"2 2\na " + ROW, "need at least"),
        ("a.bin", b"99999999999 99999999\na " + ROW, "need at least"),
        ("a.bin", b"-1 2\na " + ROW, "first line"),
        ("a.bin", b"0 2\n", "no vectors"),
        ("a.bin", b"1 2\nabc" + ROW, "not whole"),
        ("a.bin", b"1 2\na " + ROW + b"rest", "follow the last"),
        ("a.bin", b"2 2\na " + ROW + b"a " + ROW, "twice"),
        ("a.bin", b"1 2\n\xff\xfe " + ROW, "not UTF-8"),
        ("a.bin", b"1 2\n " + ROW + b"\n", "empty"),
        ("a.bin", b"1 2\na " + struct.pack("<2f", math.nan, 0) + b"\n", "not finite"),
        ("a.txt", b"", "not a word and its numbers"),
        ("a.txt", b"2 2\na 1 2\n", "says 2 words, but 1"),
        ("a.txt", b"1 2\na 1 2\nb 1 2\n", "says 1 words, but 2"),
        ("a.txt", b"999999999999 3\na 1 2\n", "do not fit"),
        ("a.txt", b"1 2\na 1\n", "line 2 "),
        ("a.txt", b"a 1 2\nb 1 x\n", "line 2 "),
        ("a.txt", b"a 1 2\nb 1 inf\n", "not finite"),
        ("a.txt", b"a 1 2\na 1 3\n", "twice"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told) as error:
        vectors.load(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


@given(st.binary(max_size=60), st.sampled_from(["bin", "txt"]))
@settings(deadline=None)
def test_no_bytes_surprise_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes, kind: str) -> None:
    path = tmp_path_factory.mktemp("f") / f"a.{kind}"
    path.write_bytes(b"1 2\n" + content if len(content) % 2 else content)
    try:
        found = formats.read(path)
    except DataError:
        return
    assert len(found.words) == len(found.matrix)


def test_a_folder_that_is_none(made: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no such folder.*foretell vectors train"):
        vectors.load(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no meta\.json"):
        vectors.load(tmp_path)
    meta = json.loads((made / "meta.json").read_text(encoding="utf-8"))
    (tmp_path / "vectors.bin").write_bytes((made / "vectors.bin").read_bytes())
    for change, told in (
        ({"format_version": 2}, "newer"),
        ({"format_version": "1"}, "not the description"),
        ({"words": 3}, "meta.json says 3"),
        ({"kind": None}, "`kind` is absent"),
    ):
        (tmp_path / "meta.json").write_text(json.dumps({**meta, **change}), encoding="utf-8")
        with pytest.raises(DataError, match=told):
            vectors.load(tmp_path)


def test_nothing_is_written_over(made: Path, english: Path) -> None:
    before = (made / "meta.json").read_bytes()
    with pytest.raises(ConfigError, match="exists already"):
        vectors.train([str(english)], made, vectors.Settings(kind="glove"))
    assert (made / "meta.json").read_bytes() == before
    assert [p.name for p in made.parent.iterdir()] == [made.name]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"dim": 0}, r"--dim \(0\)"),
        ({"window": 300, "kind": "glove"}, r"--window \(300\)"),
        ({"epochs": -1}, "--epochs"),
        ({"min_count": 10**6}, "lower --min-count"),
        ({"units": "tokens"}, "--tokenizer"),
    ],
)
def test_settings_that_mean_nothing(english: Path, tmp_path: Path, change: dict[str, Any], told: str) -> None:
    with pytest.raises((ConfigError, DataError), match=told):
        vectors.train([str(english)], tmp_path / "out", vectors.Settings(**{"kind": "glove", **change}))
    assert list(tmp_path.iterdir()) == []


# Look-ups


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random vectors of some words."""
    matrix = np.random.default_rng(0).normal(size=(40, 6))
    words = [f"word{n}" for n in range(38)] + ["宝玉", "宝钗"]
    return folder_of(words, matrix, tmp_path_factory.mktemp("drawn") / "v")


@pytest.mark.parametrize("multiply", [False, True])
def test_analogies_are_gensims_and_brute_forces(drawn: Path, multiply: bool) -> None:
    opened = open_folder(drawn)
    unit = opened.vectors.matrix / np.linalg.norm(opened.vectors.matrix, axis=1, keepdims=True)
    for a, b, c in ((0, 1, 2), (5, 9, 30), (38, 39, 4)):
        names = [opened.vectors.words[n] for n in (a, b, c)]
        answers = vectors.analogy(opened, *names, count=37, multiply=multiply)["answers"]
        scores = {}
        for x in set(range(40)) - {a, b, c}:
            cos = [float(unit[x] @ unit[n]) for n in (a, b, c)]
            moved = [(1 + v) / 2 for v in cos]
            length = float(np.linalg.norm(unit[b] - unit[a] + unit[c]))
            added = (cos[1] - cos[0] + cos[2]) / length
            scores[opened.vectors.words[x]] = moved[1] * moved[2] / (moved[0] + 0.001) if multiply else added
        best = sorted(scores, key=lambda w: -scores[w])
        assert [x["word"] for x in answers] == best
        assert [x["score"] for x in answers] == pytest.approx([scores[w] for w in best], rel=1e-4)
        gensim = pytest.importorskip("gensim.models").KeyedVectors.load_word2vec_format(
            str(drawn / "vectors.bin"), binary=True
        )
        ask = gensim.most_similar_cosmul if multiply else gensim.most_similar
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # gensim warns of itself
            assert [w for w, _ in ask(positive=names[1:], negative=names[:1], topn=10)] == best[:10]


def test_near_words(drawn: Path) -> None:
    opened = open_folder(drawn)
    found = vectors.nearest(opened, ["word3", "宝玉"], 5)["words"]
    for asked in found:
        own = opened.vectors.matrix[opened.vectors.place[asked["word"]]]
        cos = opened.vectors.matrix @ own / np.linalg.norm(opened.vectors.matrix, axis=1) / np.linalg.norm(own)
        order = [opened.vectors.words[n] for n in np.argsort(-cos) if opened.vectors.words[n] != asked["word"]]
        assert [n["word"] for n in asked["nearest"]] == order[:5]


@pytest.mark.parametrize(("word", "near"), [("wrod3", "word3"), ("宝王", "宝玉"), ("WORD99", "word")])
def test_an_unknown_word_is_told_with_its_like(drawn: Path, word: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"{word}.*nearly so spelled: .*{near}"):
        vectors.nearest(open_folder(drawn), [word])
    assert vectors.nearest(open_folder(drawn), ["Word3"])["words"][0]["nearest"]


# Scores


@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=3, max_size=30))
def test_spearman_is_scipys(rows: list[tuple[int, int]]) -> None:
    stats = pytest.importorskip("scipy.stats")
    x, y = (np.array(c, float) for c in zip(*rows, strict=True))
    ours = scoring.spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert math.isnan(ours)
    else:
        assert ours == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)


def test_the_interval_holds_as_often_as_it_says() -> None:
    order = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        x = order.normal(size=60)
        y = 0.6 * x + 0.8 * order.normal(size=60)
        low, high = scoring.interval(scoring.spearman(x, y), 60) or [0, 0]
        held += low <= 6 / math.pi * math.asin(0.3) <= high  # Spearman's of a normal correlation of 0.6
    assert 0.85 < held / 400 < 0.95


def test_scores_are_gensims(made: Path, tmp_path: Path) -> None:
    """Google's analogies, WordSim-353's coverage, and pairs of words that the text has, scored at random."""
    keyed = pytest.importorskip("gensim.models").KeyedVectors
    utils = importlib.import_module("gensim.test.utils")
    theirs = keyed.load_word2vec_format(str(made / "vectors.bin"), binary=True)
    opened = open_folder(made)
    ours = vectors.similarity(opened)
    _, _, missing = theirs.evaluate_word_pairs(utils.datapath("wordsim353.tsv"), restrict_vocab=10**9)
    assert (ours["name"], ours["pairs"]) == ("WordSim-353", 353)
    assert ours["covered"] == 353 - round(353 * missing / 100)
    order = np.random.default_rng(0)
    words = [w for w in opened.vectors.words if w.isalpha()]
    lines = [f"{a}\t{b}\t{order.integers(10)}\n" for a, b in order.choice(words, (50, 2))]
    (tmp_path / "pairs.tsv").write_text("".join([*lines, "no\tsuchword\t3\n"]))
    _, spearman, _ = theirs.evaluate_word_pairs(str(tmp_path / "pairs.tsv"), restrict_vocab=10**9)
    ours = vectors.similarity(opened, tmp_path / "pairs.tsv")
    assert (ours["pairs"], ours["covered"]) == (51, 50)
    assert ours["spearman"] == pytest.approx(spearman.statistic, abs=1e-6)
    found = vectors.analogies(opened)
    score, sections = theirs.evaluate_word_analogies(utils.datapath("questions-words.txt"), restrict_vocab=10**9)
    assert found["questions"] == 19_544
    assert found["covered"] == len(sections[-1]["correct"]) + len(sections[-1]["incorrect"]) > 0
    assert found["accuracy"] == pytest.approx(score, abs=1e-9)


def test_pairs_of_ones_own_in_chinese(drawn: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_text("# 词语相似度\n宝玉\t宝钗\t9\nword1\tword2\t5\nword3\tword4\t1\n没有\tword1\t3\n", encoding="utf-8")
    found = vectors.similarity(open_folder(drawn), file)
    assert (found["pairs"], found["covered"]) == (4, 3)
    file.write_text("word1\tword2\t5\nword1 word2 5\n")
    with pytest.raises(DataError, match="line 2"):
        vectors.similarity(open_folder(drawn), file)


# The map


def test_principal_components_are_those_of_the_covariance() -> None:
    points = np.random.default_rng(0).normal(size=(50, 6)) * np.array([5, 3, 1, 0.5, 0.2, 0.1])
    flat = projection.pca(points)
    values, axes = np.linalg.eigh(np.cov(points.T))
    expected = (points - points.mean(0)) @ axes[:, ::-1][:, :2]
    assert np.allclose(np.abs(flat), np.abs(expected))
    assert flat.var(0, ddof=1) == pytest.approx(values[::-1][:2])


def test_tsnes_affinities_have_their_perplexity_and_its_slope_is_autograds() -> None:
    points = np.random.default_rng(1).normal(size=(60, 5))
    p = projection.affinities(points, 12.0)
    assert float(p.sum()) == pytest.approx(1.0)
    assert torch.equal(p, p.T)
    y = torch.randn(60, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    near = 1 / (1 + (y[:, None] - y[None]).square().sum(-1))
    near = near * (1 - torch.eye(60, dtype=torch.float64))
    q = (near / near.sum()).clamp_min(1e-300)
    (p * (p.clamp_min(1e-300).log() - q.log())).sum().backward()
    assert y.grad is not None
    torch.testing.assert_close(projection._slope(y.detach(), p), y.grad)


def test_tsne_keeps_clusters_together() -> None:
    order = np.random.default_rng(2)
    centres = order.normal(size=(3, 10)) * 8
    kind = np.repeat(np.arange(3), 40)
    points = centres[kind] + order.normal(size=(120, 10))
    flat = projection.tsne(points, lambda share: None)
    away = np.linalg.norm(flat[:, None] - flat[None], axis=-1) + 1e9 * np.eye(120)
    assert (kind[away.argmin(1)] == kind).all()
    found = projection.groups(points, 3)
    assert len({(int(a), int(b)) for a, b in zip(kind, found, strict=True)}) == 3
    assert np.array_equal(projection.tsne(points, lambda share: None), flat)


@pytest.mark.parametrize("count", [2, 3, 25])
def test_the_map_is_one_that_the_report_draws(tmp_path: Path, count: int) -> None:
    from foretell.report import wordmap

    words = ["</script><script>alert(1)</script>", "{{script}}", "宝玉", "a&b", "<!--"] + [f"w{n}" for n in range(20)]
    rows = np.random.default_rng(0).normal(size=(25, 4))
    made = open_folder(folder_of(words, rows, tmp_path / "v"))
    found = vectors.chart(made, count)
    shown = wordmap.taken(json.loads(json.dumps(found)))
    assert shown is not None
    assert (shown.words, shown.of, shown.dim) == (words[:count], 25, 4)
    apart = -made.vectors.directions[:count] @ made.vectors.directions[:count].T
    np.fill_diagonal(apart, np.inf)
    assert [row[0] for row in shown.near] == apart.argmin(1).tolist()
    flat = np.array(shown.places["pca"]).reshape(-1, 2)
    assert np.ptp(flat, axis=0).max() == pytest.approx(1.0, abs=2e-4)
    for wrong in (1, 5001):
        with pytest.raises(ConfigError, match="--words"):
            vectors.chart(made, wrong)


def test_the_map_stands_with_the_vectors(made: Path) -> None:
    """Made when they are; the same again by hand, and its words are the most frequent."""
    stored = json.loads((made / "map.json").read_text(encoding="utf-8"))
    assert stored == json.loads(json.dumps(vectors.chart(open_folder(made)))) | {"name": stored["name"]}
    assert stored["words"] == vectors.load(made).words[:1000]


# A model's table


@pytest.fixture(scope="module")
def tokens(english: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The text prepared, and vectors of its tokens, 64 wide."""
    from foretell.config import DataConfig, TokenizerConfig
    from foretell.data import prepare

    folder = tmp_path_factory.mktemp("tokens")
    (folder / "text.txt").write_text(english.read_text(encoding="utf-8")[:120_000], encoding="utf-8")
    prepare([str(folder / "text.txt")], folder / "data", TokenizerConfig(vocab_size=512), DataConfig(), workers=1)
    wanted = vectors.Settings(kind="glove", units="tokens", dim=64, epochs=2, threads=1)
    vectors.train([str(folder / "data")], folder / "vectors", wanted)
    return folder / "data", folder / "vectors"


def test_rows_with_a_vector_are_the_vectors_scaled(tokens: tuple[Path, Path]) -> None:
    own = tokenizer.load(tokens[0])
    model = ModelConfig(hidden_size=64, num_hidden_layers=1).resolved(own.vocab_size, 32)
    begun = embedding.start(str(tokens[1]), own, model)
    assert begun is not None
    table = torch.randn(own.vocab_size, 64, generator=torch.Generator().manual_seed(0))
    whole = table.clone()
    begun.fill(whole, (0, 0))
    learned = vectors.load(tokens[1])
    rows = [own.inner.token_to_id(w) for w in learned.words]
    assert 0 < len(rows) < own.vocab_size
    assert float(whole[rows].std()) == pytest.approx(model.initializer_range, rel=1e-4)
    ratio = whole[rows] / torch.from_numpy(learned.matrix)
    torch.testing.assert_close(ratio, torch.full_like(ratio, float(ratio[0, 0])), rtol=1e-4, atol=0)
    rest = [i for i in range(own.vocab_size) if i not in set(rows)]
    assert torch.equal(whole[rest], table[rest])
    part = table[100:300, 16:48].clone()
    begun.fill(part, (100, 16))
    assert torch.equal(part, whole[100:300, 16:48])


def test_vectors_that_do_not_fit_the_model(tokens: tuple[Path, Path], made: Path) -> None:
    own = tokenizer.load(tokens[0])
    wide = ModelConfig(hidden_size=128, num_hidden_layers=1).resolved(own.vocab_size, 32)
    fits = ModelConfig(hidden_size=64, num_hidden_layers=1).resolved(own.vocab_size, 32)
    assert embedding.start(None, own, fits) is None
    with pytest.raises(ConfigError, match="64 dimensions for a model whose hidden_size is 128"):
        embedding.start(str(tokens[1]), own, wide)
    with pytest.raises(ConfigError, match="of words, not of tokens"):
        embedding.start(str(made), own, fits)
    with pytest.raises(ConfigError, match="another tokenizer"):
        embedding.start(str(tokens[1]), tokenizer.byte_tokenizer(), fits)


def test_only_the_training_split_is_read(tokens: tuple[Path, Path]) -> None:
    from foretell.data import open_data

    meta = json.loads((tokens[1] / "meta.json").read_text(encoding="utf-8"))
    train = open_data(tokens[0]).tokens("train")
    assert meta["split"] == "train"
    assert meta["units_total"] == int((train[:] != open_data(tokens[0]).tokenizer.eot_id).sum())


def test_a_prepared_folder_is_no_text(tokens: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="prepared folder, not text"):
        vectors.train([str(tokens[0])], tmp_path / "out", vectors.Settings(kind="glove"))
    assert list(tmp_path.iterdir()) == []


def test_near_tokens_are_shown_as_text(tokens: tuple[Path, Path]) -> None:
    opened = open_folder(tokens[1])
    near = vectors.nearest(opened, ["the"], 5)["words"][0]["nearest"]
    assert all("Ġ" not in n["word"] for n in near)
    own = tokenizer.byte_tokenizer()
    name = own.inner.id_to_token(0xE5)
    both = Folder(tokens[1], Vectors([name, "a"], np.eye(2, dtype=np.float32)), {}, own)
    assert (both.shown(0), both.shown(1)) == ("<E5>", "a")


def test_a_run_begins_from_vectors(tokens: tuple[Path, Path], tmp_path: Path) -> None:
    """The first loss of a run is that of a model whose table was filled by hand; unset, nothing changes."""
    from training import MACHINE

    from foretell import config
    from foretell.data import open_data
    from foretell.train import log as run_log
    from foretell.train import trial
    from foretell.train.run import train

    data = open_data(tokens[0])
    sizes = {"hidden_size": 64, "num_hidden_layers": 1}
    steps = {"steps": 2, "context": 32, "micro_batch_size": 4, "global_batch_tokens": 128, "dtype": "float32"}
    runs = {}
    for name, extra in (("plain", {}), ("begun", {"init_embedding": str(tokens[1])})):
        c = config.validate({"model": sizes, "train": {**steps, **extra}})
        train(c, data, tmp_path / name, machine=MACHINE)
        runs[name] = [e["loss"] for e in run_log.read(tmp_path / name / "log.jsonl") if e["event"] == "step"]
        assert (tmp_path / name / "map.json").exists() == (name == "begun")
    assert (tmp_path / "begun" / "map.json").read_bytes() == (tokens[1] / "map.json").read_bytes()
    assert runs["plain"] != runs["begun"]
    stored = config.load(tmp_path / "begun" / "config.toml")
    begun = embedding.start(str(tokens[1]), data.tokenizer, stored.model)
    by_hand = trial.built(stored.model, 0.0, 0)
    assert begun is not None
    begun.fill(by_hand.model.embed_tokens.weight, (0, 0))
    made = trial.built(stored.model, 0.0, 0, "sdpa", begun)
    for a, b in zip(by_hand.parameters(), made.parameters(), strict=True):
        assert torch.equal(a, b)
    drawn = trial.built(stored.model, 0.0, 0)
    changed = [
        n for (n, a), b in zip(made.named_parameters(), drawn.parameters(), strict=True) if not torch.equal(a, b)
    ]
    assert changed == ["model.embed_tokens.weight"]


def _filled(model: ModelConfig, folder: str, data: str, layout: dict[str, int]) -> list[tuple[str, Any, np.ndarray]]:
    from foretell.config import ParallelConfig
    from foretell.distributed.placed import Placed

    begun = embedding.start(folder, tokenizer.load(Path(data)), model)
    placed = Placed(model, ParallelConfig(**layout), 32, seed=0, start=begun)
    return [(p.name, p.offset, p.local.detach().numpy()) for p in placed.parts]


@pytest.mark.parametrize("layout", [{"tp": 2}, {"dp_shard": 2}, {"pp": 2}], ids=str)
def test_every_process_begins_its_part(tokens: tuple[Path, Path], layout: dict[str, int]) -> None:
    from ranks import on

    from foretell.train import trial

    own = tokenizer.load(tokens[0])
    model = ModelConfig(hidden_size=64, num_hidden_layers=2).resolved(own.vocab_size, 32)
    begun = embedding.start(str(tokens[1]), own, model)
    whole = trial.built(model, 0.0, 0, "sdpa", begun).model.embed_tokens.weight.detach().numpy()
    met = np.zeros(whole.shape, bool)
    for parts in on(2, _filled, model, str(tokens[1]), str(tokens[0]), layout):
        for name, offset, part in parts:
            if name == embedding.EMBEDDING:
                box = tuple(slice(o, o + n) for o, n in zip(offset, part.shape, strict=True))
                assert np.array_equal(part, whole[box])
                met[box] = True
    assert met.all()


# The command line


def foretell(*arguments: str, cwd: Path) -> tuple[int, dict[str, Any], str]:
    command = [sys.executable, "-m", "foretell.cli", "vectors", *arguments, "--json"]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_the_verb_from_text_to_map(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        "".join(json.dumps({"text": MIXED + CHINESE}, ensure_ascii=False) + "\n" for _ in range(9)), encoding="utf-8"
    )
    options = ["--kind", "glove", "--units", "characters", "--dim", "8", "--epochs", "2", "--min-count", "9"]
    code, made, _ = foretell("train", "a.jsonl", "--out", "v", *options, cwd=tmp_path)
    assert code == 0
    assert made.keys() >= {"out", "words", "dim", "units", "losses", "seconds", "training_seconds", "units_per_second"}
    assert (made["documents"], made["quarantined"]) == (9, 0)
    code, near, _ = foretell("nearest", "v", "曹", "don't", "-n", "3", cwd=tmp_path)
    assert code == 0
    assert [len(w["nearest"]) for w in near["words"]] == [3, 3]
    code, answer, _ = foretell("analogy", "v", "曹", "操", "刘", "--multiply", cwd=tmp_path)
    assert (code, answer["method"], len(answer["answers"])) == (0, "3CosMul", 5)
    code, failed, _ = foretell("nearest", "v", "天上", cwd=tmp_path)
    assert code == 2
    assert "天" in failed["error"].split("nearly so spelled")[1]
    (tmp_path / "pairs.csv").write_text("曹,操,9\n天,下,8\n分,合,2\n", encoding="utf-8")
    code, score, _ = foretell("evaluate", "v", "--pairs", "pairs.csv", cwd=tmp_path)
    assert (code, score["similarity"]["covered"]) == (0, 3)
    code, page, _ = foretell("map", "v", "--out", "m.html", "--words", "20", cwd=tmp_path)
    assert (code, page["map"]) == (0, "m.html")
    text = (tmp_path / "m.html").read_text(encoding="utf-8")
    assert text.count(">曹</text>") == 1
    assert (page["words"], page["bytes"]) == (20, len(text.encode()))
    command = [sys.executable, "-m", "foretell.cli", "report", "v", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "data-map=" in (tmp_path / json.loads(done.stdout)["report"]).read_text(encoding="utf-8")
