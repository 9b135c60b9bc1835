"""BERT (Devlin et al., 2019): every token sees all others, and learns to name those that were hidden.

Learned positions and token types, a norm of their sum, LayerNorm behind each branch, biases everywhere, and a
feed-forward part of four times the width with the exact GELU.
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F

from foretell.config import ModelConfig
from foretell.models.core import Attention, Layer, LayerNorm, PlainMLP, PostNormLayer


def layers(c: ModelConfig, dropout: float, kernel: str) -> list[Layer]:
    """The layers of a resolved config."""
    D, L, H, K, E, width, _ = c.sizes
    norm = partial(LayerNorm, eps=c.rms_norm_eps)

    def layer(n: int) -> Layer:
        attention = Attention(D, H, K, E, layer=n, kernel=kernel, bias=True, output_bias=True, causal=False)
        return PostNormLayer(attention, PlainMLP(D, width, F.gelu), norm, D, dropout, rotary=None)

    return [layer(n) for n in range(L)]
