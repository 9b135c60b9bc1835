"""Published families of Transformers, each read from the keys of its Hugging Face config.

Decoders (GPT-2 and 3, Llama, Qwen2, Qwen3, Mistral), mixtures of experts (Qwen3-MoE, Mixtral, DeepSeek-V3 with its
latent attention), encoders (BERT with its head for masked words) and encoder-decoders (T5). Tests build each preset by
transformers' own classes on meta tensors and find the same parameters and the same products, to the last one.

Not counted: DeepSeek-V3's extra layers that predict further tokens, buffers, and GPT-3's sparse layers (taken as dense,
as in the paper's own table of FLOPs).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foretell.plan.architecture import Architecture, Attention, Layer, Matrix, Stack


def _decoder(c: Mapping[str, Any], name: str) -> Architecture:
    """Llama and its kin: RMSNorm, rotary positions, grouped queries, SwiGLU; some with biases or norms of queries."""
    family, D, H = c["model_type"], c["hidden_size"], c["num_attention_heads"]
    E = c.get("head_dim") or D // H
    K = c.get("num_key_value_heads") or H
    bias = family == "qwen2" or bool(c.get("attention_bias"))
    window = c.get("sliding_window") if family in ("mistral", "mixtral") or c.get("use_sliding_window") else None
    attention = (
        Matrix("self_attn.q_proj", H * E, D, bias=bias),
        Matrix("self_attn.k_proj", K * E, D, bias=bias),
        Matrix("self_attn.v_proj", K * E, D, bias=bias),
        Matrix("self_attn.o_proj", D, H * E, "row", bias=bool(c.get("attention_bias"))),
    )
    vectors = (D, D, *((E, E) if family.startswith("qwen3") else ()))
    sparse = bool(c.get("num_experts") or c.get("num_local_experts"))
    if sparse and c.get("expert_bias"):
        vectors = (*vectors, c["num_experts"])
    feed = _experts(c) if sparse else _swiglu("mlp", D, c["intermediate_size"])
    layer = Layer(
        (*attention, *feed),
        (Attention(H, K, E, E, window=window),),
        vectors,
        2 * K * E,
        inner=0 if sparse else c["intermediate_size"],
        norms_of_heads=family.startswith("qwen3"),
    )
    return _with_tables(c, name, (Stack(((c["num_hidden_layers"], layer),), (D,)),))


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
        bool(c.get("tie_word_embeddings", False)),
    )


def _gpt2(c: Mapping[str, Any], name: str) -> Architecture:
    """GPT-2 (Radford et al., 2019) and GPT-3 (Brown et al., 2020): learned positions, LayerNorm, GELU, biases."""
    D, H, L, V, T = c["n_embd"], c["n_head"], c["n_layer"], c["vocab_size"], c["n_positions"]
    inner = c.get("n_inner") or 4 * D
    matrices = (
        Matrix("attn.c_attn", 3 * D, D, bias=True),
        Matrix("attn.c_proj", D, D, "row", bias=True),
        Matrix("mlp.c_fc", inner, D, bias=True),
        Matrix("mlp.c_proj", D, inner, "row", bias=True),
    )
    own = (Attention(H, H, D // H, D // H),)
    layer = Layer(matrices, own, (D, D, D, D), 2 * D, inner, gated=False, rms=False)
    tables = (("wte", V, D), ("wpe", T, D))
    stack = Stack(((L, layer),), (D, D))
    return Architecture(name, "gpt2", D, V, T, tables, (stack,), (Matrix("lm_head", V, D),), True)


def _bert(c: Mapping[str, Any], name: str) -> Architecture:
    """BERT (Devlin et al., 2019) with the head for masked words, applied at every position."""
    D, H, L, V, F = (
        c[k] for k in ("hidden_size", "num_attention_heads", "num_hidden_layers", "vocab_size", "intermediate_size")
    )
    names = ("attention.self.query", "attention.self.key", "attention.self.value")
    matrices = (
        *(Matrix(n, D, D, bias=True) for n in names),
        Matrix("attention.output.dense", D, D, "row", bias=True),
        Matrix("intermediate.dense", F, D, bias=True),
        Matrix("output.dense", D, F, "row", bias=True),
    )
    own = (Attention(H, H, D // H, D // H, causal=False),)
    layer = Layer(matrices, own, (D, D, D, D), 0, F, gated=False, rms=False)
    T = c["max_position_embeddings"]
    tables = (("word_embeddings", V, D), ("position_embeddings", T, D), ("token_type_embeddings", 2, D))
    head = (Matrix("transform.dense", D, D, bias=True), Matrix("decoder", V, D, bias=True))
    stack = Stack(((L, layer),), (), encoder=True)
    # Norms of the embeddings and of the head: a weight and a bias each.
    return Architecture(name, "bert", D, V, T, tables, (stack,), head, True, vectors=(D, D, D, D))


def _t5(c: Mapping[str, Any], name: str) -> Architecture:
    """T5 (Raffel et al., 2020): encoder and decoder with biases by distance, without other biases; v1.1 is gated."""
    D, E, F, H, V = c["d_model"], c["d_kv"], c["d_ff"], c["num_heads"], c["vocab_size"]
    inner, gated = H * E, str(c.get("feed_forward_proj", "relu")).startswith("gated")
    first = ("DenseReluDense.wi_0", "DenseReluDense.wi_1") if gated else ("DenseReluDense.wi",)
    feed = (*(Matrix(n, F, D) for n in first), Matrix("DenseReluDense.wo", D, F, "row"))

    def attention(place: str, memory: bool = False) -> tuple[Matrix, ...]:
        own = (Matrix(f"{place}.q", inner, D), Matrix(f"{place}.o", D, inner, "row"))
        return (*own, *(Matrix(f"{place}.{n}", inner, D, memory=memory) for n in "kv"))

    encoder = Layer((*attention("SelfAttention"), *feed), (Attention(H, H, E, E, causal=False),), (D, D), 0, F, gated)
    decoder = Layer(
        (*attention("SelfAttention"), *attention("EncDecAttention", memory=True), *feed),
        (Attention(H, H, E, E), Attention(H, H, E, E, causal=False, memory=True)),
        (D, D, D),
        2 * inner,
        F,
        gated,
    )
    buckets = c.get("relative_attention_num_buckets", 32) * H
    stacks = (
        Stack(((c["num_layers"], encoder),), (D, buckets), encoder=True),
        Stack(((c.get("num_decoder_layers") or c["num_layers"], decoder),), (D, buckets)),
    )
    head, tied = (Matrix("lm_head", V, D),), bool(c.get("tie_word_embeddings", True))
    return Architecture(name, "t5", D, V, c.get("n_positions", 512), (("shared", V, D),), stacks, head, tied)


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
    vectors = (D, D, latent, *((queries,) if queries else ()))

    latents = (latent, *((queries,) if queries else ()))

    def layer(feed: tuple[Matrix, ...], inner: int) -> Layer:
        own = (Attention(H, H, qk, v),)
        return Layer((*attention, *feed), own, vectors, latent + rope, inner, latents=latents)

    dense = c.get("first_k_dense_replace", 0)
    layers = (
        (dense, layer(_swiglu("mlp", D, c["intermediate_size"]), c["intermediate_size"])),
        (c["num_hidden_layers"] - dense, layer(_experts(c), shared)),
    )
    return _with_tables(c, name, (Stack(tuple(y for y in layers if y[0]), (D,)),))


FAMILIES: dict[str, Callable[[Mapping[str, Any], str], Architecture]] = {
    "bert": _bert,
    "deepseek_v3": _deepseek,
    "gpt2": _gpt2,
    "llama": _decoder,
    "mistral": _decoder,
    "mixtral": _decoder,
    "qwen2": _decoder,
    "qwen3": _decoder,
    "qwen3_moe": _decoder,
    "t5": _t5,
}
