"""Conversations and preferences: read, written in a template, packed, and learned: the answers alone."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import torch.nn.functional as F
from ranks import on
from safetensors.torch import load_file
from training import MACHINE

from foretell import config as run_config
from foretell import evaluate, tokenizer
from foretell.config import DataConfig, TokenizerConfig
from foretell.data import Data, answers, objectives, open_data, prepare
from foretell.data.answers import UNSCORED
from foretell.errors import ConfigError, DataError
from foretell.models import hf, source
from foretell.models.model import features
from foretell.tokenizer import chat
from foretell.train import begin, go_on, preference, train

CONTEXT = 64
KEYS = [
    *("train.steps=10", f"train.context={CONTEXT}", "train.micro_batch_size=2", "train.global_batch_tokens=256"),
    *("train.eval_every=5", "train.save_every=5", "train.dtype=float32", "train.compile=off", "train.lr=3e-3"),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama whose tokenizer knows the marks of chatml."""
    folder = tmp_path_factory.mktemp("base") / "model"
    own = tokenizer.added(tiny.bpe(), ["<|im_start|>", "<|im_end|>"])
    m = tiny.model(own.vocab_size, CONTEXT, model_type="llama")
    hf.save(m, own, folder, brought=hf.Chat(chat.CHATML, "", "<|im_end|>"))
    return folder


def prepared(folder: Path, base: Path, records: list[dict[str, Any]], **keys: Any) -> Data:
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    (folder / "talks.jsonl").write_text(lines, encoding="utf-8")
    c = DataConfig(**{"chat_template": "chatml", "valid_fraction": 0.2, "test_fraction": 0.0, **keys})
    own = TokenizerConfig(path=str(base / "tokenizer.json"))
    prepare([str(folder / "talks.jsonl")], folder / "data", own, c, workers=1)
    return open_data(folder / "data", check_digests=True)


def said(*turns: str) -> dict[str, Any]:
    return {"messages": [{"role": ("user", "assistant")[n % 2], "content": t} for n, t in enumerate(turns)]}


def talks() -> list[dict[str, Any]]:
    """Short and long ones, of one turn and of several, English and Chinese."""
    one = [said(f"What is {n}?", f"It is {n}.") for n in range(40)]
    two = [said(f"天下{n}？", "分久必合", "why?", f"the fox {n}") for n in range(20)]
    return one + two + [said("jump " * (30 * n + 1), "lazy dog") for n in range(4)]


def test_every_form_is_one_conversation(tmp_path: Path, base: Path) -> None:
    forms = [
        said("a question", "an answer"),
        {"prompt": "a question", "completion": "an answer"},
        {"instruction": "a question", "input": "", "output": "an answer"},
        {"prompt": said("a question")["messages"], "completion": [{"role": "assistant", "content": "an answer"}]},
        {"messages": [{"from": "human", "value": "a question"}, {"from": "gpt", "value": "an answer"}]},
    ]
    bad = [said("alone"), {"messages": [{"role": "tool", "content": "x"}]}, {"prompt": "x"}, {"messages": [3]}]
    data = prepared(tmp_path, base, [*forms, *bad, *talks()])
    funnel = data.index["funnel"]
    assert funnel["dropped"]["duplicate"] == 4
    assert [q["reason"].split(":")[0] for q in funnel["quarantine"]] == [
        *("no answer", "message 0 has the role 'tool'; there are system, user and assistant"),
        *("completion is absent, not a string", "message 0 is int, not an object"),
    ]
    assert data.conversations == "chat"


def test_the_bytes_beside_the_tokens_mark_the_answers(tmp_path: Path, base: Path) -> None:
    records = talks()
    data = prepared(tmp_path, base, records)
    expected = {
        ("".join(f"{m['content']}<|im_end|>" for m in r["messages"] if m["role"] == "assistant")) for r in records
    }
    found, names = set(), {i: t for t, i in data.tokenizer.inner.get_vocab(with_added_tokens=True).items()}
    for split in ("train", "valid"):
        start = 0
        for end in data.document_ends(split).tolist():
            tokens, marks = data.tokens(split)[start:end], data.answers(split)[start:end]
            pieces = [
                b"<|im_end|>" if names[t] == "<|im_end|>" else data.tokenizer.token_bytes(t) for t in tokens[marks == 1]
            ]
            found.add(b"".join(pieces).decode())
            assert (tokens[-1], marks[-1]) == (data.tokenizer.eot_id, 0)
            start = end
    assert found == expected


def test_packed_rows_hold_each_conversation_once(tmp_path: Path, base: Path) -> None:
    data = prepared(tmp_path, base, talks())
    n = objectives.count(data, "train", "answers", CONTEXT)
    ends = data.document_ends("train")
    assert n < len(ends)  # several share a row
    got = objectives.rows("answers", data, "train", seed=5, step=0, batch_size=n, context=CONTEXT)
    assert got.segments is not None
    rows = sorted(
        tuple(got.inputs[r][got.segments[r] == s].tolist())
        for r in range(n)
        for s in np.unique(got.segments[r])
        if (got.targets[r][got.segments[r] == s] != UNSCORED).any()
    )
    starts = [0, *ends.tolist()[:-1]]
    whole = [data.tokens("train")[a:b][:-1][:CONTEXT] for a, b in zip(starts, ends.tolist(), strict=True)]
    marks = [data.answers("train")[a:b][1 : CONTEXT + 1] for a, b in zip(starts, ends.tolist(), strict=True)]
    assert rows == sorted(tuple(t.tolist()) for t, m in zip(whole, marks, strict=True) if m.any())
    scored = sum(int(m.sum()) for m in marks)
    assert int((got.targets != UNSCORED).sum()) == scored
    again = objectives.rows("answers", data, "train", seed=5, step=1, batch_size=n, context=CONTEXT)
    assert sorted(map(tuple, again.inputs.tolist())) == sorted(map(tuple, got.inputs.tolist()))  # the next epoch
    assert again.inputs.tolist() != got.inputs.tolist()


def test_a_packed_row_says_what_its_conversations_say_alone(tmp_path: Path, base: Path) -> None:
    data = prepared(tmp_path, base, talks())
    model = source.load(base)[0]
    got = objectives.rows("answers", data, "train", seed=0, step=0, batch_size=4, context=CONTEXT)
    assert got.segments is not None
    with torch.no_grad():
        packed = features(model, torch.from_numpy(got.inputs), torch.from_numpy(got.segments))
        for row in range(4):
            for s in range(int(got.segments[row].max())):
                here = got.segments[row] == s
                alone = features(model, torch.from_numpy(got.inputs[row][here])[None])
                assert torch.allclose(packed[row][here], alone[0], atol=1e-4)


def test_answers_are_learned_and_scored(tmp_path: Path, base: Path) -> None:
    data = prepared(tmp_path, base, talks())
    model = source.load(base)[0]
    before = evaluate.evaluate_objective(model, data, "valid", "answers", context=CONTEXT, within=True)
    with torch.no_grad():  # by hand, conversation by conversation
        nats, count, start = 0.0, 0, 0
        for end in data.document_ends("valid").tolist():
            t = torch.from_numpy(data.tokens("valid")[start:end].astype(np.int64))[: CONTEXT + 1]
            asked = torch.from_numpy(data.answers("valid")[start:end].astype(bool))[1 : CONTEXT + 1]
            each = F.cross_entropy(model(t[None, :-1])[0], t[1:], reduction="none")[asked]  # type: ignore[arg-type]
            nats, count, start = nats + each.sum().item(), count + len(each), end
    assert before["tokens"] == count
    assert before["loss"] == pytest.approx(nats / count, rel=1e-5)
    c = run_config.load(None, [*KEYS, f"train.base={base}"])
    result = train(c, data, tmp_path / "run", machine=MACHINE)
    assert result["loss"] < before["loss"] - 0.5
    kept = run_config.load(tmp_path / "run" / "config.toml")
    assert (kept.train.objective, kept.data.packing) == ("answers", "within")
    assert source.open(tmp_path / "run").chat.template == chat.CHATML
    assert chat.recognise(source.open(tmp_path / "run").chat.template).name == "chatml"


def test_a_record_with_a_text_is_text_unless_told(tmp_path: Path, base: Path) -> None:
    records = [{**r, "text": f"text {n}"} for n, r in enumerate(talks())]
    assert prepared(tmp_path, base, records).conversations is None
    told = prepared(tmp_path, base, records, format="chat")
    assert told.conversations == "chat"


def test_what_does_not_go_with_conversations_is_named(tmp_path: Path, base: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs a chat template: .*--base.*chatml"):
        prepared(tmp_path, base, talks(), chat_template=None)
    with pytest.raises(ConfigError, match=r"there is no chat template 'chatm'"):
        prepared(tmp_path, base, talks(), chat_template="chatm")
    with pytest.raises(ConfigError, match=r"data.quality does not go with data.format=chat"):
        prepared(tmp_path, base, talks(), quality=True)
    data = prepared(tmp_path, base, talks())
    c = run_config.load(None, [*KEYS, f"train.base={base}", "train.objective=next_token"])
    with pytest.raises(ConfigError, match=r"train.objective=next_token is nothing for this data, which is chat"):
        train(c, data, tmp_path / "a", machine=MACHINE)
    with pytest.raises(DataError, match=r"no answer of the train split begins within 2 tokens"):
        answers.layout(data, "train", 2)


def test_a_template_that_wants_turns_quarantines_what_has_none(tmp_path: Path, base: Path) -> None:
    twice = {
        "messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, *said("c", "d")["messages"]]
    }
    data = prepared(tmp_path, base, [twice, *talks()], chat_template="gemma3")
    assert "has user and assistant in turn; message 2" in data.index["funnel"]["quarantine"][0]["reason"]


def choices() -> list[dict[str, Any]]:
    text = [{"prompt": f"Say {n}", "chosen": f"the fox {n}", "rejected": f"狗 {n % 7}"} for n in range(40)]
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "分"},
    ]
    ends = [[{"role": "assistant", "content": a}] for a in ("分久必合", "quick brown")]
    return [*text, {"prompt": turns, "chosen": ends[0][0]["content"], "rejected": ends[1]},
            {"chosen": [*turns, *ends[1]], "rejected": [*turns, *ends[0]]}]  # fmt: skip


def test_preferences_are_rows_two_by_two(tmp_path: Path, base: Path) -> None:
    bad = [{"prompt": "x", "chosen": "y", "rejected": "y"}, {"chosen": "a", "rejected": "b"}]
    data = prepared(tmp_path, base, [*choices(), *bad], format="preference")
    assert data.index["funnel"]["quarantined"] == 2
    n = objectives.count(data, "train", "dpo", CONTEXT)
    got = objectives.rows("dpo", data, "train", seed=1, step=0, batch_size=n, context=CONTEXT)
    assert got.document is not None
    assert (got.document[0::2] == got.document[1::2]).all()
    assert sorted(got.document[0::2].tolist()) == list(range(n // 2))
    texts = []
    for row in range(n):
        spoken = got.targets[row][got.targets[row] != UNSCORED]
        texts.append(data.tokenizer.decode(spoken[:-1].tolist()))  # without the mark that ends it
    pairs = set(zip(texts[0::2], texts[1::2], strict=True))

    def last(x: Any) -> str:
        return x if isinstance(x, str) else x[-1]["content"]

    assert pairs <= {(last(r["chosen"]), last(r["rejected"])) for r in choices()}
    assert len(pairs) == n // 2


def by_hand(model: Any, frozen: Any, rows: Any, beta: float) -> torch.Tensor:
    """The formula of trl's DPOTrainer for loss_type sigmoid, row by row."""

    def logps(m: Any, row: int) -> torch.Tensor:
        ids, labels = torch.from_numpy(rows.inputs[row]), torch.from_numpy(rows.targets[row])
        mask = labels != UNSCORED
        labels = labels.masked_fill(~mask, 0)
        each = torch.gather(m(ids[None])[0].log_softmax(-1), 1, labels[:, None])[:, 0]
        return (each * mask).sum()

    losses = []
    for chosen in range(0, len(rows.inputs), 2):
        pi = logps(model, chosen) - logps(model, chosen + 1)
        with torch.no_grad():
            ref = logps(frozen, chosen) - logps(frozen, chosen + 1)
        losses.append(-F.logsigmoid(beta * (pi - ref)))
    return torch.stack(losses).mean()


def test_loss_and_gradients_are_trls(tmp_path: Path, base: Path) -> None:
    from foretell.train.alone import Alone
    from foretell.train.objectives import tensors

    data = prepared(tmp_path, base, choices())
    frozen, model = source.load(base)[0], source.load(base)[0]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) * 0.02)
    c = run_config.load(None, [*KEYS, f"train.base={base}"])
    kept = preference.reference(Alone(frozen), c, data, tmp_path)["train"]
    rows = objectives.rows("dpo", data, "train", seed=0, step=0, batch_size=8, context=CONTEXT)
    loss_of = preference.Loss(Alone(model), 0.3, 5, kept)  # type: ignore[arg-type]
    loss = loss_of(tensors(rows, torch.device("cpu"), True, True))
    loss.backward()
    ours = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    expected = by_hand(model, frozen, rows, 0.3)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert abs(expected.item() - math.log(2)) > 1e-3
    for n, p in model.named_parameters():
        assert p.grad is not None
        assert (ours[n] - p.grad).abs().max() <= 1e-4 * p.grad.abs().max() + 1e-9, n
    assert set(loss_of.told()) == {"reward_margin", "reward_accuracy"}


def test_prepare_takes_tokenizer_and_template_from_a_base(tmp_path: Path, base: Path) -> None:
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in talks())
    (tmp_path / "talks.jsonl").write_text(lines, encoding="utf-8")

    def made(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "foretell.cli", "prepare", "talks.jsonl", "--out", "made", "--quiet", *more]
        return subprocess.run(
            [*command, "--base", str(base)], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    done = made("data.valid_fraction=0.2", "data.test_fraction=0")
    assert done.returncode == 0, done.stderr
    given, named = open_data(tmp_path / "made"), prepared(tmp_path, base, talks())  # by tokenizer.path and by name
    assert given.tokenizer.digest == source.open(base).tokenizer.digest
    assert given.index["conversations"]["name"] == "chatml"
    for split in ("train", "valid"):
        assert [list(t) for t in (given.tokens(split), given.answers(split))] == [
            list(t) for t in (named.tokens(split), named.answers(split))
        ]
    c = run_config.load(None, [*KEYS, f"train.base={base}", "train.steps=1"])
    train(c, given, tmp_path / "run", machine=MACHINE)
    done = made("tokenizer.vocab_size=500")
    assert done.returncode == 2
    assert "tokenizer.vocab_size has no effect with a base" in done.stderr


@pytest.mark.parametrize("how", [[], ["lora.rank=4"]])
def test_preferences_are_learned(tmp_path: Path, base: Path, how: list[str]) -> None:
    data = prepared(tmp_path, base, choices())
    c = run_config.load(None, [*KEYS, f"train.base={base}", "train.objective=dpo", *how])
    result = train(c, data, tmp_path / "run", machine=MACHINE)
    events = [json.loads(e) for e in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps, evals = ([e for e in events if e["event"] == kind] for kind in ("step", "eval"))
    assert steps[0]["loss"] == pytest.approx(math.log(2), rel=1e-5)  # the model is its base
    assert steps[-1]["reward_margin"] > 0.1
    assert evals[-1]["reward_accuracy"] == 1.0
    assert result["loss"] < math.log(2) - 0.1
    assert (tmp_path / "run" / preference.FILE).exists()


@pytest.mark.parametrize(
    "layout", [["parallel.dp_shard=2"], pytest.param(["parallel.dp_replicate=2"], marks=pytest.mark.slow)]
)
def test_preferences_are_learned_alike_by_two_processes(tmp_path: Path, base: Path, layout: list[str]) -> None:
    data = prepared(tmp_path, base, choices())
    for run, processes, how in (("one", 1, []), ("two", 2, layout)):
        c = run_config.load(None, [*KEYS, f"train.base={base}", "train.objective=dpo", "lora.rank=4", *how])
        begin(c, data, tmp_path / run, processes, machine=MACHINE)
        if run == "one":
            go_on(tmp_path / run, data, resume=True)
        else:
            on(2, _goes_on, tmp_path / run, data.path)
    one, two = (load_file(tmp_path / run / preference.FILE) for run in ("one", "two"))
    assert one.keys() == two.keys()
    assert all((one[split] - two[split]).abs().max() < 1e-3 for split in one)
    kinds = ("step", "eval")
    logs = [[json.loads(e) for e in (tmp_path / run / "log.jsonl").read_text().splitlines()] for run in ("one", "two")]
    first, second = ([e for e in log if e["event"] in kinds] for log in logs)
    assert len(first) == len(second)
    for key in ("loss", "reward_margin"):
        assert [e[key] for e in second] == pytest.approx([e[key] for e in first], rel=1e-3, abs=1e-4)
    assert second[-1]["reward_accuracy"] == 1.0
    plan, measured = (json.loads((tmp_path / "two" / f"{n}.json").read_text()) for n in ("plan", "measured"))
    assert measured["comm_step_bytes"] == plan["comm_step_bytes"]
    (adapted,) = {run.name for run in (tmp_path / "two").glob("adapter")}
    assert adapted == "adapter"


def _goes_on(run: Path, data: Path) -> None:
    go_on(run, open_data(data), resume=True)


def test_preferences_on_parts_of_a_tensor_are_refused(tmp_path: Path, base: Path) -> None:
    data = prepared(tmp_path, base, choices())
    for axis in ("tp", "pp"):
        c = run_config.load(None, [*KEYS, f"train.base={base}", "train.objective=dpo", f"parallel.{axis}=2"])
        with pytest.raises(ConfigError, match=rf"parallel.{axis} \(2\) cannot be had with train.objective=dpo"):
            begin(c, data, tmp_path / axis, 2, machine=MACHINE)


def test_preferences_want_a_base_and_even_batches(tmp_path: Path, base: Path) -> None:
    data = prepared(tmp_path, base, choices())
    alone = run_config.load(None, [*KEYS, "model.hidden_size=64", "model.num_hidden_layers=2"])
    with pytest.raises(ConfigError, match=r"holds a model to its base: give --base"):
        train(alone, data, tmp_path / "a", machine=MACHINE)
    odd = run_config.load(None, [*KEYS, f"train.base={base}", "train.micro_batch_size=1"])
    with pytest.raises(ConfigError, match=r"even train.micro_batch_size, which is 1"):
        train(odd, data, tmp_path / "b", machine=MACHINE)
