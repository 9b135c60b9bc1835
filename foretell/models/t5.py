"""T5 (Raffel et al., 2020) and its version 1.1 (Shazeer, 2020).

RMSNorm before each branch and no biases; products are not scaled; in place of positions, each head adds to its products
a number that it has learned for the distance, the same in all layers of a half. 1.0 has a ReLU, and divides what its
tied head takes by the root of D; 1.1 has a gated GELU (its tanh form).
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretell.config import ModelConfig
from foretell.models.core import MLP, Attention, Layer, PlainMLP, RMSNorm
from foretell.models.cross import CrossLayer, Decoding, Encoding, Halves

gelu = partial(F.gelu, approximate="tanh")


class RelativeBias(nn.Module):
    """A number for each head and bucket of distances (rows: buckets)."""

    def __init__(self, buckets: int, heads: int, longest: int, causal: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(buckets, heads))
        self.longest, self.causal = longest, causal

    def forward(self, queries: int, start: int, keys: int) -> Tensor:
        """(1, H, T, S): what T queries, the first of which is number `start`, add to their products with S keys."""
        place = torch.arange(keys, device=self.weight.device)
        distance = place - torch.arange(start, start + queries, device=self.weight.device)[:, None]
        rows = F.embedding(bucketed(distance, self.weight.shape[0], self.longest, self.causal), self.weight)
        return rows.permute(2, 0, 1).unsqueeze(0)


def bucketed(distance: Tensor, buckets: int, longest: int, causal: bool) -> Tensor:
    """The bucket of each distance, key minus query: near ones have their own, farther ones share, by the logarithm."""
    found = torch.zeros_like(distance)
    if causal:
        back = (-distance).clamp(min=0)
    else:
        buckets //= 2
        found = found + (distance > 0) * buckets
        back = distance.abs()
    own = buckets // 2
    far = (back.float() / own).log() / math.log(longest / own) * (buckets - own)
    shared = (own + far.nan_to_num(neginf=0.0).long()).clamp(max=buckets - 1)
    return found + torch.where(back < own, back, shared)


def halves(c: ModelConfig, dropout: float, kernel: str) -> Halves:
    """Encoder and decoder of a resolved config."""
    D, L, H, K, E, width, _ = c.sizes
    norm = partial(RMSNorm, eps=c.rms_norm_eps)
    count, longest = c.relative_attention_num_buckets or 32, c.relative_attention_max_distance or 128

    def attention(n: int, causal: bool) -> Attention:
        return Attention(D, H, K, E, layer=n, kernel=kernel, scale=1.0, causal=causal)

    def feed() -> nn.Module:
        return MLP(D, width, gelu) if c.hidden_act == "gated-gelu" else PlainMLP(D, width, F.relu, bias=False)

    encoder = Encoding(
        [Layer(attention(n, False), feed(), norm, D, dropout, rotary=None) for n in range(L)],
        norm(D),
        RelativeBias(count, H, longest, causal=False),
    )
    decoder = Decoding(
        [
            CrossLayer(attention(n, True), attention(n, False), feed(), norm, D, dropout)
            for n in range(c.needed("num_decoder_layers"))
        ],
        norm(D),
        RelativeBias(count, H, longest, causal=True),
    )
    return Halves(encoder, decoder)
