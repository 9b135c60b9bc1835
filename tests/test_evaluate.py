"""Evaluation: every number against a plain loop over tokens, and nothing that moves it which should not."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers as hub
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHINESE, ENGLISH, bpe, byte_level, model, trained

from foretell import data, tokenizer
from foretell.config import DataConfig, TokenizerConfig
from foretell.data.records import Rejected
from foretell.errors import ConfigError, DataError, ModelError
from foretell.evaluate import evaluate, evaluate_split, render, scoring
from foretell.evaluate.scoring import windows
from foretell.models.decoder import Decoder
from foretell.tokenizer import Tokenizer

DOCUMENTS = [ENGLISH, CHINESE * 2, "a", ENGLISH * 3 + CHINESE, "The end.\n" * 9, "x y z", ENGLISH[:50]]


@torch.no_grad()
def plain(m: Decoder, line: list[int], context: int, stride: int, bos: bool) -> dict[int, tuple[float, bool]]:
    """Of each scored position of `line`, its nll and whether it was predicted; one forward pass a position.

    With bos, line[0] is it. A position is scored in the first window that holds it as a target.
    """
    found: dict[int, tuple[float, bool]] = {}
    start = 0
    while start < len(line):
        last = min(start + context - (0 if bos else 1), len(line) - 1)
        for target in range(start + 1, last + 1):
            if target not in found:
                logits = m(torch.tensor([line[start:target]]))[0, -1].double()
                nll = float(torch.logsumexp(logits, 0) - logits[line[target]])
                found[target] = (nll, int(logits.argmax()) == line[target])
        if last == len(line) - 1:
            break
        start += stride
    return found


@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 8), (32, 31), (16, 1), (64, 64), (2, 2)])
def test_every_number_is_that_of_a_plain_loop(context: int, stride: int) -> None:
    m = trained()
    nll = correct = tokens = 0.0
    for text in DOCUMENTS:
        found = plain(m, [bpe().eot_id or 0, *bpe().encode(text)], context, stride, bos=True)
        assert len(found) == len(bpe().encode(text))  # every token is scored
        nll += sum(n for n, _ in found.values())
        correct += sum(c for _, c in found.values())
        tokens += len(found)
    got = evaluate(m, bpe(), DOCUMENTS, context=context, stride=stride)
    whole = "".join(DOCUMENTS)
    assert got["tokens"] == tokens
    assert got["documents"] == len(DOCUMENTS)
    assert got["bytes"] == len(whole.encode())
    assert got["loss"] == pytest.approx(nll / tokens, rel=1e-6)
    assert got["accuracy"] == correct / tokens
    assert got["perplexity"] == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert got["bits_per_byte"] == pytest.approx(nll / math.log(2) / len(whole.encode()), rel=1e-6)
    words = sum(len(d.split()) for d in DOCUMENTS)
    assert math.log(got["word_perplexity"]) == pytest.approx(nll / words, rel=1e-6)
    assert 0.1 < got["accuracy"] < 1
    for name, (low, high) in got["ci"].items():
        assert low <= got[name] <= high
        assert high > low
    assert set(got["ci"]) == {"loss", "perplexity", "word_perplexity", "bits_per_byte", "accuracy"}


def foreign() -> Tokenizer:
    """A byte-level BPE in the manner of GPT-2, read from its JSON: no token to begin with."""
    inner = hub.Tokenizer(hub.models.BPE())
    inner.pre_tokenizer = hub.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = hub.decoders.ByteLevel()
    inner.post_processor = hub.processors.ByteLevel(trim_offsets=False)
    trainer = hub.trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(hub.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator([ENGLISH * 20, CHINESE * 20], trainer)
    return tokenizer.wrap(hub.Tokenizer.from_str(inner.to_str()))


@pytest.mark.parametrize(("context", "stride"), [(32, 32), (32, 8), (32, 31), (64, 64)])
def test_without_a_first_token_the_first_of_a_window_is_unscored_and_it_says_so(context: int, stride: int) -> None:
    own = foreign()
    assert (own.kind, own.bos_id) == ("other", None)
    m = model(own.vocab_size, context=64)
    found = [plain(m, own.encode(t), context, stride, bos=False) for t in DOCUMENTS]
    got = evaluate(m, own, DOCUMENTS, context=context, stride=stride)
    assert got["tokens"] == sum(map(len, found))
    if stride == context:
        lengths = [len(own.encode(t)) for t in DOCUMENTS]
        assert got["tokens"] == sum(lengths) - sum(math.ceil(n / context) for n in lengths)
    nll = sum(n for f in found for n, _ in f.values())
    assert got["loss"] == pytest.approx(nll / got["tokens"], rel=1e-6)
    assert got["bytes"] == len("".join(DOCUMENTS).encode())
    assert "not scored" in got["note"]


def test_transformers_gives_the_same_loss() -> None:
    """Its own loss, over one window of a text, for a Qwen3 it made and saved itself."""
    transformers = pytest.importorskip("transformers")
    import tempfile

    from foretell.models import hf

    own = foreign()
    config = transformers.Qwen3Config(
        vocab_size=own.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=256,
    )
    torch.manual_seed(1)
    theirs = transformers.Qwen3ForCausalLM(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        own.save(Path(folder))
        m, read = hf.load(Path(folder))
    ids = torch.tensor([read.encode(ENGLISH * 2)])
    with torch.no_grad():
        expected = theirs(ids, labels=ids).loss.item()
    assert evaluate(m, read, [ENGLISH * 2])["loss"] == pytest.approx(expected, rel=1e-6)


@given(n=st.integers(0, 90), context=st.integers(2, 20), stride=st.integers(1, 20), bos=st.booleans())
@settings(max_examples=300)
def test_windows_score_each_token_once(n: int, context: int, stride: int, bos: bool) -> None:
    stride = min(stride, context)
    tokens = np.arange(1, n + 1, dtype=np.uint32)
    scored: list[int] = []
    for w in windows(0, tokens, 0 if bos else None, context, stride):
        assert 0 < len(w.inputs) == len(w.targets) <= context - (not bos)
        assert (w.targets == w.inputs + 1).all()  # a stretch of the line
        scored += w.targets[w.first :].tolist()
    assert scored == sorted(set(scored))
    if bos:
        assert scored == list(range(1, n + 1))
    elif stride < context:
        assert scored == list(range(2, n + 1))
    else:
        assert scored == [t for t in range(1, n + 1) if (t - 1) % context]


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_batch_size_and_order_move_nothing(batch_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    m = trained()
    texts = [ENGLISH[: 7 * i + 1] * (i % 4 + 1) for i in range(40)] + [CHINESE * 5]
    base = evaluate(m, bpe(), texts, context=32)
    assert base["accuracy"] > 0.1
    monkeypatch.setattr(scoring, "_LOGITS", 3000)
    monkeypatch.setattr(scoring, "_SORTED_TOKENS", 500)
    got = evaluate(m, bpe(), texts, context=32, batch_size=batch_size)
    shuffled = evaluate(m, bpe(), texts[::-1], context=32, batch_size=batch_size)
    for other in (got, shuffled):
        for key in ("loss", "bits_per_byte", "accuracy", "tokens", "bytes", "documents"):
            assert other[key] == pytest.approx(base[key], rel=1e-6)
    assert got["ci"]["loss"] == pytest.approx(base["ci"]["loss"], rel=1e-6)


def test_chinese_is_scored_by_character() -> None:
    m = model(bpe().vocab_size, context=64)
    got = evaluate(m, bpe(), [CHINESE, CHINESE * 2])
    assert "word_perplexity" not in got
    nll = got["loss"] * got["tokens"]
    assert math.log(got["char_perplexity"]) == pytest.approx(nll / len(CHINESE * 3), rel=1e-9)
    assert "char_perplexity" in got["ci"]
    assert "word_perplexity" in evaluate(m, bpe(), [ENGLISH, CHINESE])


def test_token_scores_of_ties_and_large_logits() -> None:
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 5.0], [0.0, 0.0]])
    hidden = torch.tensor([[1.0, 0.0], [1.0, 0.0], [300.0, 100.0], [0.0, 0.0]])
    targets = torch.tensor([0, 1, 2, 3])
    nll, correct = scoring.token_scores(hidden, weight, targets)
    logits = hidden @ weight.T
    torch.testing.assert_close(nll, torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
    assert correct.tolist() == (logits.argmax(1) == targets).tolist()


def prepared(folder: Path) -> data.Data:
    lines = [{"text": (ENGLISH if i % 3 else CHINESE) * (i % 5 + 1) + str(i)} for i in range(120)]
    (folder / "a.jsonl").write_text("\n".join(json.dumps(x) for x in lines))
    config = TokenizerConfig(vocab_size=400)
    data.prepare([str(folder / "a.jsonl")], folder / "out", config, DataConfig(valid_fraction=0.3), workers=1)
    return data.open_data(folder / "out")


def documents_of(opened: data.Data, split: str) -> list[str]:
    tokens, start, texts = opened.tokens(split), 0, []
    for end in opened.document_ends(split).tolist():
        texts.append(opened.tokenizer.decode(tokens[start : end - 1]))
        start = end
    return texts


def test_a_split_scores_as_its_documents_do(tmp_path: Path) -> None:
    opened = prepared(tmp_path)
    m = model(opened.tokenizer.vocab_size, context=64).train()
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    got = evaluate_split(m, opened, "valid", context=32, batch_size=3)
    texts = documents_of(opened, "valid")
    expected = evaluate(m, opened.tokenizer, texts, context=32)
    assert len(texts) > 10
    intervals, expected_intervals = got.pop("ci"), expected.pop("ci")
    assert got == pytest.approx(expected, rel=1e-6)
    assert intervals["loss"] == pytest.approx(expected_intervals["loss"], rel=1e-6)
    assert m.training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state


def test_the_first_tokens_of_a_split(tmp_path: Path) -> None:
    opened = prepared(tmp_path)
    m = model(opened.tokenizer.vocab_size, context=64)
    texts = documents_of(opened, "valid")
    first = len(opened.tokenizer.encode(texts[0]))
    part = opened.tokenizer.encode(texts[1])[:5]
    got = evaluate_split(m, opened, "valid", max_tokens=first + 5, context=32)
    expected = evaluate(m, opened.tokenizer, [texts[0], opened.tokenizer.decode(part)], context=32)
    assert (got["tokens"], got["documents"]) == (first + 5, 2)
    assert got["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-6)
    everything = evaluate_split(m, opened, "valid", max_tokens=10**9, context=32)
    assert everything["loss"] == pytest.approx(evaluate_split(m, opened, "valid", context=32)["loss"], rel=1e-6)
    with pytest.raises(DataError, match="no split"):
        evaluate_split(m, opened, "nonsense")


def test_texts_are_whole_and_unfiltered(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(ENGLISH)
    (tmp_path / "b.txt").write_text(ENGLISH)  # a duplicate counts again
    (tmp_path / "long.txt").write_bytes((ENGLISH * 60_000).encode())  # 5.8 MB, beyond what preparing keeps in one
    (tmp_path / "bad.txt").write_bytes(b"first\n\xff\xfe\xfd\nlast\n" + CHINESE.encode() * 9)
    (tmp_path / "r.jsonl").write_text('{"text": "one"}\n{"text": "two"}\nbroken\n')
    (tmp_path / "r.json").write_text('{"text": "three"}\n{"text": "four"}\n')
    (tmp_path / "s.json").write_text('{\n "k": 1\n}\n')
    with gzip.open(tmp_path / "z.txt.gz", "wt") as f:
        f.write(CHINESE)
    found = list(data.texts([str(tmp_path)]))
    good = {(Path(d.source).name, d.text) for d in found if isinstance(d, data.Document)}
    assert {(n, t) for n, t in good if n != "long.txt"} == {
        ("a.txt", ENGLISH),
        ("b.txt", ENGLISH),
        ("bad.txt", "first\nlast\n" + CHINESE * 9),
        ("r.jsonl", "one"),
        ("r.jsonl", "two"),
        ("r.json", "three"),
        ("r.json", "four"),
        ("s.json", '{\n "k": 1\n}\n'),
        ("z.txt.gz", CHINESE),
    }
    assert ("long.txt", ENGLISH * 60_000) in good
    assert sum(not isinstance(d, data.Document) for d in found) == 2
    with pytest.raises(DataError, match="no such file"):
        list(data.texts(str(tmp_path / "none.txt")))
    folder = tmp_path / "sub"
    folder.mkdir()
    prepared(folder)
    with pytest.raises(DataError, match="prepared folder"):
        list(data.texts([str(folder / "out")]))


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"text": "one two"}\n{"text": "two"}\nbroken\n')
    got = evaluate(model(bpe().vocab_size), bpe(), data.texts([str(tmp_path / "r.jsonl")]))
    assert (got["quarantined"], got["documents"]) == (1, 2)
    assert "not JSON" in got["first_quarantined"]
    assert "1 records could not be read" in shown(got)


def shown(result: dict[str, Any]) -> str:
    from io import StringIO

    from rich.console import Console

    out = StringIO()
    Console(file=out, width=200).print(render(result))
    return out.getvalue()


def test_the_table_and_the_json_say_the_same() -> None:
    got = evaluate(model(bpe().vocab_size), bpe(), DOCUMENTS)
    assert json.loads(json.dumps(got, allow_nan=False)) == got
    text = shown(got)
    assert f"{got['bits_per_byte']:.4g}" in text
    assert f"{100 * got['accuracy']:.2f}%" in text
    assert f"{got['tokens']:,} tokens" in text
    one = evaluate(model(bpe().vocab_size), bpe(), [ENGLISH])
    assert one["ci"] == {}
    assert "no interval" in shown(one)


def test_a_hopeless_model_still_gives_json() -> None:
    m = model(byte_level().vocab_size, tie_word_embeddings=False)
    with torch.no_grad():
        m.lm_head.weight.mul_(1e4)
    got = evaluate(m, byte_level(), ["wordwithoutspaces" * 3, "another"])
    assert json.loads(json.dumps(got, allow_nan=False)) == got


def test_a_model_that_predicts_no_numbers_is_named() -> None:
    m = model(byte_level().vocab_size)
    with torch.no_grad():
        m.lm_head.weight[3, 3] = float("nan")
    with pytest.raises(ModelError, match="not numbers"):
        evaluate(m, byte_level(), ["a", "b"])


def test_nothing_to_score_says_what_could_not_be_read() -> None:
    m = model(byte_level().vocab_size)
    with pytest.raises(DataError, match=r"nothing to score: x\.png, byte 0: binary file"):
        evaluate(m, byte_level(), [Rejected("x.png", 0, "binary file")])


def test_nothing_to_score_and_windows_that_cannot_be() -> None:
    m = model(bpe().vocab_size, context=64)
    with pytest.raises(DataError, match="nothing to score"):
        evaluate(m, bpe(), [])
    with pytest.raises(DataError, match="nothing to score"):
        evaluate(m, bpe(), ["", ""])
    for options, message in (
        ({"context": 65}, "model's own 64"),
        ({"context": 1}, "from 2"),
        ({"context": 0}, "from 2"),
        ({"context": 32, "stride": 33}, "left out"),
        ({"stride": 0}, "from 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate(m, bpe(), ["a"], **options)
    assert evaluate(m, bpe(), ["", "ab", "cd"])["documents"] == 2
