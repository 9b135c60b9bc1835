"""The tokenizer: exact round trips, special tokens as text, pieces that do not show, files that transformers reads."""

import random
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell import tokenizer
from foretell.errors import ConfigError, DataError
from foretell.tokenizer import END_OF_TEXT, Tokenizer

ENGLISH = "The quick brown fox jumps over the lazy dog. It's 1984, isn't it? We'll see; they've gone home.\n"
CHINESE = "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。及秦灭之后，楚、汉分争，又并入于汉。\n"
PYTHON = """def f(x, y=1):
    for i in range(x):
        if i % 2 == 0:
            return i * y
    return None


"""

BPE = tokenizer.train_bpe([ENGLISH * 30, CHINESE * 30, PYTHON * 30], 640)
BYTES = tokenizer.byte_tokenizer()
OURS = pytest.mark.parametrize("own", [BPE, BYTES], ids=["bpe", "bytes"])

any_text = st.text(st.characters(exclude_categories=["Cs"]))
# Text in which spaces, line ends, digits, quotes, Chinese and letters meet often.
dense = st.text(st.sampled_from("ab Z'st\n\n\r\t  12.,!，。话说天é\u00a0\u3000\u2028\x1c\x85😀"), max_size=300)


@OURS
@given(text=any_text | dense)
def test_round_trip_is_exact(own: Tokenizer, text: str) -> None:
    ids = own.encode(text)
    assert own.decode(ids) == text
    assert b"".join(own.token_bytes(i) for i in ids) == text.encode()


@OURS
@given(before=any_text, after=any_text)
def test_special_tokens_in_text_stay_text(own: Tokenizer, before: str, after: str) -> None:
    text = before + END_OF_TEXT + after
    ids = own.encode(text)
    assert own.eot_id not in ids
    assert own.decode(ids) == text


@OURS
@given(st.text(st.characters(), min_size=1))
def test_lone_surrogates_are_refused_clearly(own: Tokenizer, text: str) -> None:
    if any("\ud800" <= c <= "\udfff" for c in text):
        with pytest.raises(DataError, match="lone surrogate U\\+D"):
            own.encode(text)
    else:
        own.encode(text)


@settings(max_examples=300)
@given(text=dense, data=st.data())
def test_tokens_of_the_pieces_are_the_tokens_of_the_text(text: str, data: st.DataObject) -> None:
    """Every place `_CUT` finds is a place where the pre-tokenizer cuts: encoding both sides gives the same tokens."""
    whole = BPE.inner.encode(text, add_special_tokens=False).ids
    for match in tokenizer._CUT.finditer(text):
        at = match.start()
        parts = [BPE.inner.encode(t, add_special_tokens=False).ids for t in (text[:at], text[at:])]
        assert parts[0] + parts[1] == whole, (text, at)


def test_long_texts_are_cut_and_the_same() -> None:
    rng = random.Random(0)
    lines = [rng.choice([ENGLISH, CHINESE, PYTHON, ENGLISH.strip() + " ", CHINESE.strip()]) for _ in range(300)]
    text = "".join(lines)
    pieces = tokenizer._pieces(text)
    assert len(pieces) > 5
    assert "".join(pieces) == text
    assert BPE.encode(text) == BPE.inner.encode(text, add_special_tokens=False).ids


def test_a_text_without_any_cut_is_one_piece() -> None:
    text = "字" * 10_000
    assert tokenizer._pieces(text) == [text]
    assert BPE.decode(BPE.encode(text)) == text


def test_batches_keep_their_texts_apart() -> None:
    texts = ["", ENGLISH * 60, "", CHINESE * 100, "x"]
    assert [a.tolist() for a in BPE.encode_batch(texts)] == [BPE.encode(t) for t in texts]
    assert BPE.encode_batch([]) == []


def test_byte_tokenizer_is_the_bytes() -> None:
    assert BYTES.encode("aé") == list("aé".encode())
    assert (BYTES.vocab_size, BYTES.eot_id, BYTES.bos_id) == (257, 256, 256)
    text = CHINESE + PYTHON + "\x00\x7f\r\n"
    assert BYTES.inner.encode(text, add_special_tokens=False).ids == BYTES.encode(text)


def test_spaces_of_source_code_merge() -> None:
    tokens = [BPE.token_bytes(i) for i in BPE.encode(PYTHON)]
    assert b"       " in tokens  # the indent before ` if`, less the space that goes with the word
    assert max(len(t) for t in tokens) > 4


def test_training_is_deterministic_and_bounded() -> None:
    again = tokenizer.train_bpe(iter([ENGLISH * 30, CHINESE * 30, PYTHON * 30]), 640)
    assert again.digest == BPE.digest
    assert BPE.vocab_size <= 640
    assert BPE.bos_id == BPE.eot_id == 0
    with pytest.raises(ConfigError, match="at least 257"):
        tokenizer.train_bpe([ENGLISH], 100)


def test_fitted_vocabulary_grows_with_the_text() -> None:
    sizes = [tokenizer.fitted_vocab_size(10**n) for n in range(13)]
    assert sizes == sorted(sizes)
    assert all(s % 64 == 0 for s in sizes)
    assert 4096 <= tokenizer.fitted_vocab_size(10_000_000) <= 8192
    assert (sizes[0], sizes[-1]) == (320, 49_152)


@OURS
def test_saved_and_loaded_is_the_same(own: Tokenizer, tmp_path: Path) -> None:
    own.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = tokenizer.load(path)
        assert (loaded.digest, loaded.kind, loaded.eot_id, loaded.bos_id) == (
            own.digest,
            own.kind,
            own.eot_id,
            own.bos_id,
        )
        assert loaded.encode(CHINESE + END_OF_TEXT) == own.encode(CHINESE + END_OF_TEXT)


@OURS
def test_transformers_reads_the_file_with_equal_ids(own: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    own.save(tmp_path)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in (ENGLISH, CHINESE, PYTHON, "é\u00a0\t\t \n\n  x 12345 😀", ""):
        assert fast(text, add_special_tokens=False)["input_ids"] == own.encode(text)
        assert fast.decode(own.encode(text), clean_up_tokenization_spaces=False) == text
    assert fast.convert_tokens_to_ids(END_OF_TEXT) == own.eot_id


def test_bad_files_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "tokenizer.json"
    with pytest.raises(ConfigError, match="no such file"):
        tokenizer.load(tmp_path)
    for content in ("", "{}", '{"model": 3}', "[" * 100_000):
        bad.write_text(content)
        with pytest.raises(ConfigError, match="not a tokenizer"):
            tokenizer.load(tmp_path)


def test_a_foreign_tokenizer_keeps_its_ways(tmp_path: Path) -> None:
    """Metaspace with byte fallback and a leading <s>, as Llama 2 has it."""
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"<0x{b:02X}>": 3 + b for b in range(256)}
    vocab |= {"\u2581": 259, "a": 260, "\u2581a": 261}
    inner = tokenizers.Tokenizer(
        tokenizers.models.BPE(vocab=vocab, merges=[("\u2581", "a")], unk_token="<unk>", byte_fallback=True)
    )
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    inner.add_special_tokens(["<s>", "</s>"])
    inner.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    inner.save(str(tmp_path / "tokenizer.json"))
    own = tokenizer.load(tmp_path)
    assert (own.kind, own.bos_id, own.eot_id) == ("other", 1, 2)
    ids = own.encode("a é</s>")
    assert 1 not in ids
    assert 2 not in ids
    assert b"".join(map(own.token_bytes, ids)) == " a é</s>".encode()
    assert own.token_bytes(2) == b""
