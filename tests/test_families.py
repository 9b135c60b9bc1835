"""Every family of decoders against Hugging Face's own classes: logits, gradients, masks, caches, both ways."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import bpe

from foretell.config import ModelConfig
from foretell.errors import ConfigError, ModelError
from foretell.generate.cache import KVCache
from foretell.models import hf
from foretell.models.core import Layer
from foretell.models.decoder import Decoder
from foretell.models.model import made

transformers = pytest.importorskip("transformers")

V, CONTEXT = 448, 48
_SIZES = {
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": V,
    "max_position_embeddings": CONTEXT,
}
_LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "rope_theta": 5e5,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 12}
_NEAR = {"rope_type": "default", "rope_theta": 1e4}
# A name: the class of the config in transformers, and its keys.
THEIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": V, "n_positions": CONTEXT, "bos_token_id": 0}
        | {"eos_token_id": 0, "n_inner": 96},
    ),
    "llama": ("LlamaConfig", {**_SIZES, "tie_word_embeddings": False}),
    "llama linear": ("LlamaConfig", {**_SIZES, "rope_parameters": _LINEAR}),
    "llama llama3": ("LlamaConfig", {**_SIZES, "rope_parameters": _LLAMA3}),
    "llama yarn": ("LlamaConfig", {**_SIZES, "rope_parameters": _YARN}),
    "llama yarn, sharpness": ("LlamaConfig", {**_SIZES, "rope_parameters": {**_YARN, "attention_factor": 1.3}}),
    "mistral": ("MistralConfig", {**_SIZES, "sliding_window": 7}),
    "mistral, all seen": ("MistralConfig", {**_SIZES, "sliding_window": None, "head_dim": 32}),
    "qwen2": ("Qwen2Config", {**_SIZES, "tie_word_embeddings": True}),
    "qwen2, near": (
        "Qwen2Config",
        {**_SIZES, "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    ),
    "qwen3": ("Qwen3Config", {**_SIZES, "head_dim": 16}),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        {**_SIZES, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40},
    ),
    "gemma3": (
        "Gemma3TextConfig",
        {**_SIZES, "head_dim": 24, "sliding_window": 6, "query_pre_attn_scalar": 20}
        | {"rope_parameters": {"full_attention": {**_LINEAR, "rope_theta": 1e6}, "sliding_attention": _NEAR}}
        | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
}
ALL = pytest.mark.parametrize("name", list(THEIRS))


def theirs(name: str) -> Any:
    """The model of transformers with weights that matter everywhere."""
    kind, keys = THEIRS[name]
    torch.manual_seed(0)
    config = getattr(transformers, kind)(**keys)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim < 2:
                p.add_(torch.empty_like(p).uniform_(-0.3, 0.3))
            else:
                p.normal_(0.0, 1.2 * p.shape[-1] ** -0.5)
    return model.eval()


def saved(name: str, folder: Path) -> tuple[Any, Decoder]:
    """Their model, and ours read from the folder that transformers wrote."""
    model = theirs(name)
    model.save_pretrained(folder)
    bpe().save(folder / "tokenizer.json")
    ours, _ = hf.load(folder)
    return model, ours


def ids(rows: int = 2) -> torch.Tensor:
    return torch.randint(0, V, (rows, CONTEXT), generator=torch.Generator().manual_seed(1))


def agree(a: torch.Tensor, b: torch.Tensor) -> None:
    """At most 1e-5 of the largest apart."""
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@ALL
def test_logits_and_gradients_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    model, ours = saved(name, tmp_path / "m")
    x = ids()
    expected, found = model(x).logits, ours(x)
    agree(found, expected)
    for m, logits in ((model, expected), (ours, found)):
        F.cross_entropy(logits[:, :-1].flatten(0, 1), x[:, 1:].flatten()).backward()
        assert m is not None
    want = {n: p.grad for n, p in model.named_parameters()}
    own = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    got = dict(hf.names.out(ours.config.model_type, own.items()))
    for n, g in want.items():
        place = n.rpartition(".")[0]
        if n.endswith("experts.gate_up_proj"):  # transformers 5 keeps experts in stacks of its own
            agree(torch.cat([own[f"{place}.gate_proj"], own[f"{place}.up_proj"]], 1), g)
        elif n.endswith("experts.down_proj"):
            agree(own[n], g)
        elif n != "lm_head.weight" or not ours.config.tie_word_embeddings:
            agree(got[n], g)


@ALL
@torch.no_grad()
def test_transformers_reads_what_we_write(name: str, tmp_path: Path) -> None:
    model, ours = saved(name, tmp_path / "theirs")
    hf.save(ours, bpe(), tmp_path / "ours")
    again, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert type(again) is type(model)
    agree(again(ids()).logits, model(ids()).logits)
    read, _ = hf.load(tmp_path / "ours")
    assert read.config == ours.config
    assert torch.equal(read(ids()), ours(ids()))


@ALL
@torch.no_grad()
def test_padding_on_the_left_changes_nothing(name: str, tmp_path: Path) -> None:
    """A row behind padding, with positions of its own, scores as it does alone; as in transformers."""
    model, ours = saved(name, tmp_path / "m")
    x, pad = ids(1), 9
    padded = torch.cat([torch.zeros(1, pad, dtype=torch.int64), x[:, :-pad]], 1)
    real = torch.arange(CONTEXT) >= pad
    positions = (torch.arange(CONTEXT) - pad).clamp(min=0)[None]
    mask = (real[None, :] & torch.ones(CONTEXT, CONTEXT, dtype=torch.bool).tril())[None, None]
    mask = mask | torch.eye(CONTEXT, dtype=torch.bool)  # a row that sees nothing has no softmax
    found = ours(padded, positions, mask)[:, pad:]
    agree(found, ours(x[:, :-pad]))
    agree(found, model(padded, attention_mask=real[None].long(), position_ids=positions).logits[:, pad:])


@ALL
@torch.no_grad()
def test_token_by_token_is_as_all_at_once(name: str, tmp_path: Path) -> None:
    _, ours = saved(name, tmp_path / "m")
    x = ids()
    cache = KVCache(ours.config, 2, CONTEXT, torch.float32, torch.device("cpu"))
    first = ours(x[:, :10], cache=cache)
    rest = [ours(x[:, t : t + 1], cache=cache) for t in range(10, CONTEXT)]
    agree(torch.cat([first, *rest], 1), ours(x))


@ALL
def test_both_kernels_train_alike(name: str, tmp_path: Path) -> None:
    """Layers with a window use torch's own, whatever is asked for."""
    _, ours = saved(name, tmp_path / "m")
    second = Decoder(ours.config, kernel="products").train()
    second.load_state_dict(ours.state_dict())
    x = ids()
    for m in (ours.train(), second):
        F.cross_entropy(m(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten()).backward()
    for (n, a), b in zip(ours.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=2e-3, atol=2e-5, msg=n)


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("llama", {"mlp_bias": True}, "mlp_bias"),
        ("llama", {"hidden_act": "gelu"}, "hidden_act"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "rope_type"),
        ("llama yarn", {"rope_parameters": {**_YARN, "mscale": 0.7}}, "mscale"),
        ("gemma3", {"final_logit_softcapping": 30.0}, "final_logit_softcapping"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt2", {"activation_function": "relu"}, "activation_function"),
        ("qwen3", {"model_type": "phi3"}, "phi3"),
        ("mistral", {"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_differs_is_refused_by_name(name: str, change: dict[str, Any], word: str) -> None:
    kind, keys = THEIRS[name]
    raw = getattr(transformers, kind)(**keys).to_dict() | change
    with pytest.raises(ModelError, match=word):
        hf.configs.table(raw, "config.json")


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        ({"model_type": "gpt2", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling"),
        ({"model_type": "llama", "sliding_window": 4}, "mistral"),
        ({"model_type": "gemma3_text", "layer_types": ["full_attention"]}, "1 entries for 2"),
        ({"model_type": "gpt2", "num_key_value_heads": 2}, "num_attention_heads"),
        ({"model_type": "llama", "num_experts": 4}, "num_experts"),
    ],
)
def test_keys_of_another_family_are_refused(keys: dict[str, Any], word: str) -> None:
    config = ModelConfig.model_validate({"hidden_size": 64, "num_hidden_layers": 2, **keys})
    with pytest.raises(ConfigError, match=word):
        config.resolved(V, CONTEXT)


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gemma3_text", "gpt2", "bert", "marian", "t5"])
def test_a_run_begins_as_its_modules_say(kind: str) -> None:
    """Norms at the value they are made with, where they multiply by 1; branches at 0 where a layer is the identity."""
    sizes = ModelConfig(model_type=kind, hidden_size=32, num_hidden_layers=2).resolved(50, 16)
    model = made(sizes)
    norms = [m for m in model.modules() if hasattr(m, "begins")]
    before = [m.weight.detach().clone() for m in norms]
    model.initialise(0)
    assert len(norms) >= 4
    assert all(torch.equal(m.weight, w) for m, w in zip(norms, before, strict=True))
    for norm in norms:
        x = torch.randn(3, len(norm.weight))
        assert torch.allclose(norm(x).square().mean(1), torch.ones(3), atol=1e-3)
    layers = [m for m in model.modules() if isinstance(m, Layer)]
    assert [bool(m.self_attn.o_proj.weight.any()) for m in layers] == [kind == "gemma3_text"] * len(layers)
