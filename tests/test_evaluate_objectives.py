"""Scores of encoders and encoder-decoders at what they learn: against plain sums, and on several processes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from ranks import on
from tiny import CHINESE, ENGLISH, byte_level

from foretell import tokenizer
from foretell.config import ModelConfig, ParallelConfig
from foretell.data import Document, objectives
from foretell.data.records import BETWEEN, Rejected
from foretell.distributed.placed import Placed
from foretell.errors import DataError
from foretell.evaluate import evaluate_objective, evaluate_texts
from foretell.evaluate.objective import Texts
from foretell.models.model import Model, made

CONTEXT = 32
PAIRS = [(ENGLISH[n : n + 5 + n % 11].strip(), CHINESE[: 3 + n % 7].strip()) for n in range(19)]
OWN = tokenizer.added(byte_level(), ["[MASK]", *(f"<extra_id_{n}>" for n in range(100))])
V = OWN.vocab_size + 4  # of which tensor parallelism makes two halves
KINDS = {"masked": "bert", "span_corruption": "t5", "seq2seq": "marian"}


def config(objective: str) -> ModelConfig:
    keys = {"model_type": KINDS[objective], "hidden_size": 64, "num_hidden_layers": 2, "initializer_range": 0.5}
    return ModelConfig.model_validate(keys).resolved(V, CONTEXT)


def model(objective: str) -> Model:
    m = made(config(objective))
    m.initialise(0)
    return m.eval()


def texts(objective: str) -> Texts:
    if objective == "seq2seq":
        return Texts(OWN, tuple(BETWEEN.join(p) for p in PAIRS), True)
    return Texts(OWN, (ENGLISH * 3, CHINESE * 3, ENGLISH), False)


@torch.no_grad()
def test_targets_of_pairs_are_scored_as_each_alone() -> None:
    m: Any = model("seq2seq")
    end = OWN.eot_id or 0
    nll, tokens, right, size = 0.0, 0, 0, 0
    for source, target in PAIRS:
        s, t = torch.tensor([[*OWN.encode(source), end]]), torch.tensor([[*OWN.encode(target), end]])
        assert max(s.shape[1], t.shape[1]) <= CONTEXT
        logits = m(s, torch.cat([torch.tensor([[end]]), t[:, :-1]], 1))[0]
        nll += F.cross_entropy(logits, t[0], reduction="sum").item()
        right += int((logits.argmax(1) == t[0]).sum())
        tokens, size = tokens + t.shape[1], size + len(target.encode())
    found = evaluate_texts(m, OWN, [Document(BETWEEN.join(p), "a", 0) for p in PAIRS], has_pairs=True, context=CONTEXT)
    assert found["tokens"] == tokens
    assert found["bytes"] == size
    assert found["loss"] == pytest.approx(nll / tokens, rel=1e-5)
    assert found["bits_per_byte"] == pytest.approx(nll / size / torch.log(torch.tensor(2.0)).item(), rel=1e-5)
    assert found["accuracy"] == pytest.approx(right / tokens)
    assert found["objective"] == "seq2seq"


@torch.no_grad()
def test_hidden_tokens_are_scored_from_all_others() -> None:
    m: Any = model("masked")
    data = texts("masked")
    found = evaluate_objective(m, data, "", "masked", context=CONTEXT, batch_size=3)
    n = objectives.count(data, "", "masked", CONTEXT)
    rows = objectives.rows("masked", data, "", seed=0, step=0, batch_size=n, context=CONTEXT)
    logits = m(torch.from_numpy(rows.inputs))
    expected = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(rows.targets).flatten())
    assert found["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert found["tokens"] == n * objectives.masked_count(CONTEXT)
    assert found == evaluate_objective(m, data, "", "masked", context=CONTEXT, batch_size=3)


def on_rank(objective: str, parallel: dict[str, Any]) -> dict[str, Any]:
    placed = Placed(config(objective), ParallelConfig(**parallel), CONTEXT, seed=0)
    data = texts(objective)
    return evaluate_objective(placed.model, data, "", objective, context=CONTEXT, batch_size=4, crew=placed)


@pytest.mark.parametrize("parallel", [{"dp_shard": 2}, {"tp": 2}], ids=str)
@pytest.mark.parametrize("objective", list(KINDS))
def test_processes_together_score_as_one(objective: str, parallel: dict[str, Any]) -> None:
    alone = evaluate_objective(model(objective), texts(objective), "", objective, context=CONTEXT, batch_size=4)
    assert alone["loss"] > 0.5
    for found in on(2, on_rank, objective, parallel):
        assert {k: found[k] for k in ("tokens", "bytes", "documents")} == {
            k: alone[k] for k in ("tokens", "bytes", "documents")
        }
        assert found["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert found["accuracy"] == pytest.approx(alone["accuracy"])


def test_what_cannot_be_read_is_told() -> None:
    m: Any = model("masked")
    good, bad = Document(ENGLISH, "a", 0), Rejected("b", 7, "bad byte")
    assert evaluate_texts(m, OWN, [good, bad])["first_quarantined"] == "b, byte 7: bad byte"
    with pytest.raises(DataError, match="bad byte"):
        evaluate_texts(m, OWN, [bad])
    with pytest.raises(DataError, match=r"tokenizer\.objective=masked"):
        evaluate_texts(m, byte_level(), [good])
