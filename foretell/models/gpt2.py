"""GPT-2 (Radford et al., 2019) and the dense form of GPT-3 (Brown et al., 2020).

Learned positions, LayerNorm before each branch, biases everywhere, one key and value for each query, and a feed-forward
part of four times the width with a GELU (its tanh form).
"""

from __future__ import annotations

from functools import partial

import torch.nn.functional as F

from foretell.config import ModelConfig
from foretell.models.core import Attention, Layer, LayerNorm, Parts, PlainMLP

gelu = partial(F.gelu, approximate="tanh")


def parts(c: ModelConfig, dropout: float, kernel: str) -> Parts:
    """Layers and what stands around them."""
    D, L, H, K, E, width, _ = c.sizes
    norm = partial(LayerNorm, eps=c.rms_norm_eps)

    def layer(n: int) -> Layer:
        attention = Attention(D, H, K, E, layer=n, kernel=kernel, bias=True, output_bias=True)
        return Layer(attention, PlainMLP(D, width, gelu), norm, D, dropout, rotary=None)

    return Parts([layer(n) for n in range(L)], norm(D), positions=c.needed("max_position_embeddings"))
