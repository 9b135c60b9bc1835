"""Parameters and FLOPs of every preset, against transformers' own classes on meta tensors under torch's counter."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForCausalLM, BertForMaskedLM, T5ForConditionalGeneration
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Experts
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

from foretell.config import ModelConfig
from foretell.errors import ConfigError
from foretell.models.decoder import Decoder
from foretell.plan import architecture, flops, models

CONTEXT, SOURCE = 48, 32


def built(name: str) -> Any:
    keys = dict(models.presets()[name])
    family = keys.pop("model_type")
    config = AutoConfig.for_model(family, **keys)
    config._attn_implementation = "eager"
    kinds = {"bert": BertForMaskedLM, "t5": T5ForConditionalGeneration}
    with torch.device("meta"):
        return kinds[family](config) if family in kinds else AutoModelForCausalLM.from_config(config)


@contextmanager
def routed_evenly() -> Iterator[None]:
    """Tensors without data cannot be routed: one expert's own weights take what all k experts of the tokens would."""

    def forward(self: Any, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        rows = x.repeat_interleave(chosen.shape[-1], dim=0)
        gate, up = torch.nn.functional.linear(rows, self.gate_up_proj[0]).chunk(2, dim=-1)
        y = torch.nn.functional.linear(self.act_fn(gate) * up, self.down_proj[0]) * weights.reshape(-1, 1)
        return y.view(len(x), -1, x.shape[-1]).sum(1)

    with pytest.MonkeyPatch.context() as m:
        for kind in (DeepseekV3Experts, Qwen3MoeExperts):
            m.setattr(kind, "forward", forward)
        yield


def counted(model: Any, backward: bool) -> int:
    """FLOPs of torch's counter; without those by which transformers forms the angles of rotary positions."""
    tokens = torch.zeros(1, CONTEXT, dtype=torch.long, device="meta")
    keys = {"input_ids": tokens}
    if model.config.model_type == "t5":
        keys = {"input_ids": tokens[:, :SOURCE], "decoder_input_ids": tokens}
    with routed_evenly(), FlopCounterMode(display=False) as counter:
        logits = model(**keys).logits
        if backward:
            logits.sum().backward()
    by_place = counter.get_flop_counts()
    angles = sum(sum(v.values()) for place, v in by_place.items() if place.endswith("rotary_emb"))
    return counter.get_total_flops() - angles


@pytest.mark.parametrize("name", models.presets())
def test_a_preset_has_the_parameters_and_products_of_transformers_own_class(name: str) -> None:
    model, known = built(name), models.preset(name)
    assert known.parameters["total"] == sum(p.numel() for p in model.parameters())
    f = known.forward_flops(CONTEXT, SOURCE)
    assert counted(model, backward=False) == f["matrices"] + f["head"] + f["attention_full"]


@pytest.mark.parametrize("name", ["gpt2", "bert-base", "t5-small", "qwen3-0.6b"])
def test_training_costs_three_forward_passes(name: str) -> None:
    per_token = models.preset(name).flops_per_token(CONTEXT, SOURCE)
    assert counted(built(name), backward=True) == pytest.approx(per_token["full"] * CONTEXT, rel=1e-12)


def test_the_decoder_of_this_package_is_the_same_by_either_count() -> None:
    for keys in ({}, {"num_experts": 4, "num_experts_per_tok": 2}, {"num_experts": 8, "balance": "bias"}):
        model = ModelConfig(hidden_size=192, num_hidden_layers=3, **keys).resolved(500, 64)
        known = models.of_model(model)
        with torch.device("meta"):
            assert known.parameters["total"] == sum(p.numel() for p in Decoder(model).parameters())
        assert known.parameters["total"] == flops.parameters(model)["total"]
        ours, other = known.flops_per_token(64), flops.flops_per_token(model, 64)
        assert {k: ours[k] for k in other} == pytest.approx(other, rel=1e-12)
        active = flops.parameters(model).get("active", known.parameters["total"])
        assert known.parameters["active"] == active


def test_the_attention_of_each_token_is_counted_by_hand() -> None:
    for window, context in ((None, 7), (3, 7), (9, 7), (7, 7), (1, 5)):
        a = architecture.Attention(2, 1, 8, 8, window=window)
        seen = [min(t + 1, window or context) for t in range(context)]
        assert a.keys(context) == pytest.approx(sum(seen) / context)


@pytest.mark.parametrize(
    ("name", "millions"),  # as published
    [
        ("gpt3-175b", 175_000),
        ("llama3-405b", 405_000),
        ("deepseek-v3", 671_000),
        ("bert-large", 335),
        ("t5-11b", 11_300),
        ("smollm2-135m", 134.515008),  # these five: of the published weights, to the last one
        ("mistral-7b", 7_241.732096),
        ("qwen2.5-0.5b", 494.032768),
        ("gemma3-270m", 268.098176),
        ("gemma3-1b", 999.885952),
    ],
)
def test_published_sizes(name: str, millions: float) -> None:
    exact = isinstance(millions, float)
    assert models.preset(name).parameters["total"] == pytest.approx(millions * 1e6, rel=1e-12 if exact else 0.006)


@pytest.mark.parametrize(
    "name", ["smollm2-135m", "mistral-7b", "qwen2.5-0.5b", "gemma3-270m", "gpt2-medium", "qwen3-4b"]
)
def test_a_preset_of_a_family_that_is_trained_is_the_same_as_a_table(name: str) -> None:
    known = models.preset(name)
    again = models.of_model(models.as_model(known))
    assert replace(again, name=name) == known


def test_active_parameters_as_published() -> None:
    # 37B and 3.3B: DeepSeek-V3's report and Qwen3's count the embedding's rows once.
    assert models.preset("deepseek-v3").parameters["active"] == pytest.approx(37e9, rel=0.03)
    assert models.preset("qwen3-30b-a3b").parameters["active"] == pytest.approx(3.3e9, rel=0.03)
    assert models.preset("qwen3-235b-a22b").parameters["active"] == pytest.approx(22e9, rel=0.03)


def test_what_cannot_be_read_says_so() -> None:
    with pytest.raises(ConfigError, match="did you mean llama3-405b"):
        models.preset("llama-405b")
    with pytest.raises(ConfigError, match="model_type `mamba` is not one of"):
        models.of({"model_type": "mamba"})
    with pytest.raises(ConfigError, match="needs the key n_head"):
        models.of({"model_type": "gpt2", "n_embd": 8})
