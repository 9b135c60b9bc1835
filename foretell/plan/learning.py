"""What learns where not all does, layer by layer, and what autograd then keeps: of runs with adapters or frozen parts.

A frozen weight needs no gradient, so its product keeps no input (an adapter on it does), and its norm not what it
scaled. Below the first weight that learns nothing is kept at all. Read from the names of the weights (`weights.py`) and
what [train] says of them, tensor by tensor, for dense decoders; of other models as if all learned.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass
from functools import cached_property

from foretell.config import TrainConfig
from foretell.plan import activations
from foretell.plan.activations import FLOAT, MicroBatch
from foretell.plan.architecture import Architecture, Layer, Matrix
from foretell.plan.weights import Weight, layer_weights, outer_weights


@dataclass(frozen=True)
class Learning:
    """Of one layer: names of its weights that learn, adapters too. reached: what comes in has a gradient already."""

    layer: Layer
    weights: tuple[Weight, ...]
    reached: bool

    @cached_property
    def numbers(self) -> int:
        """How many numbers learn."""
        return sum(_size(shape) for _, shape in self.weights)

    @cached_property
    def added(self) -> int:
        """Of these, those of adapters."""
        return sum(_size(shape) for name, shape in self.weights if "lora_" in name)

    @cached_property
    def _owners(self) -> frozenset[str]:
        return frozenset(name.rpartition(".")[0].rpartition(".")[2] for name, _ in self.weights)

    def learn(self, *modules: str) -> int:
        """How many of these modules learn something, or an adapter on them does."""
        return sum(m in self._owners for m in modules)

    def _inside(self, module: str) -> bool:
        return any(name.startswith(f"{module}.") for name, _ in self.weights)

    @cached_property
    def into_attention(self) -> bool:
        """Whether what goes into attention has a gradient."""
        return self.reached or bool(self.learn("input_layernorm"))

    @cached_property
    def attends(self) -> bool:
        """Whether what comes out of attention has one."""
        return self.into_attention or self._inside("self_attn")

    @cached_property
    def before_feed_forward(self) -> str:
        """The norm before the feed-forward part."""
        return "pre_feedforward_layernorm" if self.layer.behind else "post_attention_layernorm"

    @cached_property
    def into_feed_forward(self) -> bool:
        """Whether what goes into the feed-forward part has one."""
        return self.attends or bool(self.learn("post_attention_layernorm", self.before_feed_forward))

    @cached_property
    def hands_on(self) -> bool:
        """Whether what comes out of the layer has one: it has a backward pass."""
        return self.into_feed_forward or bool(self.weights)

    @cached_property
    def largest_weight(self) -> int:
        """Numbers of the last product's weight, where that itself learns."""
        return next((_size(shape) for n, shape in self.weights if n.endswith("mlp.down_proj.weight")), 0)


@dataclass(frozen=True)
class Part:
    """Of a whole model: its layers' learning, in order, and the names outside of them that learn."""

    layers: tuple[Learning, ...]
    outer: tuple[Weight, ...]
    rank: int

    @cached_property
    def table(self) -> bool:
        """Whether the embedding learns."""
        return any(n == "model.embed_tokens.weight" for n, _ in self.outer)

    def head(self, a: Architecture) -> bool:
        """Whether the head's weight learns."""
        return self.table if a.tied else any(n == "lm_head.weight" for n, _ in self.outer)

    @cached_property
    def norm(self) -> bool:
        """Whether the last norm learns."""
        return any(n.endswith("norm.weight") for n, _ in self.outer)


def of(a: Architecture, train: TrainConfig) -> Part | None:
    """What learns of a model; None where all of it does."""
    if train.trained_parameters is None or (not train.added_parameters and not train.freeze):
        return None
    patterns = ["*"] if train.added_parameters else train.freeze or []

    def learns(name: str) -> bool:
        return not any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

    each = [(stack, layer) for stack in a.stacks for layer in stack.each()]
    rank = _rank(a, train)
    outer = tuple(w for w in outer_weights(a, range(a.layers)) if learns(w[0]))
    reached, found = any("embed" in name for name, _ in outer), list[Learning]()
    for n, (_, layer) in enumerate(each):
        own = [w for w in layer_weights(layer) if learns(f"model.layers.{n}.{w[0]}")]
        own += adapters(layer, rank, train.adapted)
        found.append(Learning(layer, tuple(own), reached))
        reached = reached or bool(own)
    return Part(tuple(found), outer, rank)


def adapted(layer: Layer, names: list[str] | None) -> list[Matrix]:
    """The products of a layer that have an adapter; names: of products, all whose names end in _proj by default."""
    products = [m for m in layer.matrices if not m.is_stack and m.name.endswith("_proj")]
    return [m for m in products if names is None or m.name.rpartition(".")[2] in names]


def adapters(layer: Layer, rank: int, names: list[str] | None) -> list[Weight]:
    """(name inside the layer, shape) of the adapters of one layer, as the model has them."""
    if not rank:
        return []
    pairs = (
        ((f"{m.name}.lora_A", (rank, m.columns)), (f"{m.name}.lora_B", (m.rows, rank))) for m in adapted(layer, names)
    )
    return [w for pair in pairs for w in pair]


def _rank(a: Architecture, train: TrainConfig) -> int:
    of_one = sum(n * sum(m.rows + m.columns for m in adapted(y, train.adapted)) for n, y in a.kinds)
    return (train.added_parameters or 0) // of_one if of_one else 0


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def is_counted(a: Architecture) -> bool:
    """Whether what is kept can be told tensor by tensor: a decoder of dense layers with one attention each.

    Norms stand before a branch, or before and behind it (Gemma's).
    """
    layer = a.kinds[-1][1]
    plain = not any(y.routed or y.latents or len(y.attentions) > 1 or (y.behind and not y.rms) for _, y in a.kinds)
    return len(a.stacks) == 1 and plain and bool(layer.inner)


def norm_bytes(layer: Layer, hidden: int, learns: bool, reached: bool) -> int:
    """Kept of one token by a norm, of which the weight may learn and the input may have a gradient."""
    if not layer.rms:
        return FLOAT * (hidden + 2) if learns or reached else 0
    return FLOAT * ((hidden if learns else 0) + (hidden + 1 if reached else 0))


def token_bytes(own: Learning, hidden: int, b: MicroBatch, rank: int) -> float:
    """Kept of one token by one layer, as `activations.token_bytes` counts where all learns."""
    layer, (a,) = own.layer, own.layer.attentions
    q, k, out = a.heads * a.qk, a.kv_heads * a.qk, a.heads * a.v
    kept, reached = 0.0, own.reached
    kept += norm_bytes(layer, hidden, bool(own.learn("input_layernorm")), reached)
    reached = reached or bool(own.learn("input_layernorm"))
    three = own.learn("q_proj", "k_proj", "v_proj")
    kept += b.item * hidden * (three if b.short else min(three, 1))
    flows = reached or three > 0
    if layer.norms_of_heads:
        for size, heads, name in ((q, a.heads, "q"), (k, a.kv_heads, "k")):
            kept += FLOAT * ((size if own.learn(f"{name}_norm") else 0) + (size + heads if flows else 0))
        flows = flows or own.learn("q_norm", "k_norm") > 0
    if flows:
        kept += b.item * (q + k + a.kv_heads * a.v + out) + FLOAT * a.heads
        if b.kernel == "products" and not own.learn("o_proj"):  # only the next product would have kept it
            kept -= b.item * out
    elif own.learn("o_proj"):
        kept += b.item * out
    reached = flows or own.learn("o_proj") > 0
    if layer.behind:
        learns = bool(own.learn("post_attention_layernorm"))
        kept += norm_bytes(layer, hidden, learns, reached)
        reached = reached or learns
    return kept + _feed_forward(own, hidden, b, reached) + _adapters(own, b, rank)


def _feed_forward(own: Learning, hidden: int, b: MicroBatch, reached: bool) -> float:
    layer, learns = own.layer, bool(own.learn(own.before_feed_forward))
    kept: float = norm_bytes(layer, hidden, learns, reached)
    into = own.learn("gate_proj", "up_proj")
    kept += b.item * hidden * (into if b.short else min(into, 1))
    if reached or learns or into:
        kept += b.item * (3 if layer.gated else 1) * layer.inner
    kept += b.item * layer.inner if own.learn("down_proj") else 0
    if layer.behind:
        comes = reached or learns or into > 0 or own.learn("down_proj") > 0
        kept += norm_bytes(layer, hidden, bool(own.learn("post_feedforward_layernorm")), comes)
    return kept


def _adapters(own: Learning, b: MicroBatch, rank: int) -> float:
    """Between its two products an adapter keeps `rank` numbers."""
    return b.item * rank * sum(name.endswith("lora_B") for name, _ in own.weights)


def kept_bytes(a: Architecture, part: Part, b: MicroBatch) -> float:
    """Kept of a micro-batch by all layers and the last norm, without what the head keeps of its input, and casts."""
    kept = 0.0
    for own in part.layers:
        if own.hands_on:
            kept += b.tokens * token_bytes(own, a.hidden, b, part.rank)
            kept += activations.attention_extra_bytes(own.layer, b)
    reached = part.layers[-1].hands_on
    return kept + b.tokens * norm_bytes(a.kinds[-1][1], a.hidden, part.norm, reached)


def cast_numbers(part: Part) -> int:
    """Numbers of weights that autocast casts and products keep: all whose input or weight has a gradient."""
    found = 0
    for own in part.layers:
        if own.hands_on:
            found += sum(m.weights for m in own.layer.matrices)
            found += sum(_size(shape) for n, shape in own.weights if "lora_" in n)
            if not own.into_attention:  # the first products hand nothing on
                first = ("q_proj", "k_proj", "v_proj")
                found -= sum(m.weights for m in own.layer.matrices if _frozen(own, m, first))
                found -= sum(_size(s) for n, s in own.weights if n.endswith(tuple(f"{p}.lora_A" for p in first)))
    return found


def _frozen(own: Learning, m: Matrix, names: tuple[str, ...]) -> bool:
    return m.name.endswith(names) and not any(n == f"{m.name}.weight" for n, _ in own.weights)
