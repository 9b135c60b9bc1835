"""The forecast of every family that is trained, against the model that is built: counts, weights, memory, bytes, time.

Truth comes from elsewhere: numel and torch's FlopCounterMode for counts, autograd's own saved tensors and the profiler
for memory, collectives recorded in real runs. What is Qwen3's must be what it was before other families came.
"""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foretell.config import ModelConfig, TrainConfig
from foretell.distributed import pipeline
from foretell.models.decoder import Decoder
from foretell.plan import flops, layout, memory, models
from foretell.plan.weights import layer_weights, outer_weights
from foretell.train import loop
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
    for stages in (1, 3):
        for stage, layers in enumerate(layout.stage_layers(4, stages)):
            built = on_meta(c)
            pipeline.prune(built, stage, stages)
            first, last = stage == 0, stage == stages - 1
            inner = [(f"model.layers.{n}.{name}", shape) for n in layers for name, shape in layer_weights(kinds[n])]
            outer = outer_weights(a, first, last)
            tables = sum("embed_" in name for name, _ in outer)
            listed = [*outer[:tables], *inner, *outer[tables:]]
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
