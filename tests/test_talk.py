"""Dialogue and generation: scores against plain loops over tokens, what must not move them, and a conversation."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from foretell import evaluate
from foretell.cli import app, talking
from foretell.config import TaskConfig
from foretell.errors import ConfigError, DataError
from foretell.evaluate import continuations, dialogue
from foretell.models.hf import Chat
from foretell.tasks import checks, examples, records, tuned
from foretell.tasks.examples import Example
from foretell.tasks.tuned import Tuned
from foretell.tokenizer import chat


def asked(kind: str = "dialogue", context: int = 256, template: str = "plain") -> Tuned:
    own = tiny.bpe()
    form = chat.named(template, eos="<|endoftext|>")
    task = TaskConfig.model_validate({"kind": kind, "max_new_tokens": 6})
    return Tuned(Path("m"), tiny.model(own.vocab_size, context), own, task, form, own.eot_id)


def talk(*turns: str, system: str | None = None, name: str = "d") -> Example:
    said = [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(turns)]
    first = [{"role": "system", "content": system}] if system else []
    return Example(name, turns[0], (turns[-1],), messages=(*first, *said))


TALKS = [
    talk("the fox", "it jumps", "over whom?", "the lazy dog", system="Be brief."),
    talk("天下大势", "分久必合", "然后呢", "合久必分"),
    talk("isn't it?", "1984"),
    talk("We'll see", "they've gone home. The quick brown fox"),
]


def plain_nll(model: Any, ids: list[int], wanted: list[bool]) -> tuple[float, int]:
    """A forward pass of one row in float64, and the sum over the tokens that are wanted."""
    logits = model.double()(torch.tensor([ids]))[0].log_softmax(-1)
    model.float()
    at = [n for n, w in enumerate(wanted) if w and n]
    return -sum(float(logits[n - 1, ids[n]]) for n in at), len(at)


@torch.no_grad()
def test_answers_are_scored_token_by_token_after_the_true_turns() -> None:
    it = asked()
    measured, cut = dialogue.answer_likelihood(it, TALKS)
    nll = tokens = 0.0
    for e in TALKS:
        rendered = chat.render(it.template, e.messages)  # type: ignore[arg-type]
        ids, inside = chat.encode(it.tokenizer, rendered)
        said = it.tokenizer.decode([i for i, w in zip(ids, inside, strict=True) if w])
        assert said.split() == " ".join(m["content"] for m in e.messages if m["role"] == "assistant").split()
        found = plain_nll(it.model, ids, inside)
        nll, tokens = nll + found[0], tokens + found[1]
    size = sum(len(m["content"].encode()) for e in TALKS for m in e.messages if m["role"] == "assistant")
    assert cut == 0
    assert measured["perplexity"].value == pytest.approx(math.exp(nll / tokens), rel=1e-5)
    assert measured["bits_per_byte"].value == pytest.approx(nll / math.log(2) / size, rel=1e-5)


@torch.no_grad()
def test_the_true_answer_is_ranked_by_its_likelihood_per_byte_and_by_what_was_said() -> None:
    it = asked()
    turns = dialogue.drawn(TALKS)
    candidates = dialogue._candidates(turns)

    def likelihood(before: Sequence[Any], answer: str) -> float:
        messages = [*before, {"role": "assistant", "content": answer}]
        ids, inside = chat.encode(it.tokenizer, chat.render(it.template, messages))  # type: ignore[arg-type]
        asking = it.asking(before)
        assert ids[: len(asking)] == asking
        return -plain_nll(it.model, ids, [w and n >= len(asking) for n, w in enumerate(inside)])[0]

    by_byte, by_gain = dialogue._ranks(it, turns, candidates, None)
    assert (by_byte != by_gain).any()
    for turn, several, rank, gained in zip(turns, candidates, by_byte, by_gain, strict=True):
        assert several[0] == turn.answer
        assert len({c.casefold() for c in several}) == len(several)
        scores = [likelihood(turn.before, c) for c in several]
        nothing = [likelihood([{"role": "user", "content": ""}], c) for c in several]
        per_byte = [s / len(c.encode()) for s, c in zip(scores, several, strict=True)]
        gains = [s - n for s, n in zip(scores, nothing, strict=True)]
        assert rank == 1 + sum(s >= per_byte[0] for s in per_byte[1:])
        assert gained == 1 + sum(g >= gains[0] for g in gains[1:])


def test_scores_of_dialogues_do_not_move_with_their_batch() -> None:
    it = asked()
    whole = dialogue.evaluate_dialogue(it, TALKS)
    for size in (1, 3):
        other = dialogue.evaluate_dialogue(it, TALKS, batch_size=size)
        for name in whole["how"]:
            assert other[name] == pytest.approx(whole[name], rel=1e-5), name
        assert other["answers"] == whole["answers"]
    alone = [dialogue.answer_likelihood(it, [e])[0]["perplexity"].rows[0] for e in TALKS]
    together = dialogue.answer_likelihood(it, TALKS)[0]["perplexity"].rows
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert whole["rules"]["chance"]["selection_accuracy"] == pytest.approx(1 / 5)  # four of other dialogues
    assert {"distinct_1", "distinct_2"} <= whole["rules"]["human"].keys()


def test_others_to_choose_from_are_no_answers_to_the_same_words() -> None:
    same = [talk("hello", f"answer {n}", name=str(n)) for n in range(12)]
    assert dialogue._candidates(dialogue.drawn(same)) == []
    more = [*same, *(talk(f"question {n}", f"other {n}") for n in range(12))]
    turns = dialogue.drawn(more)
    for turn, several in zip(turns, dialogue._candidates(turns), strict=True):
        assert len(several) == dialogue.CANDIDATES
        if turn.last == "hello":
            assert all(c.startswith("other") for c in several[1:])
    assert dialogue._candidates(turns) == dialogue._candidates(turns)


def test_a_long_dialogue_gives_a_few_turns_and_the_same_each_time() -> None:
    long = talk(*(f"turn {n}" for n in range(40)))
    found = dialogue.drawn([long])
    assert len(found) == dialogue.ANSWERS
    assert found == dialogue.drawn([long])
    assert all(t.answer == f"turn {len(t.before)}" for t in found)


def test_texts_have_the_score_that_evaluate_gives_them() -> None:
    it = asked("generation", 64)
    texts = [tiny.ENGLISH * 3, tiny.CHINESE, "a"]
    found = continuations.text_likelihood(it.model, it.tokenizer, texts)  # type: ignore[arg-type]
    known = evaluate.evaluate(it.model, it.tokenizer, texts)  # type: ignore[arg-type]
    assert found["perplexity"].value == pytest.approx(known["perplexity"], rel=1e-6)
    assert found["bits_per_byte"].value == pytest.approx(known["bits_per_byte"], rel=1e-6)


def test_scores_of_texts_do_not_move_with_their_batch() -> None:
    pytest.importorskip("sklearn")
    it = asked("generation")
    texts = [Example(f"t:{n}", (tiny.ENGLISH, tiny.CHINESE)[n % 2] + str(n)) for n in range(10)]
    whole = continuations.evaluate_generation(it, texts)
    other = continuations.evaluate_generation(it, texts, batch_size=1)
    assert other["answers"] == whole["answers"]
    for name in whole["how"]:
        assert other[name] == pytest.approx(whole[name], rel=1e-5), name
    assert {"mauve", "self_bleu", "distinct_2"} <= whole["how"].keys()
    assert {"mauve", "self_bleu", "distinct_2"} <= whole["rules"]["human"].keys()
    assert "features:the model itself" in whole["how"]["mauve"]
    chosen = continuations.passages(texts)
    one = continuations.continued(it.model, it.tokenizer, chosen[:1])  # type: ignore[arg-type]
    assert len(one[0]) <= len(chosen[0].rest)
    vectors = continuations.text_vectors(it.model, it.tokenizer, ["the fox", "天下"])
    np.testing.assert_allclose(vectors[1], continuations.text_vectors(it.model, it.tokenizer, ["天下"])[0])


@pytest.mark.parametrize(
    ("text", "beginning"),
    [
        ("春眠不覺曉，\n處處聞啼鳥。\n夜來風雨聲，", "春眠不覺曉，\n"),
        ("春眠不覺曉，處處聞啼鳥。夜來風雨聲，", "春眠不覺曉，"),
        ("The quick brown fox jumps over the dog.", "The quick"),
        ("x" * 40, "x" * 10),
    ],
)
def test_a_passage_is_cut_where_tokens_end(text: str, beginning: str) -> None:
    """The end of a line is one token with the mark before it, a space with the word behind it."""
    found = continuations.passages([Example("f", text)])
    assert [(p.beginning, p.rest) for p in found] == [(beginning, text[len(beginning) :])]


@given(st.text(st.sampled_from("ab \n，。天"), min_size=1, max_size=1200))
def test_a_passage_is_a_stretch_of_its_text_in_two(text: str) -> None:
    try:
        found = continuations.passages([Example("f", text.strip())], most=5)
    except DataError:
        return
    assert 0 < len(found) <= 5
    for p in found:
        assert p.beginning + p.rest in text
        assert p.rest.strip()
        assert len(p.beginning) + len(p.rest) <= continuations.PASSAGE


def test_a_folder_or_a_pattern_is_all_its_files(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for n, name in enumerate(("b.jsonl", "in/a.jsonl", "note.rst")):
        (tmp_path / name).write_text(json.dumps({"messages": talk(f"q{n}", f"a{n}").messages}) + "\n")
    assert [e.targets[0] for e in examples.read(str(tmp_path), "dialogue").examples] == ["a0", "a1"]
    assert len(examples.read(f"{tmp_path}/*.jsonl", "dialogue").examples) == 1
    assert len(examples.read(f"{tmp_path}/**/*.jsonl", "dialogue").examples) == 2
    with pytest.raises(DataError, match="no file fits"):
        examples.read(f"{tmp_path}/*.yml", "dialogue")
    (tmp_path / "in" / "poem.txt").write_text("一\n二\n")
    assert len(examples.read(f"{tmp_path}/in", "generation", examples.Keys("none")).examples) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file in this folder ends in"):
        examples.read(str(tmp_path / "empty"), "translation")
    poem = tmp_path / "p.jsonl"
    poem.write_text(json.dumps({"paragraphs": ["床前明月光，", "疑是地上霜。"]}))
    assert examples.read(str(poem), "generation", examples.Keys("paragraphs")).examples[0].source.count("\n") == 1


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("talk")
    file = folder / "d.jsonl"
    said = ({"messages": talk(f"say {n}", f"{n} 天下").messages} for n in range(60))
    file.write_text("".join(json.dumps(m, ensure_ascii=False) + "\n" for m in said), encoding="utf-8")
    result = CliRunner().invoke(
        app,
        [
            *("finetune", "--task", "dialogue", "--data", str(file), "--out", str(folder / "runs"), "--name", "d"),
            *("model.hidden_size=32", "model.num_hidden_layers=1", "train.steps=6", "train.context=96"),
            *("train.dtype=float32", "train.compile=off", "train.global_batch_tokens=384", "tokenizer.vocab_size=320"),
            *("train.micro_batch_size=4", "--json"),
        ],
        catch_exceptions=False,
    )
    scores = json.loads(result.stdout)["scores"]
    assert {"perplexity", "bits_per_byte", "selection_accuracy", "selection_mrr", "distinct_1"} <= scores.keys()
    assert scores["rules"]["chance"]["selection_accuracy"] >= 0.1
    return folder / "runs" / "d"


def test_a_conversation_with_commands(run_folder: Path) -> None:
    typed = (
        'say 1\n\n/again\n/system Be brief.\nsay 2\n/new\n/again\n/nothing\n"""\nsay\n3\n"""\n你好\\\n吗\n/help\n//x\n'
    )
    result = CliRunner().invoke(
        app, ["chat", str(run_folder), "--max-new-tokens", "5"], input=typed, catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "there is no /nothing; there are /new, /again" in result.stderr
    assert "(nothing was said)" in result.stderr
    assert "begins and ends a message" in result.stderr
    assert result.stdout.count("\n") >= 6  # an answer each: 1, again, 2, the lines, the Chinese, //x
    after = CliRunner().invoke(
        app, ["chat", str(run_folder), "--max-new-tokens", "5"], input="say 1\n/quit\nsay 2\n", catch_exceptions=False
    )
    assert after.stdout == result.stdout[: len(after.stdout)]


def test_an_answer_that_is_broken_off_stays_as_far_as_it_came() -> None:
    it = talking.Talk(asked(), {"temperature": 1.0})
    pieces = it.pieces("the fox")
    first = next(p for p in pieces if p)
    pieces.close()
    assert it.said[0]["content"] == "the fox"
    assert it.said[1]["content"].startswith(first.strip())
    never = it.pieces("and then?")
    never.close()
    assert len(it.said) == 2
    assert it.take_back() == "the fox"
    assert it.said == []


def test_system_messages_by_the_rules_of_each_template() -> None:
    first = {"temperature": 0.0}
    marked = talking.Talk(asked(template="gemma3"), first, system="Be brief.")
    "".join(marked.pieces("the fox"))
    ids = marked.asked.asking([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the fox"}])
    assert "user\nBe brief.\n\nthe fox" in marked.asked.tokenizer.decode(ids)
    without = talking.Talk(asked(template="gemma"), first, system="Be brief.")
    with pytest.raises(ConfigError, match="has no system message"):
        "".join(without.pieces("the fox"))
    assert without.said == []
    without.system = None
    "".join(without.pieces("the fox"))
    assert [m["role"] for m in without.said] == ["user", "assistant"]


def test_a_base_model_that_begins_its_texts_with_a_mark_has_it_in_plain_conversations() -> None:
    """As Gemma's base models: without <bos> they are lost. GPT-2's kind has a mark that ends texts alone."""

    def opened(bos: str, bos_id: int | None) -> Any:
        own = SimpleNamespace(bos_id=bos_id, eot_id=1, inner=SimpleNamespace(id_to_token=lambda i: "<eos>"))
        return SimpleNamespace(chat=Chat(None, bos, "<eos>"), tokenizer=own)

    said = [{"role": "user", "content": "你好"}]
    begun = chat.render(tuned.own_template(opened("<bos>", 2)), said, answer=True)
    assert begun.text == "<bos>User: 你好\nAssistant:"
    for other in (opened("<eos>", 1), opened("<eos>", None), opened("", None)):
        assert chat.render(tuned.own_template(other), said, answer=True).text == "User: 你好\nAssistant:"


def test_a_template_may_be_named_and_a_file_without_one_is_spoken_to_plainly(run_folder: Path) -> None:
    told = tuned.load(run_folder, "dialogue", {}, template="chatml")
    assert told.template == chat.named("chatml", told.template.bos, told.template.eos)  # type: ignore[union-attr]
    bare = tuned.load(run_folder / "model", "dialogue", {})
    assert bare.template is not None
    assert bare.template.name == "plain"
    assert bare.end == bare.tokenizer.eot_id
    with pytest.raises(ConfigError, match="there is no chat template 'mine'"):
        tuned.load(run_folder, "dialogue", {}, template="mine")


def test_dialogues_that_ask_the_same_stand_in_one_split() -> None:
    several = [talk(f"q{n % 40}", f"a{n}") for n in range(120)]
    found = records.divided(several, ["valid", "test"])
    asks = [{e.source for e in split} for split in found.values()]
    assert sum(map(len, asks)) == len(set().union(*asks)) == 40
    kept, told = checks.checked(
        {"train": examples.Read(several), "test": examples.Read([talk("q1", "another")])}, "dialogue"
    )
    assert len(kept["train"]) == 117
    assert told == ["train: 3 examples whose source stands in another split too are left out"]
