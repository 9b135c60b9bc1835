"""The forecast of encoders and encoder-decoders against the models that are built: parameters, FLOPs, activations."""

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from foretell.config import ModelConfig, TrainConfig
from foretell.models.model import made
from foretell.plan import flops, memory, models, time
from foretell.train import loop

CONTEXT, V = 16, 90
_SIZES: dict[str, Any] = {"hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 56}
FAMILIES: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert"},
    "marian": {"model_type": "marian", "num_decoder_layers": 3},
    "t5": {"model_type": "t5", "head_dim": 6},
    "t5 gated": {"model_type": "t5", "hidden_act": "gated-gelu", "tie_word_embeddings": False},
}
ALL = pytest.mark.parametrize("name", list(FAMILIES))


def model(name: str) -> ModelConfig:
    return ModelConfig.model_validate({**_SIZES, **FAMILIES[name]}).resolved(V, CONTEXT)


def run(built: Any, rows: int, context: int = CONTEXT) -> torch.Tensor:
    """Logits of random tokens; of an encoder-decoder the source is as long as the target."""
    ids = torch.randint(0, V, (rows, context))
    return built(ids) if built.config.model_type == "bert" else built(ids, ids)


@ALL
def test_parameters_and_flops_are_those_of_the_built_model(name: str) -> None:
    c = model(name)
    built = made(c)
    built.initialise(0)
    count = flops.parameters(c)
    assert count["total"] == sum(p.numel() for p in built.parameters())
    places = ("embedding", "attention", "feed_forward", "norms", "head")
    assert sum(count[k] for k in places) == count["total"]
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run(built, 3).sum().backward()
    f = models.of_model(c).forward_flops(CONTEXT, CONTEXT)
    assert counter.get_total_flops() == 3 * 3 * (f["matrices"] + f["head"] + f["attention_full"])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("kernel", ["sdpa", "products"])
def test_activations_of_an_encoder_are_what_autograd_saves(dtype: str, dropout: float, kernel: str) -> None:
    c, B = model("bert"), 13
    built = made(c, dropout, kernel).train()
    built.initialise(0)
    own = {t.untyped_storage().data_ptr() for t in (*built.parameters(), *built.buffers())}
    weights = {p.numel() for p in built.parameters()}
    seen: dict[int, torch.Tensor] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        key = t.untyped_storage().data_ptr()
        if key not in own and (t.shape[0] == B or t.numel() not in weights) and t.dtype != torch.int64:
            seen[key] = t
        return t

    ids = torch.randint(0, V, (B, CONTEXT))
    with loop.autocast(getattr(torch, dtype)), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        built.lm_head(built.features(ids).flatten(0, 1))  # type: ignore[operator,union-attr]
    kept = sum(t.untyped_storage().nbytes() for t in seen.values())
    t = TrainConfig(context=CONTEXT, micro_batch_size=B, global_batch_tokens=B * CONTEXT, dtype=dtype, attention=kernel)
    expected = B * CONTEXT * memory.saved_bytes_per_token(c, dtype, bool(dropout)) + memory.probability_bytes(c, t)
    assert kept == expected


@ALL
def test_memory_and_time_are_forecast(name: str) -> None:
    c = model(name)
    t = TrainConfig(
        context=CONTEXT, micro_batch_size=4, global_batch_tokens=4 * CONTEXT, dtype="float32", compile="off"
    )
    states = memory.state_bytes(c, "adamw")
    assert states["weights"] == 4 * sum(p.numel() for p in made(c).parameters())
    assert memory.memory_bytes(c, t)["peak"] > sum(states.values())
    assert 0 < time.roofline_step_seconds(c, t, {"threads": 1}) < 1
