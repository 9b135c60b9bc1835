"""A Transformer as the forecast sees it: which weights, which products, which attention. Read from its config.json.

Every number is derived from the keys of a Hugging Face config: of decoders (GPT-2 and 3, Llama, Qwen2, Qwen3, Mistral),
mixtures of experts (Qwen3-MoE, Mixtral, DeepSeek-V3 with its latent attention), encoders (BERT with its head for masked
words) and encoder-decoders (T5). Tests build each preset by transformers' own classes on meta tensors and find the same
parameters and the same products, to the last one.

A model is stacks of layers; a layer is weight matrices that tokens pass through, and attentions. Not counted here:
DeepSeek-V3's extra layers that predict further tokens, buffers, and GPT-3's sparse layers (taken as dense, as in the
paper's own table of FLOPs).
"""

from __future__ import annotations

import difflib
import functools
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal

from foretell.config import ModelConfig
from foretell.errors import ConfigError

Split = Literal["column", "row", "whole"]


@dataclass(frozen=True)
class Matrix:
    """A weight (rows, columns) = (features out, features in), or `copies` of it of which a token passes `used`.

    split: how tensor parallelism divides it (`column`: its rows, `row`: its columns). memory: the tokens that pass are
    the encoder's, seen from a decoder.
    """

    name: str
    rows: int
    columns: int
    split: Split = "column"
    bias: bool = False
    copies: int = 1
    used: int = 1
    memory: bool = False

    @property
    def weights(self) -> int:
        """Numbers in it, without biases."""
        return self.copies * self.rows * self.columns

    @property
    def parameters(self) -> int:
        """Numbers in it and in its biases."""
        return self.weights + self.copies * self.rows * self.bias


@dataclass(frozen=True)
class Attention:
    """Heads of queries over keys and values: `qk` numbers a head in a query, `v` in a value.

    causal: a token sees those before it. memory: keys and values are the encoder's. window: how far it sees at most.
    """

    heads: int
    kv_heads: int
    qk: int
    v: int
    causal: bool = True
    memory: bool = False
    window: int | None = None

    def keys(self, context: int, memory: int = 0) -> float:
        """Keys that a token meets on average among `context` tokens, or in a memory of so many."""
        if self.memory:
            return memory
        if not self.causal:
            return context
        seen = min(self.window or context, context)
        return seen - seen * (seen - 1) / (2 * context)


@dataclass(frozen=True)
class Layer:
    """One layer. vectors: the sizes of its norms and other small weights. kept: numbers a token that a KV cache holds.

    inner: the width of the feed-forward part that every token passes, 0 if none; gated: it multiplies two products
    (SwiGLU). latents: widths that latent attention narrows tokens to. rms: norms without mean and bias.
    """

    matrices: tuple[Matrix, ...]
    attentions: tuple[Attention, ...]
    vectors: tuple[int, ...]
    kept: int
    inner: int
    gated: bool = True
    rms: bool = True
    norms_of_heads: bool = False
    latents: tuple[int, ...] = ()

    @property
    def parameters(self) -> int:
        """Numbers in its weights."""
        return sum(m.parameters for m in self.matrices) + sum(self.vectors)

    @property
    def routed(self) -> Matrix | None:
        """The first product of the experts that tokens are routed to: (width, hidden), as many copies, k used."""
        return next((m for m in self.matrices if m.copies > 1), None)

    @property
    def idle(self) -> int:
        """Of these, those that one token does not pass."""
        return sum((m.copies - m.used) * m.parameters // m.copies for m in self.matrices)


@dataclass(frozen=True)
class Stack:
    """Layers one after another, `count` times each, and the vectors behind them. encoder: over the source's tokens."""

    layers: tuple[tuple[int, Layer], ...]
    vectors: tuple[int, ...]
    encoder: bool = False

    @property
    def depth(self) -> int:
        """Layers in all."""
        return sum(n for n, _ in self.layers)

    def each(self) -> Iterator[Layer]:
        """Layer after layer."""
        return (layer for n, layer in self.layers for _ in range(n))


@dataclass(frozen=True)
class Architecture:
    """A whole model. tables: (name, rows, width) of what is looked up; of a tied head the first is the weight, too.

    head: the products between the last layer and the logits, the last of which gives them.
    """

    name: str
    family: str
    hidden: int
    vocab: int
    context: int
    tables: tuple[tuple[str, int, int], ...]
    stacks: tuple[Stack, ...]
    head: tuple[Matrix, ...]
    tied: bool
    vectors: tuple[int, ...] = ()

    @property
    def layers(self) -> int:
        """Layers in all."""
        return sum(s.depth for s in self.stacks)

    @property
    def parameters(self) -> dict[str, int]:
        """Parameters: `total`, `non_embedding` (without tables and an untied head), `active` (those a token passes)."""
        tables = sum(rows * width for _, rows, width in self.tables)
        logits = self.head[-1]
        own_head = logits.parameters - (logits.weights if self.tied else 0)
        rest = sum(n * layer.parameters for s in self.stacks for n, layer in s.layers)
        rest += sum(sum(s.vectors) for s in self.stacks) + sum(self.vectors) + sum(m.parameters for m in self.head[:-1])
        idle = sum(n * layer.idle for s in self.stacks for n, layer in s.layers)
        total = tables + own_head + rest
        return {
            "total": total,
            "non_embedding": rest,
            "embedding": tables,
            "head": own_head,
            "active": total - idle,
            "active_non_embedding": rest - idle,
        }

    def forward_flops(self, context: int, source: int = 0) -> dict[str, float]:
        """FLOPs of the forward pass of one sequence of `context` tokens, of which a source has `source`.

        `matrices`, `head`, and attention counted in full (`attention_full`) or exactly (`attention_causal`). A product
        of (m, k) and (k, n) costs 2 m n k; lookups, norms and elementwise work nothing.
        """
        source = source if len(self.stacks) > 1 else 0
        found = {"matrices": 0.0, "attention_full": 0.0, "attention_causal": 0.0}
        for stack in self.stacks:
            own = source if stack.encoder and source else context
            for n, layer in stack.layers:
                passed = ((m, source if m.memory else own) for m in layer.matrices)
                found["matrices"] += n * sum(2.0 * m.used * m.rows * m.columns * tokens for m, tokens in passed)
                for a in layer.attentions:
                    each = 2.0 * n * own * a.heads * (a.qk + a.v)
                    found["attention_full"] += each * (source if a.memory else own)
                    found["attention_causal"] += each * a.keys(own, source)
        found["head"] = 2.0 * context * sum(m.rows * m.columns for m in self.head)
        return found

    def flops_per_token(self, context: int, source: int = 0) -> dict[str, float]:
        """FLOPs to train on one token (of the target, where there is a source), by convention, each named.

        `causal` is the headline: all products with the head, attention exact. `full`: attention as if every query met
        every key. `without_head`. `6n`: Kaplan et al. (2020). `6n_attention`: 6 N + 12 L H E T (PaLM, llm-foundry).
        """
        f = self.forward_flops(context, source)
        active = self.parameters["active"]
        rule = sum(6.0 * n * a.heads * (a.qk + a.v) for s in self.stacks for n, y in s.layers for a in y.attentions)
        return {
            "causal": 3 * (f["matrices"] + f["head"] + f["attention_causal"]) / context,
            "full": 3 * (f["matrices"] + f["head"] + f["attention_full"]) / context,
            "without_head": 3 * (f["matrices"] + f["attention_causal"]) / context,
            "6n": 6.0 * active,
            "6n_attention": 6.0 * active + rule * context,
        }

    @property
    def cache_numbers_per_token(self) -> int:
        """Numbers that a KV cache holds of one token, all layers of the decoder together."""
        return sum(n * layer.kept for s in self.stacks if not s.encoder for n, layer in s.layers)


@functools.cache
def presets() -> dict[str, dict[str, Any]]:
    """The configs that ship with the package, by name (`models.toml`)."""
    text = (resources.files("foretell.plan") / "models.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def preset(name: str) -> Architecture:
    """The architecture of a preset. Raises ConfigError that names the nearest for a name not known."""
    known = presets()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"model.preset `{name}` is not known{hint} There are: {', '.join(known)}")
    return of(known[name], name)


def of(config: Mapping[str, Any], name: str = "model") -> Architecture:
    """The architecture of a Hugging Face config. Raises ConfigError for a family or a key it cannot read."""
    family = str(config.get("model_type"))
    if family not in _FAMILIES:
        raise ConfigError(f"{name}: model_type `{family}` is not one of {', '.join(sorted(_FAMILIES))}")
    try:
        return _FAMILIES[family](config, name)
    except KeyError as e:
        raise ConfigError(f"{name}: the config of a {family} needs the key {e.args[0]}") from None


def of_model(model: ModelConfig) -> Architecture:
    """The architecture of a completed [model] table: the decoder that this package trains."""
    keys = model.model_dump(exclude_none=True)
    kind = "qwen3_moe" if model.num_experts else "qwen3"
    return of({**keys, "model_type": kind, "expert_bias": model.balance == "bias"}, "model")


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


_FAMILIES: dict[str, Callable[[Mapping[str, Any], str], Architecture]] = {
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
