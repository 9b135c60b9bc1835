"""Name and shape of every weight, under the names of the model itself: what is divided, sent and held is read off here.

`flops.layer_matrices` lists the products of a layer, an expert at a time; this lists its parameters as they are stored:
experts in stacks, norms and biases too. Shapes as in `models/decoder.py`, which a test compares.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from foretell.config import ModelConfig

Weight = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Traits:
    """What a decoder has beside the sizes in its config. The default is `models/decoder.py`."""

    qk_norm: bool = True  # norms on queries and keys; Llama 3 has none


OURS = Traits()
LLAMA = Traits(qk_norm=False)


def layer_weights(model: ModelConfig, traits: Traits = OURS) -> Iterator[Weight]:
    """(name inside the layer, shape) of each parameter of one layer. `model` must be resolved."""
    D, _, H, K, E, _, _ = model.sizes
    yield "self_attn.q_proj.weight", (H * E, D)
    yield "self_attn.k_proj.weight", (K * E, D)
    yield "self_attn.v_proj.weight", (K * E, D)
    yield "self_attn.o_proj.weight", (D, H * E)
    if traits.qk_norm:
        yield "self_attn.q_norm.weight", (E,)
        yield "self_attn.k_norm.weight", (E,)
    yield from _feed_forward(model)
    yield "input_layernorm.weight", (D,)
    yield "post_attention_layernorm.weight", (D,)


def _feed_forward(model: ModelConfig) -> Iterator[Weight]:
    D, F = model.sizes.D, model.sizes.F
    if model.num_experts is None:
        yield "mlp.gate_proj.weight", (F, D)
        yield "mlp.up_proj.weight", (F, D)
        yield "mlp.down_proj.weight", (D, F)
        return
    N, inner = model.num_experts, model.needed("moe_intermediate_size")
    if model.balance == "bias":
        yield "mlp.expert_bias", (N,)
    yield "mlp.gate.weight", (N, D)
    yield "mlp.experts.gate_proj", (N, inner, D)
    yield "mlp.experts.up_proj", (N, inner, D)
    yield "mlp.experts.down_proj", (N, D, inner)


def outer_weights(model: ModelConfig, first: bool = True, last: bool = True) -> Iterator[Weight]:
    """(name, shape) of what is outside the layers; of one stage of a pipeline, which may be the first or the last.

    A tied table stands once where one stage has both ends, and on both stages otherwise, on the last as `lm_head`.
    """
    D, V = model.sizes.D, model.sizes.V
    if first:
        yield "model.embed_tokens.weight", (V, D)
    if last:
        yield "model.norm.weight", (D,)
        if not (first and model.tie_word_embeddings):
            yield "lm_head.weight", (V, D)
