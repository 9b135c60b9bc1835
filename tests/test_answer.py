"""Targets that an encoder-decoder writes: what stands beside a source does not matter; the verb says the same."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import CHINESE, ENGLISH, byte_level

from foretell.config import ModelConfig
from foretell.errors import ConfigError
from foretell.generate import answer
from foretell.models import hf
from foretell.models.seq2seq import Seq2Seq

SOURCES = [ENGLISH[:30], CHINESE[:5], "", ENGLISH[10:16]]


@pytest.fixture(scope="module", params=["marian", "t5"])
def model(request: pytest.FixtureRequest) -> Seq2Seq:
    keys = {"model_type": request.param, "hidden_size": 64, "num_hidden_layers": 2}
    torch.manual_seed(0)
    made = Seq2Seq(ModelConfig.model_validate(keys).resolved(byte_level().vocab_size, 64))
    for p in made.parameters():
        if p.ndim > 1:
            torch.nn.init.normal_(p, 0.0, 1.5 * p.shape[-1] ** -0.5)
    return made.eval()


@pytest.mark.parametrize("options", [{}, {"temperature": 0.9, "top_p": 0.9, "seed": 4}], ids=str)
def test_a_source_gets_what_it_gets_alone(model: Seq2Seq, options: dict[str, Any]) -> None:
    together = answer(model, byte_level(), SOURCES, max_new_tokens=9, **options)
    assert [r["prompt"] for r in together] == SOURCES
    assert len({r["completion"] for r in together}) > 1 or not options
    # The number in the list names the generator, so only the first can be asked for alone.
    (alone,) = answer(model, byte_level(), SOURCES[:1], max_new_tokens=9, **options)
    told = ("completion", "tokens", "finish_reason")
    assert {k: alone[k] for k in told} == {k: together[0][k] for k in told}
    assert all((r["finish_reason"] == "length") == (r["tokens"] == 9) for r in together)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        answer(model, byte_level(), SOURCES, max_new_tokens=0)


def test_the_verb_writes_the_target(model: Seq2Seq, tmp_path: Path) -> None:
    hf.save(model, byte_level(), tmp_path / "m")

    def said(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "foretell.cli", "generate", str(tmp_path / "m"), *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    greedy = said("--prompt", SOURCES[0], "--temperature", "0", "--max-new-tokens", "9", "--json")
    (expected,) = answer(model, byte_level(), SOURCES[:1], max_new_tokens=9)
    assert json.loads(greedy.stdout)["completion"] == expected["completion"]
    refused = said("--prompt", "a", "--stop", "b")
    assert refused.returncode == 2
    assert "--stop" in refused.stderr
