"""A model as a cluster sees it: the matrix products of each layer, its attention, and the bytes that pass beside them.

Just enough to time a step and to count parameters, for dense and mixture-of-experts decoders and encoders, with grouped
queries or without. The names of weights and how a run places them are `layout.py`'s affair; here only sizes count.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from foretell.plan import architecture
from foretell.plan.architecture import Architecture


@dataclass(frozen=True)
class Product:
    """A weight product: tokens x inner times inner x outer.

    split: what tensor parallelism divides: `column` the outer size, `row` the inner one, `whole` nothing (each rank
    does all of it, or with sequence parallelism its part of the tokens). experts: number of such matrices of which a
    token meets `top_k`; 0 for a dense one. bias: whether `outer` more parameters are added.
    """

    inner: int
    outer: int
    split: Literal["column", "row", "whole"] = "column"
    experts: int = 0
    top_k: int = 1
    bias: bool = False

    @property
    def parameters(self) -> int:
        """Weights of all its matrices."""
        return max(1, self.experts) * (self.inner * self.outer + (self.outer if self.bias else 0))

    @property
    def active(self) -> int:
        """Weights that one token meets."""
        return (self.top_k if self.experts else 1) * (self.inner * self.outer + (self.outer if self.bias else 0))


@dataclass(frozen=True)
class Attention:
    """Scores and values of one layer.

    fused: a kernel that never writes the T x T scores. window: keys at most. latent, rotary: what multi-head latent
    attention (DeepSeek-AI, 2024) caches of a token in place of keys and values.
    """

    heads: int
    kv_heads: int
    head_dim: int
    value_dim: int | None = None
    causal: bool = True
    fused: bool = True
    window: int | None = None
    latent: int = 0
    rotary: int = 0

    def keys(self, context: int) -> float:
        """Mean number of keys that a query needs."""
        longest = min(context, self.window or context)
        if not self.causal:
            return float(longest)
        return longest - longest * (longest - 1) / (2 * context)

    @property
    def width(self) -> int:
        """Multiplications of one query with one key, all heads: of scores and of values."""
        return self.heads * (self.head_dim + (self.value_dim or self.head_dim))


@dataclass(frozen=True)
class Layer:
    """One layer.

    whole_bytes, split_bytes: memory traffic of a token outside products and attention in a (forward, backward) pass, in
    a 16-bit dtype; the second is divided by tensor parallelism, the first only with sequence parallelism. kernels:
    launches of a forward pass. norms: parameters of norms. all_reduces: sums over tensor-parallel ranks, forward.
    """

    products: tuple[Product, ...]
    attention: Attention
    whole_bytes: tuple[float, float]
    split_bytes: tuple[float, float]
    kernels: int
    norms: int
    all_reduces: int = 2

    @property
    def parameters(self) -> int:
        """Weights of the layer."""
        return self.norms + sum(p.parameters for p in self.products)


@dataclass(frozen=True)
class Shape:
    """A whole model: (number, layer) in their order, embedding and head.

    positions: learned ones, 0 for rotary. norms: parameters of the last norm. told: logits of a place, where they are
    not of the vocabulary.
    """

    hidden: int
    vocab: int
    layers: tuple[tuple[int, Layer], ...]
    tied: bool = False
    positions: int = 0
    norms: int = 0
    told: int | None = None

    @property
    def outputs(self) -> int:
        """Logits of a place."""
        return self.vocab if self.told is None else self.told

    @property
    def depth(self) -> int:
        """Layers in all."""
        return sum(n for n, _ in self.layers)

    @property
    def layer_parameters(self) -> int:
        """Weights of all layers."""
        return sum(n * layer.parameters for n, layer in self.layers)

    @property
    def parameters(self) -> int:
        """Weights in all: layers, embeddings, head, the last norm."""
        tables = (self.vocab + (0 if self.tied else self.outputs) + self.positions) * self.hidden
        return tables + self.layer_parameters + self.norms

    def flops_per_token(self, context: int, causal: bool = True) -> float:
        """Products of a forward and backward pass a token, the head too; no recomputation. causal=False: all T keys."""
        total = 6.0 * self.outputs * self.hidden
        for n, layer in self.layers:
            weights = sum((p.top_k if p.experts else 1) * p.inner * p.outer for p in layer.products)
            a = layer.attention
            keys = a.keys(context) if causal else min(context, a.window or context)
            total += n * (6.0 * weights + 6.0 * a.width * keys)
        return total


def of(a: Architecture) -> Shape:
    """The shape of an architecture. A layer with two attentions becomes two, the second without products."""
    positions = sum(rows for _, rows, _ in a.tables[1:])
    norms = sum(architecture.numbers(s.vectors) for s in a.stacks) + architecture.numbers(a.vectors)
    told = None if a.told == "tokens" else a.outputs
    return Shape(a.hidden, a.vocab, tuple(_layers(a)), a.tied, positions, norms, told)


def _layers(a: Architecture) -> Iterator[tuple[int, Layer]]:
    for stack in a.stacks:
        for n, layer in stack.layers:
            products = tuple(
                Product(m.columns, m.rows, m.split, m.copies if m.is_stack else 0, m.used, m.bias)
                for m in layer.matrices
            )
            first, *more = layer.attentions
            whole, split = _traffic(a.hidden, layer)
            kernels = 28 + 8 * len(layer.latents) if layer.rms else 36
            own = _attention(first, layer)
            yield n, Layer(products, own, whole, split, kernels, architecture.numbers(layer.vectors), 2 + len(more))
            for other in more:
                yield n, Layer((), _attention(other, layer), (10.0 * a.hidden, 14.0 * a.hidden), (0.0, 0.0), 10, 0, 0)


def _traffic(hidden: int, layer: architecture.Layer) -> tuple[tuple[float, float], tuple[float, float]]:
    """Whole and split bytes of a token, (forward, backward): see `llama` for RMSNorm and SwiGLU, `gpt` for the rest."""
    routed, a = layer.routed, layer.attentions[0]
    wide = layer.inner + (routed.used * routed.rows if routed else 0)
    rotated = (a.heads + a.kv_heads) * a.qk
    if layer.rms and layer.gated:
        return (20.0 * hidden, 28.0 * hidden), (6.0 * wide + 4 * rotated, 10.0 * wide + 4 * rotated)
    transposed = (4.0 * a.heads * a.v, 22.0 * a.heads * a.v)
    return (22.0 * hidden, 38.0 * hidden), (4.0 * wide + transposed[0], 8.0 * wide + transposed[1])


def _attention(a: architecture.Attention, layer: architecture.Layer) -> Attention:
    latent = layer.latents[0] if layer.latents else 0
    rotary = layer.kept - latent if latent else 0
    return Attention(a.heads, a.kv_heads, a.qk, a.v, a.causal, True, a.window, latent, rotary)


def gpt(
    hidden: int,
    heads: int,
    layers: int,
    vocab: int,
    positions: int = 2048,
    fused: bool = False,
    kernels: int = 36,
    causal: bool = True,
) -> Shape:
    """A GPT-2/3 model: LayerNorm, biases, multi-head attention, GELU of 4 x hidden, learned positions, tied head.

    Traffic of Megatron's kernels in 2022, in bytes a token and hidden unit. Whole, forward: a norm reads and writes
    (4); bias, dropout and residual in one kernel read two, write one and a mask (7); each twice. Backward: a norm 8,
    residual 4, dropout 5, bias 2, each twice. Split, forward: GELU with its bias 4 on 4 x hidden, the heads' transpose
    4. Backward: GELU and its bias 8 on 4 x hidden, the biases of queries, keys and values 6, transposes 16.
    """
    products = (
        Product(hidden, 3 * hidden, "column", bias=True),
        Product(hidden, hidden, "row", bias=True),
        Product(hidden, 4 * hidden, "column", bias=True),
        Product(4 * hidden, hidden, "row", bias=True),
    )
    attention = Attention(heads, heads, hidden // heads, causal=causal, fused=fused)
    whole, split = (22.0 * hidden, 38.0 * hidden), (20.0 * hidden, 54.0 * hidden)
    layer = Layer(products, attention, whole, split, kernels, 4 * hidden)
    return Shape(hidden, vocab, ((layers, layer),), tied=True, positions=positions, norms=2 * hidden)


def llama(
    hidden: int,
    heads: int,
    kv_heads: int,
    layers: int,
    ffn: int,
    vocab: int,
    head_dim: int | None = None,
    tied: bool = False,
    experts: int = 0,
    top_k: int = 1,
    shared_ffn: int = 0,
    kernels: int = 28,
) -> Shape:
    """A Llama model: RMSNorm, rotary positions, grouped queries, SwiGLU; with experts of width ffn where there are."""
    E = head_dim or hidden // heads
    products = [
        Product(hidden, (heads + 2 * kv_heads) * E, "column"),
        Product(heads * E, hidden, "row"),
        Product(hidden, 2 * ffn, "column", experts, top_k),
        Product(ffn, hidden, "row", experts, top_k),
    ]
    if experts:
        products.append(Product(hidden, experts, "whole"))
    if shared_ffn:
        products += [Product(hidden, 2 * shared_ffn, "column"), Product(shared_ffn, hidden, "row")]
    wide = (top_k if experts else 1) * ffn + shared_ffn
    # Forward: norms read and write, residuals read two, write one; SwiGLU reads two, writes one; rotary reads, writes.
    # Backward: norms read three, write one and their weight's part, residuals add; SwiGLU reads three, writes two.
    rotated = (heads + kv_heads) * E
    layer = Layer(
        tuple(products),
        Attention(heads, kv_heads, E),
        (2.0 * (4 + 6) * hidden, 2.0 * (8 + 6) * hidden),
        (6.0 * wide + 4 * rotated, 10.0 * wide + 4 * rotated),
        kernels,
        2 * hidden,
    )
    return Shape(hidden, vocab, ((layers, layer),), tied=tied, norms=hidden)
