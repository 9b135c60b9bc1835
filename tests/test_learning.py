"""Every family learns real text: the loss on held-out text falls far below that of guessing, and on after that."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training import MACHINE, TINY

from foretell import config as run_config
from foretell import runtime
from foretell.config import DataConfig, ModelConfig, TokenizerConfig, TrainConfig
from foretell.data import Data, open_data, prepare
from foretell.models import hf
from foretell.train import optim, train
from foretell.train.alone import Alone
from foretell.train.loop import Job, loss_function, scored, take_step
from foretell.train.saved import State
from foretell.train.trial import built

TEXT = Path(__file__).parent / "data" / "text"
_SIZES = {"hidden_size": 64, "num_hidden_layers": 2}
# Objective, what of the model, and nats that the loss must lose on held-out text.
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "qwen3": ("next_token", {}, 2.5),
    "qwen3 experts": ("next_token", {"num_experts": 4}, 2.5),
    "qwen3 experts, bias": ("next_token", {"num_experts": 4, "balance": "bias"}, 2.5),
    "qwen3, middles": ("fill_in_the_middle", {}, 2.5),
    "qwen3, prefixes": ("prefix", {}, 2.5),
    "llama": ("next_token", {"model_type": "llama"}, 2.5),
    "mistral": ("next_token", {"model_type": "mistral", "sliding_window": 16}, 2.5),
    "qwen2": ("next_token", {"model_type": "qwen2"}, 2.5),
    "gpt2": ("next_token", {"model_type": "gpt2"}, 2.5),
    "gemma3": ("next_token", {"model_type": "gemma3_text", "sliding_window": 16}, 2.5),
    "bert": ("masked", {"model_type": "bert"}, 2.0),
    "t5": ("span_corruption", {"model_type": "t5"}, 2.3),
    "t5 1.1": ("span_corruption", {"model_type": "t5", "hidden_act": "gated-gelu", "tie_word_embeddings": False}, 2.3),
    "marian": ("seq2seq", {"model_type": "marian"}, 2.0),
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Data]:
    """The text for each objective."""
    found: dict[str, Data] = {}
    plain = {"next_token": None, "prefix": None}
    for objective in ("next_token", "masked", "span_corruption", "fill_in_the_middle", "prefix", "seq2seq"):
        folder = tmp_path_factory.mktemp(objective) / "p"
        words = {"kind": "bytes"} if objective in ("seq2seq", *plain) else {"kind": "bytes", "objective": objective}
        pairs = {"source_key": "2", "target_key": "1"} if objective == "seq2seq" else {}
        source = TEXT / ("tatoeba.tsv" if pairs else "shakespeare.txt")
        prepare(
            [str(source)],
            folder,
            TokenizerConfig.model_validate(words),
            DataConfig.model_validate(pairs),
            workers=1,
        )
        found[objective] = open_data(folder)
    return found


@pytest.mark.parametrize("name", list(CASES))
def test_a_family_learns_real_text(name: str, prepared: dict[str, Data], tmp_path: Path) -> None:
    objective, keys, least = CASES[name]
    data = prepared[objective]
    torch.set_num_threads(1)
    model = ModelConfig.model_validate({**_SIZES, **keys}).resolved(data.tokenizer.vocab_size, 64)
    train_config = TrainConfig.model_validate(
        {"steps": 60, "context": 64, "micro_batch_size": 16, "global_batch_tokens": 1024, "dropout": 0.0}
        | {"objective": objective, "schedule": "constant", "save_every": 60, "eval_every": 60}
    )
    team = Alone(built(model, 0.0, seed=0))
    job = Job(train_config, data, tmp_path, "across", torch.float32, False, 0.0, 1.0)
    optimizers, loss_of, state = optim.build(team.named(), train_config), loss_function(job, team), State()
    losses = [scored(team, job, "valid", 4096)["loss"]]
    for _ in range(2):
        team.chunks.train()
        for _ in range(30):
            assert "skipped" not in take_step(job, team, loss_of, optimizers, state)
        losses.append(scored(team, job, "valid", 4096)["loss"])
    print(name, losses)
    assert losses[0] == pytest.approx(math.log(data.tokenizer.vocab_size), rel=0.1)
    assert losses[0] - losses[2] > least
    assert losses[2] < losses[1] - 0.005


@pytest.mark.parametrize("name", ["bert", "t5", "marian", "qwen3, prefixes"])
def test_a_run_goes_on_bit_for_bit_and_leaves_a_folder(name: str, prepared: dict[str, Data], tmp_path: Path) -> None:
    objective, keys, _ = CASES[name]
    words = [k for k in TINY if not k.startswith("train.steps")] + [f"train.objective={objective}", "train.steps=12"]
    words += [f"model.{k}={v}" for k, v in keys.items()]
    config, data = run_config.load(None, words), prepared[objective]
    result = train(config, data, tmp_path / "whole", machine=MACHINE)
    assert result["loss"] < math.log(data.tokenizer.vocab_size)

    class Stopped(Exception):
        pass

    def display(event: dict[str, Any]) -> None:
        if event["event"] == "step" and event["step"] == 7:
            raise Stopped

    with pytest.raises(Stopped):
        train(config, data, tmp_path / "broken", machine=MACHINE, display=display)
    again = train(config, data, tmp_path / "broken", machine=MACHINE, resume=True)
    assert again["resumed_from"] == 5
    assert again["loss"] == result["loss"]
    model, own = hf.load(tmp_path / "whole" / "model")
    other, _ = hf.load(tmp_path / "broken" / "model")
    assert own.digest == data.tokenizer.digest
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    runtime.seed_all(0)
