"""Bytes that autograd keeps of a micro-batch for the backward pass, layer by layer, of any architecture.

Derived from the code of `models/core.py` and `models/attention.py`, tensor by tensor; a test counts them on the built
model of every family. One process (`memory.py`) and one of several (`ranks.py`) read the same count:

- an RMSNorm keeps its input, its scaled input and one number; a LayerNorm its input and two;
- each product keeps its input; under autocast norms stay in float32 and each product has its own copy of its input;
- attention keeps queries, keys, values, its output and the log-sum-exp of each query and head; by products, in place of
  that, its probabilities, block by block where it is causal;
- a window that hides something is a mask of T x T numbers in every layer, which torch's kernel keeps; such a layer
  never takes products;
- what T5 adds to its products makes torch form them in float32 and keep probabilities in place of the log-sum-exp;
- attention to a memory keeps keys and values of its tokens, the memory itself once for all layers;
- a ReLU keeps its output alone;
- dropout keeps a byte a number.

Of an encoder-decoder the probabilities of a target over its source, where products form them, are not counted.

With tensor parallelism the norms see a part of the sequence; what goes into a product is gathered and kept whole. Not
counted: casts of weights, tokens, and masks of packed documents.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from foretell.plan.architecture import Architecture, Layer

FLOAT, HALF, INDEX = 4, 2, 8
# Rows of queries a block of attention by products: few enough to skip most masked keys, enough for fast products.
FEWEST_ROWS, MOST_BLOCKS = 128, 4


@dataclass(frozen=True)
class MicroBatch:
    """What passes through a process's layers at once: sequences of `context` tokens. tp, cp: what divides them.

    source: tokens of the memory that they read, as many as they are unless given.
    """

    sequences: int
    context: int
    dtype: str
    kernel: str = "sdpa"
    dropout: bool = False
    tp: int = 1
    cp: int = 1
    source: int | None = None

    @property
    def memory(self) -> float:
        """Tokens of the memory for each of these."""
        return 1.0 if self.source is None else self.source / self.context

    @property
    def tokens(self) -> int:
        """Tokens on this rank before tensor parallelism cuts the sequence."""
        return self.sequences * self.context // self.cp

    @property
    def short(self) -> bool:
        """Whether products are in bfloat16."""
        return self.dtype == "bfloat16"

    @property
    def item(self) -> int:
        """Bytes of a number in a product."""
        return HALF if self.short else FLOAT


def attention_blocks(T: int) -> Iterator[tuple[int, int]]:
    """The rows [start, end) of each block of queries in which `models/attention.py` forms its products."""
    rows = max(FEWEST_ROWS, -(-T // MOST_BLOCKS))
    return ((start, min(start + rows, T)) for start in range(0, T, rows))


def is_masked(layer: Layer, context: int) -> bool:
    """Whether a window hides something of so many tokens, so that attention has a mask."""
    window = layer.attentions[0].window
    return window is not None and window < context


def norm_bytes(layer: Layer, hidden: int) -> int:
    """Kept of one token by one norm of the model's width, but for its output."""
    return FLOAT * (2 * hidden + 1 if layer.rms else hidden + 2)


def token_bytes(layer: Layer, hidden: int, b: MicroBatch) -> float:
    """Kept of one token by one layer, attention by torch's kernel."""
    kept = layer.norms * norm_bytes(layer, hidden) / b.tp
    for a in layer.attentions:
        q, k, v, out = a.heads * a.qk, a.kv_heads * a.qk, a.kv_heads * a.v, a.heads * a.v
        memory, wide = b.memory if a.memory else 1.0, FLOAT if a.biased else b.item
        kept += b.item * hidden * (1 + (2 * memory if b.short else 0))
        if layer.norms_of_heads:
            kept += FLOAT * (2 * q + a.heads + 2 * k + a.kv_heads) / b.tp
        kept += (wide * (q + memory * (k + v)) + b.item * out + (0 if a.biased else FLOAT * a.heads)) / b.tp
    kept += sum(FLOAT * (2 * n + 1) + b.item * n for n in layer.latents)
    masks = (len(layer.attentions) + 1) * hidden / b.tp if b.dropout else 0
    return kept + feed_forward_bytes(layer, hidden, b) + masks


def norms_of_feed_forward(layer: Layer) -> int:
    """Of the layer's norms, those of its feed-forward part: as many as each attention has."""
    return layer.norms // (len(layer.attentions) + 1)


def feed_forward_bytes(layer: Layer, hidden: int, b: MicroBatch) -> float:
    """Kept of one token by the feed-forward part: its input, what its products give, and what comes of it.

    Of a mixture the router's probabilities, the experts it chose, and their weights, before they sum to one and after;
    of each of the k copies of the token its input, gate, up, silu(gate), their product and the output, and its places
    in the order of tokens and of experts.
    """
    copies = (2 if layer.gated else 1) if b.short else 1
    wide = 4 if layer.gated else 1 if layer.relu else 2
    kept = b.item * copies * hidden + b.item * wide * layer.inner / b.tp if layer.inner else 0.0
    routed = layer.routed
    if routed is not None:
        k, N = routed.used, routed.copies
        weights = FLOAT * (N + (k + 1 if layer.normalised else 0)) + b.item * k
        kept += b.item * hidden + weights + INDEX * k
        kept += k * (b.item * (2 * hidden + 4 * routed.rows / b.tp) + 2 * INDEX)
    return kept


def attention_extra_bytes(layer: Layer, b: MicroBatch) -> float:
    """Kept by one layer's attention beside what every token keeps: a mask, or probabilities for the log-sum-exp."""
    if layer.attentions[0].biased:
        return bias_bytes(layer, b)
    if is_masked(layer, b.context):
        return b.item * b.context * b.context / b.cp
    if b.kernel != "products" or b.cp > 1:
        return 0.0
    heads = layer.attentions[0].heads / b.tp
    if layer.attentions[0].causal:
        kept = b.item * sum((end - start) * end for start, end in attention_blocks(b.context))
    else:  # formed in float32, and cast for the product that they go into
        kept = (FLOAT + (HALF if b.short else 0)) * b.context**2
    return b.sequences * heads * (kept - FLOAT * b.context)


def bias_bytes(layer: Layer, b: MicroBatch) -> float:
    """An array of what is added to the products of one layer, or of its probabilities."""
    a = layer.attentions[0]
    return FLOAT * b.sequences * a.heads / b.tp * b.context**2 if a.biased else 0.0


def layer_bytes(layer: Layer, hidden: int, b: MicroBatch) -> float:
    """Kept of a micro-batch by one layer."""
    return b.tokens * token_bytes(layer, hidden, b) + attention_extra_bytes(layer, b)


def outer_token_bytes(a: Architecture, b: MicroBatch) -> float:
    """Kept of one token outside the layers: the last norm, the input of the head, and the embedding's dropout."""
    masks = a.hidden / b.tp if b.dropout else 0
    outer = (*(v for s in a.stacks for v in s.vectors), *a.vectors)
    norms = sum(name.endswith("norm.weight") for name, _ in outer)
    if a.told == "labels":  # of its head see `sequence_bytes`
        return norms * norm_bytes(a.kinds[-1][1], a.hidden) / b.tp + masks
    # A head of several products has an activation behind each but the last, and a norm, which takes what is given.
    short = (len(a.head) - 1) * (1 - b.item / FLOAT)
    head = sum(m.columns for m in a.head) + sum(m.rows for m in a.head[:-1])
    return (norms - short) * norm_bytes(a.kinds[-1][1], a.hidden) / b.tp + b.item * head + masks


def sequence_bytes(a: Architecture, b: MicroBatch) -> float:
    """Kept of one sequence by a head for labels: the input of each of its products, and a mask of dropout between."""
    if a.told != "labels":
        return 0.0
    dropped = (b.item + 1) * a.hidden if b.dropout else 0
    return b.item * sum(m.columns for m in a.head) + dropped
