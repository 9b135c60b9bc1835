"""Published families of Transformers, each read from the keys of its Hugging Face config.

Decoders (GPT-2 and 3, Llama, Qwen2, Qwen3, Mistral, Gemma 3), mixtures of experts (Qwen3-MoE, Mixtral, DeepSeek-V3
with its latent attention), encoders (BERT with its head for masked words) and encoder-decoders (T5, Marian). Tests
build each preset by transformers' own classes on meta tensors and find the same parameters and the same products, to
the last one. Weights of families that this package trains have its names and its pieces (`models/core.py`): GPT-2's
queries, keys and values are three matrices, and Marian's bias of the logits is a weight.

Not counted: DeepSeek-V3's extra layers that predict further tokens, buffers, and GPT-3's sparse layers (taken as dense,
as in the paper's own table of FLOPs).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any, Literal

from foretell.plan.architecture import Architecture, Attention, Layer, Matrix, Stack, Vector

# The norms of a layer, by the names that `models/core.py` gives them, and those that Gemma 3 has besides.
_NORMS = ("input_layernorm", "post_attention_layernorm")
_SANDWICH = (*_NORMS, "pre_feedforward_layernorm", "post_feedforward_layernorm")
GEMMA_PERIOD = 6  # one of so many layers of Gemma 3 sees everything


def _norms(names: tuple[str, ...], width: int, bias: bool = False) -> tuple[Vector, ...]:
    kinds = ("weight", "bias") if bias else ("weight",)
    return tuple((f"{name}.{kind}", width) for name in names for kind in kinds)


def _windows(c: Mapping[str, Any]) -> list[int | None]:
    """How far a token sees in each layer; None: all before it."""
    family, L, width = c["model_type"], c["num_hidden_layers"], c.get("sliding_window")
    if c.get("layer_types"):
        return [width if kind == "sliding_attention" else None for kind in c["layer_types"]]
    if family == "gemma3_text":
        return [None if n % GEMMA_PERIOD == 0 else width for n in range(1, L + 1)]
    if family in ("mistral", "mixtral"):
        return [width] * L
    first = c.get("max_window_layers", 28) if c.get("use_sliding_window") else L
    return [None if n < first else width for n in range(L)]


def _decoder(c: Mapping[str, Any], name: str) -> Architecture:
    """Llama and its kin: RMSNorm, rotary positions, grouped queries, SwiGLU; some with biases or norms of queries."""
    family, D, H = c["model_type"], c["hidden_size"], c["num_attention_heads"]
    gemma = family == "gemma3_text"
    E = c.get("head_dim") or (256 if gemma else D // H)
    K = c.get("num_key_value_heads") or H
    bias = family == "qwen2" or bool(c.get("attention_bias"))
    attention = (
        Matrix("self_attn.q_proj", H * E, D, bias=bias),
        Matrix("self_attn.k_proj", K * E, D, bias=bias),
        Matrix("self_attn.v_proj", K * E, D, bias=bias),
        Matrix("self_attn.o_proj", D, H * E, "row", bias=bool(c.get("attention_bias"))),
    )
    of_heads = gemma or family.startswith("qwen3")
    names = _SANDWICH if gemma else _NORMS
    vectors = (*(_norms(("self_attn.q_norm", "self_attn.k_norm"), E) if of_heads else ()), *_norms(names, D))
    sparse = bool(c.get("num_experts") or c.get("num_local_experts"))
    if sparse and c.get("expert_bias"):
        vectors = (("mlp.expert_bias", c["num_experts"]), *vectors)
    feed = _experts(c) if sparse else _swiglu("mlp", D, c["intermediate_size"])

    def layer(window: int | None) -> Layer:
        return Layer(
            (*attention, *feed),
            (Attention(H, K, E, E, window=window),),
            vectors,
            2 * K * E,
            inner=0 if sparse else c["intermediate_size"],
            norms=len(names),
            behind=gemma,
            norms_of_heads=of_heads,
            normalised=family == "mixtral" or bool(c.get("norm_topk_prob")),
        )

    layers = tuple((len(list(run)), layer(window)) for window, run in itertools.groupby(_windows(c)))
    return _with_tables(c, name, (Stack(layers, _norms(("norm",), D)),))


def _swiglu(place: str, D: int, F: int, copies: int = 1, used: int = 1) -> tuple[Matrix, ...]:
    return (
        Matrix(f"{place}.gate_proj", F, D, copies=copies, used=used),
        Matrix(f"{place}.up_proj", F, D, copies=copies, used=used),
        Matrix(f"{place}.down_proj", D, F, "row", copies=copies, used=used),
    )


def _experts(c: Mapping[str, Any]) -> tuple[Matrix, ...]:
    """A router and its experts, and those that every token passes."""
    D, N = c["hidden_size"], c.get("num_experts") or c.get("num_local_experts") or c["n_routed_experts"]
    F, k = c.get("moe_intermediate_size") or c["intermediate_size"], c["num_experts_per_tok"]
    shared = c.get("n_shared_experts") or 0
    always = _swiglu("mlp.shared_experts", D, F * shared) if shared else ()
    return (Matrix("mlp.gate", N, D, "whole"), *_swiglu("mlp.experts", D, F, copies=N, used=k), *always)


def _with_tables(c: Mapping[str, Any], name: str, stacks: tuple[Stack, ...]) -> Architecture:
    D, V = c["hidden_size"], c["vocab_size"]
    return Architecture(
        name,
        c["model_type"],
        D,
        V,
        c["max_position_embeddings"],
        (("embed_tokens", V, D),),
        stacks,
        (Matrix("lm_head", V, D),),
        bool(c.get("tie_word_embeddings", c["model_type"] == "gemma3_text")),
        angles=2 if c["model_type"] == "gemma3_text" else 1,
    )


def _gpt2(c: Mapping[str, Any], name: str) -> Architecture:
    """GPT-2 (Radford et al., 2019) and GPT-3 (Brown et al., 2020): learned positions, LayerNorm, GELU, biases."""
    D, H, L, V, T = c["n_embd"], c["n_head"], c["n_layer"], c["vocab_size"], c["n_positions"]
    inner, E = c.get("n_inner") or 4 * D, c.get("head_dim") or D // H
    matrices = (
        *(Matrix(f"self_attn.{n}_proj", H * E, D, bias=True) for n in "qkv"),
        Matrix("self_attn.o_proj", D, H * E, "row", bias=True),
        Matrix("mlp.up_proj", inner, D, bias=True),
        Matrix("mlp.down_proj", D, inner, "row", bias=True),
    )
    norms = _norms(_NORMS, D, bias=True)
    layer = Layer(matrices, (Attention(H, H, E, E),), norms, 2 * H * E, inner, gated=False, rms=False, rotary=False)
    tables = (("embed_tokens", V, D), ("embed_positions", T, D))
    stack, head = Stack(((L, layer),), _norms(("norm",), D, bias=True)), (Matrix("lm_head", V, D),)
    return Architecture(name, "gpt2", D, V, T, tables, (stack,), head, bool(c.get("tie_word_embeddings", True)))


def _attention(place: str, D: int, inner: int, bias: bool, memory: bool = False) -> tuple[Matrix, ...]:
    """Queries, keys and values of as many heads each, and what gathers them. memory: keys and values are of one."""
    return (
        Matrix(f"{place}.q_proj", inner, D, bias=bias),
        *(Matrix(f"{place}.{n}_proj", inner, D, bias=bias, memory=memory) for n in "kv"),
        Matrix(f"{place}.o_proj", D, inner, "row", bias=bias),
    )


def _plain(D: int, F: int, bias: bool) -> tuple[Matrix, ...]:
    return (Matrix("mlp.up_proj", F, D, bias=bias), Matrix("mlp.down_proj", D, F, "row", bias=bias))


def _bert(c: Mapping[str, Any], name: str) -> Architecture:
    """BERT (Devlin et al., 2019) with the head for masked words at every position, or with that which `head` names."""
    D, H, L, V, F = (
        c[k] for k in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "intermediate_size")
    )
    E, T = c.get("head_dim") or D // H, c["max_position_embeddings"]
    own, norms = (Attention(H, H, E, E, causal=False),), _norms(_NORMS, D, bias=True)
    matrices = (*_attention("self_attn", D, H * E, bias=True), *_plain(D, F, bias=True))
    layer = Layer(matrices, own, norms, 0, F, gated=False, rms=False, behind=True, rotary=False)
    tables = (("embed_tokens", V, D), ("embed_positions", T, D), ("embed_types", c.get("type_vocab_size") or 2, D))
    told: Literal["tokens", "labels", "spans"] = c.get("head") or "tokens"
    outputs = {"tokens": V, "labels": len(c.get("labels") or ()), "spans": 2}[told]
    head: tuple[Matrix, ...] = (Matrix("lm_head", outputs, D, bias=True),)
    if told != "spans":
        head = (Matrix("head_dense", D, D, bias=True), *head)
    stack = Stack(((L, layer),), (), encoder=True)
    outer = _norms(("embed_norm", "head_norm") if told == "tokens" else ("embed_norm",), D, bias=True)
    return Architecture(name, "bert", D, V, T, tables, (stack,), head, told == "tokens", vectors=outer, told=told)


def _halves(
    L: tuple[int, int], sizes: tuple[int, int, int, int, int], *, bias: bool, gated: bool, behind: bool, relu: bool
) -> tuple[Stack, Stack]:
    """Encoder and decoder of L layers, of sizes D, H, E, F and buckets of distances, which may be 0."""
    D, H, E, F, buckets = sizes
    feed = _swiglu("mlp", D, F) if gated else _plain(D, F, bias)
    crossed = (_NORMS[0], "cross_attention_layernorm", _NORMS[1])

    def layer(decodes: bool) -> Layer:
        attentions = [Attention(H, H, E, E, causal=decodes, biased=buckets > 0)]
        matrices = _attention("self_attn", D, H * E, bias)
        if decodes:
            attentions.append(Attention(H, H, E, E, causal=False, memory=True))
            matrices += _attention("cross_attn", D, H * E, bias, memory=True)
        names = crossed if decodes else _NORMS
        norms = _norms(names, D, bias)
        kept = 2 * H * E if decodes else 0
        own: dict[str, Any] = {"gated": gated, "rms": not bias, "behind": behind, "rotary": False, "relu": relu}
        own["of_source"] = not decodes
        return Layer((*matrices, *feed), tuple(attentions), norms, kept, F, norms=len(names), **own)

    outer: tuple[Vector, ...] = ()
    if buckets:
        outer = (*_norms(("norm",), D), ("relative_bias.weight", buckets * H))
    return Stack(((L[0], layer(False)),), outer, encoder=True), Stack(((L[1], layer(True)),), outer)


def _t5(c: Mapping[str, Any], name: str) -> Architecture:
    """T5 (Raffel et al., 2020): encoder and decoder with biases by distance, without other biases; v1.1 is gated."""
    D, H, V = c["d_model"], c["num_heads"], c["vocab_size"]
    sizes = (D, H, c["d_kv"], c["d_ff"], c.get("relative_attention_num_buckets") or 32)
    gated = str(c.get("feed_forward_proj", "relu")).startswith("gated")
    depths = (c["num_layers"], c.get("num_decoder_layers") or c["num_layers"])
    stacks = _halves(depths, sizes, bias=False, gated=gated, behind=False, relu=not gated)
    head, tied = (Matrix("lm_head", V, D),), bool(c.get("tie_word_embeddings", True))
    return Architecture(name, "t5", D, V, c.get("n_positions", 512), (("embed_tokens", V, D),), stacks, head, tied)


def _marian(c: Mapping[str, Any], name: str) -> Architecture:
    """Marian's Transformer (Vaswani et al., 2017): sinusoids, LayerNorm behind each branch, a bias on the logits."""
    D, H, V = c["d_model"], c["encoder_attention_heads"], c["vocab_size"]
    sizes = (D, H, c.get("head_dim") or D // H, c["encoder_ffn_dim"], 0)
    relu = (c.get("hidden_act") or c.get("activation_function") or "relu") == "relu"
    stacks = _halves((c["encoder_layers"], c["decoder_layers"]), sizes, bias=True, gated=False, behind=True, relu=relu)
    head, tied = (Matrix("lm_head", V, D, bias=True),), bool(c.get("tie_word_embeddings", True))
    T, tables = c["max_position_embeddings"], (("embed_tokens", V, D),)
    return Architecture(name, "marian", D, V, T, tables, stacks, head, tied)


def _deepseek(c: Mapping[str, Any], name: str) -> Architecture:
    """DeepSeek-V3 (2024): latent attention, a few dense layers first, then shared and routed experts."""
    D, H = c["hidden_size"], c["num_attention_heads"]
    latent, queries, rope = c["kv_lora_rank"], c.get("q_lora_rank"), c["qk_rope_head_dim"]
    plain, v = c["qk_nope_head_dim"], c["v_head_dim"]
    qk = plain + rope
    of_queries = (
        (Matrix("self_attn.q_a_proj", queries, D, "whole"), Matrix("self_attn.q_b_proj", H * qk, queries))
        if queries
        else (Matrix("self_attn.q_proj", H * qk, D),)
    )
    attention = (
        *of_queries,
        Matrix("self_attn.kv_a_proj_with_mqa", latent + rope, D, "whole"),
        Matrix("self_attn.kv_b_proj", H * (plain + v), latent),
        Matrix("self_attn.o_proj", D, H * v, "row"),
    )
    shared = (c.get("n_shared_experts") or 0) * c["moe_intermediate_size"]
    vectors = (*_norms(_NORMS, D), ("self_attn.kv_a_layernorm.weight", latent))
    if queries:
        vectors = (*vectors, ("self_attn.q_a_layernorm.weight", queries))
    latents = (latent, *((queries,) if queries else ()))

    def layer(feed: tuple[Matrix, ...], inner: int) -> Layer:
        own = (Attention(H, H, qk, v),)
        return Layer((*attention, *feed), own, vectors, latent + rope, inner, latents=latents)

    dense = c.get("first_k_dense_replace", 0)
    layers = (
        (dense, layer(_swiglu("mlp", D, c["intermediate_size"]), c["intermediate_size"])),
        (c["num_hidden_layers"] - dense, layer(_experts(c), shared)),
    )
    return _with_tables(c, name, (Stack(tuple(y for y in layers if y[0]), _norms(("norm",), D)),))


FAMILIES: dict[str, Callable[[Mapping[str, Any], str], Architecture]] = {
    "bert": _bert,
    "deepseek_v3": _deepseek,
    "gemma3_text": _decoder,
    "gpt2": _gpt2,
    "llama": _decoder,
    "marian": _marian,
    "mistral": _decoder,
    "mixtral": _decoder,
    "qwen2": _decoder,
    "qwen3": _decoder,
    "qwen3_moe": _decoder,
    "t5": _t5,
}
