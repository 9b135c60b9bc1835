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

from foretell.models import moe


class Rule(NamedTuple):
    """ours, in this order along dim 0, is theirs."""

    ours: tuple[str, ...]
    theirs: str
    transposed: bool = False


def _both(ours: tuple[str, ...], theirs: str, transposed: bool = False) -> tuple[Rule, Rule]:
    """A product's weight and its bias."""
    return (
        Rule(tuple(f"{name}.weight" for name in ours), f"{theirs}.weight", transposed),
        Rule(tuple(f"{name}.bias" for name in ours), f"{theirs}.bias"),
    )


_LAYER, _BLOCK = "model.layers.*", "transformer.h.*"
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
}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def _rule(family: str, name: str) -> tuple[Rule, str]:
    """The rule of one of our names, and the layer's number in it."""
    number = _NUMBER.search(name)
    general = _NUMBER.sub("*", name, count=1)
    for rule in RULES.get(family, ()):
        if general in rule.ours:
            return rule, number[0] if number else ""
    return Rule((name,), name), ""


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
                yield theirs, joined.T if rule.transposed else joined


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
    place = [ours.replace("*", number) for ours in rule.ours].index(name) if len(rule.ours) > 1 else 0
    return theirs[place * part.shape[0] : (place + 1) * part.shape[0]].contiguous()
