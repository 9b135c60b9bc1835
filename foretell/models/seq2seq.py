"""An encoder-decoder: reads a source, then predicts each next token of a target from it and from those before.

Shapes: B batch, S time of the source, T time of the target, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from foretell.config import ModelConfig
from foretell.models import initial, marian, t5
from foretell.models.core import Cache, Dropout, Kept

FAMILIES = {"marian": marian.halves, "t5": t5.halves}


class MemoryCache(Cache, Protocol):
    """A cache that also keeps what was made of the memory. `generate` owns the implementation."""

    memory: Kept


class Stacks(nn.Module):
    """The shared table and the two halves."""

    def __init__(self, c: ModelConfig, dropout: float, kernel: str) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.sizes.V, c.sizes.D)
        halves = FAMILIES[c.model_type](c, dropout, kernel)
        self.encoder, self.decoder = halves.encoder, halves.decoder
        self.embed_scale, self.positions = halves.scale, halves.positions
        self.dropout = Dropout(dropout)

    def embedded(self, ids: Tensor, start: int = 0) -> Tensor:
        """Embeddings (B, T, D) of ids (B, T), the first of which is number `start`."""
        x = self.embed_tokens(ids)
        if self.embed_scale != 1.0:
            x = x * self.embed_scale
        if self.positions is not None:
            x = x + self.positions(torch.arange(start, start + ids.shape[1], device=ids.device)).to(x.dtype)
        return self.dropout(x)


class Seq2Seq(nn.Module):
    """Predicts targets of sources. `config` must be resolved. kernel: of attention in training."""

    def __init__(self, config: ModelConfig, dropout: float = 0.0, kernel: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.model = Stacks(config, dropout, kernel)
        self.lm_head = nn.Linear(config.sizes.D, config.sizes.V, bias=config.model_type == "marian")
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def encode(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """The memory (B, S, D) of a source: ids (B, S), mask (B, S) boolean, True at real tokens, None: all are."""
        return self.model.encoder(self.model.embedded(ids), mask, ids.shape[1])

    def decode(
        self, ids: Tensor, memory: Tensor, memory_mask: Tensor | None = None, cache: MemoryCache | None = None
    ) -> Tensor:
        """States (B, T, D) of target tokens ids (B, T) behind those that the cache holds, before the head.

        memory: (B, S, D) from `encode`; memory_mask: (B, S), of the source. With a cache, keys and values of the memory
        are made in the first call and kept; later ids may have several rows for each of the memory, beside each other.
        """
        start = cache.length if cache is not None else 0
        kept = cache.memory if cache is not None else None
        x = self.model.embedded(ids, start)
        return self.model.decoder(x, memory, memory_mask, cache, kept, ids.shape[1])

    def hidden(self, source: Tensor, ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """States (B, T, D) of target tokens ids (B, T), given source (B, S) whose mask is (B, S)."""
        return self.decode(ids, self.encode(source, source_mask), source_mask)

    def features(self, source: Tensor, ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """What the head's product takes, (B, T, D). Arguments as in `hidden`."""
        return self.scaled(self.hidden(source, ids, source_mask))

    def scaled(self, hidden: Tensor) -> Tensor:
        """States as the head takes them."""
        return hidden * hidden.shape[-1] ** -0.5 if self.config.scale_decoder_outputs else hidden

    def forward(self, source: Tensor, ids: Tensor, source_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V). Arguments as in `hidden`."""
        return self.lm_head(self.features(source, ids, source_mask))

    def initialise(self, seed: int) -> None:
        """The initial weights of a run: see `models/initial.py`."""
        initial.initialise(self, self.config, seed)
