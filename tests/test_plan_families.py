"""The forecast of every family that is trained, against the model that is built: counts, weights, memory, bytes, time.

Truth comes from elsewhere: numel and torch's FlopCounterMode for counts, autograd's own saved tensors and the profiler
for memory, collectives recorded in real runs. What is Qwen3's must be what it was before other families came.
"""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on
from runs import trained
from test_communication import (
    SMALL,
    agree,
    data,  # noqa: F401
    rows_of_rank,
)
from test_plan import _live_peak_bytes as live_peak_bytes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from training import MACHINE

from foretell import config as run_config
from foretell import plan
from foretell.config import ModelConfig, TrainConfig
from foretell.data import open_data
from foretell.distributed import record, stages
from foretell.models.decoder import Decoder
from foretell.plan import flops, layout, memory, models, time
from foretell.plan.weights import stage_weights
from foretell.train import begin, loop, optim
from foretell.train.alone import Alone
from foretell.train.loss import next_token_loss

CONTEXT, V = 24, 90
_SIZES: dict[str, Any] = {"num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 56, "head_dim": 12}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen3": {**_SIZES, "num_key_value_heads": 2},
    "experts": {**_SIZES, "num_experts": 4, "num_experts_per_tok": 2, "balance": "bias", "norm_topk_prob": False},
    "gpt2": {**_SIZES, "model_type": "gpt2"},
    "llama": {**_SIZES, "model_type": "llama", "tie_word_embeddings": False},
    "mistral": {**_SIZES, "model_type": "mistral", "sliding_window": 9},
    "qwen2": {
        **_SIZES,
        "model_type": "qwen2",
        "sliding_window": 7,
        "layer_types": ("full_attention", "sliding_attention", "full_attention"),
    },
    "gemma3": {**_SIZES, "model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 6},
}
ALL = pytest.mark.parametrize("name", list(FAMILIES))


def model(name: str, **more: Any) -> ModelConfig:
    return ModelConfig.model_validate({"hidden_size": 40, **FAMILIES[name], **more}).resolved(V, CONTEXT)


def on_meta(c: ModelConfig) -> Decoder:
    with torch.device("meta"):
        return Decoder(c)


def test_no_family_is_left_out() -> None:
    from foretell.models import families

    assert {c["model_type"] for c in FAMILIES.values() if "model_type" in c} | {"qwen3"} == set(families.DECODERS)


@ALL
@given(
    st.sampled_from([24, 40, 72]),
    st.sampled_from([{}, {"tie_word_embeddings": False}, {"tie_word_embeddings": True}]),
    st.sampled_from([{}, {"head_dim": 20}, {"intermediate_size": 8}]),
    st.sampled_from([1, 7, CONTEXT]),
)
@settings(max_examples=6, deadline=None)
def test_parameters_and_flops_are_those_of_the_built_model(
    name: str, width: int, tied: dict[str, bool], more: dict[str, int], context: int
) -> None:
    c = model(name, hidden_size=width, **tied, **more)
    built = Decoder(c)
    count = flops.parameters(c)
    every = dict(built.named_parameters())
    tables = [p.numel() for n, p in every.items() if "embed_" in n or n == "lm_head.weight"]
    assert count["total"] == sum(p.numel() for p in every.values())
    assert count["non_embedding"] == count["total"] - sum(tables)
    places = ("embedding", "attention", "feed_forward", "norms", "head", "router")
    assert sum(count.get(k, 0) for k in places) == count["total"]
    norms = [p.numel() for n, p in every.items() if "norm" in n]
    assert (count["embedding"] + count["head"], count["norms"]) == (sum(tables), sum(norms))
    built.initialise(0)
    ids = torch.randint(0, V, (2, context))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        next_token_loss(Alone(built), ids, ids, None, None).backward()
    f = models.of_model(c).forward_flops(context)
    assert counter.get_total_flops() == 2 * 3 * (f["matrices"] + f["head"] + f["attention_full"])


@ALL
def test_a_window_leaves_each_token_the_keys_that_it_may_see(name: str) -> None:
    c = model(name)
    per_query = 3 * 4 * c.sizes.H * c.sizes.E
    pairs = [
        sum(min(t + 1, c.window(n) or CONTEXT) for t in range(CONTEXT)) for n in range(c.sizes.L)
    ]  # that meet in each layer
    found = flops.flops_per_token(c, CONTEXT)
    assert found["causal"] - found["full"] == pytest.approx(per_query * (sum(pairs) / CONTEXT - c.sizes.L * CONTEXT))


@ALL
@pytest.mark.parametrize("tied", [True, False])
def test_names_shapes_and_order_of_weights_are_the_models(name: str, tied: bool) -> None:
    c = model(name, tie_word_embeddings=tied, num_hidden_layers=4, layer_types=None)
    a = models.of_model(c)
    kinds = [layer for n, layer in a.kinds for _ in range(n)]
    for count in (1, 3):
        for stage, layers in enumerate(layout.stage_layers(4, count)):
            built = on_meta(c)
            stages.prune(built, stage, count)
            listed = list(stage_weights(a, layers, stage == 0, stage == count - 1))
            assert listed == [(name, tuple(p.shape)) for name, p in built.named_parameters()]
    for layer in kinds:
        for m in layer.matrices:
            splits = {"column": 0, "row": 1, "whole": None}
            dim = splits[m.split]
            how = layout.split(f"model.layers.0.{m.name}" + (".weight" if m.copies == 1 else ""))
            assert how.tp == (dim if dim is None or m.copies == 1 else dim + 1), m.name


@ALL
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", ["sdpa", "products"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("context", [5, CONTEXT])
def test_activations_are_what_autograd_saves(name: str, dtype: str, kernel: str, dropout: float, context: int) -> None:
    """Every distinct storage that autograd keeps up to the head, but for weights and their casts, and the tokens."""
    c = model(name)
    built = Decoder(c, dropout, kernel).train()
    built.initialise(0)
    B = 13
    ids = torch.randint(0, V, (B, context))
    own = {t.untyped_storage().data_ptr() for t in (*built.parameters(), *built.buffers())}
    weights = {p.numel() for p in built.parameters()} | {c.sizes.E}
    seen: dict[int, torch.Tensor] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        key = t.untyped_storage().data_ptr()
        cast = t.shape[0] != B and t.numel() in weights
        if key not in own and not cast and t.data_ptr() != ids.data_ptr():
            seen[key] = t
        return t

    with loop.autocast(getattr(torch, dtype)), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = built.hidden(ids).flatten(0, 1)
        built.lm_head(hidden)  # keeps its input
    kept = sum(t.untyped_storage().nbytes() for t in seen.values() if t.dtype != torch.int64 or name == "experts")
    train = TrainConfig(context=context, micro_batch_size=B, dtype=dtype, attention=kernel, dropout=dropout)
    expected = B * context * memory.saved_bytes_per_token(c, dtype, bool(dropout)) + memory.probability_bytes(c, train)
    assert kept == expected


@pytest.mark.parametrize(
    ("width", "micro", "batches", "chunk", "optimizer", "kernel"),
    [
        (64, 8, 1, None, "muon", "sdpa"),  # the loss
        (256, 1, 1, None, "muon", "sdpa"),  # the optimiser's workspace
        (128, 4, 2, 64, "adamw", "products"),  # the last layer
    ],
)
@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma3"])
def test_the_peak_of_live_tensors_is_torchs_within_one_percent(
    name: str, width: int, micro: int, batches: int, chunk: int | None, optimizer: str, kernel: str
) -> None:
    family = FAMILIES[name]
    windows = {"sliding_window": 32} if "sliding_window" in family else {}
    sizes = {"model_type": family["model_type"], "hidden_size": width, "num_hidden_layers": 2}
    c = ModelConfig.model_validate({**sizes, **windows}).resolved(512, 128)
    tokens = 128 * micro
    work = {"context": 128, "micro_batch_size": micro, "global_batch_tokens": tokens * batches}
    path = {"optimizer": optimizer, "attention": kernel, "dtype": "float32", "compile": "off"}
    train = TrainConfig.model_validate({**work, **path, "loss_chunk_tokens": chunk})
    states = memory.state_bytes(c, optimizer)
    before = states["weights"] + states["optimizer"] + memory.table_bytes(c)
    assert live_peak_bytes(c, train) == pytest.approx(memory.memory_bytes(c, train)["live"] - before, rel=0.01)


@ALL
@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_states_are_the_optimisers_tensors(name: str, optimizer: str) -> None:
    c = model(name)
    built = Decoder(c)
    built.initialise(0)
    optimizers = optim.build(built.named_parameters(), TrainConfig(optimizer=optimizer))  # type: ignore[arg-type]
    ids = torch.randint(0, V, (2, CONTEXT))
    next_token_loss(Alone(built), ids, ids, None, None).backward()
    with FlopCounterMode(display=False) as counter:
        for o in optimizers:
            o.step()
    kept = sum(t.nbytes for t in optim.state_tensors(built.named_parameters(), optimizers).values() if t.ndim)
    weights = 4 * sum(p.numel() for p in built.parameters())
    assert memory.state_bytes(c, optimizer) == {"weights": weights, "gradients": weights, "optimizer": kept}
    assert counter.get_total_flops() == flops.optimizer_flops(c, optimizer)


_PLACED = {
    "gpt2": ["model.model_type=gpt2", "model.num_key_value_heads=4"],
    "llama": ["model.model_type=llama", "model.tie_word_embeddings=false"],
    "gemma3": ["model.model_type=gemma3_text", "model.sliding_window=9"],
}
_LAYOUTS: dict[str, list[str]] = {
    "shards": ["parallel.dp_shard=2"],
    "shards, muon": ["parallel.dp_shard=2", "train.optimizer=muon"],
    "tensor": ["parallel.tp=2"],
    "pipeline": ["parallel.pp=2"],
    "tensor, again, muon": ["parallel.tp=2", "parallel.recompute=full", "train.optimizer=muon", "train.dtype=bfloat16"],
}
_FAST = [("gpt2", "tensor, again, muon"), ("gpt2", "tensor"), ("gemma3", "pipeline"), ("gemma3", "tensor, again, muon")]


@pytest.mark.parametrize(
    ("name", "how"),
    [
        pytest.param(*pair, marks=() if pair in _FAST else pytest.mark.slow)
        for pair in itertools.product(_PLACED, _LAYOUTS)
    ],
)
def test_collectives_are_the_recorded_ones(name: str, how: str, data: Path, tmp_path: Path) -> None:  # noqa: F811
    keys = [*SMALL, *_PLACED[name], *_LAYOUTS[how]]
    c = run_config.updated(run_config.load(None, keys), data={"source": str(data)})
    begin(c, open_data(data), tmp_path / "run", 2, machine=MACHINE)
    on(2, trained, tmp_path / "run", data, None)
    files = sorted((tmp_path / "run" / "collectives").iterdir())
    assert len(files) == c.parallel.pp
    for path in files:
        recorded = [(r.kind, r.group, r.count, r.bytes) for r in record.read(path)]
        agree(rows_of_rank(keys, 2, int(path.stem[-5:]), evaluated=False), recorded)


def test_what_was_foretold_of_qwen3_is_foretold_still() -> None:
    """Numbers of the code that knew Qwen3 alone, kept in a file: counts, bytes, and seconds from a stored record."""
    folder = Path(__file__).parent / "data"
    machine = json.loads((folder / "machine-2.json").read_text())
    for kept in json.loads((folder / "forecasts-qwen3.json").read_text()).values():
        c = ModelConfig.model_validate(kept["model"]).resolved(5000, 256)
        found = flops.flops_per_token(c, 256)
        assert flops.parameters(c) == kept["parameters"]
        assert {k: found[k] for k in kept["flops_per_token"]} == kept["flops_per_token"]
        assert flops.optimizer_flops(c, "muon") == kept["muon_flops"]
        assert {o: memory.state_bytes(c, o) for o in kept["states"]} == kept["states"]
        for how, saved in kept["saved"].items():
            dtype, dropout = how.split()
            assert memory.saved_bytes_per_token(c, dtype, dropout == "True") == saved
        for how, seconds in kept["seconds"].items():
            dtype, kernel, optimizer, dropout = how.split()
            path = {"dtype": dtype, "attention": kernel, "optimizer": optimizer, "dropout": float(dropout)}
            work = {"context": 256, "micro_batch_size": 4, "global_batch_tokens": 2048, "compile": "off"}
            t = TrainConfig.model_validate({**path, **work})
            assert memory.probability_bytes(c, t) == kept["probabilities"][f"{dtype} {kernel}"]
            both = [time.untried_step_seconds(c, t, machine)[0], time.roofline_step_seconds(c, t, machine)]
            assert both == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize("name", [n for n in FAMILIES if n != "experts"])
def test_a_budget_finds_a_size_of_the_family(name: str) -> None:
    machine = json.loads((Path(__file__).parent / "data" / "machine-2.json").read_text())
    keys = {"model_type": FAMILIES[name].get("model_type", "qwen3")}
    windows = {"sliding_window": 64} if "sliding_window" in FAMILIES[name] else {}
    c = run_config.updated(run_config.RunConfig(), model={**keys, **windows}, train={"budget": "2m"})
    corpus = {"tokens": 10**8, "vocab_size": 4096, "bytes_per_token": 4.0, "xz_bits_per_byte": 2.0, "bytes": 4 * 10**8}
    found = plan.forecast(c, machine=machine, corpus=corpus)
    assert found["model"]["model_type"] == keys["model_type"]
    assert found["seconds"]["value"] == pytest.approx(120, rel=0.2)
    assert found["step_seconds_from"] == ("parts" if name == "qwen3" else "rough parts")
    c = ModelConfig.model_validate(found["model"])
    assert found["parameters"]["total"] == sum(p.numel() for p in on_meta(c).parameters())
