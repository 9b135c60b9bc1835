"""An encoder: every token sees all others. It names tokens that were hidden, and gives texts their vectors.

Shapes: B batch, T time, D hidden, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretell.config import ModelConfig
from foretell.errors import ModelError
from foretell.models import bert, initial
from foretell.models.core import Dropout, LayerNorm
from foretell.models.cross import over_keys


class Trunk(nn.Module):
    """Embeddings, and layers from them to hidden states, both (B, T, D)."""

    def __init__(self, c: ModelConfig, dropout: float, kernel: str) -> None:
        super().__init__()
        D = c.sizes.D
        self.embed_tokens = nn.Embedding(c.sizes.V, D)
        self.embed_positions = nn.Embedding(c.needed("max_position_embeddings"), D)
        self.embed_types = nn.Embedding(c.type_vocab_size or 2, D)
        self.embed_norm = LayerNorm(D, c.rms_norm_eps)
        self.layers = nn.ModuleList(bert.layers(c, dropout, kernel))
        self.dropout = Dropout(dropout)

    def embedded(self, input_ids: Tensor, types: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """What the first layer takes (B, T, D), of tokens at positions (B, T), 0 to T - 1 by default."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device) if positions is None else positions
        kinds = torch.zeros_like(input_ids) if types is None else types
        x = self.embed_tokens(input_ids) + self.embed_types(kinds) + self.embed_positions(places)
        return self.dropout(self.embed_norm(x))

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        seen = over_keys(mask)
        for layer in self.layers:
            x = layer(x, None, seen, None)
        return x


class Encoder(nn.Module):
    """Names hidden tokens. `config` must be resolved. has_head: whether it can; without, it gives vectors alone.

    kernel: what computes attention in training, as in a decoder.
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0, kernel: str = "sdpa", has_head: bool = True) -> None:
        super().__init__()
        self.config, self.has_head = config, has_head
        self.model = Trunk(config, dropout, kernel)
        if has_head:
            D = config.sizes.D
            self.head_dense = nn.Linear(D, D)
            self.head_norm = LayerNorm(D, config.rms_norm_eps)
            self.lm_head = nn.Linear(D, config.sizes.V)
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(
        self,
        input_ids: Tensor,
        types: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """The last layer's states (B, T, D).

        input_ids: (B, T). types: (B, T) token types, 0 everywhere by default. mask: (B, T) boolean, True at real
        tokens, or (B, 1, T, T), True where a query may look; None: every token sees all. positions: (B, T), 0 to T - 1
        by default.
        """
        return self.model(self.model.embedded(input_ids, types, positions), mask)

    def features(
        self,
        input_ids: Tensor,
        types: Tensor | None = None,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """What the head's last product takes, (B, T, D). Arguments as in `hidden`."""
        return self.transformed(self.hidden(input_ids, types, mask, positions))

    def transformed(self, hidden: Tensor) -> Tensor:
        """States as the head's last product takes them."""
        if not self.has_head:
            raise ModelError("this encoder has no head that names tokens (a bare BertModel): it gives vectors alone")
        return self.head_norm(F.gelu(self.head_dense(hidden)))

    def forward(self, input_ids: Tensor, types: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V). Arguments as in `hidden`."""
        features = self.features(input_ids, types, mask)
        return self.lm_head(features)

    def pooled(self, input_ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        """The mean of the real tokens' states, of length 1: (B, D). mask: (B, T) boolean, True at real tokens."""
        real = mask.unsqueeze(-1)
        total = (self.hidden(input_ids, types, mask) * real).sum(1)
        return F.normalize(total / real.sum(1).clamp(min=1), dim=-1)

    def initialise(self, seed: int) -> None:
        """The initial weights of a run: see `models/initial.py`."""
        initial.initialise(self, self.config, seed)
