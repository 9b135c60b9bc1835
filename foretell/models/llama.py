"""Llama 2 and 3 (Touvron et al., 2023; Llama Team, 2024), and what was built alike: SmolLM2, Mistral, Qwen2.

RMSNorm before each branch, rotary positions, grouped queries, SwiGLU, no biases. Mistral (Jiang et al., 2023) lets a
token see `sliding_window` tokens back; Qwen2 (2024) has biases on queries, keys and values.
"""

from __future__ import annotations

from functools import partial

from foretell.config import ModelConfig
from foretell.models.core import MLP, Attention, Layer, Parts, RMSNorm
from foretell.models.rope import Rotary


def parts(c: ModelConfig, dropout: float, kernel: str) -> Parts:
    """Layers and what stands around them."""
    D, L, H, K, E, F, _ = c.sizes
    norm, bias = partial(RMSNorm, eps=c.rms_norm_eps), c.model_type == "qwen2"

    def layer(n: int) -> Layer:
        attention = Attention(D, H, K, E, layer=n, kernel=kernel, bias=bias, window=c.window(n))
        return Layer(attention, MLP(D, F), norm, D, dropout)

    angles = Rotary(E, c.rope_theta, c.rope_scaling, c.needed("max_position_embeddings"))
    return Parts([layer(n) for n in range(L)], norm(D), (angles,))
