"""Examples from files of every kind, what is refused of them, how a model is asked, and the verbs from end to end."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from foretell.cli import app
from foretell.config import TaskConfig
from foretell.errors import ConfigError, DataError, ModelError
from foretell.tasks import card, checks, examples, prompts, records, scores
from foretell.tasks.card import Card
from foretell.tasks.examples import Example, Keys
from foretell.tokenizer import chat

PLAIN = chat.named("plain", eos="<|endoftext|>")


def written(path: Path, text: str) -> str:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return str(path)


def lines(path: Path, *values: Any) -> str:
    return written(path, "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"source": "cat", "target": "猫"}\n{"source": "dog", "target": "狗"}\n'),
        ("a.jsonl.gz", '{"text": "cat", "title": "猫"}\n{"text": "dog", "title": "狗"}\n'),
        ("a.json", '[{"translation": {"source": "cat", "target": "猫"}}, {"source": "dog", "target": ["狗"]}]'),
        ("a.tsv", "cat\t猫\ndog\t狗\n"),
        ("b.tsv", "to title\tcat\t猫\nto title\tdog\t狗\n"),
        ("a.csv", 'target,source\n"猫",cat\n狗,"dog"\n'),
    ],
)
def test_pairs_are_read_from_every_form(tmp_path: Path, name: str, text: str) -> None:
    found = examples.read(written(tmp_path / name, text), "translation")
    assert [(e.source, e.targets) for e in found.examples] == [("cat", ("猫",)), ("dog", ("狗",))]
    assert not found.left_out


def test_keys_may_be_named_or_numbered(tmp_path: Path) -> None:
    file = written(tmp_path / "a.tsv", "1\t嗨\tHi\n2\t走\tGo\n")
    found = examples.read(file, "translation", Keys("3", "2"))
    assert [(e.source, e.targets[0]) for e in found.examples] == [("Hi", "嗨"), ("Go", "走")]
    with pytest.raises(DataError, match="no column nothing; its first line has 1, 嗨, Hi"):
        examples.read(file, "translation", Keys("nothing", "2"))


def test_aligned_files_must_have_as_many_lines(tmp_path: Path) -> None:
    en, de = written(tmp_path / "a.en", "One\nTwo\n"), written(tmp_path / "a.de", "Eins\nZwei\n")
    assert [e.targets for e in examples.read(f"{en}+{de}", "translation").examples] == [("Eins",), ("Zwei",)]
    short = written(tmp_path / "b.de", "Eins\n")
    with pytest.raises(DataError, match=r"a\.en has 2 lines and .*b\.de 1"):
        examples.read(f"{en}+{short}", "translation")


def test_what_is_no_example_is_counted_with_its_first_place(tmp_path: Path) -> None:
    file = lines(
        tmp_path / "a.jsonl", {"source": "a", "target": "b"}, {"source": "a"}, {"source": "c", "target": " "}, 3, {}
    )
    found = examples.read(file, "translation")
    assert len(found.examples) == 1
    assert dict(found.left_out) == {
        "without a target": 1,
        "with an empty target": 1,
        "a record that is int, not an object": 1,
        "without a source": 1,
    }
    assert found.first["with an empty target"] == "a.jsonl:3"
    with pytest.raises(DataError, match="of 5 records 1 can be used: 1 without a target"):
        checks.checked({"train": found}, "translation")


def test_squad_in_both_versions_and_flat(tmp_path: Path) -> None:
    context = "小明住在北京。He was born in 1984."
    qas = [
        {"id": "x", "question": "住在哪里？", "answers": [{"text": "北京", "answer_start": 4}]},
        {"id": "y", "question": "Why?", "answers": [], "is_impossible": True},
        {"id": "z", "question": "Where?", "answers": [{"text": "Rome", "answer_start": 3}]},
    ]
    squad = written(
        tmp_path / "s.json",
        json.dumps({"version": "2.0", "data": [{"paragraphs": [{"context": context, "qas": qas}]}]}),
    )
    found = examples.read(squad, "qa")
    assert [(e.targets, e.starts) for e in found.examples] == [(("北京",), (4,)), ((), ())]
    assert dict(found.left_out) == {"with an answer that does not stand at its answer_start": 1}
    flat = {"question": "When?", "context": context, "answers": {"text": ["1984"], "answer_start": [22]}}
    assert examples.read(lines(tmp_path / "f.jsonl", flat), "qa").examples[0].starts == (22,)


def test_dialogues_of_yaml_crosswoz_and_messages(tmp_path: Path) -> None:
    yml = written(
        tmp_path / "a.yml", "categories:\n- x\nconversations:\n- - Yes?\n  - no\n- - 3 + 4\n  - 7\n- - alone\n"
    )
    found = examples.read(yml, "dialogue")
    assert [e.messages[-1]["content"] for e in found.examples] == ["no", "7"]  # neither False nor a number
    assert dict(found.left_out) == {"of fewer than two turns": 1}
    woz = {"7": {"messages": [{"role": "usr", "content": "你好"}, {"role": "sys", "content": "您好"}]}}
    said = examples.read(written(tmp_path / "w.json", json.dumps(woz)), "dialogue").examples[0].messages
    assert [m["role"] for m in said] == ["user", "assistant"]


def test_leaks_and_repeats_go_from_training_alone() -> None:
    def of(*pairs: tuple[str, str]) -> examples.Read:
        return examples.Read([Example(f"f:{n}", a, (b,)) for n, (a, b) in enumerate(pairs)])

    kept, told = checks.checked(
        {"train": of(("a", "x"), ("a", "x"), ("b", "y"), ("c", "c")), "test": of(("b", "z"), ("b", "z"))}, "translation"
    )
    assert [e.source for e in kept["train"]] == ["a", "c"]
    assert len(kept["test"]) == 2
    assert told == [
        "train: 1 of 4 examples are there twice; once is kept",
        "test: 1 of 2 examples are there twice; all are kept: a score is of what is given",
        "train: 1 examples whose source stands in another split too are left out",
        "train: 1 of 2 targets are their source, letter for letter",
    ]


def test_references_of_another_language_are_refused() -> None:
    pytest.importorskip("py3langid")
    german = ["Ein Mann schläft in einem grünen Zimmer auf einer Couch.", "Zwei Hunde laufen über eine große Wiese."]
    read = examples.Read([Example("f", "A man sleeps.", (g,)) for g in german * 16])
    checks.checked({"test": read}, "translation", "de")
    with pytest.raises(DataError, match=r"references should be en, and of .* 0 are: de"):
        checks.checked({"test": read}, "translation", "en")


@given(st.lists(st.text(min_size=1, max_size=4), min_size=8, max_size=60).filter(lambda t: len(set(t)) > 2))
def test_a_source_never_stands_in_two_splits(texts: list[str]) -> None:
    whole = [Example(f"f:{n}", t, (str(n),)) for n, t in enumerate(texts)]
    found = records.divided(whole, ["valid", "test"])
    assert sum(map(len, found.values())) == len(whole)
    assert all(found.values())
    assert found == records.divided(whole, ["valid", "test"])
    assert {e.source for e in found["valid"]}.isdisjoint(e.source for e in found["test"])
    assert {e.source for e in found["train"]}.isdisjoint(e.source for split in ("valid", "test") for e in found[split])


def test_translations_of_one_source_are_one_item_of_the_test(tmp_path: Path) -> None:
    file = written(tmp_path / "a.tsv", "".join(f"s{n % 30}\tt{n}\n" for n in range(90)))
    made = records.made(
        {"train": file, "valid": None, "test": None}, Keys(), TaskConfig(kind="translation"), "pairs", None, tmp_path
    )
    kept = examples.read(str(made.folder / "test.jsonl"), "translation").examples
    assert [len(e.targets) for e in kept] == [3]
    assert kept[0].targets == tuple(f"t{n}" for n in range(90) if f"s{n % 30}" == kept[0].source)


def test_examples_that_all_ask_the_same_cannot_be_divided() -> None:
    with pytest.raises(DataError, match="1 different examples are too few for 3 splits"):
        records.divided([Example("f", "a", (str(n),)) for n in range(9)], ["valid", "test"])


def test_a_dialogue_that_does_not_fit_forgets_its_oldest_turns_and_never_the_system() -> None:
    own = tiny.bpe()
    said = [{"role": "system", "content": "Be brief."}]
    for n in range(12):
        said += [{"role": "user", "content": f"the quick fox {n}"}, {"role": "assistant", "content": "it jumps"}]
    whole, task = Example("f", "", ("it jumps",), messages=tuple(said)), TaskConfig(kind="dialogue")
    fitting = prompts.asked(prompts.fitted(whole, task, PLAIN, own, 80), task)
    assert fitting[0] == said[0]
    assert fitting[1]["role"] == "user"
    assert fitting[-1] == said[-2]
    assert len(chat.encode(own, chat.render(PLAIN, fitting, answer=True))[0]) <= 80
    longer = said[:1] + said[len(said) - len(fitting) - 2 : -1]
    assert len(chat.encode(own, chat.render(PLAIN, longer, answer=True))[0]) > 80
    parts = list(prompts.windows(whole, PLAIN, own, 80))
    assert [m for part in parts for m in part if m["role"] != "system"] == said[1:]
    assert all(part[0] == said[0] and part[-1]["role"] == "assistant" for part in parts)


@pytest.mark.parametrize("text", [tiny.ENGLISH * 9, tiny.CHINESE * 9])
def test_a_long_passage_loses_its_end_and_never_the_question(text: str) -> None:
    own, task = tiny.bpe(), TaskConfig(kind="qa")
    example = Example("f", "Who jumps?", ("fox",), context=text)
    fitting = prompts.fitted(example, task, PLAIN, own, 100)
    assert text.startswith(fitting.context)
    said = prompts.asked(fitting, task)
    assert said[0]["content"].endswith("Who jumps?")
    length = len(chat.encode(own, chat.render(PLAIN, said, answer=True))[0])
    assert 60 < length <= 100


def test_simple_rules_stand_beside_scores() -> None:
    pytest.importorskip("rouge_score")
    whole = [
        Example("f", "Dogs run fast. Cats sleep.", ("Dogs run fast.",)),
        Example("g", "猫睡了。狗跑了。", ("猫睡了。",)),
    ]
    task = TaskConfig(kind="summarization", target_language="zh")
    said = scores.rules(whole, task)
    assert said["lead-1"] == ["Dogs run fast.", "猫睡了。"]
    assert scores.measures(said["lead-1"], whole, task)["rouge1"].value == 100.0
    assert 0 < scores.measures(said["copy"], whole, task)["rouge1"].value < 100.0
    asked = Example("q", "谁睡了？", ("猫",), context="狗跑了。猫睡了。")
    assert scores.rules([asked], TaskConfig(kind="qa"))["nearest sentence"] == ["猫睡了。"]


def test_a_damaged_or_newer_card_is_refused(tmp_path: Path) -> None:
    file = tmp_path / card.FILE
    whole = card.contents(Card(TaskConfig(kind="qa", target_language="zh"), PLAIN))
    file.write_text(json.dumps(whole))
    assert card.read(tmp_path) == Card(TaskConfig(kind="qa", target_language="zh"), PLAIN)
    for change in ({"format_version": 2}, {"template": {"name": "mine"}}, {"task": {"kind": "cooking"}}, {"task": 3}):
        file.write_text(json.dumps(whole | change))
        with pytest.raises(ModelError, match=r"task\.json"):
            card.read(tmp_path)


SMALL = [
    *("model.hidden_size=32", "model.num_hidden_layers=1", "train.steps=8", "train.context=48", "train.dtype=float32"),
    *("train.global_batch_tokens=384", "train.compile=off", "tokenizer.vocab_size=320", "train.micro_batch_size=4"),
]


def run(*words: str, code: int = 0) -> Any:
    result = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=not code)
    if code:
        raise result.exception or AssertionError(result.output)
    assert result.exit_code == 0, result.output + result.stderr
    return [json.loads(line) for line in result.stdout.splitlines() if line.strip()]


@pytest.fixture(scope="module")
def translator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("translator")
    file = lines(folder / "a.jsonl", *({"source": f"number {n}", "target": f"数字 {n}"} for n in range(80)))
    said = run(
        *("finetune", "--task", "translation", "--data", file, "--from", "en", "--to", "zh"),
        *("--out", str(folder / "runs"), "--name", "t", "--both-ways", *SMALL),
    )[0]
    assert said["scores"]["items"] == 4
    assert said["scores"]["rules"]["copy"]["bleu"] < 100
    assert "tok:zh" in said["scores"]["how"]["bleu"]
    return folder / "runs" / "t"


def test_a_translator_learns_both_ways_and_answers_alike_in_every_company(translator: Path) -> None:
    told = json.loads((translator / "model" / card.FILE).read_text())["task"]
    assert told["both_ways"] is True
    assert told["target_language"] == "zh"
    kept = json.loads((translator / "eval.json").read_text())["tasks"]["translation"]
    assert len(kept["ci"]["chrf"]) == 2
    assert len((translator / "answers-translation.jsonl").read_text().splitlines()) == 4
    texts = ["number 3", "number 4 and 5 and 6", "7"]

    def translated(*words: str) -> list[dict[str, Any]]:
        return list(run("translate", str(translator), *words, "--max-new-tokens", "6")[0]["answers"])

    together = [r["answer"] for r in translated(*texts)]
    assert together == [translated(t)[0]["answer"] for t in texts]
    back = translated("数字 3", "--to", "en", "--from", "zh")
    assert set(back[0]) == {"source", "answer", "cut"}


def of_numbers(folder: Path, *more: str) -> list[str]:
    """A finetune command over 60 pairs, without a score."""
    file = lines(folder / "a.jsonl", *({"source": f"number {n}", "target": f"nombre {n}"} for n in range(60)))
    words = ["finetune", "--task", "translation", "--data", file, "--out", str(folder / "runs"), "--test-items", "0"]
    return [*words, *SMALL, *more]


@pytest.mark.slow
def test_two_processes_learn_the_same(tmp_path: Path) -> None:
    alone = run(*of_numbers(tmp_path, "--name", "alone"))[0]
    both = run(*of_numbers(tmp_path, "--name", "both", "--nproc", "2"))[0]
    assert both["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_a_run_goes_on_with_the_same_command(tmp_path: Path) -> None:
    words = of_numbers(tmp_path, "--name", "t")
    begun = run(*words, "--begin-only")[0]
    assert (Path(begun["run"]) / "plan.json").exists()
    assert not (Path(begun["run"]) / "measured.json").exists()
    first = run(*words, "--resume")[0]
    (tmp_path / "runs" / "t" / "measured.json").unlink()  # as if it had been ended before the last line
    again = run(*words, "--resume")[0]  # refused where the same examples were other data
    assert again["loss"] == first["loss"]
    page = tmp_path / "runs" / "t" / "report.html"
    assert "chrf" not in page.read_text()
    run("evaluate", str(page.parent), "--task", "translation", "--data", str(tmp_path / "a.jsonl"), "--limit", "3")
    assert "chrf" in page.read_text()  # a later score is on the page too


def test_a_model_is_not_asked_for_what_it_cannot(translator: Path) -> None:
    with pytest.raises(ConfigError, match="was tuned for translation, not for summarization"):
        run("summarize", str(translator), "text", code=2)
    with pytest.raises(ConfigError, match="--task cooking: there are translation"):
        run("evaluate", str(translator), "--data", "x", "--task", "cooking", code=2)


def test_a_decoder_learns_turns_and_is_talked_with(tmp_path: Path) -> None:
    turns = [[{"role": "user", "content": f"say {n}"}, {"role": "assistant", "content": str(n)}] for n in range(60)]
    file = lines(tmp_path / "d.jsonl", *({"messages": t} for t in turns))
    out = str(tmp_path / "runs")
    made_of = ("finetune", "--task", "dialogue", "--data", file, "--out", out, "--name", "d", "--test-items", "0")
    run(*made_of, *SMALL, "train.context=96")
    told = json.loads((tmp_path / "runs" / "d" / "model" / card.FILE).read_text())
    assert told["template"]["name"] == "plain"
    said = run("chat", f"{out}/d", "--message", "say 3", "--max-new-tokens", "4", "--system", "Be brief.")[0]
    assert said["turns_dropped"] == 0
    again = run("chat", f"{out}/d", "--message", "say 3", "--max-new-tokens", "4", "--system", "Be brief.")[0]
    assert said == again
    questions = [{"question": "Who?", "context": f"It is {n}.", "answers": [{"text": str(n)}]} for n in range(40)]
    file = lines(tmp_path / "q.jsonl", *questions)
    made = run(
        *("finetune", "--task", "qa", "--base", f"{out}/d", "--data", file, "--out", out, "--name", "q"),
        *("train.epochs=1", "train.context=96", "train.global_batch_tokens=384", "train.micro_batch_size=4"),
    )[0]
    assert {"exact_match", "f1"} <= made["scores"].keys()
    answer = run("ask", f"{out}/q", "Who?", "--passage", "It is 3.", "--max-new-tokens", "3")[0]
    assert answer["question"] == "Who?"
