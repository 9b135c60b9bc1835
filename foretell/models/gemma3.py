"""Gemma 3 (Gemma Team, 2025; arXiv 2503.19786), its text model.

Five of six layers see `sliding_window` tokens back, with angles of their own base; each branch has a norm before and
behind it, and there are norms on queries and keys. A norm's weight is stored as its difference from 1. Embeddings are
multiplied by sqrt(D), and the gate of the feed-forward part is a GELU.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretell.config import ModelConfig
from foretell.models.core import MLP, Angles, Attention, Cache, Layer, Norm, Parts
from foretell.models.rope import Rotary

gelu = partial(F.gelu, approximate="tanh")


class ZeroCentredNorm(nn.Module):
    """RMSNorm that multiplies by 1 + weight."""

    begins = 0.0  # the weight

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), (1.0 + self.weight).to(x.dtype), self.eps)


class SandwichLayer(Layer):
    """Each branch between two norms."""

    starts_as_identity = False  # the norm behind a branch wants no zeros: its gradient there is 1 / sqrt(eps)

    def __init__(
        self, self_attn: Attention, mlp: nn.Module, norm: Norm, D: int, dropout: float, rotary: int | None = 0
    ) -> None:
        super().__init__(self_attn, mlp, norm, D, dropout, rotary)
        self.pre_feedforward_layernorm = norm(D)
        self.post_feedforward_layernorm = norm(D)

    def forward(self, x: Tensor, angles: Angles | None, mask: Tensor | None, cache: Cache | None) -> Tensor:
        y = self.self_attn(self.input_layernorm(x), angles, mask, cache)
        x = x + self.dropout(self.post_attention_layernorm(y))
        y = self.mlp(self.pre_feedforward_layernorm(x))
        return x + self.dropout(self.post_feedforward_layernorm(y))


def parts(c: ModelConfig, dropout: float, kernel: str) -> Parts:
    """Layers and what stands around them."""
    D, L, H, K, E, width, _ = c.sizes
    norm = partial(ZeroCentredNorm, eps=c.rms_norm_eps)
    scale = (c.query_pre_attn_scalar or E) ** -0.5

    def layer(n: int) -> Layer:
        window = c.window(n)
        attention = Attention(D, H, K, E, layer=n, kernel=kernel, norm=norm, scale=scale, window=window)
        return SandwichLayer(attention, MLP(D, width, gelu), norm, D, dropout, rotary=0 if window is None else 1)

    length = c.needed("max_position_embeddings")
    everywhere = Rotary(E, c.rope_theta, c.rope_scaling, length)
    nearby = Rotary(E, c.rope_local_base_freq or c.rope_theta, None, length)
    return Parts([layer(n) for n in range(L)], norm(D), (everywhere, nearby), scale=D**0.5)
