"""A Transformer as the forecast sees it: which weights, which products, which attention.

A model is stacks of layers; a layer is weight matrices that tokens pass through, attentions, and norms. `families.py`
reads one from a Hugging Face config, `models.py` knows some by name and makes one of a [model] table. It is the one
description that the forecast reads: names of weights, FLOPs, memory, bytes sent and seconds all stand on it. Counts are
exact; what they count is said in each.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Split = Literal["column", "row", "whole"]
Vector = tuple[str, int]  # name and size of a small weight: of a norm, or a bias that no product has


def numbers(vectors: tuple[Vector, ...]) -> int:
    """Numbers in small weights."""
    return sum(size for _, size in vectors)


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

    @cached_property
    def is_stack(self) -> bool:
        """Whether it is of experts, whose number stands in front, even where there is one."""
        return self.name.startswith("mlp.experts.")

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
    biased: a number that is learned is added to each product.
    """

    heads: int
    kv_heads: int
    qk: int
    v: int
    causal: bool = True
    memory: bool = False
    window: int | None = None
    biased: bool = False

    def keys(self, context: float, memory: float = 0) -> float:
        """Keys that a token meets on average among `context` tokens, or in a memory of so many."""
        if self.memory:
            return memory
        if not self.causal:
            return context
        seen = min(self.window or context, context)
        return seen - seen * (seen - 1) / (2 * context)


@dataclass(frozen=True)
class Layer:
    """One layer. vectors: its norms and other small weights. kept: numbers a token that a KV cache holds.

    inner: the width of the feed-forward part that every token passes, 0 if none; gated: it multiplies two products
    (SwiGLU). norms: of the model's width, where a token passes; rms: without mean and bias; behind: some stand behind a
    branch's last product. norms_of_heads: on queries and keys. rotary: queries and keys are rotated. latents: widths
    that latent attention narrows tokens to. normalised: the weights of a token's experts sum to one. relu: what the
    feed-forward part activates by. of_source: the tokens that pass are those of a source, which another stack reads.
    """

    matrices: tuple[Matrix, ...]
    attentions: tuple[Attention, ...]
    vectors: tuple[Vector, ...]
    kept: int
    inner: int
    gated: bool = True
    rms: bool = True
    norms: int = 2
    behind: bool = False
    norms_of_heads: bool = False
    rotary: bool = True
    latents: tuple[int, ...] = ()
    normalised: bool = True
    relu: bool = False
    of_source: bool = False

    @cached_property
    def parameters(self) -> int:
        """Numbers in its weights."""
        return sum(m.parameters for m in self.matrices) + numbers(self.vectors)

    @cached_property
    def routed(self) -> Matrix | None:
        """The first product of the experts that tokens are routed to: (width, hidden), as many copies, k used."""
        return next((m for m in self.matrices if m.is_stack), None)

    @cached_property
    def idle(self) -> int:
        """Of these, those that one token does not pass."""
        return sum((m.copies - m.used) * m.parameters // m.copies for m in self.matrices)


@dataclass(frozen=True)
class Stack:
    """Layers one after another, `count` times each, and the vectors behind them. encoder: over the source's tokens."""

    layers: tuple[tuple[int, Layer], ...]
    vectors: tuple[Vector, ...]
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

    head: the products between the last layer and the logits, the last of which gives them. angles: tables of rotary
    angles. told: what the head says, and of what: the next or a hidden token at each place, the label of a text at its
    first place alone, or of each place how an answer begins and ends there; the last two have no norm before it.
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
    vectors: tuple[Vector, ...] = ()
    angles: int = 0
    told: Literal["tokens", "labels", "spans"] = "tokens"

    @property
    def outputs(self) -> int:
        """Logits of a place: V, or as many as there are labels, or two."""
        return self.head[-1].rows

    def asked(self, sequences: int, tokens: int) -> int:
        """Places at which the head works, of so many sequences of so many tokens in all."""
        return sequences if self.told == "labels" else tokens

    @property
    def layers(self) -> int:
        """Layers in all."""
        return sum(s.depth for s in self.stacks)

    @cached_property
    def kinds(self) -> list[tuple[int, Layer]]:
        """(how many one after another, layer), in their order."""
        return [kind for s in self.stacks for kind in s.layers]

    @cached_property
    def parameters(self) -> dict[str, int]:
        """Parameters: `total`, `non_embedding` (without tables and an untied head), `active` (those a token passes)."""
        tables = sum(rows * width for _, rows, width in self.tables)
        logits = self.head[-1]
        own_head = logits.parameters - (logits.weights if self.tied else 0)
        rest = sum(n * layer.parameters for n, layer in self.kinds)
        rest += sum(numbers(s.vectors) for s in self.stacks) + numbers(self.vectors)
        rest += sum(m.parameters for m in self.head[:-1])
        idle = sum(n * layer.idle for n, layer in self.kinds)
        total = tables + own_head + rest
        return {
            "total": total,
            "non_embedding": rest,
            "embedding": tables,
            "head": own_head,
            "active": total - idle,
            "active_non_embedding": rest - idle,
        }

    def forward_flops(self, context: float, source: float = 0, asked: float | None = None) -> dict[str, float]:
        """FLOPs of the forward pass of one sequence of `context` tokens, of which a source has `source`.

        asked: at so many of them the head works; at all by default, of labels at one.

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
        if asked is None:
            asked = 1 if self.told == "labels" else context
        found["head"] = 2.0 * asked * sum(m.rows * m.columns for m in self.head)
        return found

    def flops_per_token(self, context: float, source: float = 0, asked: float | None = None) -> dict[str, float]:
        """FLOPs to train on one token (of the target, where there is a source), by convention, each named.

        `causal` is the headline: all products with the head, attention exact. `full`: attention as if every query met
        every key. `without_head`. `6n`: Kaplan et al. (2020). `6n_attention`: 6 N + 12 L H E T (PaLM, llm-foundry).
        """
        f = self.forward_flops(context, source, asked)
        active = self.parameters["active"]
        rule = sum(6.0 * n * a.heads * (a.qk + a.v) for n, y in self.kinds for a in y.attentions)
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
