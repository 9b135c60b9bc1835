"""`[model]`: sizes and families. Keys have the names of Hugging Face's config.json."""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from pydantic import Field

from foretell.config.table import Table
from foretell.errors import ConfigError

ModelType = Literal["bert", "gemma3_text", "gpt2", "llama", "marian", "mistral", "qwen2", "qwen3", "t5"]


class Sizes(NamedTuple):
    """The sizes of a resolved model, by the letters that the shapes are written in."""

    D: int
    L: int
    H: int
    K: int
    E: int
    F: int
    V: int


class RopeScaling(Table):
    """`model.rope_scaling`: how rotary positions are stretched (`models/rope.py`), by Hugging Face's names."""

    rope_type: Literal["linear", "llama3", "yarn"]
    factor: float = Field(gt=0)
    original_max_position_embeddings: int = Field(8192, gt=0)
    low_freq_factor: float = Field(1.0, gt=0)
    high_freq_factor: float = Field(4.0, gt=0)
    beta_fast: float = Field(32.0, gt=0)
    beta_slow: float = Field(1.0, gt=0)
    attention_factor: float | None = Field(None, gt=0)


class ModelConfig(Table):
    """`[model]`: Hugging Face key names. Unset sizes derive from `hidden_size` (see `resolved`)."""

    model_type: ModelType = Field("qwen3", description="family, by Hugging Face's name")

    preset: str | None = Field(None, description="plan only: a published model, such as llama3-405b, or a config.json")
    hidden_size: int | None = Field(None, gt=0, description="width D; chosen by the forecast when unset")
    num_hidden_layers: int | None = Field(None, gt=0, description="layers; chosen by the forecast when unset")
    num_attention_heads: int | None = Field(None, gt=0, description="query heads H; hidden_size / 64, at least 4")
    num_key_value_heads: int | None = Field(None, gt=0, description="key and value heads K; about half of H")
    head_dim: int | None = Field(None, gt=0, description="head width E; hidden_size / H")
    intermediate_size: int | None = Field(None, gt=0, description="feed-forward width F; 8/3 hidden_size")
    vocab_size: int | None = Field(None, gt=0, description="vocabulary V; the tokenizer's when unset")
    max_position_embeddings: int | None = Field(None, gt=0, description="longest context; train.context when unset")
    rope_theta: float = Field(10_000.0, gt=0, description="base of the rotary position embedding")
    rope_scaling: RopeScaling | None = Field(None, description="rotary positions for longer texts than were trained on")
    rope_local_base_freq: float | None = Field(None, gt=0, description="gemma3_text: base where attention is near")
    sliding_window: int | None = Field(None, gt=0, description="how far a token sees in layers that do not see all")
    layer_types: tuple[Literal["full_attention", "sliding_attention"], ...] | None = Field(
        None, description="of each layer, whether the window holds; unset: by the family"
    )
    query_pre_attn_scalar: int | None = Field(None, gt=0, description="gemma3_text: products are over its root; E")
    num_decoder_layers: int | None = Field(None, gt=0, description="marian, t5: of the decoder; num_hidden_layers")
    hidden_act: Literal["relu", "gelu", "silu", "gated-gelu"] | None = Field(
        None, description="of the feed-forward part: bert gelu; marian relu, gelu or silu; t5 relu or gated-gelu"
    )
    type_vocab_size: int | None = Field(None, gt=0, description="bert: rows of the table of token types; 2")
    head: Literal["labels", "spans"] | None = Field(
        None, description="bert: what it tells, the label of a text or where an answer stands; unset: hidden tokens"
    )
    labels: tuple[str, ...] | None = Field(None, description="bert: the names of the labels, in order")
    relative_attention_num_buckets: int | None = Field(None, gt=1, description="t5: distances told apart; 32")
    relative_attention_max_distance: int | None = Field(None, gt=1, description="t5: from here on they are one; 128")
    scale_embedding: bool | None = Field(None, description="marian: embeddings times the root of D; true")
    scale_decoder_outputs: bool | None = Field(None, description="t5: outputs over the root of D; where tied")
    decoder_start_token_id: int | None = Field(None, ge=0, description="marian, t5: what a target begins with")
    rms_norm_eps: float = Field(1e-6, gt=0, description="epsilon of the norms")
    tie_word_embeddings: bool = Field(True, description="input and output embedding share one table")
    initializer_range: float = Field(0.02, gt=0, description="standard deviation of the initial embedding table")
    num_experts: int | None = Field(None, gt=0, description="experts N of a layer; unset: one dense feed-forward part")
    num_experts_per_tok: int | None = Field(None, gt=0, description="experts of one token, k; 2, or the one there is")
    moe_intermediate_size: int | None = Field(None, gt=0, description="width of an expert; F / num_experts_per_tok")
    norm_topk_prob: bool | None = Field(None, description="weights of a token's experts are made to sum to one; true")
    balance: Literal["loss", "bias"] | None = Field(None, description="how experts are kept equally busy; loss")
    router_aux_loss_coef: float | None = Field(None, ge=0, description="weight of the balance loss; 0.01, bias: 0")

    @property
    def sizes(self) -> Sizes:
        """The sizes by their letters. Raises ConfigError where one is unset."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
        return Sizes(*(self.needed(n) for n in (*names, "intermediate_size", "vocab_size")))

    def window(self, layer: int) -> int | None:
        """How far a token sees in that layer of a resolved model, itself included; None: all before it."""
        kinds = self.layer_types
        return self.sliding_window if kinds is None or kinds[layer] == "sliding_attention" else None

    def resolved(self, vocab_size: int, context: int) -> ModelConfig:
        """Every size filled in. Raises ConfigError when they do not fit together."""
        if self.hidden_size is None or self.num_hidden_layers is None:
            raise ConfigError("model.hidden_size and model.num_hidden_layers are not set; give both, or a --budget")
        D = self.hidden_size
        H = self.num_attention_heads or _default_heads(D)
        E = self.head_dim or D // H
        if self.head_dim is None and D % H:
            raise ConfigError(
                f"model.hidden_size ({D}) must be a multiple of model.num_attention_heads ({H}), or set model.head_dim"
            )
        if E % 2 and self.model_type not in WITHOUT_ANGLES:
            raise ConfigError(f"model.head_dim ({E}) must be even for rotary embeddings; use a hidden_size of {2 * H}n")
        shared = H if self.model_type in WITHOUT_ANGLES else max(d for d in range(1, max(1, H // 2) + 1) if H % d == 0)
        K = self.num_key_value_heads or shared
        if H % K:
            raise ConfigError(f"model.num_attention_heads ({H}) must be a multiple of num_key_value_heads ({K})")
        if self.vocab_size is not None and self.vocab_size < vocab_size:
            raise ConfigError(f"model.vocab_size ({self.vocab_size}) is smaller than the tokenizer's ({vocab_size})")
        longest = self.max_position_embeddings or context
        if longest < context:
            raise ConfigError(f"train.context ({context}) exceeds model.max_position_embeddings ({longest})")
        plain = self.model_type in WITHOUT_ANGLES and self.hidden_act != "gated-gelu"
        F = self.intermediate_size or (4 * D if plain else 64 * math.ceil(8 * D / 3 / 64))
        return self.model_copy(
            update={
                "num_attention_heads": H,
                "num_key_value_heads": K,
                "head_dim": E,
                "intermediate_size": F,
                "vocab_size": self.vocab_size or vocab_size,
                "max_position_embeddings": longest,
                **self._resolved_experts(F),
                **self._resolved_family(H, K, longest),
            }
        )

    def _resolved_family(self, H: int, K: int, longest: int) -> dict[str, Any]:
        """The keys that only some families have filled in. Raises ConfigError for what a family has not."""
        kind, layers = self.model_type, self.num_hidden_layers or 0
        has = _OF_FAMILIES.get(kind, set())
        for key in sorted(set().union(*_OF_FAMILIES.values()) - has):
            if getattr(self, key) is not None:
                kinds = ", ".join(k for k, keys in _OF_FAMILIES.items() if key in keys)
                raise ConfigError(
                    f"model.{key} is set, but {kind} has none; leave it out, or set model.model_type: {kinds}"
                )
        if kind in WITHOUT_ANGLES and K != H:
            raise ConfigError(f"model.num_key_value_heads ({K}) must be num_attention_heads ({H}) in {kind}")
        if kind == "bert" and not self.tie_word_embeddings and self.head is None:
            raise ConfigError("model.tie_word_embeddings = false: bert has one table for both; leave it out")
        if kind in _ACTIVATIONS and self.hidden_act not in (None, *_ACTIVATIONS[kind]):
            raise ConfigError(f"model.hidden_act = {self.hidden_act}: {kind} has {' or '.join(_ACTIVATIONS[kind])}")
        types = self.layer_types
        if types is not None and len(types) != layers:
            raise ConfigError(f"model.layer_types has {len(types)} entries for {layers} layers; give one a layer")
        found: dict[str, Any] = {}
        if kind == "gemma3_text":
            near = ("full_attention" if n % _GEMMA_PERIOD == 0 else "sliding_attention" for n in range(1, layers + 1))
            found["layer_types"] = types or tuple(near)
            found["sliding_window"] = self.sliding_window or min(512, longest)
            found["rope_local_base_freq"] = self.rope_local_base_freq or self.rope_theta
        return found | self._resolved_encoders(layers)

    def _resolved_encoders(self, layers: int) -> dict[str, Any]:
        """The keys of encoders and encoder-decoders filled in."""
        kind = self.model_type
        found: dict[str, Any] = {}
        if kind in _ACTIVATIONS:
            found["hidden_act"] = self.hidden_act or _ACTIVATIONS[kind][0]
        if kind == "bert":
            found["type_vocab_size"] = self.type_vocab_size or 2
            if (self.head == "labels") != (len(self.labels or ()) > 1):
                raise ConfigError('model.head = "labels" and model.labels go together; set both, or leave both out')
            if self.head is not None:
                found["tie_word_embeddings"] = False  # its product is another than that of the table
        if kind in ENCODER_DECODERS:
            found["num_decoder_layers"] = self.num_decoder_layers or layers
        if kind == "marian":
            found["scale_embedding"] = self.scale_embedding is not False
        if kind == "t5":
            scaled = self.scale_decoder_outputs
            found["scale_decoder_outputs"] = self.tie_word_embeddings if scaled is None else scaled
            found["relative_attention_num_buckets"] = self.relative_attention_num_buckets or 32
            found["relative_attention_max_distance"] = self.relative_attention_max_distance or 128
        return found

    def _resolved_experts(self, F: int) -> dict[str, Any]:
        """The keys of a mixture of experts filled in; all stay unset in a dense model."""
        N = self.num_experts
        if N is None:
            alone = [k for k in _OF_EXPERTS if getattr(self, k) is not None]
            if alone:
                raise ConfigError(f"model.{alone[0]} is set, but model.num_experts is not; set it, or leave both out")
            return {}
        k = self.num_experts_per_tok or min(2, N)
        if k > N:
            raise ConfigError(f"model.num_experts_per_tok ({k}) exceeds model.num_experts ({N})")
        balance = self.balance or "loss"
        usual = 0.01 if balance == "loss" else 0.0
        return {
            "num_experts_per_tok": k,
            "moe_intermediate_size": self.moe_intermediate_size or 64 * math.ceil(F / k / 64),
            "norm_topk_prob": self.norm_topk_prob is not False,
            "balance": balance,
            "router_aux_loss_coef": usual if self.router_aux_loss_coef is None else self.router_aux_loss_coef,
        }


ENCODER_DECODERS = ("marian", "t5")
ENCODERS = ("bert", *ENCODER_DECODERS)
# Without rotary positions, with a key and a value for each query.
WITHOUT_ANGLES = ("gpt2", *ENCODERS)
_ACTIVATIONS = {"bert": ("gelu",), "marian": ("relu", "gelu", "silu"), "t5": ("relu", "gated-gelu")}
# What not every family has, by those that have it.
_OF_FAMILIES = {
    "bert": {"hidden_act", "type_vocab_size", "head", "labels"},
    "gemma3_text": {
        *("layer_types", "query_pre_attn_scalar", "rope_local_base_freq", "rope_scaling", "sliding_window"),
    },
    "llama": {"rope_scaling"},
    "marian": {"hidden_act", "num_decoder_layers", "scale_embedding", "decoder_start_token_id"},
    "mistral": {"rope_scaling", "sliding_window"},
    "qwen2": {"rope_scaling", "sliding_window", "layer_types"},
    "qwen3": {"rope_scaling", "num_experts"},
    "t5": {
        *("hidden_act", "num_decoder_layers", "decoder_start_token_id", "scale_decoder_outputs"),
        *("relative_attention_num_buckets", "relative_attention_max_distance"),
    },
}
_GEMMA_PERIOD = 6  # one of so many layers sees everything
_OF_EXPERTS = ("num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "balance", "router_aux_loss_coef")


def _default_heads(hidden_size: int) -> int:
    """About 64 wide, at least 4, an even width each. 64 -> 4, 256 -> 4, 384 -> 6."""
    wanted = max(4, hidden_size // 64)
    fitting = [h for h in range(1, wanted + 1) if hidden_size % h == 0 and (hidden_size // h) % 2 == 0]
    return max(fitting, default=1)
