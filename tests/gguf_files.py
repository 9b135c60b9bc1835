"""GGUF files for the tests, written by the gguf package: random models of transformers, named by its own map."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from torch import nn

SIZES = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}


def permuted(w: np.ndarray, heads: int) -> np.ndarray:
    """Rows of q and k as llama.cpp's converter orders them: the two halves of a head take turns."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def random_model(family: str, **changes: Any) -> nn.Module:
    """A model of transformers with random weights, norms and biases among them."""
    torch.manual_seed(3)
    if family == "gpt2":
        sizes = {"vocab_size": 96, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(sizes | changes)))
    elif family == "bert":
        sizes = {k: v for k, v in SIZES.items() if k != "num_key_value_heads"}
        model = transformers.BertModel(transformers.BertConfig(**(sizes | changes)), add_pooling_layer=False)
    else:
        cls = {
            "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
            "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
            "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
            "qwen3moe": (transformers.Qwen3MoeConfig, transformers.Qwen3MoeForCausalLM),
            "gemma3": (transformers.Gemma3TextConfig, transformers.Gemma3ForCausalLM),
        }[family]
        sizes = SIZES | ({"head_dim": 16} if family in ("qwen3", "qwen3moe", "gemma3") else {})
        if family == "qwen3moe":
            sizes |= {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
        sizes |= (
            {"sliding_window": 5, "num_hidden_layers": 7, "query_pre_attn_scalar": 16} if family == "gemma3" else {}
        )
        model = cls[1](cls[0](**(sizes | changes)))
    for p in model.parameters():
        nn.init.normal_(p, std=0.2)
    return model.eval()


def _apart(state: dict[str, torch.Tensor]) -> Iterator[tuple[str, torch.Tensor]]:
    """transformers 5 keeps gate and up of all experts in one tensor; its folders and the converter have them apart."""
    for name, t in state.items():
        if name.endswith("experts.gate_up_proj"):
            stem = name.removesuffix("gate_up_proj")
            yield from zip((f"{stem}gate_proj.weight", f"{stem}up_proj.weight"), t.chunk(2, 1), strict=True)
        else:
            yield (f"{name}.weight" if name.endswith("experts.down_proj") else name), t


def wordpieces(tokens: list[str]) -> list[str]:
    """Tokens of BERT as llama.cpp's converter spells them."""
    return [t if t[0] + t[-1] == "[]" else t[2:] if t.startswith("##") else "\u2581" + t for t in tokens]


def write(
    model: nn.Module,
    family: str,
    path: Path,
    kind: str = "F32",
    tokens: list[str] | None = None,
    **keys: float | int | str,
) -> None:
    """The model as a GGUF file. `kind`: how matrices are stored. `keys`: further metadata of the architecture.

    tokens: a vocabulary of BERT's.
    """
    c = model.config
    w = gguf.GGUFWriter(path, family)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_head_count(c.num_attention_heads)
    if family == "gpt2":
        w.add_feed_forward_length(4 * c.hidden_size)
        w.add_layer_norm_eps(c.layer_norm_epsilon)
    elif family == "bert":
        w.add_feed_forward_length(c.intermediate_size)
        w.add_layer_norm_eps(c.layer_norm_eps)
        w.add_causal_attention(False)
        w.add_pooling_type(gguf.PoolingType.MEAN)
    else:
        w.add_feed_forward_length(c.intermediate_size)
        w.add_head_count_kv(c.num_key_value_heads)
        w.add_layer_norm_rms_eps(c.rms_norm_eps)
    if family in ("qwen3", "qwen3moe", "gemma3"):
        w.add_key_length(c.head_dim)
        w.add_value_length(c.head_dim)
    if family == "gemma3":
        w.add_sliding_window(c.sliding_window)
    if family == "qwen3moe":
        w.add_expert_count(c.num_experts)
        w.add_expert_used_count(c.num_experts_per_tok)
        w.add_expert_feed_forward_length(c.moe_intermediate_size)
    for key, value in keys.items():
        add = w.add_string if isinstance(value, str) else w.add_uint32 if isinstance(value, int) else w.add_float32
        add(f"{family}.{key}", value)
    if tokens is not None:
        w.add_tokenizer_model("bert")
        w.add_token_list(wordpieces(tokens))
        w.add_token_types([3 if t[0] + t[-1] == "[]" else 1 for t in tokens])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[family.upper()], c.num_hidden_layers)
    tied = getattr(c, "tie_word_embeddings", False)
    for name, t in _apart(model.state_dict()):
        if name == "lm_head.weight" and tied and family != "gpt2":  # its converter writes the table twice
            continue
        data = t.float().numpy()
        if family == "llama" and ".q_proj." in name:
            data = permuted(data, c.num_attention_heads)
        if family == "llama" and ".k_proj." in name:
            data = permuted(data, c.num_key_value_heads)
        if family == "gemma3" and name.endswith("norm.weight"):
            data = data + 1
        if family == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
            data = data.T
        if name.startswith("pooler.") or name.endswith("position_ids"):  # left out by the converter
            continue
        own = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert own, name
        as_kind = gguf.GGMLQuantizationType[kind if data.ndim >= 2 and not name.endswith("mlp.gate.weight") else "F32"]
        stored = gguf.quants.quantize(np.ascontiguousarray(data), as_kind)
        w.add_tensor(own, stored, raw_dtype=as_kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
