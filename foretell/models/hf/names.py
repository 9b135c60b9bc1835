"""How the weights of a family are called in its Hugging Face folders, where not as here.

A rule joins one weight or several of ours, one under another, to one of theirs, which may be transposed. `*` stands for
the number of a layer. What no rule names is called alike.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from foretell.config import ModelConfig
from foretell.models import moe


class Rule(NamedTuple):
    """ours, in this order along dim 0, is theirs. row: they have a matrix of one row where we have a vector."""

    ours: tuple[str, ...]
    theirs: str
    transposed: bool = False
    row: bool = False


def _both(ours: tuple[str, ...], theirs: str, transposed: bool = False) -> tuple[Rule, Rule]:
    """A product's weight and its bias."""
    return (
        Rule(tuple(f"{name}.weight" for name in ours), f"{theirs}.weight", transposed),
        Rule(tuple(f"{name}.bias" for name in ours), f"{theirs}.bias"),
    )


_LAYER, _BLOCK = "model.layers.*", "transformer.h.*"


def _bert(prefix: str, head: str | None = None) -> tuple[Rule, ...]:
    """prefix: of all but the head; a bare model has none. head: as in a config."""
    layer = f"{prefix}encoder.layer.*"
    rules: list[Rule] = []
    for ours, theirs in (
        *((f"self_attn.{n[0]}_proj", f"attention.self.{n}") for n in ("query", "key", "value")),
        ("self_attn.o_proj", "attention.output.dense"),
        ("input_layernorm", "attention.output.LayerNorm"),
        ("mlp.up_proj", "intermediate.dense"),
        ("mlp.down_proj", "output.dense"),
        ("post_attention_layernorm", "output.LayerNorm"),
    ):
        rules += _both((f"{_LAYER}.{ours}",), f"{layer}.{theirs}")
    kinds = (("tokens", "word"), ("positions", "position"), ("types", "token_type"))
    tables = (Rule((f"model.embed_{o}.weight",), f"{prefix}embeddings.{t}_embeddings.weight") for o, t in kinds)
    rules += [*tables, *_both(("model.embed_norm",), f"{prefix}embeddings.LayerNorm")]
    if head == "labels":
        return (*rules, *_both(("head_dense",), f"{prefix}pooler.dense"), *_both(("lm_head",), "classifier"))
    if head == "spans":
        return (*rules, *_both(("lm_head",), "qa_outputs"))
    return (
        *rules,
        *_both(("head_dense",), "cls.predictions.transform.dense"),
        *_both(("head_norm",), "cls.predictions.transform.LayerNorm"),
        Rule(("lm_head.weight",), "cls.predictions.decoder.weight"),
        Rule(("lm_head.bias",), "cls.predictions.bias"),
    )


def _marian() -> tuple[Rule, ...]:
    rules = [Rule(("model.embed_tokens.weight",), "model.shared.weight")]
    rules.append(Rule(("lm_head.bias",), "final_logits_bias", row=True))
    for half, also in (("encoder", ()), ("decoder", (("cross_attn", "encoder_attn"),))):
        place = f"model.{half}.layers.*"
        for ours, theirs in (("self_attn", "self_attn"), *also):
            rules += _both((f"{place}.{ours}.o_proj",), f"{place}.{theirs}.out_proj")
            for n in "qkv":
                rules += _both((f"{place}.{ours}.{n}_proj",), f"{place}.{theirs}.{n}_proj")
        rules += _both((f"{place}.input_layernorm",), f"{place}.self_attn_layer_norm")
        rules += _both((f"{place}.cross_attention_layernorm",), f"{place}.encoder_attn_layer_norm")
        rules += _both((f"{place}.post_attention_layernorm",), f"{place}.final_layer_norm")
        rules += [
            *_both((f"{place}.mlp.up_proj",), f"{place}.fc1"),
            *_both((f"{place}.mlp.down_proj",), f"{place}.fc2"),
        ]
    return tuple(rules)


def _t5() -> tuple[Rule, ...]:
    rules = [Rule(("model.embed_tokens.weight",), "shared.weight")]
    for half, also in (("encoder", ()), ("decoder", (("cross_attn", "EncDecAttention", "cross_attention_layernorm"),))):
        place, block = f"model.{half}.layers.*", f"{half}.block.*.layer"
        attentions = (("self_attn", "SelfAttention", "input_layernorm"), *also)
        for n, (ours, theirs, norm) in enumerate(attentions):
            rules += [Rule((f"{place}.{ours}.{m}_proj.weight",), f"{block}.{n}.{theirs}.{m}.weight") for m in "qkvo"]
            rules.append(Rule((f"{place}.{norm}.weight",), f"{block}.{n}.layer_norm.weight"))
        last = f"{block}.{len(attentions)}"
        rules.append(Rule((f"{place}.post_attention_layernorm.weight",), f"{last}.layer_norm.weight"))
        for m, theirs in (("gate", "wi_0"), ("up", "wi"), ("down", "wo")):
            rules.append(Rule((f"{place}.mlp.{m}_proj.weight",), f"{last}.DenseReluDense.{theirs}.weight"))
        rules.append(Rule((f"model.{half}.norm.weight",), f"{half}.final_layer_norm.weight"))
        bias = f"{half}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
        rules.append(Rule((f"model.{half}.relative_bias.weight",), bias))
    return tuple(rules)


def _gated(rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    return tuple(r._replace(theirs=r.theirs.replace(".wi.", ".wi_1.")) for r in rules)


RULES: dict[str, tuple[Rule, ...]] = {
    "gpt2": (
        Rule(("model.embed_tokens.weight",), "transformer.wte.weight"),
        Rule(("model.embed_positions.weight",), "transformer.wpe.weight"),
        *_both(tuple(f"{_LAYER}.self_attn.{n}_proj" for n in "qkv"), f"{_BLOCK}.attn.c_attn", True),
        *_both((f"{_LAYER}.self_attn.o_proj",), f"{_BLOCK}.attn.c_proj", True),
        *_both((f"{_LAYER}.mlp.up_proj",), f"{_BLOCK}.mlp.c_fc", True),
        *_both((f"{_LAYER}.mlp.down_proj",), f"{_BLOCK}.mlp.c_proj", True),
        *_both((f"{_LAYER}.input_layernorm",), f"{_BLOCK}.ln_1"),
        *_both((f"{_LAYER}.post_attention_layernorm",), f"{_BLOCK}.ln_2"),
        *_both(("model.norm",), "transformer.ln_f"),
    ),
    "bert": _bert("bert."),
    "bare bert": _bert(""),
    "labels bert": _bert("bert.", "labels"),
    "spans bert": _bert("bert.", "spans"),
    "marian": _marian(),
    "t5": _t5(),
    "gated t5": _gated(_t5()),
}


def dialect(c: ModelConfig, bare: bool = False) -> str:
    """The key of the config's rules. bare: of an encoder without its head."""
    if c.model_type == "t5" and c.hidden_act == "gated-gelu":
        return "gated t5"
    return "bare bert" if bare else f"{c.head} {c.model_type}" if c.head else c.model_type


_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def _rule(family: str, name: str) -> tuple[Rule, str]:
    """The rule of one of our names, and the layer's number in it."""
    number = _NUMBER.search(name)
    general = _NUMBER.sub("*", name, count=1)
    for rule in RULES.get(family, ()):
        if general in rule.ours:
            return rule, number[0] if number else ""
    return Rule((name,), name), ""


def alike(family: str, name: str) -> str | None:
    """A folder's name of one of our weights where it holds just that; None where it joins or transposes it."""
    rule, number = _rule(family, name)
    return rule.theirs.replace("*", number) if len(rule.ours) == 1 and not rule.transposed and not rule.row else None


def out(family: str, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Our named weights as a folder of the family holds them. What is joined is held until all of it is there."""
    held: dict[str, dict[str, Tensor]] = {}
    for whole, stacked in tensors:
        for name, tensor in moe.split(whole, stacked):
            rule, number = _rule(family, name)
            theirs = rule.theirs.replace("*", number)
            parts = held.setdefault(theirs, {})
            parts[name] = tensor
            if len(parts) == len(rule.ours):
                del held[theirs]
                joined = (
                    torch.cat([parts[ours.replace("*", number)] for ours in rule.ours]) if len(parts) > 1 else tensor
                )
                yield theirs, joined.T if rule.transposed else joined[None] if rule.row else joined


def shapes(family: str, parameters: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    """The shapes in a folder of the family of a model's parameters, which may be without memory."""
    return {name: tuple(t.shape) for name, t in out(family, ((n, p.detach()) for n, p in parameters.items()))}


def back(family: str, parameters: Mapping[str, Tensor], stored: Callable[[str], Tensor]) -> dict[str, Tensor]:
    """The inverse of `out`: a weight for each of `parameters`, whose shapes count. stored: a folder's, by its name."""
    found: dict[str, Tensor] = {}
    for whole, p in parameters.items():
        pieces = [_own(family, name, part, stored) for name, part in moe.split(whole, p.detach())]
        found[whole] = torch.stack(pieces) if len(pieces) > 1 or p.ndim > pieces[0].ndim else pieces[0]
    return found


def _own(family: str, name: str, part: Tensor, stored: Callable[[str], Tensor]) -> Tensor:
    """Of the folder's weight in which one of ours stands, ours. Those of one weight have as many rows each."""
    rule, number = _rule(family, name)
    theirs = stored(rule.theirs.replace("*", number))
    if rule.transposed:
        theirs = theirs.T
    if rule.row:
        theirs = theirs[0]
    place = [ours.replace("*", number) for ours in rule.ours].index(name) if len(rule.ours) > 1 else 0
    return theirs[place * part.shape[0] : (place + 1) * part.shape[0]].contiguous()
