"""The forecast on a cluster: what it says of known runs, what it refuses, and that the search finds what fits."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from foretell import config as run_config
from foretell.cli import app
from foretell.config import RunConfig
from foretell.errors import ConfigError, PlanError
from foretell.plan import abroad, models, ranks, search

CONFIGS = Path(__file__).parent.parent / "configs"


def cluster(*keys: str, model: str = "llama3-8b", nodes: int = 8) -> RunConfig:
    own = [f"model.preset={model}", "cluster.hardware=h100-sxm", f"cluster.nodes={nodes}", "train.optimizer=adamw"]
    return run_config.load(None, [*own, "train.context=2048", *keys])


def test_405b_on_16384_devices() -> None:
    c = run_config.load(CONFIGS / "llama3-405b-16384.toml")
    p = abroad.forecast(c)
    assert p["parameters"]["total"] == 405_853_388_800
    assert p["flops_by_convention"]["6n"] * p["tokens"] == pytest.approx(3.8e25, rel=0.01)  # as its paper says
    assert p["step_seconds"]["value"] == pytest.approx(sum(p["step_parts"].values()))
    assert p["goodput"]["mtbf_seconds"] == pytest.approx(3.09 * 3600, rel=0.01)
    assert p["serving"]["cache_bytes_per_token"] == 2 * 126 * 2 * 8 * 128
    assert p["fits"]


def test_a_dense_model_has_the_collectives_of_the_reference() -> None:
    # FSDP over 64 ranks: two gathers of each layer in bfloat16, one of what is outside; reference: 30.0197 GB.
    p = abroad.forecast(cluster("train.global_batch_tokens=131072", "train.tokens=1_000_000_000"))
    layers, outer = 32 * 218_112_000, 2 * 128_256 * 4096 + 4096
    assert p["comm_exact"]
    assert p["comm_bytes"]["fsdp"]["all_gather"] == 2 * 2 * layers + 4 * outer
    assert p["comm_bytes"]["fsdp"]["reduce_scatter"] == 4 * (layers + outer)


@pytest.mark.parametrize("name", ["gpt3-175b", "bert-large", "t5-11b", "deepseek-v3", "qwen3-30b-a3b"])
def test_every_kind_of_model_can_be_planned(name: str) -> None:
    c = cluster("parallel.recompute=full", "train.global_batch_tokens=4194304", model=name, nodes=64)
    p = abroad.forecast(c)
    assert p["parameters"]["total"] == models.preset(name).parameters["total"]
    assert p["step_seconds"]["low"] < p["step_seconds"]["value"] < p["step_seconds"]["high"]
    assert sum(p["comm_bytes"]["fsdp"].values()) > 0
    json.dumps(p)


def test_states_are_divided_over_all_ranks_that_hold_a_copy() -> None:
    a = models.preset("llama3-8b")
    for keys in ("parallel.tp=2", "parallel.pp=4", "parallel.tp=4 parallel.pp=2", "parallel.dp_replicate=2"):
        c = cluster(*keys.split(), "train.global_batch_tokens=4194304", "train.micro_batch_size=1")
        p = abroad.forecast(c)
        copies, total = p["layout"]["dp_replicate"], a.parameters["total"]
        by_stage = p["memory_by_stage"]
        ranks_a_stage = 64 // copies // len(by_stage)
        assert sum(row["weights"] for row in by_stage) * ranks_a_stage == pytest.approx(4 * total, rel=1e-3)
        assert all(row["optimizer"] == 2 * row["weights"] for row in by_stage)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["parallel.tp=3"], "does not divide the 64 processes"),
        (["parallel.tp=16"], "num_key_value_heads (8) must be a multiple of parallel.tp = 16; the next is 16"),
        (["train.global_batch_tokens=300000"], "nearest: 262,144"),
        (["train.global_batch_tokens=1048576", "train.micro_batch_size=3"], "(3) must divide the 8 sequences"),
        (["train.context=16384"], "exceeds what llama3-8b was made for (8,192)"),
        (["cluster.hardware=h100-sxn"], "h100-sxm"),
        (["model.preset=llama3-8"], "did you mean llama3-8b?"),
    ],
)
def test_what_cannot_work_says_which_number_and_the_nearest_that_does(keys: list[str], said: str) -> None:
    with pytest.raises((ConfigError, PlanError)) as e:
        abroad.forecast(cluster(*keys))
    assert said in str(e.value)


def test_what_does_not_fit_says_by_how_much_and_what_would() -> None:
    keys = ["train.global_batch_tokens=2097152", "train.micro_batch_size=8"]
    p = abroad.forecast(cluster(*keys))
    assert not p["fits"]
    assert "a rank needs" in p["why_not"]
    change = p["why_not"].partition("fits with ")[2].split(" or ")[0]
    assert abroad.forecast(cluster(*keys, change))["fits"]


def test_the_search_finds_layouts_that_fit_and_their_commands_give_them() -> None:
    c = cluster("train.global_batch_tokens=1048576", nodes=4)
    found = search.search(c)
    times = [row["step_seconds"]["value"] for row in found["layouts"]]
    assert times == sorted(times)
    assert found["fitting"] + found["left_out"].get("does not fit", 0) == found["tried"]
    for row in found["layouts"][:3]:
        p = abroad.forecast(cluster("train.global_batch_tokens=1048576", *row["command"].split(), nodes=4))
        assert p["fits"]
        assert p["step_seconds"]["value"] == pytest.approx(row["step_seconds"]["value"])
        assert p["memory_bytes"]["peak"]["value"] == pytest.approx(row["memory_bytes"])


def test_the_search_says_when_nothing_fits() -> None:
    with pytest.raises(PlanError, match=r"fits 8 x .* in no layout: the smallest peak"):
        search.search(cluster("train.global_batch_tokens=262144", model="llama3-405b", nodes=1))


def test_the_fullest_stage_is_among_those_that_are_looked_at() -> None:
    a = models.preset("llama3-70b")
    for schedule in ("1f1b", "gpipe", "interleaved", "zero-bubble"):
        c = cluster(f"parallel.schedule={schedule}", "parallel.pp=8", "train.global_batch_tokens=2097152")
        d = abroad.layout.degrees(c.parallel, 64)
        done = abroad.complete(c, a, abroad.hardware.load("h100-sxm"), d)
        every = ranks.memory_bytes(a, done.parallel, done.train, d)
        assert ranks.peak_bytes(a, done.parallel, done.train, d) == max(row["peak"] for row in every)


def run(*words: str) -> Any:
    return CliRunner().invoke(app, ["plan", *words])


def test_the_verb_shows_and_prints() -> None:
    shown = run(str(CONFIGS / "llama3-405b-16384.toml")).stdout
    for word in ("405,853,388,800 parameters", "16,384 devices", "pipeline bubble", "counted exactly", "device-hours"):
        assert word in shown
    found = run("model.preset=gpt2", "cluster.hardware=a100-80gb", "train.global_batch_tokens=524288", "--search")
    assert "layouts fit" in found.stdout
    assert "needs cluster.hardware" in str(run("model.preset=gpt2").exception)


def test_the_search_leaves_out_what_would_form_layers_again_for_each_weight() -> None:
    c = cluster(
        "train.global_batch_tokens=1048576", "parallel.schedule=zero-bubble", "parallel.recompute=full", nodes=4
    )
    rows = search.search(c, shown=10_000)["layouts"]
    assert any(row["schedule"] == "zero-bubble" for row in rows)
    assert not any(row["schedule"] == "zero-bubble" and row["recompute"] != "none" for row in rows)
    with pytest.raises(ConfigError, match="forms a layer again for each of its weights"):
        abroad.forecast(cluster("parallel.pp=2", "parallel.schedule=zero-bubble", "parallel.recompute=full"))
