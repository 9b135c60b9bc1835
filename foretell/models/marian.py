"""The Transformer of Vaswani et al. (2017) as Marian has it (Junczys-Dowmunt et al., 2018).

Sinusoidal positions, all sines before all cosines; LayerNorm behind each branch and none behind the last layer; biases
everywhere, on the logits too; one table of embeddings, times the root of D, for source, target and head.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretell.config import ModelConfig
from foretell.models.core import Activation, Attention, LayerNorm, PlainMLP, PostNormLayer
from foretell.models.cross import Decoding, Encoding, Halves, PostNormCrossLayer

ACTIVATIONS: dict[str, Activation] = {"relu": F.relu, "gelu": F.gelu, "silu": F.silu}


class Sinusoids(nn.Module):
    """Rows of sines and cosines, made when they are needed: no weights."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, places: Tensor) -> Tensor:
        """places (T,) to (T, D)."""
        half = (self.dim + 1) // 2
        powers = torch.arange(half, dtype=torch.float64, device="cpu") * 2 / self.dim
        angles = places.double().cpu()[:, None] * 10_000.0**-powers
        rows = torch.cat([angles.sin(), angles[:, : self.dim - half].cos()], 1)
        return rows.float().to(places.device)


def halves(c: ModelConfig, dropout: float, kernel: str) -> Halves:
    """Encoder and decoder of a resolved config."""
    D, L, H, K, E, width, _ = c.sizes
    norm, activation = partial(LayerNorm, eps=c.rms_norm_eps), ACTIVATIONS[c.hidden_act or "relu"]

    def attention(n: int, causal: bool) -> Attention:
        return Attention(D, H, K, E, layer=n, kernel=kernel, bias=True, output_bias=True, causal=causal)

    def feed() -> PlainMLP:
        return PlainMLP(D, width, activation)

    encoder = Encoding(
        [PostNormLayer(attention(n, False), feed(), norm, D, dropout, rotary=None) for n in range(L)], nn.Identity()
    )
    decoder = Decoding(
        [
            PostNormCrossLayer(attention(n, True), attention(n, False), feed(), norm, D, dropout)
            for n in range(c.needed("num_decoder_layers"))
        ],
        nn.Identity(),
    )
    return Halves(encoder, decoder, D**0.5 if c.scale_embedding else 1.0, Sinusoids(D))
