"""Texts with labels and questions with answers: read, laid out in rows, learned, and what is said of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from counted import foretold, seen
from ranks import on
from runs import trained
from training import MACHINE

from foretell import config as run_config
from foretell import tokenizer
from foretell.config import DataConfig, ModelConfig, TokenizerConfig
from foretell.data import Data, objectives, open_data, prepare, windows
from foretell.data.windows import CHOICE, REAL, SECOND
from foretell.distributed import record
from foretell.errors import ConfigError, DataError, ModelError
from foretell.models import hf, source
from foretell.models.encoder import Encoder
from foretell.plan.communication import collectives
from foretell.tasks.classification import label_logits
from foretell.tasks.extractive import spans
from foretell.tokenizer import Tokenizer
from foretell.train import begin, train

NAMES = ["Anna", "Bo", "Carl", "Dora", "Emil", "李雷", "韩梅"]
PLACES = ["Paris", "Rome", "Oslo", "Bern", "北京", "上海"]
CONTEXT = 48
KEYS = [
    *(f"train.context={CONTEXT}", "train.micro_batch_size=8", f"train.global_batch_tokens={16 * CONTEXT}"),
    *("train.dtype=float32", "train.compile=off", "train.attention=sdpa", "train.dropout=0", "train.eval_tokens=2000"),
    *("model.hidden_size=64", "model.num_hidden_layers=2", "train.save_every=1000", "train.eval_every=1000"),
]


def texts(n: int = 240) -> list[dict[str, Any]]:
    """A text says who is where; its label is the place."""
    return [
        {"text": f"{NAMES[i % 7]} number {i} lives in {PLACES[i % 6]} now", "label": PLACES[i % 6]} for i in range(n)
    ]


def questions(n: int = 200) -> list[dict[str, Any]]:
    """Contexts of several sentences, one of which says where somebody lives; every fifth does not."""
    found = []
    for i in range(n):
        sentences = [f"{PLACES[(i * 5 + k) % 6]} is far, {i * 10 + k} miles." for k in range(6)]
        answer, place = PLACES[(i * 7 + 3) % 6], i % 6
        if i % 5:
            sentences[place] = f"{NAMES[i % 7]} lives in {answer} now."
        context = "  " + " ".join(sentences)
        start = context.find(" lives in ") + len(" lives in ")
        answers = [{"text": answer, "answer_start": start}] if i % 5 else []
        found.append({"question": "Where is the house?", "context": context, "answers": answers})
    return found


def lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def wordpiece() -> Tokenizer:
    every = [r["text"] for r in texts()] + [r["context"] + r["question"] for r in questions()]
    return tokenizer.train(every, "wordpiece", 400)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, wordpiece: Tokenizer) -> dict[str, Data]:
    folder = tmp_path_factory.mktemp("data")
    wordpiece.save(folder / "tokenizer.json")
    own = TokenizerConfig(path=str(folder / "tokenizer.json"))
    made = {}
    for kind, rows in (("labels", texts()), ("spans", questions())):
        config = DataConfig(format=kind, valid_fraction=0.2, test_fraction=0.0)  # type: ignore[arg-type]
        prepare([str(lines(folder / f"{kind}.jsonl", rows))], folder / kind, own, config, workers=1)
        made[kind] = open_data(folder / kind)
    return made


def drawn(data: Data, objective: str, count: int, context: int = CONTEXT, split: str = "train") -> objectives.Rows:
    return objectives.rows(objective, data, split, seed=1, step=0, batch_size=count, context=context)


def test_rows_of_labels_are_what_transformers_makes(data: dict[str, Data], wordpiece: Tokenizer) -> None:
    own = data["labels"]
    labels = own.index["task"]["labels"]
    assert labels == sorted(PLACES)
    n = objectives.count(own, "train", "labels", CONTEXT)
    rows = drawn(own, "labels", n)
    seen = {}
    for ids, marks, (label,) in zip(rows.inputs, rows.marks, rows.targets, strict=True):  # type: ignore[arg-type]
        seen[tuple(ids[marks > 0].tolist())] = labels[label]
        assert set(marks.tolist()) <= {0, REAL}
    read = Tokenizer(wordpiece.inner, "wordpiece", wordpiece.eot_id, wordpiece.bos_id)
    expected = {
        tuple(read.inner.encode(r["text"]).ids): r["label"] for r in texts()
    }  # [CLS] text [SEP] by its template
    assert len(seen) == n
    assert all(expected[ids] == label for ids, label in seen.items())
    again = drawn(own, "labels", n).inputs
    assert np.array_equal(again, rows.inputs)
    short = rows.by_length().part(slice(n - 3, n)).trimmed()
    assert short.inputs.shape[1] % 8 == 0
    assert short.inputs.shape[1] < CONTEXT
    assert np.array_equal(drawn(own, "labels", 1, 8).inputs[0, 1:7], rows.inputs[0, 1:7])  # cut, between its marks


@pytest.mark.parametrize("stride", [None, 5])
def test_windows_are_those_of_transformers(
    tmp_path: Path, data: dict[str, Data], wordpiece: Tokenizer, stride: int | None
) -> None:
    transformers = pytest.importorskip("transformers")
    wordpiece.save(tmp_path / "tokenizer.json")
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "tokenizer.json"), cls_token="[CLS]", sep_token="[SEP]", pad_token="[PAD]"
    )
    record = max(questions(), key=lambda r: len(r["context"]))
    asked, ids = wordpiece.encode(record["question"]), wordpiece.encode(record["context"])
    room = CONTEXT - 3 - len(asked)
    step = stride or room // 2
    told = fast(
        *(record["question"], record["context"]),
        truncation="only_second",
        max_length=CONTEXT,
        stride=room - step,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_token_type_ids=True,
    )
    cut = windows.parts(len(ids), len(asked), CONTEXT, stride)
    assert len(cut) == len(told["input_ids"]) > 1
    _, places = wordpiece.located(record["context"])
    for n, (a, b) in enumerate(cut):
        row = windows.asked_row(wordpiece, np.array(asked), np.array(ids[a:b]), CONTEXT)
        assert row.tokens.tolist() == told["input_ids"][n]
        assert ((row.marks & SECOND) > 0).astype(int).tolist() == told["token_type_ids"][n]
        there = [tuple(p) for p in told["offset_mapping"][n][row.begins : -1]]
        assert [tuple(p) for p in places[a:b].tolist()] == there


def test_targets_of_spans_say_the_answer(data: dict[str, Data], wordpiece: Tokenizer) -> None:
    own, found = data["spans"], 0
    n = objectives.count(own, "train", "spans", CONTEXT)
    assert n > len(own.document_ends("train"))  # long contexts have several windows
    rows = drawn(own, "spans", n)
    assert rows.marks is not None
    for ids, marks, (first, last) in zip(rows.inputs, rows.marks, rows.targets, strict=True):
        assert marks[first] & CHOICE
        assert marks[last] & CHOICE
        if first:
            found += 1
            answer = wordpiece.decode(ids[first : last + 1])
            assert answer in [p.lower() if p.isascii() else " ".join(p) for p in PLACES]
            assert wordpiece.decode(ids[first - 1 : first]) in ("in", "")  # or a window begins there
        assert first <= last
    documents = len(own.document_ends("train"))
    assert 0.7 * documents < found < n


def test_a_context_is_in_one_split_alone(data: dict[str, Data]) -> None:
    own, contexts = data["spans"], []
    for split in ("train", "valid"):
        tokens, start, seen = own.tokens(split)[:], 0, set()
        for end in own.document_ends(split).tolist():
            both = tokens[start:end].tolist()
            seen.add(tuple(both[both.index(own.tokenizer.eot_id) :]))
            start = end
        contexts.append(seen)
    assert all(contexts)
    assert not contexts[0] & contexts[1]


def test_what_is_wrong_with_a_record_is_said(tmp_path: Path, wordpiece: Tokenizer) -> None:
    wordpiece.save(tmp_path / "tokenizer.json")
    own = TokenizerConfig(path=str(tmp_path / "tokenizer.json"))
    bad = [
        {"text": "no label at all"},
        {"text": " ", "label": "Rome"},
        {"text": "far", "label": "Rom"},
    ]
    config = DataConfig(format="labels", labels=PLACES, test_fraction=0)
    result = prepare([str(lines(tmp_path / "a.jsonl", texts() + bad))], tmp_path / "a", own, config, workers=1)
    assert result["task"]["labels"] == PLACES
    reasons = [q["reason"] for q in open_data(tmp_path / "a").index["funnel"]["quarantine"]]
    assert reasons == ["no label", "an empty text", "label 'Rom' is not one of data.labels; the nearest is 'Rome'"]
    wrong = [
        {"question": "Who?", "context": "Anna is here.", "answers": [{"text": "Bo", "answer_start": 0}]},
        {"question": "Who?", "context": "Anna is here.", "answers": [{"text": "Anna"}]},
        {"question": "", "context": "Anna is here.", "answers": []},
    ]
    inside = {"question": "What?", "context": "Anna's houses", "answers": {"text": ["ouse"], "answer_start": [8]}}
    config = DataConfig(format="spans", test_fraction=0)
    rows = [*questions(), *wrong, inside]
    result = prepare([str(lines(tmp_path / "b.jsonl", rows))], tmp_path / "b", own, config, workers=1)
    reasons = [q["reason"] for q in open_data(tmp_path / "b").index["funnel"]["quarantine"]]
    assert "'Bo' is not at character 0 of its context, where 'An' is" in reasons[0]
    assert "answer_start" in reasons[1]
    assert reasons[2] == "an empty question"
    exact = wordpiece.located("Anna's houses")[1].tolist()
    assert result["task"]["inexact"] == int(not {8, 12} <= {p for pair in exact for p in pair})
    with pytest.raises(ConfigError, match=r"data.stride goes with data.format=spans"):
        prepare([str(tmp_path / "a.jsonl")], tmp_path / "c", own, DataConfig(format="labels", stride=4), workers=1)
    one = [{**r, "label": "Rome"} for r in texts(40)]
    with pytest.raises(DataError, match="1 labels"):
        prepare([str(lines(tmp_path / "d.jsonl", one))], tmp_path / "d", own, DataConfig(format="labels"), workers=1)


@pytest.mark.parametrize("kind", ["bpe", "bytes", "wordpiece", "word"])
def test_every_tokenizer_says_where_its_tokens_stand(kind: str) -> None:
    text = " 话说天下大势，Anna lives in 北京.\n"
    own = tokenizer.train([tiny.ENGLISH * 9, tiny.CHINESE * 9, text * 9], kind, 400)
    ids, places = own.located(text)
    assert ids.tolist() == own.encode(text)
    parts = [text[a:b] for a, b in places.tolist()]
    if kind == "bytes":
        assert [text.encode()[n : n + 1] in part.encode() for n, part in enumerate(parts)] == [True] * len(ids)
    else:
        said = [own.token_bytes(i).decode(errors="replace").strip().lower() for i in ids.tolist()]
        known = [(p.strip().lower(), s) for p, s in zip(parts, said, strict=True) if s and "\ufffd" not in s]
        assert len(known) > 5
        assert all(p == s for p, s in known)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, data: dict[str, Data]) -> dict[str, dict[str, Any]]:
    """A run of each head from nothing; the objective and the family follow from the data."""
    folder, made = tmp_path_factory.mktemp("runs"), {}
    for kind, steps, rate in (("labels", 60, 3e-3), ("spans", 100, 3e-3)):
        config = run_config.load(None, [*KEYS, f"train.steps={steps}", f"train.lr={rate}", "train.optimizer=adamw"])
        made[kind] = train(config, data[kind], folder / kind, machine=MACHINE)
    return made


def test_labels_are_learned_and_said(runs: dict[str, dict[str, Any]], data: dict[str, Data]) -> None:
    result = runs["labels"]
    assert result["loss"] < 0.3
    assert result["bits_per_byte"] is None
    config = run_config.load(Path(result["run"]) / "config.toml")
    assert (config.model.model_type, config.train.objective) == ("bert", "labels")
    model, own = source.load(Path(result["run"]))
    asked = [r["text"] for r in texts(300)[240:]] + ["Anna is in Rome " * 40]
    found = label_logits(model, own, asked)
    assert found.shape == (61, 6)
    named = [model.config.labels[n] for n in found.argmax(1)]  # type: ignore[index]
    right = [r["label"] for r in texts(300)[240:]]
    assert np.mean([a == b for a, b in zip(named, right, strict=False)]) > 0.9
    for tokens in (1, 40, 1 << 20):  # alone, some together, all together with a text of 48 tokens
        assert np.abs(label_logits(model, own, asked, batch_tokens=tokens) - found).max() < 1e-5 * np.abs(found).max()
    with pytest.raises(ModelError, match="head for spans"):
        spans(model, own, [("Who?", "Anna")])
    log = [json.loads(line) for line in (Path(result["run"]) / "log.jsonl").read_text().splitlines()]
    assert [e["accuracy"] > 0.9 for e in log if e["event"] == "eval"] == [True]


def test_spans_are_learned_and_said(runs: dict[str, dict[str, Any]]) -> None:
    model, own = source.load(Path(runs["spans"]["run"]))
    items, wanted = [], []
    for r in questions(230)[200:]:
        items.append((r["question"], r["context"]))
        wanted.append(r["answers"][0]["text"] if r["answers"] else "")
    found = spans(model, own, items, longest_answer=4)
    said = [f.text if f.score > f.null else "" for f in found]
    assert np.mean([a == b for a, b in zip(said, wanted, strict=True)]) > 0.8
    for f, (_, context) in zip(found, items, strict=True):
        assert context[f.start : f.end] == f.text == f.text.strip()
    for tokens in (1, 150):
        other = spans(model, own, items, longest_answer=4, batch_tokens=tokens)
        assert [f[:3] for f in other] == [f[:3] for f in found]
        assert np.allclose([f[3:] for f in other], [f[3:] for f in found], atol=1e-4)
    assert spans(model, own, [("Who?", "\u200d")])[0].text == ""


def test_the_best_span_is_that_of_all_pairs(runs: dict[str, dict[str, Any]]) -> None:
    """Every pair of tokens of every window, by the model's own logits, a row at a time."""
    model, own = source.load(Path(runs["spans"]["run"]))
    assert isinstance(model, Encoder)
    record = questions(206)[202]
    asked, (ids, places) = np.array(own.encode(record["question"])), own.located(record["context"])
    cut = windows.parts(len(ids), len(asked), CONTEXT, 7)
    best, null = (-np.inf, 0, 0), np.inf
    for a, b in cut:
        row = windows.asked_row(own, asked, ids[a:b], CONTEXT)
        types = torch.from_numpy((row.marks & SECOND > 0).astype(np.int64))[None]
        with torch.no_grad():
            scores = model(torch.from_numpy(row.tokens)[None], types)[0].numpy()
        null = min(null, scores[0].sum())
        for i in range(a, b):
            around = [min(i - c, d - 1 - i) for c, d in cut if c <= i < d]
            if min(i - a, b - 1 - i) < max(around):
                continue
            for j in range(i, min(i + 5, b)):
                score = scores[row.begins + i - a, 0] + scores[row.begins + j - a, 1]
                best = max(best, (float(score), i, j))
    (found,) = spans(
        model,
        own,
        [(record["question"], record["context"])],
        context=CONTEXT,
        stride=7,
        longest_answer=5,
        candidates=99,
    )
    assert found.score == pytest.approx(best[0], abs=1e-4)
    assert found.null == pytest.approx(float(null), abs=1e-4)
    told = record["context"][places[best[1], 0] : places[best[2], 1]]
    assert found.text == told.strip()


@pytest.mark.parametrize("head", ["bare", "tokens"])
def test_a_base_gets_a_new_head(tmp_path: Path, data: dict[str, Data], wordpiece: Tokenizer, head: str) -> None:
    config = ModelConfig(model_type="bert", hidden_size=64, num_hidden_layers=2).resolved(wordpiece.vocab_size, 64)
    base = Encoder(config, has_head=head == "tokens")
    base.initialise(0)
    hf.save(base, wordpiece, tmp_path / "base")
    keys = [k for k in KEYS if not k.startswith("model.")]
    given = run_config.load(None, [*keys, "train.steps=30", "train.lr=2e-3", f"train.base={tmp_path / 'base'}"])
    result = train(given, data["labels"], tmp_path / "run", machine=MACHINE)
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(np.log(6), abs=0.3)  # nothing is known yet
    assert result["loss"] < log[0]["loss"] - 0.5
    more = run_config.load(None, [*keys, "train.steps=2", "train.lr=1e-4", f"train.base={result['run']}"])
    train(more, data["labels"], tmp_path / "more", machine=MACHINE)
    first = json.loads((tmp_path / "more" / "log.jsonl").read_text().splitlines()[0])
    assert first["loss"] == pytest.approx(result["loss"], abs=0.05)  # its own head goes on
    with pytest.raises(ConfigError, match="a new one would learn nothing"):
        train(run_config.updated(given, lora={"rank": 4}), data["labels"], tmp_path / "lora", machine=MACHINE)
    if head == "bare":
        text = tmp_path / "text.txt"
        text.write_text("A text of its own. " * 300)
        own = TokenizerConfig(path=str(tmp_path / "base" / "tokenizer.json"))
        prepare([str(text)], tmp_path / "plain", own, DataConfig(), workers=1)
        with pytest.raises(ConfigError, match="no head"):
            train(given, open_data(tmp_path / "plain"), tmp_path / "bad", machine=MACHINE)
        other = run_config.load(None, [*keys, "train.objective=masked", "train.steps=2"])
        with pytest.raises(ConfigError, match=r"train.objective=masked is nothing for data.format=labels"):
            train(other, data["labels"], tmp_path / "worse", machine=MACHINE)


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("labels", "parallel.dp_shard=2"),
        pytest.param("spans", "parallel.dp_replicate=2", marks=pytest.mark.slow),
    ],
)
def test_a_new_head_is_the_same_in_two_processes(
    kind: str, layout: str, data: dict[str, Data], wordpiece: Tokenizer, tmp_path: Path
) -> None:
    base = Encoder(
        ModelConfig(model_type="bert", hidden_size=64, num_hidden_layers=2).resolved(wordpiece.vocab_size, 64)
    )
    base.initialise(0)
    hf.save(base, wordpiece, tmp_path / "base")
    own = data[kind]
    keys = [k for k in KEYS if not k.startswith("model.")]
    c = run_config.load(None, [*keys, "train.steps=4", "train.lr=2e-3", f"train.base={tmp_path / 'base'}", layout])
    c = run_config.updated(c, data={"source": str(own.path)})
    begin(c, own, tmp_path / "two", 2, machine=MACHINE)
    told = on(2, trained, tmp_path / "two", own.path, None)
    one = run_config.updated(c, parallel={"dp_shard": 1, "dp_replicate": 1})
    alone = train(one, own, tmp_path / "one", machine=MACHINE)
    assert told[0]["loss"] == pytest.approx(alone["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("labels", ["parallel.dp_shard=2", "train.dtype=bfloat16"]),
        pytest.param("labels", ["parallel.dp_replicate=2", "train.optimizer=muon"], marks=pytest.mark.slow),
        pytest.param("spans", ["parallel.dp_shard=2"], marks=pytest.mark.slow),
        pytest.param("spans", ["parallel.dp_shard=2", "train.dtype=bfloat16"], marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_two_processes_send_what_is_foretold(kind: str, keys: list[str], data: dict[str, Data], tmp_path: Path) -> None:
    own = data[kind]
    given = [*KEYS, "train.optimizer=adamw", "train.steps=3", "train.lr=1e-3", *keys]
    c = run_config.updated(run_config.load(None, given), data={"source": str(own.path)})
    begin(c, own, tmp_path / "run", 2, machine=MACHINE)
    told = on(2, trained, tmp_path / "run", own.path, None)
    assert told[0]["loss"] == told[1]["loss"] > 0
    kept = run_config.load(tmp_path / "run" / "config.toml")
    rows = collectives(kept.model, kept.train, kept.parallel, 2, evaluated=False)
    recorded = record.read(tmp_path / "run" / "collectives" / "rank-00000.json")
    assert seen((r.kind, r.group, r.count, r.bytes) for r in recorded) == foretold(r for r in rows if not r.outside)
    assert (tmp_path / "run" / "model" / "model.safetensors").exists()
