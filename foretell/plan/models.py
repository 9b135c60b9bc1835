"""Models by name (`models.toml`), by their config.json, or by a [model] table, as architectures."""

from __future__ import annotations

import difflib
import functools
import json
import tomllib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from foretell.config import ModelConfig
from foretell.config.model import ENCODERS, ModelType
from foretell.errors import ConfigError
from foretell.plan.architecture import Architecture
from foretell.plan.families import FAMILIES


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
    if family not in FAMILIES:
        raise ConfigError(f"{name}: model_type `{family}` is not one of {', '.join(sorted(FAMILIES))}")
    try:
        return FAMILIES[family](config, name)
    except KeyError as e:
        raise ConfigError(f"{name}: the config of a {family} needs the key {e.args[0]}") from None


def named(name: str) -> Architecture:
    """A preset, or the config.json at that path. Raises ConfigError where there is neither."""
    path = Path(name)
    if path.suffix != ".json":
        return preset(name)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError as e:
        raise ConfigError(f"model.preset: {path}: {e.strerror}") from None
    except ValueError as e:
        raise ConfigError(f"model.preset: {path} is no JSON: {e}") from None
    if not isinstance(config, dict):
        raise ConfigError(f"model.preset: {path} is not the config.json of a model")
    return of(config, path.parent.name or path.stem)


def as_model(a: Architecture) -> ModelConfig:
    """The sizes of an architecture as a [model] table: what a layout divides. Complete for families that are trained.

    Of a family that is not, those of Qwen3's kind nearest to it.
    """
    layer = a.stacks[-1].layers[-1][1]
    attention, routed = layer.attentions[0], layer.routed
    family = a.family if a.family in get_args(ModelType) and a.family not in ENCODERS else "qwen3"
    more: dict[str, Any] = {}
    if routed:
        names = ("num_experts", "num_experts_per_tok", "moe_intermediate_size")
        more = dict(zip(names, (routed.copies, routed.used, routed.rows), strict=True))
        more["norm_topk_prob"] = layer.normalised
    windows = [y.attentions[0].window for n, y in a.kinds for _ in range(n)]
    width = next((w for w in windows if w), None)
    if width and family in ("gemma3_text", "mistral", "qwen2"):
        more["sliding_window"] = width
    if family == "gemma3_text" or (more.get("sliding_window") and not all(windows)):
        more["layer_types"] = tuple("sliding_attention" if w else "full_attention" for w in windows)
    return ModelConfig(
        model_type=family,
        hidden_size=a.hidden,
        num_hidden_layers=a.layers,
        num_attention_heads=attention.heads,
        num_key_value_heads=attention.kv_heads,
        head_dim=attention.qk + (attention.qk % 2 if layer.rotary else 0),
        intermediate_size=layer.inner or (routed.rows if routed else 1),
        tie_word_embeddings=a.tied,
        **more,
    ).resolved(a.vocab, a.context)


@functools.lru_cache(maxsize=1024)
def of_model(model: ModelConfig) -> Architecture:
    """The architecture of a completed [model] table: the decoder that this package trains (`models/families.py`)."""
    keys = model.model_dump(exclude_none=True)
    keys["layer_types"] = tuple(
        "full_attention" if model.window(n) is None else "sliding_attention" for n in range(model.sizes.L)
    )
    if model.num_experts:
        keys |= {"model_type": "qwen3_moe", "expert_bias": model.balance == "bias"}
    if model.model_type == "gpt2":
        names = zip(("n_embd", "n_layer", "n_head"), model.sizes, strict=False)
        keys |= {**dict(names), "n_inner": model.sizes.F, "n_positions": model.needed("max_position_embeddings")}
    return of({**keys, **_theirs(model)}, "model")


def _theirs(model: ModelConfig) -> dict[str, Any]:
    """The keys of an encoder-decoder's config.json that are not those of the table."""
    D, L, H, _, E, F, _ = model.sizes
    if model.model_type == "t5":
        names = {"d_model": D, "d_kv": E, "d_ff": F, "num_heads": H, "num_layers": L}
        return {**names, "feed_forward_proj": model.hidden_act, "n_positions": model.max_position_embeddings}
    if model.model_type == "marian":
        names = {"d_model": D, "encoder_ffn_dim": F, "encoder_attention_heads": H, "encoder_layers": L}
        return {**names, "decoder_layers": model.num_decoder_layers}
    return {}
