"""Beam search against transformers' own, all texts of a tiny vocabulary, and itself in other company."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from test_encoders import saved as saved_pair
from test_families import saved as saved_decoder

from foretell.config import ModelConfig
from foretell.errors import ConfigError
from foretell.generate import beam, beam_search
from foretell.models.decoder import Decoder
from foretell.models.model import made
from foretell.models.seq2seq import Seq2Seq

V, LONGEST = 448, 12
OPTIONS: list[dict[str, Any]] = [
    {"beams": 4},
    {"beams": 3, "length_penalty": 0.0, "early_stopping": True},
    {"beams": 5, "length_penalty": 2.0, "early_stopping": "never"},
    {"beams": 4, "length_penalty": -1.0, "no_repeat_ngram_size": 2},
    {"beams": 1, "no_repeat_ngram_size": 1},
]


def lists(lengths: list[int], seed: int = 1) -> list[list[int]]:
    random = torch.Generator().manual_seed(seed)
    return [torch.randint(8, V, (n,), generator=random).tolist() for n in lengths]


def their_texts(
    model: Any, sources: list[list[int]], eos: int, options: dict[str, Any]
) -> list[tuple[list[int], float | None]]:
    """What transformers finds for each source alone, and its score."""
    found = []
    model.generation_config.forced_eos_token_id = None
    asked = {"num_beams": options["beams"], **{k: v for k, v in options.items() if k != "beams"}}
    asked |= {"eos_token_id": eos, "pad_token_id": 3, "do_sample": False}
    for source in sources:
        given = torch.tensor([source])
        out = model.generate(
            given, attention_mask=torch.ones_like(given), return_dict_in_generate=True, output_scores=True, **asked
        )
        start = 1 if model.config.is_encoder_decoder else len(source)
        ids = out.sequences[0, start:].tolist()
        ids = ids[: ids.index(eos)] if eos in ids else ids
        found.append((ids, float(out.sequences_scores[0]) if options["beams"] > 1 else None))
    return found


@pytest.mark.parametrize("name", ["marian", "t5", "llama", "gpt2", "mistral"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_texts_and_scores_are_those_of_transformers(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    theirs, ours = (saved_pair if name in ("marian", "t5") else saved_decoder)(name, tmp_path / "m")
    sources = lists([9, 4, 13, 9, 1, 6])
    options = {"max_new_tokens": LONGEST, **options}
    # The end is a token that makes texts end, at different lengths.
    likely = {token for h in beam_search(ours, sources, start=3, **options) for token in h.ids[1:]}
    tried = {eos: beam_search(ours, sources, eos=eos, start=3, **options) for eos in sorted(likely)}
    eos, found = max(tried.items(), key=lambda t: len({len(h.ids) for h in t[1]} - {LONGEST}))
    assert any(len(h.ids) < LONGEST for h in found)
    expected = their_texts(theirs, sources, eos, options)
    assert [h.ids for h in found] == [ids for ids, _ in expected]
    for hypothesis, (_, score) in zip(found, expected, strict=True):
        if score is not None:
            assert hypothesis.score == pytest.approx(score, abs=2e-4)


def tiny(kind: str, vocab_size: int) -> Seq2Seq | Decoder:
    keys = {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 2}
    model = made(ModelConfig.model_validate(keys).resolved(vocab_size, 64))
    assert isinstance(model, Seq2Seq | Decoder)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0.0, 1.5 * p.shape[-1] ** -0.5, generator=random)
    return model.eval()


def log_probability(model: Seq2Seq | Decoder, source: list[int], text: list[int]) -> float:
    """Of a text behind a source, or a prompt; a target begins with 0."""
    if isinstance(model, Seq2Seq):
        logits = model(torch.tensor([source]), torch.tensor([[0, *text[:-1]]]))[0]
    else:
        logits = model(torch.tensor([[*source, *text[:-1]]]))[0, len(source) - 1 :]
    return float(logits.log_softmax(-1)[torch.arange(len(text)), text].sum())


@pytest.mark.parametrize("kind", ["marian", "qwen3"])
@pytest.mark.parametrize("penalty", [0.0, 1.0])
@torch.no_grad()
def test_with_beams_for_everything_the_best_of_all_texts_is_found(kind: str, penalty: float) -> None:
    end, most, V = 4, 3, 5
    model, source = tiny(kind, V), [1, 2, 3]
    inner = range(V - 1)
    texts = [[*t, end] for n in range(most) for t in itertools.product(inner, repeat=n)]
    texts += [list(t) for t in itertools.product(inner, repeat=most)]
    scores = {tuple(t): log_probability(model, source, t) / len(t) ** penalty for t in texts}
    best = max(scores, key=lambda t: scores[t])
    options: dict[str, Any] = {"length_penalty": penalty, "early_stopping": "never", "max_new_tokens": most}
    (found,) = beam_search(model, [source], beams=V**most, eos=end, start=0, **options)
    assert found.ids == [t for t in best if t != end]
    assert found.score == pytest.approx(scores[best], abs=1e-5)


@pytest.mark.parametrize("kind", ["marian", "t5", "qwen3", "gpt2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_company_and_order_change_nothing(kind: str, dtype: torch.dtype) -> None:
    model = tiny(kind, V).to(dtype)
    sources = lists([5, 21, 3, 8, 21, 13, 2])
    rooms = [9, 4, 6, 1, 12, 3, 9]
    options: dict[str, Any] = {"beams": 3, "eos": 0, "start": 0}
    alone = [beam_search(model, [s], max_new_tokens=r, **options)[0] for s, r in zip(sources, rooms, strict=True)]
    together = beam_search(model, sources, max_new_tokens=rooms, **options)
    # bfloat16 rounds otherwise in other shapes; float32 too, but by too little to tip a choice here.
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    same = [a.ids == t.ids for a, t in zip(alone, together, strict=True)]
    assert all(same) or (dtype == torch.bfloat16 and sum(same) >= 5)
    for a, t in zip(alone, together, strict=True):
        assert a.score == pytest.approx(t.score, abs=tolerance)
    assert all(len(h.ids) <= room for h, room in zip(together, rooms, strict=True))
    reverse = beam_search(model, sources[::-1], max_new_tokens=rooms[::-1], **options)
    assert [h.ids for h in reverse[::-1]] == [h.ids for h in together] or dtype == torch.bfloat16


@pytest.mark.parametrize("at_once", [1, 16, 40])
def test_prompts_read_some_at_a_time_say_the_same(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny("qwen3", V), lists([5, 5, 21, 8, 8, 8, 2])
    alone = [beam_search(model, [p], beams=2, eos=0, max_new_tokens=6)[0] for p in prompts]
    monkeypatch.setattr(beam, "_READ_AT_ONCE", at_once)
    together = beam_search(model, prompts, beams=2, eos=0, max_new_tokens=6)
    assert [h.ids for h in together] == [h.ids for h in alone]
    assert [h.score for h in together] == pytest.approx([h.score for h in alone], abs=1e-5)


@pytest.mark.parametrize("kind", ["marian", "qwen3"])
@torch.no_grad()
def test_one_beam_is_the_greedy_choice(kind: str) -> None:
    model, source, ids = tiny(kind, V), [11, 12, 13], list[int]()
    for _ in range(10):
        if isinstance(model, Seq2Seq):
            ids.append(int(model(torch.tensor([source]), torch.tensor([[3, *ids]]))[0, -1].argmax()))
        else:
            ids.append(int(model(torch.tensor([[*source, *ids]]))[0, -1].argmax()))
    (found,) = beam_search(model, [source], beams=1, start=3, max_new_tokens=10)
    assert found.ids == ids
    (ended,) = beam_search(model, [source], beams=1, start=3, max_new_tokens=10, eos=ids[4])
    assert ended.ids == ids[: ids.index(ids[4])]


def test_what_cannot_be_searched_is_said() -> None:
    model = tiny("gpt2", V)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"beams": 0}, "beams is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"max_new_tokens": [3, 4]}, "2 entries for 1 sources"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size is -1"),
        ({"early_stopping": "soon"}, "early_stopping is 'soon'"),
    ]
    for options, said in cases:
        with pytest.raises(ConfigError, match=said):
            beam_search(model, [[1]], **options)
    with pytest.raises(ConfigError, match="source 0 has no tokens"):
        beam_search(model, [[]])
    with pytest.raises(ConfigError, match="65 tokens, and the model's context 64"):
        beam_search(model, [[1] * 65])
    with pytest.raises(ConfigError, match="what a target begins with"):
        beam_search(tiny("marian", V), [[1]])
    (found,) = beam_search(model, [[1] * 60], max_new_tokens=100)
    assert len(found.ids) == 5  # as much as the context has room for
