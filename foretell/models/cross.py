"""What an encoder-decoder has beyond a decoder: layers that also attend to a memory, and its two halves.

Shapes: B batch, T time of the target, S time of the memory, D hidden, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from foretell.models.core import Attention, Cache, Kept, Layer, Norm


class CrossLayer(Layer):
    """Attention to what stands before, then to the memory, then feed-forward, each of what a norm leaves."""

    def __init__(
        self, self_attn: Attention, cross_attn: Attention, mlp: nn.Module, norm: Norm, D: int, dropout: float
    ) -> None:
        super().__init__(self_attn, mlp, norm, D, dropout, rotary=None)
        self.cross_attn = cross_attn
        self.cross_attention_layernorm = norm(D)

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        memory: Tensor,
        memory_mask: Tensor | None,
        kept: Kept | None,
    ) -> Tensor:
        """x (B, T, D) to the same. memory: (B, S, D). kept: keys and values of the memory, made once."""
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), None, mask, cache))
        y = self.cross_attn(self.cross_attention_layernorm(x), None, memory_mask, None, memory, kept)
        x = x + self.dropout(y)
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class PostNormCrossLayer(CrossLayer):
    """The order of the first Transformer: a norm of the sum behind each of the three."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        mask: Tensor | None,
        cache: Cache | None,
        memory: Tensor,
        memory_mask: Tensor | None,
        kept: Kept | None,
    ) -> Tensor:
        x = self.input_layernorm(x + self.dropout(self.self_attn(x, None, mask, cache)))
        y = self.cross_attn(x, None, memory_mask, None, memory, kept)
        x = self.cross_attention_layernorm(x + self.dropout(y))
        return self.post_attention_layernorm(x + self.dropout(self.mlp(x)))


# Of T queries, the first of which is number `start`, over S keys: (1, H, T, S), added to the products.
Bias = Callable[[int, int, int], Tensor]


class Half(nn.Module):
    """Layers, the norm behind them, and what all of them add to their products, or None."""

    relative_bias: nn.Module | None

    def __init__(self, layers: list[Layer], norm: nn.Module, relative_bias: nn.Module | None = None) -> None:
        super().__init__()
        self.layers, self.norm, self.relative_bias = nn.ModuleList(layers), norm, relative_bias


class Encoding(Half):
    """The half that reads a source."""

    def forward(self, x: Tensor, mask: Tensor | None, S: int) -> Tensor:
        """x (B, S, D) to the memory. mask: (B, S) boolean, True at real tokens; None: all are. S: of the whole x."""
        seen = over_keys(mask)
        if self.relative_bias is not None:
            seen = added(self.relative_bias(S, 0, S), seen)
        for layer in self.layers:
            x = layer(x, None, seen, None)
        return self.norm(x)


class Decoding(Half):
    """The half that writes a target."""

    def forward(
        self, x: Tensor, memory: Tensor, memory_mask: Tensor | None, cache: Cache | None, kept: Kept | None, T: int
    ) -> Tensor:
        """x (B, T, D) to the same. memory: (B, S, D); memory_mask: (B, S) boolean. T: of the whole x."""
        start = cache.length if cache is not None else 0
        mask: Tensor | None = None
        if start and T > 1:
            mask = before(T, start, x.device)
        if self.relative_bias is not None:
            mask = added(self.relative_bias(T, start, start + T), before(T, start, x.device))
        over_memory = over_keys(memory_mask)
        for layer in self.layers:
            x = layer(x, mask, cache, memory, over_memory, kept)
        return self.norm(x)


@dataclass(frozen=True)
class Halves:
    """What a family makes of a config. scale: what embeddings are multiplied by. positions: rows that are added."""

    encoder: Encoding
    decoder: Decoding
    scale: float = 1.0
    positions: nn.Module | None = None


def over_keys(mask: Tensor | None) -> Tensor | None:
    """(B, S), True at real tokens, as attention wants it; a mask that says more is left as it is."""
    return mask[:, None, None, :] if mask is not None and mask.ndim == 2 else mask


def before(queries: int, start: int, device: torch.device) -> Tensor:
    """(1, 1, T, S): True where a query, the first of which is number `start`, may look."""
    place = torch.arange(start + queries, device=device)
    return (place[start:, None] >= place)[None, None]


def added(bias: Tensor, seen: Tensor | None) -> Tensor:
    """A bias with minus infinity where nothing may be seen."""
    return bias if seen is None else bias.masked_fill(~seen, float("-inf"))
