"""The presets: each loads, can be completed into a run, and is of the size its name claims."""

import re
from pathlib import Path

import pytest
import torch

from foretell import config, plan, tokenizer
from foretell.models.model import made
from foretell.plan import flops

FOLDER = Path(__file__).parent.parent / "configs"
ALL = sorted(p.stem for p in FOLDER.glob("*.toml"))
CLUSTERS = [name for name in ALL if config.load(FOLDER / f"{name}.toml").cluster.hardware]
PRESETS = [name for name in ALL if name not in CLUSTERS]


def completed(name: str) -> config.RunConfig:
    return plan.completed(config.load(FOLDER / f"{name}.toml"), None)


def test_the_presets_are_there() -> None:
    assert {"tiny-1m", "small-10m", "base-30m", "large-100m", "chinese", "bytes"} <= set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_becomes_a_run(name: str) -> None:
    c = completed(name)
    assert c.train.steps
    assert c.train.global_batch_tokens
    if c.train.tokens:
        assert c.train.steps * c.train.global_batch_tokens == pytest.approx(c.train.tokens, rel=0.02)
    assert config.validate(c.model_dump()) == c


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_what_the_name_claims(name: str) -> None:
    """Counted on the model itself (without memory for it), not by the formula that the forecast uses."""
    model = completed(name).model
    with torch.device("meta"):
        built = sum(p.numel() for p in made(model).parameters())
    assert flops.parameters(model)["total"] == built
    if claim := re.search(r"-(\d+)m$", name):
        assert built == pytest.approx(int(claim[1]) * 1e6, rel=0.08)


def test_bytes_are_the_byte_tokenizer() -> None:
    c = completed("bytes")
    assert c.tokenizer.kind == "bytes"
    assert c.model.vocab_size == tokenizer.byte_tokenizer().vocab_size


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_can_be_planned(name: str) -> None:
    c = config.load(FOLDER / f"{name}.toml")
    found = plan.forecast_abroad(c)
    assert found["fits"]
    assert found["layout"]["world_size"] == int(name.rsplit("-", 1)[1])
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert "`foretell plan`" in text.split("\n[")[0]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_it_is_for(name: str) -> None:
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"foretell train configs/{name}.toml --data" in text or "benchmarks/" in text.splitlines()[0]
