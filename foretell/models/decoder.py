"""A decoder: predicts each next token from those before it. Of any family that only decodes (`families.py`).

The default is the architecture of Qwen3 in Hugging Face transformers, with its parameter names, so a trained model
needs no conversion to be loaded there.

Shapes: B batch, T time, S time of keys (cached and new), D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foretell.config import ModelConfig
from foretell.models import families, initial
from foretell.models.core import Cache, Dropout, Layer, near
from foretell.models.rope import Rotary


class Transformer(nn.Module):
    """Embedding, layers and the last norm: token ids (B, T) to hidden states (B, T, D)."""

    embed_positions: nn.Embedding | None

    def __init__(self, c: ModelConfig, dropout: float, kernel: str) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.sizes.V, c.sizes.D)
        parts = families.parts(c, dropout, kernel)
        self.embed_positions = nn.Embedding(parts.positions, c.sizes.D) if parts.positions else None
        self.embed_scale = parts.scale
        self.layers = nn.ModuleList(parts.layers)
        self.norm = parts.norm
        self.dropout = Dropout(dropout)
        self.rotary = nn.ModuleList(parts.rotary)
        self.near = near  # another one where other processes have a part of the sequence

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        # A stage of a pipeline behind the first may be handed a part of the sequence: positions say how long it is.
        T = input_ids.shape[1] if positions is None else positions.shape[1]
        start = cache.length if cache is not None else 0
        x = self.embed_tokens(input_ids)
        if self.embed_scale != 1.0:
            x = x * self.embed_scale
        if self.embed_positions is not None:
            places = torch.arange(start, start + T, device=input_ids.device) if positions is None else positions
            x = x + self.embed_positions(places)
        x = self.dropout(x)
        angles = [table(start, T, positions, x.dtype) for table in self.rotary]
        masks: dict[int | None, Tensor | None] = {None: mask}
        for layer in self.layers:
            assert isinstance(layer, Layer)
            window = layer.self_attn.window
            if window not in masks:
                assert window is not None
                masks[window] = self.near(mask, window, T, start + T)
            own = None if layer.rotary is None else angles[layer.rotary]
            x = layer(x, own, masks[window], cache)
        return self.norm(x)

    def fill_tables(self, length: int, device: torch.device | str = "cpu") -> None:
        """Tables of angles for so many positions, where a model was made without memory."""
        for table in self.rotary:
            assert isinstance(table, Rotary)
            table.fill(length, device)


class Decoder(nn.Module):
    """Predicts each next token. `config` must be resolved (`ModelConfig.resolved`).

    kernel: what computes attention in training, `sdpa` (torch's) or `products` (`models/attention.py`).
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0, kernel: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.model = Transformer(config, dropout, kernel)
        self.lm_head = nn.Linear(config.sizes.D, config.sizes.V, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, D), after the last norm and before the head.

        input_ids: (B, T) integers. positions: (B, T), default 0..T-1 after what the cache holds. mask: (B or 1, 1, T,
        S) boolean, True where a query may look; default causal. With a cache that already holds tokens and T > 1, pass
        a mask.
        """
        return self.model(input_ids, positions, mask, cache)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits (B, T, V). Arguments as in `hidden`."""
        return self.lm_head(self.hidden(input_ids, positions, mask, cache))

    def initialise(self, seed: int) -> None:
        """The initial weights of a run: see `models/initial.py`."""
        initial.initialise(self, self.config, seed)


def document_mask(segments: Tensor) -> Tensor:
    """(B, 1, T, T) mask that is causal and stays inside one document; segments: (B, T) document numbers."""
    T = segments.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    return (segments[:, :, None] == segments[:, None, :]).logical_and(causal).unsqueeze(1)
