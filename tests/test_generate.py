"""Generation: transformers' own loop and filters as truth, the cache against none, bytes at every boundary."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CHINESE, ENGLISH, bpe, byte_level, model

from foretell.errors import ConfigError, DataError
from foretell.generate import generate, stream
from foretell.generate.sampling import Sampling, kept, next_tokens
from foretell.generate.text import Text
from foretell.models import hf
from foretell.models.decoder import Decoder
from foretell.tokenizer import Tokenizer

PROMPTS = ["", "The quick", "话说天下", ENGLISH[:60], "a", "It's 1984, isn't it? 😀"]


def without_cache(m: Decoder, own: Tokenizer, prompt: str, steps: int) -> list[int]:
    """Greedy, everything computed anew at each step."""
    ids = [own.bos_id or 0, *own.encode(prompt)]
    start = len(ids)
    with torch.no_grad():
        while len(ids) < start + steps and len(ids) <= (m.config.max_position_embeddings or 0):
            token = int(m(torch.tensor([ids]))[0, -1].argmax())
            if token == own.eot_id:
                break
            ids.append(token)
    return ids[start:]


def text_of(own: Tokenizer, ids: list[int]) -> str:
    """Their text without an unfinished character at the end."""
    import codecs

    return codecs.getincrementaldecoder("utf-8")("replace").decode(b"".join(map(own.token_bytes, ids)))


@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 4}, {"num_hidden_layers": 4, "seed": 3}])
def test_a_batch_with_cache_is_each_prompt_alone_without_one(changes: dict[str, Any]) -> None:
    m = model(bpe().vocab_size, context=128, **changes)
    found = generate(m, bpe(), PROMPTS, max_new_tokens=40, temperature=0.0)
    for prompt, got in zip(PROMPTS, found, strict=True):
        ids = without_cache(m, bpe(), prompt, 40)
        assert (got["prompt"], got["tokens"], got["completion"]) == (prompt, len(ids), text_of(bpe(), ids))
        assert got["finish_reason"] == ("length" if len(ids) == 40 else "end")


@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_greedy_is_what_transformers_generates(penalty: float, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    m = model(bpe().vocab_size, context=128)
    hf.save(m, bpe(), tmp_path / "m")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    found = generate(m, bpe(), PROMPTS, max_new_tokens=30, temperature=0.0, repetition_penalty=penalty)
    for prompt, got in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([[bpe().bos_id, *bpe().encode(prompt)]])
        out = theirs.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=30,
            do_sample=False,
            repetition_penalty=penalty,
        )[0, ids.shape[1] :].tolist()
        expected = [i for i in out if i != bpe().eot_id]
        assert got["completion"] == text_of(bpe(), expected)
        assert got["tokens"] == len(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.7},
        {"temperature": 1.3, "top_k": 20},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.02, "repetition_penalty": 1.2},
    ],
)
def test_stream_is_generate_and_neighbours_do_not_matter(options: dict[str, Any]) -> None:
    m = model(bpe().vocab_size, context=128)
    together = generate(m, bpe(), PROMPTS, max_new_tokens=25, seed=5, **options)
    first = generate(m, bpe(), [PROMPTS[0]], max_new_tokens=25, seed=5, **options)[0]
    others = generate(m, bpe(), [PROMPTS[0], *reversed(PROMPTS)], max_new_tokens=25, seed=5, **options)[0]
    assert first["completion"] == together[0]["completion"] == others["completion"]
    pieces = list(stream(m, bpe(), PROMPTS[0], max_new_tokens=25, seed=5, **options))
    assert "".join(pieces) == first["completion"]
    assert all(pieces)
    assert (
        generate(m, bpe(), [PROMPTS[0]], max_new_tokens=25, seed=6, **options)[0]["completion"] != first["completion"]
    )


def test_more_tokens_go_on_where_fewer_ended() -> None:
    m = model(bpe().vocab_size, context=128)
    short, long = (generate(m, bpe(), ["a"], max_new_tokens=n, seed=2)[0] for n in (10, 30))
    assert long["completion"].startswith(short["completion"])


def test_many_groups_give_what_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    from foretell.generate import completion

    m = model(bpe().vocab_size, context=128)
    whole = generate(m, bpe(), PROMPTS, max_new_tokens=12)
    monkeypatch.setattr(completion, "_ROWS", 2)
    parts = generate(m, bpe(), PROMPTS, max_new_tokens=12)
    assert [w["completion"] for w in whole] == [p["completion"] for p in parts]


@settings(max_examples=60, deadline=None)
@given(
    logits=st.lists(st.integers(-4000, 4000), min_size=12, max_size=12, unique=True),
    top_k=st.integers(0, 14),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    temperature=st.sampled_from([0.3, 1.0, 2.0]),
)
def test_filters_keep_what_those_of_transformers_keep(
    logits: list[int], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    warpers = pytest.importorskip("transformers").generation.logits_process
    x = torch.tensor([logits, sorted(logits)], dtype=torch.float32) / 500
    chain = [warpers.TemperatureLogitsWarper(temperature)]
    chain += [warpers.TopKLogitsWarper(top_k)] if top_k else []
    chain += [warpers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    chain += [warpers.MinPLogitsWarper(min_p)] if min_p else []
    expected = x
    for warp in chain:
        expected = warp(None, expected)
    values, ids = kept(x / temperature, Sampling(temperature, top_k, top_p, min_p))
    found = torch.zeros_like(x)
    found.scatter_(1, torch.arange(12).expand(2, 12) if ids is None else ids, torch.softmax(values, -1))
    torch.testing.assert_close(found, torch.softmax(expected, -1), rtol=1e-5, atol=1e-7)


def test_large_vocabularies_are_filtered_the_same() -> None:
    """Beyond 512 ids top-p looks at the likeliest first; peaked rows take that way, flat ones sort all."""
    warp = pytest.importorskip("transformers").generation.logits_process.TopPLogitsWarper(0.9)
    generator = torch.Generator().manual_seed(0)
    for scale in (0.1, 4.0):
        x = scale * torch.randn(5, 3000, generator=generator)
        values, ids = kept(x, Sampling(top_p=0.9))
        assert ids is not None
        assert (values.shape[1] < 3000) == (scale == 4.0)
        found = torch.zeros_like(x).scatter_(1, ids, torch.softmax(values, -1))
        torch.testing.assert_close(found, torch.softmax(warp(None, x), -1), rtol=1e-5, atol=1e-7)


def test_draws_follow_the_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, -1.0, 2.0, 0.5]])
    n = 40_000
    uniform = torch.from_numpy(np.random.default_rng(0).random(n))
    drawn = next_tokens(logits.repeat(n, 1), None, uniform, Sampling(temperature=0.5))
    share = torch.bincount(drawn, minlength=5) / n
    expected = torch.softmax(logits[0] / 0.5, 0)
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt() + 1e-4).all()


@pytest.mark.parametrize("edge", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_what_is_allowed(edge: float) -> None:
    logits = torch.tensor([[-torch.inf, 3.0, 1.0, -torch.inf]])
    for s in (Sampling(1.0), Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.99), Sampling(1.0, min_p=0.01)):
        assert int(next_tokens(logits.clone(), None, torch.tensor([edge], dtype=torch.float64), s)) in {1, 2}


def chunked(data: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(c % (len(data) + 1) for c in cuts), len(data)]
    return [data[a:b] for a, b in pairwise(places)]


@given(text=st.text(st.characters(exclude_categories=["Cs"])), cuts=st.lists(st.integers(0, 999), max_size=40))
def test_text_in_any_chunks_is_the_text(text: str, cuts: list[int]) -> None:
    own = Text(())
    assert "".join([own.feed(c) for c in chunked(text.encode(), cuts)]) + own.end() == text


def test_no_chunk_boundary_halves_a_character() -> None:
    text = "aé世😀👩‍👩‍👧🇨🇳中。"
    data = text.encode()
    for cut in range(len(data) + 1):
        own = Text(())
        pieces = [own.feed(data[:cut]), own.feed(data[cut:])]
        assert "".join(pieces) == text
        assert pieces[0] == data[:cut].decode(errors="ignore")
        assert all("\ufffd" not in p for p in pieces)
    own = Text(())
    assert [own.feed(bytes([b])) for b in "😀".encode()] == ["", "", "", "😀"]
    own = Text(())
    assert own.feed("ab😀".encode()[:-1]) + own.end() == "ab"  # an unfinished character is dropped
    assert Text(()).feed(b"a\xff\xfeb") == "a\ufffd\ufffdb"


stops = st.lists(st.text("ab世", min_size=1, max_size=4), max_size=3)


@given(text=st.text("ab世", max_size=30), stop=stops, cuts=st.lists(st.integers(0, 99), max_size=20))
def test_stop_strings_that_span_chunks(text: str, stop: list[str], cuts: list[int]) -> None:
    own, given_out = Text(tuple(stop)), ""
    arrived = b""
    for chunk in chunked(text.encode(), cuts):
        arrived += chunk
        given_out += own.feed(chunk)
        so_far = arrived.decode(errors="ignore")
        ends = [so_far.find(s) for s in stop if s in so_far]
        if ends:
            assert own.stopped
            assert given_out == so_far[: min(ends)]
            return
        assert not own.stopped
        # What is out is never part of a stop string that may still come, and nothing waits without reason.
        waiting = so_far[len(given_out) :]
        assert so_far.startswith(given_out)
        assert not waiting or any(s.startswith(waiting) for s in stop)
    assert given_out + own.end() == text


def test_a_stop_string_ends_the_completion_before_it() -> None:
    m = model(byte_level().vocab_size, context=256)
    whole = generate(m, byte_level(), ["ab"], max_new_tokens=60, seed=1)[0]
    assert len(whole["completion"]) > 20
    stop = whole["completion"][10:14]
    at = whole["completion"].find(stop)
    options: dict[str, Any] = {"max_new_tokens": 60, "seed": 1, "stop": (stop, "never there")}
    got = generate(m, byte_level(), ["ab"], **options)[0]
    assert (got["completion"], got["finish_reason"]) == (whole["completion"][:at], "stop")
    assert got["tokens"] < whole["tokens"]
    assert "".join(stream(m, byte_level(), "ab", **options)) == whole["completion"][:at]


def test_the_context_is_an_end_and_long_prompts_are_cut_from_the_left() -> None:
    m = model(bpe().vocab_size, context=32)
    ids = bpe().encode(ENGLISH * 3)
    fits = bpe().decode(ids[:29])
    got = generate(m, bpe(), [fits], max_new_tokens=50, temperature=0.0)[0]
    assert got["prompt_tokens_cut"] == 0
    assert (got["tokens"], got["finish_reason"]) == (33 - got["prompt_tokens"], "length")
    got = generate(m, bpe(), [ENGLISH * 3], max_new_tokens=50, temperature=0.0)[0]
    assert (got["prompt_tokens"], got["prompt_tokens_cut"]) == (16, len(ids) + 1 - 16)
    with torch.no_grad():
        first = int(m(torch.tensor([ids[-16:]]))[0, -1].argmax())
    assert got["completion"].startswith(text_of(bpe(), [first]))
    assert got["tokens"] == 17


def test_the_end_of_text_ends() -> None:
    m = model(bpe().vocab_size, tie_word_embeddings=False)
    ids = without_cache(m, bpe(), "a", 5)
    with torch.no_grad():  # a head that finds <|endoftext|> likeliest after the third token
        line = torch.tensor([[bpe().bos_id, *bpe().encode("a"), *ids[:3]]])
        m.lm_head.weight[bpe().eot_id] = 100 * m.hidden(line)[0, -1]
        m.lm_head.weight[bpe().eot_id] -= 200 * m.hidden(line)[0, -4:-1].mean(0)
    got = generate(m, bpe(), ["a"], temperature=0.0)[0]
    assert got["finish_reason"] == "end"
    assert got["tokens"] <= 3
    assert got["completion"] == text_of(bpe(), ids[: got["tokens"]])


def test_rows_that_end_early_leave_the_others_as_they_are() -> None:
    m = model(byte_level().vocab_size, context=256)
    prompts = [f"{'x' * n} prompt" for n in range(8)]
    options: dict[str, Any] = {"max_new_tokens": 40, "temperature": 2.0, "stop": ("e", "t", "A"), "seed": 4}
    together = generate(m, byte_level(), prompts, **options, repetition_penalty=1.1)
    assert len({t["tokens"] for t in together}) > 3
    assert {t["finish_reason"] for t in together} == {"stop", "length"}
    for n, got in enumerate(together):
        alone = generate(m, byte_level(), ["?"] * n + [prompts[n]], **options, repetition_penalty=1.1)[n]
        assert (alone["completion"], alone["tokens"]) == (got["completion"], got["tokens"])


def test_modes_and_random_state_are_left_as_they_were() -> None:
    m = model(bpe().vocab_size).train()
    state = torch.get_rng_state()
    pieces = stream(m, bpe(), "a", max_new_tokens=20)
    next(pieces)
    pieces.close()  # a reader who goes away
    assert m.training
    generate(m, bpe(), ["a"], max_new_tokens=3)
    assert m.training
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"temperature": float("inf")},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_p": float("nan")},
        {"min_p": -0.1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": float("nan")},
        {"max_new_tokens": 0},
        {"stop": ("",)},
        {"seed": -1},
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        generate(model(bpe().vocab_size), bpe(), ["a"], **options)
    with pytest.raises(ConfigError, match=next(iter(options))):
        stream(model(bpe().vocab_size), bpe(), "a", **options)


@pytest.mark.parametrize("temperature", [1e-3, 1e-40, 5e-324])
def test_the_coldest_temperature_is_greedy(temperature: float) -> None:
    m = model(bpe().vocab_size, context=128)
    for options in ({}, {"top_p": 0.9}, {"top_k": 5, "min_p": 0.1}):
        cold = generate(m, bpe(), PROMPTS, max_new_tokens=20, temperature=temperature, **options)
        greedy = generate(m, bpe(), PROMPTS, max_new_tokens=20, temperature=0.0)
        assert [c["completion"] for c in cold] == [g["completion"] for g in greedy]


def test_prompts_that_cannot_be() -> None:
    m = model(bpe().vocab_size)
    with pytest.raises(ConfigError, match="list"):
        generate(m, bpe(), "a prompt")
    with pytest.raises(DataError, match="surrogate"):
        generate(m, bpe(), ["\ud800"])
    assert generate(m, bpe(), []) == []


def test_chinese_and_special_text_in_a_prompt() -> None:
    m = model(bpe().vocab_size, context=128)
    got = generate(m, bpe(), [CHINESE + "<|endoftext|>"], max_new_tokens=5)[0]
    assert got["prompt_tokens"] == 1 + len(bpe().encode(CHINESE + "<|endoftext|>"))
