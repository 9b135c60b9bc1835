"""config.json of each family, both ways: its keys to a `[model]` table, and back.

What a file leaves out has the default of transformers' own config class. What a family of ours does not do is refused
by name, never passed over. Formats: the configuration classes of Hugging Face transformers 5 (older files name rotary
positions differently; both forms are read and written).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from foretell.config import ModelConfig, RopeScaling
from foretell.errors import ModelError

# A longer context than any published model has; its rotary tables take 1 GB at head_dim 128.
_LONGEST_CONTEXT = 1 << 20
_SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size"),
    *("vocab_size", "max_position_embeddings"),
)
Raw = Mapping[str, Any]


@dataclass(frozen=True)
class Family:
    """What is particular in a family's config.json.

    ours: `model_type` of the table. architecture: transformers' class. keys: their name of one of our keys, where it is
    another. defaults: of their keys that a file may leave out. demanded: values that alone can be read; `None` stands
    for absent, null or false. balance: how experts are balanced, None for a dense family.
    """

    ours: str
    architecture: str
    keys: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    demanded: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    head_dim: int | None = None
    windows: Callable[[Raw, int], dict[str, Any]] | None = None
    balance: str | None = None


def _mistral_windows(raw: Raw, layers: int) -> dict[str, Any]:
    return {"sliding_window": raw.get("sliding_window", 4096)}


def _qwen2_windows(raw: Raw, layers: int) -> dict[str, Any]:
    """Layers from max_window_layers on have the window, where there is one at all."""
    if not raw.get("use_sliding_window"):
        return {}
    first = raw.get("max_window_layers", 28)
    types = raw.get("layer_types") or ["full_attention" if n < first else "sliding_attention" for n in range(layers)]
    return {"sliding_window": raw.get("sliding_window", 4096), "layer_types": tuple(types)}


def _gemma_windows(raw: Raw, layers: int) -> dict[str, Any]:
    period = raw.get("sliding_window_pattern") or raw.get("_sliding_window_pattern") or 6
    every = ["full_attention" if n % period == 0 else "sliding_attention" for n in range(1, layers + 1)]
    return {
        "sliding_window": raw.get("sliding_window", 4096),
        "layer_types": tuple(raw.get("layer_types") or every),
        "query_pre_attn_scalar": raw.get("query_pre_attn_scalar", 256),
    }


_GATED = {"hidden_act": ("silu",), "attention_bias": (None,), "mlp_bias": (None,)}
_QWEN = {"hidden_act": ("silu",), "attention_bias": (None,), "use_sliding_window": (None,)}
_EXPERTS: dict[str, tuple[Any, ...]] = {**_QWEN, "decoder_sparse_step": (1,), "mlp_only_layers": (None, [])}
_LLAMA_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
FAMILIES: dict[str, Family] = {
    "qwen3": Family("qwen3", "Qwen3ForCausalLM", demanded=_QWEN, head_dim=128),
    "qwen3_moe": Family("qwen3", "Qwen3MoeForCausalLM", demanded=_EXPERTS, head_dim=128, balance="loss"),
    # None of transformers' own; named so that nobody computes it wrongly.
    "foretell_biased_moe": Family(
        "qwen3", "BiasedQwen3MoeForCausalLM", demanded=_EXPERTS, head_dim=128, balance="bias"
    ),
    "llama": Family("llama", "LlamaForCausalLM", defaults=_LLAMA_DEFAULTS, demanded=_GATED),
    "mistral": Family(
        "mistral", "MistralForCausalLM", defaults=_LLAMA_DEFAULTS, demanded=_GATED, windows=_mistral_windows
    ),
    "qwen2": Family(
        "qwen2",
        "Qwen2ForCausalLM",
        defaults=_LLAMA_DEFAULTS,
        demanded={"hidden_act": ("silu",)},
        windows=_qwen2_windows,
    ),
    "gemma3_text": Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        defaults={"tie_word_embeddings": True, "max_position_embeddings": 131_072},
        demanded={
            "hidden_activation": ("gelu_pytorch_tanh",),
            "attention_bias": (None,),
            "final_logit_softcapping": (None,),
            "attn_logit_softcapping": (None,),
            "use_bidirectional_attention": (None,),
        },
        head_dim=256,
        windows=_gemma_windows,
    ),
    "gpt2": Family(
        "gpt2",
        "GPT2LMHeadModel",
        keys={
            "hidden_size": "n_embd",
            "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head",
            "intermediate_size": "n_inner",
            "max_position_embeddings": "n_positions",
            "rms_norm_eps": "layer_norm_epsilon",
        },
        defaults={"tie_word_embeddings": True, "n_positions": 1024, "layer_norm_epsilon": 1e-5},
        demanded={
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "scale_attn_by_inverse_layer_idx": (None,),
            "reorder_and_upcast_attn": (None,),
            "add_cross_attention": (None,),
        },
    ),
}
# Where a file that leaves a demanded key out has another value than the one demanded.
_UNSAID = {"hidden_act": "silu", "hidden_activation": "gelu_pytorch_tanh", "activation_function": "gelu_new",
           "decoder_sparse_step": 1}  # fmt: skip


ENCODERS = ("bert", "marian", "t5")  # `encoders.py` reads them


def table(raw: Raw, path: str) -> ModelConfig:
    """The `[model]` table of a config.json's content. path: named in errors."""
    kind = raw.get("model_type")
    if kind not in list(FAMILIES):  # which, unlike a dict, may be asked for any JSON value
        known = ", ".join(repr(k) for k in (*FAMILIES, *ENCODERS))
        raise ModelError(f"{path}: model_type {kind!r} cannot be read; only {known} can")
    family = FAMILIES[kind]
    _refuse_what_differs(raw, family, path)

    def value(key: str) -> Any:
        theirs = family.keys.get(key, key)
        found = raw.get(theirs)
        return family.defaults.get(theirs) if found is None else found

    sizes: dict[str, Any] = {}
    for key in _SIZES:
        sizes[key] = checked_count(_derived(key, value(key), sizes, family, path), family.keys.get(key, key), path)
    D, H, K = (sizes[k] for k in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    sizes["head_dim"] = checked_count(raw.get("head_dim") or family.head_dim or D // H, "head_dim", path)
    E = sizes["head_dim"]
    if H % K or (E % 2 and family.ours != "gpt2"):
        raise ModelError(f"{path}: {H} heads must be a multiple of {K} KV heads, and head_dim ({E}) even")
    windows = family.windows(raw, sizes["num_hidden_layers"]) if family.windows else {}
    eps = value("rms_norm_eps")
    tied = value("tie_word_embeddings")
    return valid(
        {
            "model_type": family.ours,
            **sizes,
            **_angles(raw, family, sizes["max_position_embeddings"], path),
            **windows,
            "rms_norm_eps": checked_number(1e-6 if eps is None else eps, "rms_norm_eps", path),
            "tie_word_embeddings": tied is True,
            "initializer_range": checked_number(raw.get("initializer_range", 0.02), "initializer_range", path),
            **_experts(raw, family, path),
        },
        path,
    )


def valid(keys: dict[str, Any], path: str) -> ModelConfig:
    """The table of these keys. ModelError where a value cannot be."""
    if keys["max_position_embeddings"] > _LONGEST_CONTEXT:
        raise ModelError(
            f"{path}: max_position_embeddings is {keys['max_position_embeddings']:,}; at most {_LONGEST_CONTEXT:,}"
        )
    try:
        return ModelConfig(**keys)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ModelError(f"{path}: {where} = {str(first['input'])[:100]}: {first['msg']}") from None


def _derived(key: str, value: Any, sizes: Raw, family: Family, path: str) -> Any:
    """What a size is where it may be left out."""
    if value is None and key == "num_key_value_heads" and family.head_dim is None:
        return sizes["num_attention_heads"]
    if value is None and key == "intermediate_size" and family.ours == "gpt2":
        return 4 * int(sizes["hidden_size"])
    return value


def _angles(raw: Raw, family: Family, longest: int, path: str) -> dict[str, Any]:
    """Base and stretching of rotary positions."""
    if family.ours == "gpt2":
        return {}
    given = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(given, dict):
        raise ModelError(f"{path}: rope_parameters = {json.dumps(given)[:100]} is not supported")
    near = given.get("sliding_attention")
    base = 1_000_000.0 if family.ours == "gemma3_text" else 10_000.0
    found: dict[str, Any] = {}
    if family.ours == "gemma3_text":
        local = (near or {}).get("rope_theta") or raw.get("rope_local_base_freq") or 10_000.0
        found["rope_local_base_freq"] = checked_number(local, "rope_local_base_freq", path)
        if near and near.get("rope_type", "default") != "default":
            raise ModelError(
                f"{path}: rope_parameters of sliding_attention = {json.dumps(near)[:100]} is not supported"
            )
    if near is not None:
        given = given.get("full_attention") or {}
    theta = given.get("rope_theta") or raw.get("rope_theta") or base
    found["rope_theta"] = checked_number(theta, "rope_theta", path)
    kind = given.get("rope_type", given.get("type", "default"))
    if kind == "default":
        return found
    known = {k: v for k, v in given.items() if k in RopeScaling.model_fields and v is not None}
    ignored = {"rope_theta", "type", "partial_rotary_factor", "truncate", "mscale", "mscale_all_dim"}
    strange = [k for k, v in given.items() if k not in RopeScaling.model_fields and (k not in ignored)]
    strange += [k for k in ("mscale", "mscale_all_dim") if given.get(k)]
    strange += [] if given.get("truncate", True) else ["truncate"]
    strange += [] if given.get("partial_rotary_factor", 1.0) == 1.0 else ["partial_rotary_factor"]
    if strange:
        raise ModelError(f"{path}: rope_parameters.{strange[0]} = {given[strange[0]]!r} is not supported")
    known.setdefault("original_max_position_embeddings", longest)
    found["rope_scaling"] = {**known, "rope_type": kind}
    return found


def _experts(raw: Raw, family: Family, path: str) -> dict[str, Any]:
    """The keys of a mixture of experts; none in a dense model."""
    if family.balance is None:
        return {}
    N = checked_count(raw.get("num_experts", raw.get("num_local_experts")), "num_experts", path)
    k = checked_count(raw.get("num_experts_per_tok", 8), "num_experts_per_tok", path)
    if k > N:
        raise ModelError(f"{path}: num_experts_per_tok ({k:,}) exceeds num_experts ({N:,})")
    coefficient = raw.get("router_aux_loss_coef", 0.001)
    return {
        "num_experts": N,
        "num_experts_per_tok": k,
        "moe_intermediate_size": checked_count(raw.get("moe_intermediate_size", 768), "moe_intermediate_size", path),
        "norm_topk_prob": raw.get("norm_topk_prob", False) is True,
        "balance": family.balance,
        "router_aux_loss_coef": checked_number(coefficient, "router_aux_loss_coef", path) if coefficient else 0.0,
    }


def _refuse_what_differs(raw: Raw, family: Family, path: str) -> None:
    demanded = {**family.demanded, "quantization_config": (None,)}
    if family.windows is None:
        demanded["layer_types"] = (None,)
    for key, values in demanded.items():
        given = raw.get(key, _UNSAID.get(key))
        if key == "layer_types" and isinstance(given, list) and all(t == "full_attention" for t in given):
            continue
        if given not in values and not (None in values and not given):
            raise ModelError(f"{path}: {key} = {json.dumps(given)[:100]} is not supported in {raw['model_type']}")


def checked_count(value: Any, key: str, path: str) -> int:
    """A size. ModelError where it is none."""
    if type(value) is not int or not 0 < value < 1 << 31:
        raise ModelError(f"{path}: {key} is {value!r}, not a count")
    return value


def checked_number(value: Any, key: str, path: str) -> float:
    """A positive number. ModelError where it is none."""
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise ModelError(f"{path}: {key} is {value!r}, not a positive number")
    return float(value)


_JSON_BYTES = 1 << 28  # an index of a million tensors is a fraction of it


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. ModelError where the file is none."""
    try:
        if path.stat().st_size > _JSON_BYTES:
            raise ModelError(f"{path}: {path.stat().st_size:,} bytes are too many for a JSON file of a model")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as e:
        raise ModelError(f"{path}: not readable JSON: {e}") from None
    if not isinstance(value, dict):
        raise ModelError(f"{path}: not a JSON object")
    return value


def family_of(c: ModelConfig) -> str:
    """Their `model_type` of a `[model]` table."""
    return next(k for k, f in FAMILIES.items() if f.ours == c.model_type and f.balance == c.balance)


def described(c: ModelConfig) -> dict[str, Any]:
    """config.json of a resolved `[model]` table, without the tokenizer's ids."""
    kind = family_of(c)
    family = FAMILIES[kind]
    keys = [k for k in (*_SIZES, "rms_norm_eps") if family.ours != "gpt2" or k != "num_key_value_heads"]
    said = {k: values[0] if values[0] is not None else None for k, values in family.demanded.items()}
    config = {
        "architectures": [family.architecture],
        "model_type": kind,
        **{family.keys.get(k, k): getattr(c, k) for k in keys},
        **{k: False if v is None and "softcapping" not in k else v for k, v in said.items() if k != "mlp_only_layers"},
        "tie_word_embeddings": c.tie_word_embeddings,
        "initializer_range": c.initializer_range,
        "torch_dtype": "float32",
        "use_cache": True,
    }
    if family.ours == "gpt2":
        return {**config, "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    config |= {"head_dim": c.head_dim, "attention_dropout": 0.0, **_described_angles(c), **_described_experts(c)}
    if family.windows is not None:
        config |= {"sliding_window": c.sliding_window, "use_sliding_window": c.sliding_window is not None}
        if c.layer_types is not None:
            config["layer_types"] = list(c.layer_types)
    if c.query_pre_attn_scalar is not None or family.ours == "gemma3_text":
        config["query_pre_attn_scalar"] = c.query_pre_attn_scalar or c.head_dim
    return config


def _described_angles(c: ModelConfig) -> dict[str, Any]:
    """Rotary positions as transformers 5 reads them, and as everything older does."""
    scaling = {"rope_type": "default"} if c.rope_scaling is None else c.rope_scaling.model_dump(exclude_none=True)
    full = {"rope_theta": c.rope_theta, **scaling}
    older: dict[str, Any] = {"rope_theta": c.rope_theta}
    if c.rope_scaling is not None:
        older["rope_scaling"] = scaling
    if c.model_type != "gemma3_text":
        return {"rope_parameters": full, **older}
    near = {"rope_theta": c.rope_local_base_freq, "rope_type": "default"}
    both = {"full_attention": full, "sliding_attention": near}
    return {"rope_parameters": both, "rope_local_base_freq": c.rope_local_base_freq, **older}


def _described_experts(c: ModelConfig) -> dict[str, Any]:
    if not c.num_experts:
        return {}
    keys = ("num_experts", "num_experts_per_tok", "moe_intermediate_size", "norm_topk_prob", "router_aux_loss_coef")
    return {**{k: getattr(c, k) for k in keys}, "decoder_sparse_step": 1, "mlp_only_layers": []}
