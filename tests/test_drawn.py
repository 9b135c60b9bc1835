"""Rows whose lengths and questions the text decides: what a run of them computes is what is foretold of it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from training import MACHINE

from foretell import config as run_config
from foretell import plan
from foretell.config import RunConfig
from foretell.data import Data, objectives, open_data, prepare
from foretell.plan import flops, models
from foretell.train import objectives as learned
from foretell.train import trial, tune
from foretell.train.alone import Alone
from foretell.train.loop import Job, gradient, loss_function

SIZES = ("model.hidden_size=64", "model.num_hidden_layers=2", "tokenizer.vocab_size=400", "data.test_fraction=0")
RUN = ("train.context=48", "train.micro_batch_size=4", "train.global_batch_tokens=768", "train.steps=16")
PATH = ("train.dtype=float32", "train.compile=off", "train.attention=products", "train.dropout=0")


def text(n: int) -> str:
    """Between one and some thirty words."""
    return " ".join(f"word{(n * 7 + k) % 50}" for k in range(1 + n * n % 31))


def record(kind: str, n: int) -> dict[str, Any]:
    if kind == "seq2seq":
        return {"source": text(n), "target": text(n + 3)}
    if kind == "labels":
        return {"text": text(n), "label": f"label {n % 3}"}
    return {"messages": [{"role": "user", "content": text(n)}, {"role": "assistant", "content": f"{n % 10}"}]}


def begun(kind: str, folder: Path, *keys: str) -> tuple[RunConfig, Data]:
    own = {
        "seq2seq": (
            "model.model_type=marian",
            "train.objective=seq2seq",
            "data.source_key=source",
            "data.target_key=target",
        ),
        "labels": ("data.format=labels", "tokenizer.kind=wordpiece"),
        "answers": ("data.format=chat", "data.chat_template=plain"),
    }[kind]
    c = run_config.load(None, [*SIZES, *RUN, *PATH, *own, *keys])
    file = folder / "text.jsonl"
    file.write_text("".join(json.dumps(record(kind, n)) + "\n" for n in range(300)))
    prepare([str(file)], folder / "data", c.tokenizer, c.data, workers=1)
    data = open_data(folder / "data")
    c = learned.fitting(c, data)
    return tune.counted(plan.completed(c, data.corpus, MACHINE)), data


def counted(c: RunConfig, data: Data, folder: Path) -> int:
    """FLOPs of all gradients of a run, by torch's counter."""
    model = tune.adapted(trial.built(c.model, 0.0, 0, "products"), c)
    job = Job(
        c.train, data, folder, c.data.packing, torch.float32, False, 0.0, 1.0, start=c.model.decoder_start_token_id
    )
    team = Alone(model)
    with FlopCounterMode(display=False) as counter:
        for step in range(c.train.needed("steps")):
            gradient(job, team, loss_function(job, team), step)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("kind", ["seq2seq", "labels", "answers"])
def test_flops_are_those_of_the_real_rows(kind: str, tmp_path: Path) -> None:
    c, data = begun(kind, tmp_path)
    drawn = learned.drawn(c, data)
    tokens = c.train.needed("steps") * c.train.needed("global_batch_tokens")
    real = counted(drawn, data, tmp_path)
    wanted = tokens * flops.run_flops_per_token(drawn.model, drawn.train)["full"]
    fused = 0.0  # attention inside conversations is torch's own kernel, of which the counter knows nothing
    if kind == "answers":
        fused = tokens / 48 * 3 * models.of_model(drawn.model).forward_flops(48)["attention_full"]
    # What attention computes goes with the square of a length, of which the mean is known alone.
    assert wanted - fused == pytest.approx(real, rel=0.03)
    blind = tokens * flops.run_flops_per_token(c.model, c.train)["full"]
    assert blind > 1.05 * wanted
    assert plan.plan(drawn, machine=MACHINE, corpus=data.corpus)["flops_total"] <= wanted


def test_what_a_micro_batch_asks_for_at_most_is_counted_by_hand(tmp_path: Path) -> None:
    c, data = begun("answers", tmp_path)
    drawn = learned.drawn(c, data)
    asked = []
    for step in range(16):  # 64 micro-batches, as many as are looked at
        rows = objectives.rows("answers", data, "train", seed=0, step=step, batch_size=16, context=48)
        asked += [int((rows.targets[i : i + 4] >= 0).sum()) for i in range(0, 16, 4)]
    assert (drawn.train.most_scored, drawn.train.row_tokens) == (max(asked), 48.0)
    assert drawn.train.row_scored == pytest.approx(sum(asked) / 256, abs=0.01)
    whole, own = (plan.plan(x, machine=MACHINE, corpus=data.corpus)["memory_bytes"] for x in (c, drawn))
    assert own["logits"] < whole["logits"]
    plain = run_config.updated(c, train={"objective": "next_token"})
    assert learned.drawn(plain, data) is plain
