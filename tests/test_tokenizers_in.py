"""Tokenizers of others, and the kinds that are trained here: ids equal those of the libraries they come from."""

import base64
import json
from pathlib import Path
from typing import Any

import jieba
import pytest
import sentencepiece
import tiktoken
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from foretell import tokenizer
from foretell.cli import app
from foretell.errors import ConfigError
from foretell.tokenizer import bytelevel, words
from foretell.tokenizer.compare import compare
from tests.test_gguf_tokenizer import TEXTS, train_sentencepiece
from tests.tiny import CHINESE, ENGLISH

CORPUS = [ENGLISH * 30, CHINESE * 30, *TEXTS * 5]
# Text as it comes: words and signs of several scripts, spaces of all kinds, and any character at all.
MIXED = st.lists(
    st.one_of(
        st.sampled_from([*ENGLISH.split(), *CHINESE, " ", "  ", "\n", "\t", "\u3000", "it's", "3.14", "。", "🐺", "é"]),
        st.text(max_size=3),
    ),
    max_size=24,
).map("".join)
FIXTURE = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

SENTENCEPIECE: dict[str, dict[str, Any]] = {
    "unigram": {"model_type": "unigram", "vocab_size": 400},
    "unigram-bytes": {"model_type": "unigram", "vocab_size": 700, "byte_fallback": True},
    "bpe": {"model_type": "bpe", "vocab_size": 400},
    "bpe-bytes": {"model_type": "bpe", "vocab_size": 700, "byte_fallback": True},
    "llama": {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "split_digits": True,
    },
    "gemma": {
        "model_type": "bpe",
        "vocab_size": 700,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": False,
        "user_defined_symbols": ["<table>", "<b>"],
    },
}


@pytest.fixture(scope="module", params=SENTENCEPIECE)
def spm_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_sentencepiece(tmp_path_factory.mktemp(request.param), **SENTENCEPIECE[request.param])


@FIXTURE
@given(text=MIXED)
def test_sentencepiece_ids(spm_model: Path, text: str) -> None:
    theirs, ours = peer_of(spm_model), loaded(spm_model)
    assert ours.encode(text) == theirs.encode(text)


_CACHE: dict[Path, Any] = {}


def loaded(path: Path) -> tokenizer.Tokenizer:
    if path not in _CACHE:
        _CACHE[path] = tokenizer.load(path)
    return _CACHE[path]


def peer_of(path: Path) -> Any:
    key = path.with_suffix(".peer")
    if key not in _CACHE:
        _CACHE[key] = sentencepiece.SentencePieceProcessor(model_file=str(path))
    return _CACHE[key]


def test_sentencepiece_on_real_text(spm_model: Path, tmp_path: Path) -> None:
    theirs, ours = peer_of(spm_model), loaded(spm_model)
    assert ours.vocab_size == theirs.get_piece_size()
    assert ours.unk_id == theirs.unk_id()
    assert ours.eot_id == theirs.eos_id()
    ours.save(tmp_path / "tokenizer.json")
    again = tokenizer.load(tmp_path)
    for text in [*TEXTS, ENGLISH, CHINESE, "<table><b> </s> <s> <unk> <0x41>"]:
        ids = ours.encode(text)
        assert ids == theirs.encode(text), text
        assert again.encode(text) == ids
        if ours.unk_id not in ids:
            assert ours.decode(ids) == theirs.decode(ids)


def test_damaged_sentencepiece_models(spm_model: Path, tmp_path: Path) -> None:
    data, bad = spm_model.read_bytes(), tmp_path / "bad.model"
    for n in [0, 1, 7, 100, len(data) // 2, len(data) - 1]:
        bad.write_bytes(data[:n])
        with pytest.raises(ConfigError, match=r"bad\.model"):
            tokenizer.load(bad)
    bad.write_bytes(b"\x0a\xff\xff\xff\xff\x0f" + data)  # a piece of four gigabytes
    with pytest.raises(ConfigError, match="not a SentencePiece model: a field of"):
        tokenizer.load(bad)
    bad.write_bytes(data + data)
    with pytest.raises(ConfigError, match="stands twice"):
        tokenizer.load(bad)


def test_word_models_of_sentencepiece_are_refused(tmp_path: Path) -> None:
    model = train_sentencepiece(tmp_path, model_type="word", vocab_size=40)
    with pytest.raises(ConfigError, match="model_type 3; unigram and BPE"):
        tokenizer.load(model)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[bytes, int]:
    """A rank file's tokens, learned here: bytes first, then merges in order."""
    model = json.loads(tokenizer.train_bpe(CORPUS, 1500).inner.to_str())["model"]
    back = {c: b for b, c in bytelevel.alphabet().items()}
    pairs = [bytes(back[c] for c in "".join(m)) for m in model["merges"]]
    return {token: n for n, token in enumerate([*(bytes([b]) for b in range(256)), *dict.fromkeys(pairs)])}


@pytest.mark.parametrize("name", bytelevel.ENCODINGS)
def test_tiktoken_ids(name: str, ranks: dict[bytes, int], tmp_path: Path) -> None:
    file = tmp_path / f"{name}.tiktoken"
    file.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % r for t, r in ranks.items()))
    ours = tokenizer.load(file)
    # The pattern that tiktoken itself has for the name, and its special tokens.
    patterns = __import__("tiktoken_ext.openai_public", fromlist=["x"])
    theirs = tiktoken.Encoding(
        name, pat_str=published(name, patterns), mergeable_ranks=ranks, special_tokens=bytelevel.ENCODINGS[name][1]
    )
    assert ours.eot_id == theirs.eot_token
    assert ours.vocab_size == theirs.max_token_value + 1

    @settings(max_examples=150, deadline=None)
    @given(text=MIXED)
    def same(text: str) -> None:
        assert ours.encode(text) == theirs.encode_ordinary(text)
        assert ours.decode(ours.encode(text)) == text

    same()
    for text in [*TEXTS, ENGLISH, CHINESE]:
        assert ours.encode(text) == theirs.encode_ordinary(text)


def published(name: str, module: Any) -> str:
    """The pattern of tiktoken's own definition, read without the download of the ranks."""
    kept = {n: getattr(module, n) for n in ("load_tiktoken_bpe", "data_gym_to_mergeable_bpe_ranks")}
    try:
        for n in kept:
            setattr(module, n, lambda *a, **k: {})
        return getattr(module, name)()["pat_str"]
    finally:
        for n, f in kept.items():
            setattr(module, n, f)


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("mine.tiktoken", b"YQ== 0\n", "one of gpt2, r50k_base"),
        ("gpt2.tiktoken", b"YQ== 0\n", "not all 256 bytes"),
        ("gpt2.tiktoken", b"Y!== 0\n", "line 1 is no token"),
        ("gpt2.tiktoken", b"YQ==\n", "line 1 is no token"),
        ("gpt2.tiktoken", b"YQ== 0\nYQ== 1\n", "line 2: a token that is empty, too long, twice"),
        ("gpt2.tiktoken", b"YQ== 99999999\n", "of rank 99,999,999"),
    ],
)
def test_wrong_rank_files(name: str, data: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match=message):
        tokenizer.load(tmp_path / name)


@pytest.fixture(scope="module", params=[True, False], ids=["uncased", "cased"])
def vocab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocab.txt: what we train, written as BERT writes it."""
    own = tokenizer.train(CORPUS, "wordpiece", 900, lowercase=request.param)
    of_id = {i: t for t, i in own.inner.get_vocab().items()}
    path = tmp_path_factory.mktemp("bert") / "vocab.txt"
    path.write_text("".join(of_id[i] + "\n" for i in range(own.vocab_size)), encoding="utf-8")
    assert own.kind == "wordpiece"
    return path


def test_wordpiece_ids_are_berts(vocab: Path, tmp_path: Path) -> None:
    ours = tokenizer.load(vocab)
    lowercase = "The" not in vocab.read_text(encoding="utf-8").split()
    theirs = transformers.BertTokenizer(str(vocab), do_lower_case=lowercase)
    assert (ours.kind, ours.bos_id) == ("wordpiece", theirs.cls_token_id)
    assert (ours.eot_id, ours.unk_id) == (theirs.sep_token_id, theirs.unk_token_id)
    ours.save(tmp_path / "tokenizer.json")
    again = tokenizer.load(tmp_path)

    @settings(max_examples=150, deadline=None)
    @given(text=MIXED)
    def same(text: str) -> None:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert again.encode(text) == ours.encode(text)

    same()
    for text in [ENGLISH, CHINESE, *TEXTS]:
        assert ours.encode(text) == theirs.encode(text, add_special_tokens=False), text
        assert ours.decode(ours.encode(text)) == ours.inner.decode(ours.encode(text))
    assert ours.inner.encode("fox").ids[0] == theirs.cls_token_id


def test_case_is_what_the_config_beside_it_says(vocab: Path) -> None:
    (vocab.parent / "tokenizer_config.json").write_text('{"do_lower_case": true}')
    assert tokenizer.load(vocab).encode("FOX") == tokenizer.load(vocab).encode("fox")
    (vocab.parent / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert tokenizer.load(vocab).encode("FOX") != tokenizer.load(vocab).encode("fox")
    (vocab.parent / "tokenizer_config.json").unlink()
    (vocab.parent / "words.txt").write_text("a\nb\n")
    with pytest.raises(ConfigError, match=r"no \[UNK\], \[CLS\], \[SEP\] among 2 lines"):
        tokenizer.load(vocab.parent / "words.txt")


def test_words_of_english(tmp_path: Path) -> None:
    text = "The fox saw the dog. The dog didn't see the fox: 3 times, naïve foxes!\n"
    own = tokenizer.train([text] * 3, "word", 300)
    assert own.kind == "word"
    ids = own.encode(text)
    of_id = {i: t for t, i in own.inner.get_vocab().items()}
    assert [of_id[i] for i in ids] == [
        *("The", "fox", "saw", "the", "dog", ".", "The", "dog", "didn't", "see", "the", "fox", ":", "3", "times", ","),
        *("naïve", "foxes", "!", "\n"),
    ]
    assert own.decode(ids) == text
    assert b"".join(map(own.token_bytes, ids)).decode() == " " + text
    assert own.encode("The cat") == [own.inner.token_to_id("The"), own.unk_id]
    small = tokenizer.train([text] * 3, "word", 5)
    assert small.vocab_size == 5
    assert {small.inner.token_to_id(w) for w in ("the", "The", "dog", "fox")} & {None}
    own.save(tmp_path / "tokenizer.json")
    again = tokenizer.load(tmp_path)
    assert (again.kind, again.eot_id, again.bos_id) == ("word", 0, 0)
    assert again.encode(text) == ids


def test_words_of_chinese_survive_saving(tmp_path: Path) -> None:
    text = "我来到北京清华大学。他来到了网易杭研大厦, and the BERT模型 was 42 years old。\n"
    own = tokenizer.train([text] * 3, "word", 300)
    of_id = {i: t for t, i in own.inner.get_vocab().items()}
    cut = [of_id[i] for i in own.encode("我来到北京清华大学。")]
    assert cut == [*jieba.lcut("我来到北京清华大学"), "。"]
    assert own.decode(own.encode(text)).replace(" ", "") == text.replace(" ", "")
    own.save(tmp_path / "tokenizer.json")
    again = tokenizer.load(tmp_path)
    assert again.kind == "word"
    assert again.encode(text) == own.encode(text)
    assert own.unk_id not in own.encode(text)
    assert b"".join(map(own.token_bytes, own.encode("他来到了大厦。"))).decode() == "他来到了大厦。"
    assert again.digest == own.digest


def test_jieba_keeps_no_cache_in_a_folder_of_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    words._jieba.cache_clear()
    assert words.segment("我来到北京").split(words.CUT) == ["", "我", "来到", "北京", ""]
    assert list(tmp_path.iterdir()) == []


@given(text=MIXED)
@settings(max_examples=100, deadline=None)
def test_words_cover_every_text(text: str) -> None:
    own = tokenizer.train([text, "中文"], "word", 100)
    kept = "".join(c for c in text if not c.isspace() or c == "\n")
    assert own.unk_id not in own.encode(text)
    decoded = own.decode(own.encode(text))
    assert "".join(c for c in decoded if not c.isspace() or c == "\n").count("\n") == kept.count("\n")


def test_comparison_counts(tmp_path: Path) -> None:
    texts = [ENGLISH, CHINESE]
    size = len("".join(texts).encode())
    result = compare(texts, {"bytes": tokenizer.byte_tokenizer(), "words": tokenizer.train([ENGLISH], "word", 300)})
    assert (result["bytes"], result["characters"]) == (size, len("".join(texts)))
    one, two = result["tokenizers"]
    assert (one["tokens"], one["bytes_per_token"], one["unknown"], one["exact"]) == (size, 1.0, 0.0, True)
    assert 0 < two["unknown"] < 1
    assert not two["exact"]
    assert two["bytes_per_token"] == pytest.approx(size / two["tokens"])


def test_the_verb(tmp_path: Path) -> None:
    (tmp_path / "spm").mkdir()
    other = train_sentencepiece(tmp_path / "spm", model_type="bpe", vocab_size=400)
    text, run = tmp_path / "t.txt", CliRunner()
    text.write_text(ENGLISH * 20 + CHINESE * 20, encoding="utf-8")
    for kind in ("bpe", "bytes", "wordpiece", "word"):
        done = run.invoke(
            app, ["tokenizer", "train", str(text), "--out", str(tmp_path / kind), "--kind", kind, "--json"]
        )
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["kind"] == kind
    names = [str(tmp_path / kind) for kind in ("bpe", "bytes", "wordpiece", "word")] + [str(other)]
    done = run.invoke(app, ["tokenizer", "compare", str(text), *names, "--json"])
    assert done.exit_code == 0, done.output
    rows = {r["name"]: r for r in json.loads(done.stdout)["tokenizers"]}
    assert list(rows) == names
    assert rows[names[1]]["bytes_per_token"] == 1.0
    assert rows[names[0]]["bytes_per_token"] > 1.5
    assert rows[names[0]]["exact"]
    shown = run.invoke(app, ["tokenizer", "compare", str(text), *names])
    assert "bytes/token" in shown.stdout
    wrong = run.invoke(app, ["tokenizer", "train", str(text), "--out", str(tmp_path / "x"), "--kind", "morse"])
    assert isinstance(wrong.exception, ConfigError)


def test_texts_are_prepared_with_every_kind(tmp_path: Path) -> None:
    from foretell.config import DataConfig, TokenizerConfig
    from foretell.data import open_data, prepare

    text = tmp_path / "t.txt"
    text.write_text((ENGLISH + CHINESE) * 300, encoding="utf-8")
    for kind in ("wordpiece", "word"):
        c = TokenizerConfig(kind=kind, vocab_size=300)  # type: ignore[arg-type]
        prepare([str(text)], tmp_path / kind, c, DataConfig(), workers=1)
        data = open_data(tmp_path / kind)
        assert data.index["tokenizer"]["kind"] == kind
        assert tokenizer.load(tmp_path / kind).kind == kind
