"""What a GGUF file calls things, in the words and the conventions of Hugging Face: its config and its weights.

`config` gives the keys of a config.json of transformers (version 4's flat names, which version 5 reads too), `weights`
the tensors of its folders, named and laid out as there. Four things differ in the files and are undone:

- llama interleaves the two halves of each head's rows in q and k, for another way to rotate; the rows go back.
- gemma3's norms are stored with the 1 added that the model adds to them; here they are what the model adds 1 to.
- gpt2's products are stored transposed; here they are in x out, as Conv1D has them.
- qwen3moe's experts stand in stacks, one a layer; here each is a matrix of its own, as in the folders of its model.

Whatever a file asks for that these models do not have (shared experts, soft caps, partly rotated heads, sizes that
change from layer to layer) is a ModelError: a model computed slightly wrongly looks like a bad model. Source of the
keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md and the conversion scripts of llama.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from foretell.errors import ModelError
from foretell.models.gguf.blocks import dequantize, tensor
from foretell.models.gguf.metadata import Metadata
from foretell.models.gguf.reader import Gguf

# general.architecture -> model_type, the class in transformers.
ARCHITECTURES = {
    "llama": ("llama", "LlamaForCausalLM"),
    "qwen2": ("qwen2", "Qwen2ForCausalLM"),
    "qwen3": ("qwen3", "Qwen3ForCausalLM"),
    "qwen3moe": ("qwen3_moe", "Qwen3MoeForCausalLM"),
    "gemma3": ("gemma3_text", "Gemma3ForCausalLM"),
    "gpt2": ("gpt2", "GPT2LMHeadModel"),
    "bert": ("bert", "BertModel"),
}
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LAYER = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_MOE_LAYER = {k: v for k, v in _LAYER.items() if k not in ("ffn_gate", "ffn_up", "ffn_down")} | {
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.*.gate_proj",
    "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}
_GEMMA_LAYER = {
    **_LAYER,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GPT2_OUTSIDE = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
}
_GPT2_LAYER = {
    "attn_norm": "ln_1",
    "ffn_norm": "ln_2",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}
_BERT_OUTSIDE = {
    "token_embd": "embeddings.word_embeddings",
    "token_types": "embeddings.token_type_embeddings",
    "position_embd": "embeddings.position_embeddings",
    "token_embd_norm": "embeddings.LayerNorm",
}
_BERT_LAYER = {
    "attn_q": "attention.self.query",
    "attn_k": "attention.self.key",
    "attn_v": "attention.self.value",
    "attn_output": "attention.output.dense",
    "attn_output_norm": "attention.output.LayerNorm",
    "ffn_up": "intermediate.dense",
    "ffn_down": "output.dense",
    "layer_output_norm": "output.LayerNorm",
}
_ROPE_FACTORS = "rope_freqs.weight"
_GEMMA_27B_LAYERS = 62  # the one Gemma 3 that scales attention by hidden_size / heads


def config(file: Gguf) -> dict[str, Any]:
    """The keys of a config.json of transformers for this model. ModelError where it is none that is known."""
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str) or arch not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ModelError(f"{file.path}: the architecture is {arch!r}; read are {known}")
    read = Metadata(file, arch)
    kind, cls = ARCHITECTURES[arch]
    described = {"architectures": [cls], "model_type": kind, **_ends(read)}
    if arch in ("gpt2", "bert"):
        return described | (_gpt2_config(read) if arch == "gpt2" else _bert_config(read))
    return described | _decoder_config(read, arch)


def weights(file: Gguf, dtype: torch.dtype = torch.float32) -> Iterator[tuple[str, Tensor]]:
    """The weights one after the other, as transformers names and lays them out; a tied head is not given twice."""
    names, weight = stored(file, dtype)
    yield from ((name, weight(name)) for name in names)


def stored(file: Gguf, dtype: torch.dtype = torch.float32) -> tuple[list[str], Callable[[str], Tensor]]:
    """The weights' names in transformers' folders; and what reads one of them. ModelError for a name there is not."""
    c = config(file)
    arch = file.metadata["general.architecture"]
    outside, prefix = _OUTSIDE, "model.layers"
    layer = {"gemma3": _GEMMA_LAYER, "qwen3moe": _MOE_LAYER}.get(arch, _LAYER)
    if arch == "gpt2":
        outside, layer, prefix = _GPT2_OUTSIDE, _GPT2_LAYER, "transformer.h"
    if arch == "bert":
        outside, layer, prefix = _BERT_OUTSIDE, _BERT_LAYER, "encoder.layer"
    found: dict[str, tuple[str, int | None]] = {}  # the file's name, and which of a stack
    for own in file.tensors:
        if own == _ROPE_FACTORS or (own == "output.weight" and c.get("tie_word_embeddings")):
            continue  # config has read them
        name = _renamed(own, outside, layer, prefix)
        if name is None:
            raise ModelError(f"{file.path}: the {arch} model has a tensor {own}, which is not known")
        if "*" in name:
            found |= {name.replace("*", str(n)): (own, n) for n in range(_stack(file, own, c["num_experts"]))}
        else:
            found[name] = own, None

    def weight(name: str) -> Tensor:
        if name not in found:
            raise ModelError(f"{file.path}: the weight {name} is missing")
        own, of = found[name]
        if of is not None:
            return tensor(file, own, dtype, of)
        adds_one = arch == "gemma3" and own.endswith("norm.weight")
        t = (tensor(file, own) - 1).to(dtype) if adds_one else tensor(file, own, dtype)
        if arch == "llama" and (m := re.search(r"\.attn_([qk])\.", own)):
            return _halves(file, own, t, c["num_attention_heads" if m[1] == "q" else "num_key_value_heads"])
        if arch == "gpt2" and re.search(r"\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$", own):
            return t.T.contiguous()
        return t

    return list(found), weight


def _stack(file: Gguf, own: str, experts: int) -> int:
    """How many matrices stand in a stack: one for each expert."""
    shape = file.tensors[own].shape
    if len(shape) != 3 or shape[0] != experts:
        raise ModelError(f"{file.path}: {own} is {list(shape)}, a stack of {experts:,} matrices is needed")
    return experts


def _renamed(own: str, outside: dict[str, str], layer: dict[str, str], prefix: str) -> str | None:
    if m := re.fullmatch(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)", own):
        return f"{prefix}.{int(m[1])}.{layer[m[2]]}.{m[3]}" if m[2] in layer else None
    part, _, kind = own.rpartition(".")
    return f"{outside[part]}.{kind}" if part in outside and kind in ("weight", "bias") else None


def _halves(file: Gguf, name: str, t: Tensor, heads: int) -> Tensor:
    """Rows that alternate between the halves of a head, put back half after half."""
    rows = len(t)
    if rows % (2 * heads):
        raise ModelError(f"{file.path}: {name} has {rows:,} rows, no multiple of 2 x {heads} heads")
    return t.view(heads, rows // heads // 2, 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape)


def _ends(r: Metadata) -> dict[str, Any]:
    """Ids of the special tokens, where the file has them."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    ids = {f"{key}_token_id": r.file.metadata.get(f"tokenizer.ggml.{own}_token_id") for key, own in names.items()}
    return {key: value for key, value in ids.items() if isinstance(value, int)}


def _refuse_unknown(r: Metadata) -> None:
    experts = ("expert_count",) if r.arch != "qwen3moe" else ("expert_shared_count", "expert_group_count")
    for key in (*experts, "attn_logit_softcapping", "final_logit_softcapping", "residual_scale", "logit_scale"):
        if r.get(key):
            raise r.wrong(f"{r.arch}.{key} is {r.get(key)!r}; this model of the family is not read")


def _gpt2_config(r: Metadata) -> dict[str, Any]:
    _refuse_unknown(r)
    width = r.count("embedding_length")
    return {
        "n_layer": r.layers(),
        "n_embd": width,
        "n_head": r.count("attention.head_count"),
        "n_inner": r.count("feed_forward_length", 4 * width),
        "n_positions": r.shape("position_embd.weight", 2)[0],
        "vocab_size": r.shape("token_embd.weight", 2)[0],
        "layer_norm_epsilon": r.number("attention.layer_norm_epsilon"),
        "activation_function": "gelu_new",
        "tie_word_embeddings": _tied(r),
    }


def _bert_config(r: Metadata) -> dict[str, Any]:
    """A bare encoder, which gives vectors: its files have no head. Their mean is what a file may ask to be taken."""
    _refuse_unknown(r)
    for key, read in (("attention.causal", (None, False)), ("pooling_type", (None, 0, 1))):
        if r.get(key) not in read:
            raise r.wrong(f"{r.arch}.{key} is {r.get(key)!r}; read are encoders whose vectors are means of all tokens")
    return {
        "num_hidden_layers": r.layers(),
        "hidden_size": r.count("embedding_length"),
        "num_attention_heads": r.count("attention.head_count"),
        "intermediate_size": r.count("feed_forward_length"),
        "max_position_embeddings": r.shape("position_embd.weight", 2)[0],
        "vocab_size": r.shape("token_embd.weight", 2)[0],
        "type_vocab_size": r.shape("token_types.weight", 2)[0],
        "layer_norm_eps": r.number("attention.layer_norm_epsilon"),
        "hidden_act": "gelu",
    }


def _tied(r: Metadata) -> bool:
    """No head of its own, or (gpt2's converter) one that holds the same bytes."""
    if "output.weight" not in r.file.tensors:
        return True
    same_kind = r.file.tensors["output.weight"].kind == r.file.tensors["token_embd.weight"].kind
    return (
        r.arch == "gpt2" and same_kind and bool((r.file.raw("output.weight") == r.file.raw("token_embd.weight")).all())
    )


def _decoder_config(r: Metadata, arch: str) -> dict[str, Any]:
    _refuse_unknown(r)
    width, heads = r.count("embedding_length"), r.count("attention.head_count")
    head = r.count("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if r.count(key, head) != head:
            raise r.wrong(f"{arch}.{key} is {r.get(key)}, the heads have {head}; such models are not read")
    common = {
        "vocab_size": r.shape("token_embd.weight", 2)[0],
        "hidden_size": width,
        "num_hidden_layers": r.layers(),
        "num_attention_heads": heads,
        "num_key_value_heads": r.count("attention.head_count_kv", heads),
        "head_dim": head,
        "intermediate_size": r.count("feed_forward_length"),
        "max_position_embeddings": r.count("context_length"),
        "rms_norm_eps": r.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": r.number("rope.freq_base", 1e6 if arch == "gemma3" else 1e4),
        "rope_scaling": _rope_scaling(r, head),
        "tie_word_embeddings": _tied(r),
    }
    if arch == "gemma3":
        return common | _gemma3_config(r, common)
    if (window := r.get("attention.sliding_window")) is not None:
        raise r.wrong(f"{arch}.attention.sliding_window is {window}; sliding windows are read in gemma3 alone")
    biased = "blk.0.attn_q.bias" in r.file.tensors
    if arch == "qwen2" and not biased:
        raise r.wrong("a qwen2 model has biases of q, k and v, this file has none")
    own = {"attention_bias": biased, "mlp_bias": "blk.0.ffn_up.bias" in r.file.tensors} if arch == "llama" else {}
    if arch in ("qwen3", "qwen3moe"):
        own = {"attention_bias": biased, **(_experts_config(r) if arch == "qwen3moe" else {})}
    return common | {"hidden_act": "silu", **own}


def _experts_config(r: Metadata) -> dict[str, Any]:
    """The experts of qwen3moe: of every layer, chosen by a softmax, their weights summing to one."""
    N, F, _ = r.shape("blk.0.ffn_gate_exps.weight", 3)
    for key, there in (("expert_count", N), ("expert_feed_forward_length", F)):
        if r.count(key, there) != there:
            raise r.wrong(f"{r.arch}.{key} is {r.get(key):,}, the experts' weights are of {there:,}")
    for key, only in (("expert_weights_norm", True), ("expert_weights_scale", 1.0), ("expert_gating_func", 1)):
        if r.get(key, only) != only:
            raise r.wrong(f"{r.arch}.{key} is {r.get(key)!r}; {only!r} alone is read")
    return {
        "num_experts": N,
        "num_experts_per_tok": r.count("expert_used_count"),
        "moe_intermediate_size": F,
        "norm_topk_prob": True,
    }


def _gemma3_config(r: Metadata, c: dict[str, Any]) -> dict[str, Any]:
    every = r.count("attention.sliding_window_pattern", 6)
    layers = c["num_hidden_layers"]
    if layers == _GEMMA_27B_LAYERS:
        scalar = c["hidden_size"] // c["num_attention_heads"]
    else:
        scalar = c["head_dim"]
    return {
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": False,
        "sliding_window": r.count("attention.sliding_window"),
        "layer_types": ["sliding_attention" if (n + 1) % every else "full_attention" for n in range(layers)],
        "rope_local_base_freq": r.number("rope.freq_base_swa", 1e4),
        "query_pre_attn_scalar": scalar,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    }


def _rope_scaling(r: Metadata, head: int) -> dict[str, Any] | None:
    """The `rope_scaling` of transformers, of metadata or of Llama 3's table of factors."""
    kind = r.get("rope.scaling.type", "none")
    if _ROPE_FACTORS in r.file.tensors:
        return _llama3_scaling(r, head)
    if kind == "none" or (kind == "linear" and r.get("rope.scaling.factor", 0) in (0, 1)):
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": r.number("rope.scaling.factor")}
    if kind != "yarn":
        raise r.wrong(f"{r.arch}.rope.scaling.type is {kind!r}; none, linear and yarn are read")
    scaling: dict[str, Any] = {
        "rope_type": "yarn",
        "factor": r.number("rope.scaling.factor"),
        "original_max_position_embeddings": r.count("rope.scaling.original_context_length"),
    }
    for own, key in (
        ("attn_factor", "attention_factor"),
        ("yarn_beta_fast", "beta_fast"),
        ("yarn_beta_slow", "beta_slow"),
    ):
        if r.get(f"rope.scaling.{own}") is not None:
            scaling[key] = r.number(f"rope.scaling.{own}")
    return scaling


def _llama3_scaling(r: Metadata, head: int) -> dict[str, Any]:
    """Llama 3's parameters from the factors that the file has instead: those of Meta, if they give the same factors."""
    info = r.file.tensors[_ROPE_FACTORS]
    if info.shape != (head // 2,) or info.kind != "F32":
        raise r.wrong(f"{_ROPE_FACTORS} is {info.kind} {list(info.shape)}, F32 [{head // 2}] is needed")
    factors = dequantize(r.file.raw(_ROPE_FACTORS), "F32").double()
    factor = float(f"{factors.max().item():.6g}")
    found = {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    theta = r.number("rope.freq_base", 1e4)
    turns = 8192 / (2 * math.pi * theta ** (torch.arange(0, head, 2, dtype=torch.float64) / head))
    smooth = ((turns - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    wanted = 1 / ((1 - smooth) / factor + smooth)
    if not torch.allclose(factors, wanted, rtol=1e-4):
        raise r.wrong(f"{_ROPE_FACTORS} holds factors that are not those of Llama 3; such models are not read")
    return found
