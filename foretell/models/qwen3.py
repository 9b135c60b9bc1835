"""Qwen3 (Qwen Team, 2025; arXiv 2505.09388), the default decoder, and Qwen3-MoE.

RMSNorm before each branch, rotary positions, grouped queries, RMSNorm on queries and keys, SwiGLU. With `num_experts`
the feed-forward part is a mixture of experts (`moe.py`).
"""

from __future__ import annotations

from functools import partial

from foretell.config import ModelConfig
from foretell.models.core import MLP, Attention, Layer, Parts, RMSNorm
from foretell.models.moe import MoE
from foretell.models.rope import Rotary


def parts(c: ModelConfig, dropout: float, kernel: str) -> Parts:
    """Layers and what stands around them."""
    D, L, H, K, E, F, _ = c.sizes
    norm = partial(RMSNorm, eps=c.rms_norm_eps)

    def layer(n: int) -> Layer:
        attention = Attention(D, H, K, E, layer=n, kernel=kernel, norm=norm)
        return Layer(attention, MoE(c) if c.num_experts else MLP(D, F), norm, D, dropout)

    angles = Rotary(E, c.rope_theta, c.rope_scaling, c.needed("max_position_embeddings"))
    return Parts([layer(n) for n in range(L)], norm(D), (angles,))
