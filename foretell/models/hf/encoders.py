"""config.json of encoders and encoder-decoders (BERT, Marian, T5), both ways; as `configs.py` for decoders.

What a file leaves out has the default of transformers' own config class; what a family of ours does not do is refused
by name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from foretell.config import ModelConfig
from foretell.errors import ModelError
from foretell.models.hf.configs import checked_count, checked_number, valid

Raw = Mapping[str, Any]
_ABSENT: tuple[Any, ...] = (None, False)


@dataclass(frozen=True)
class Kind:
    """A family's config.json.

    keys: of ours, theirs and its default (None: must be there). alike: their keys that must have the value of one of
    theirs. demanded: values that alone can be read. acts: our name of their activations. act: their key of it.
    """

    architecture: str
    keys: Mapping[str, tuple[str, Any]]
    act: str
    acts: Mapping[str, str]
    default_act: str
    alike: Mapping[str, str] = field(default_factory=dict)
    demanded: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)


KINDS: dict[str, Kind] = {
    "bert": Kind(
        "BertForMaskedLM",
        {
            "hidden_size": ("hidden_size", 768),
            "num_hidden_layers": ("num_hidden_layers", 12),
            "num_attention_heads": ("num_attention_heads", 12),
            "intermediate_size": ("intermediate_size", 3072),
            "vocab_size": ("vocab_size", 30_522),
            "max_position_embeddings": ("max_position_embeddings", 512),
            "type_vocab_size": ("type_vocab_size", 2),
            "rms_norm_eps": ("layer_norm_eps", 1e-12),
            "initializer_range": ("initializer_range", 0.02),
        },
        "hidden_act",
        {"gelu": "gelu"},
        "gelu",
        demanded={
            "position_embedding_type": ("absolute", None),
            "tie_word_embeddings": (True, None),
            "is_decoder": _ABSENT,
            "add_cross_attention": _ABSENT,
            "embedding_size": _ABSENT,
        },
    ),
    "marian": Kind(
        "MarianMTModel",
        {
            "hidden_size": ("d_model", 1024),
            "num_hidden_layers": ("encoder_layers", 12),
            "num_decoder_layers": ("decoder_layers", 12),
            "num_attention_heads": ("encoder_attention_heads", 16),
            "intermediate_size": ("encoder_ffn_dim", 4096),
            "vocab_size": ("vocab_size", 58_101),
            "max_position_embeddings": ("max_position_embeddings", 1024),
            "initializer_range": ("init_std", 0.02),
        },
        "activation_function",
        {"gelu": "gelu", "relu": "relu", "swish": "silu", "silu": "silu"},
        "gelu",
        {
            "decoder_attention_heads": "encoder_attention_heads",
            "decoder_ffn_dim": "encoder_ffn_dim",
            "decoder_vocab_size": "vocab_size",
        },
        {
            "share_encoder_decoder_embeddings": (True, None),
            "normalize_before": _ABSENT,
            "normalize_embedding": _ABSENT,
            "add_final_layer_norm": _ABSENT,
            "static_position_embeddings": (True, None),
        },
    ),
    "t5": Kind(
        "T5ForConditionalGeneration",
        {
            "hidden_size": ("d_model", 512),
            "num_hidden_layers": ("num_layers", 6),
            "num_attention_heads": ("num_heads", 8),
            "head_dim": ("d_kv", 64),
            "intermediate_size": ("d_ff", 2048),
            "vocab_size": ("vocab_size", 32_128),
            "max_position_embeddings": ("n_positions", 512),
            "relative_attention_num_buckets": ("relative_attention_num_buckets", 32),
            "relative_attention_max_distance": ("relative_attention_max_distance", 128),
            "rms_norm_eps": ("layer_norm_epsilon", 1e-6),
        },
        "feed_forward_proj",
        {"relu": "relu", "gated-gelu": "gated-gelu"},
        "relu",
        demanded={"is_decoder": _ABSENT},
    ),
}
_NUMBERS = ("rms_norm_eps", "initializer_range")
_HEADS = {"BertForSequenceClassification": "labels", "BertForQuestionAnswering": "spans"}


def table(raw: Raw, path: str) -> ModelConfig:
    """The `[model]` table of a config.json's content. path: named in errors."""
    name = str(raw["model_type"])
    kind = KINDS[name]
    _refuse_what_differs(raw, name, kind, path)
    found: dict[str, Any] = {}
    for ours, (theirs, default) in kind.keys.items():
        value = default if raw.get(theirs) is None else raw[theirs]
        found[ours] = (checked_number if ours in _NUMBERS else checked_count)(value, theirs, path)
    D, H = found["hidden_size"], found["num_attention_heads"]
    if "head_dim" not in found and D % H:
        raise ModelError(f"{path}: {kind.keys['hidden_size'][0]} ({D}) must be a multiple of the {H} heads")
    found = {"num_key_value_heads": H, "head_dim": D // H, **found}
    found["hidden_act"] = kind.acts[raw.get(kind.act) or kind.default_act]
    tied = raw.get("tie_word_embeddings")
    found["tie_word_embeddings"] = tied is not False
    if name == "marian":
        found |= {"scale_embedding": raw.get("scale_embedding") is True, "rms_norm_eps": 1e-5}
    if name == "t5":
        layers = raw.get("num_decoder_layers") or found["num_hidden_layers"]
        found["num_decoder_layers"] = checked_count(layers, "num_decoder_layers", path)
        # T5 1.0 scales, and 1.1 said so by not tying, before transformers had a key of its own for it.
        said = raw.get("scale_decoder_outputs")
        found["scale_decoder_outputs"] = (tied is not False) if said is None else said is True
    if name != "bert":
        start = raw.get("decoder_start_token_id")
        start = {"marian": 58_100, "t5": raw.get("pad_token_id", 0)}[name] if start is None else start
        found["decoder_start_token_id"] = None if start is None else checked_count(start + 1, "its start", path) - 1
    return valid({"model_type": name, **found, **_head(raw, path)}, path)


def _head(raw: Raw, path: str) -> dict[str, Any]:
    """What a config.json says of a head that names no tokens, if it has one."""
    said = raw.get("architectures")
    head = next((_HEADS[a] for a in said if a in _HEADS), None) if isinstance(said, list) else None
    if head is None:
        return {}
    found: dict[str, Any] = {"head": head, "tie_word_embeddings": False}
    if head == "labels":
        if raw.get("problem_type") not in (None, "single_label_classification"):
            raise ModelError(f"{path}: problem_type = {json.dumps(raw['problem_type'])[:100]} is not supported")
        names = raw.get("id2label") or {"0": "LABEL_0", "1": "LABEL_1"}  # as transformers has it unless told
        if not isinstance(names, dict) or set(names) != {str(n) for n in range(len(names))} or len(names) < 2:
            raise ModelError(f"{path}: id2label does not name labels 0, 1, ...; there must be at least two")
        found["labels"] = tuple(str(names[str(n)]) for n in range(len(names)))
    return found


def _refuse_what_differs(raw: Raw, name: str, kind: Kind, path: str) -> None:
    demanded = {**kind.demanded, "quantization_config": _ABSENT, kind.act: (None, *kind.acts)}
    for key, values in demanded.items():
        given = raw.get(key)
        if not any(type(given) is type(v) and given == v for v in values):
            raise ModelError(f"{path}: {key} = {json.dumps(given)[:100]} is not supported in {name}")
    for key, other in kind.alike.items():
        default = next(d for t, d in kind.keys.values() if t == other)
        if (raw.get(key) or raw.get(other, default)) != raw.get(other, default):
            raise ModelError(f"{path}: {key} ({raw.get(key)}) must be {other} ({raw.get(other, default)})")


def described(c: ModelConfig, bare: bool = False) -> dict[str, Any]:
    """config.json of a resolved `[model]` table, without the tokenizer's ids. bare: of an encoder without its head."""
    kind = KINDS[c.model_type]
    act = next(theirs for theirs, ours in kind.acts.items() if ours == c.hidden_act)
    heads = {ours: theirs for theirs, ours in _HEADS.items()}
    config = {
        "architectures": ["BertModel" if bare else heads[c.head] if c.head else kind.architecture],
        "model_type": c.model_type,
        **{theirs: getattr(c, ours) for ours, (theirs, _) in kind.keys.items()},
        kind.act: act,
        "tie_word_embeddings": c.tie_word_embeddings or c.head is not None,  # of BERT it is said whatever the head
        "torch_dtype": "float32",
        "use_cache": True,
    }
    config |= {key: config[other] for key, other in kind.alike.items()}
    if c.model_type == "bert":
        if c.labels is not None:
            config["id2label"] = {str(n): label for n, label in enumerate(c.labels)}
            config["label2id"] = {label: n for n, label in enumerate(c.labels)}
        return {**config, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config |= {"is_encoder_decoder": True, "decoder_start_token_id": c.decoder_start_token_id}
    if c.model_type == "marian":
        config |= {"scale_embedding": c.scale_embedding, "share_encoder_decoder_embeddings": True}
        return {**config, "static_position_embeddings": True, "dropout": 0.0, "attention_dropout": 0.0}
    scales = {"num_decoder_layers": c.num_decoder_layers, "scale_decoder_outputs": c.scale_decoder_outputs}
    return {**config, **scales, "dropout_rate": 0.0}
