"""An encoder: every token sees all others. It names tokens that were hidden, and gives texts their vectors.

By `config.head` it tells something else: of the first token, [CLS], which label its text has (`labels`: a product,
tanh, a product, as Hugging Face's BertForSequenceClassification), or of every token how well an answer begins and ends
there (`spans`, BertForQuestionAnswering).

Shapes: B batch, T time, D hidden, V vocabulary, C labels.
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

SIDES = 2  # what the head for spans has: the beginning and the end


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
    """Names hidden tokens, or has the head of its config, which must be resolved.

    has_head: whether it has any; without, it gives vectors alone. kernel: what computes attention in training, as in a
    decoder.
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0, kernel: str = "sdpa", has_head: bool = True) -> None:
        super().__init__()
        self.config, self.has_head = config, has_head
        self.model = Trunk(config, dropout, kernel)
        if not has_head:
            return
        D = config.sizes.D
        if config.head == "labels":
            self.head_dense, self.dropout = nn.Linear(D, D), Dropout(dropout)
            self.lm_head = nn.Linear(D, len(config.labels or ()))
        elif config.head == "spans":
            self.lm_head = nn.Linear(D, SIDES)
        else:
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
        """What the head's last product takes, (B, T, D); of labels (B, 1, D). Arguments as in `hidden`."""
        return self.transformed(self.hidden(input_ids, types, mask, positions))

    def transformed(self, hidden: Tensor) -> Tensor:
        """States as the head's last product takes them."""
        if not self.has_head:
            raise ModelError("this encoder has no head (a bare BertModel): it gives vectors alone")
        if self.config.head == "labels":  # a copy, so that the other tokens' states need not be kept
            return self.dropout(torch.tanh(self.head_dense(hidden[:, :1].contiguous())))
        return hidden if self.config.head == "spans" else self.head_norm(F.gelu(self.head_dense(hidden)))

    def forward(self, input_ids: Tensor, types: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V); of labels (B, 1, C), of spans (B, T, 2). Arguments as in `hidden`."""
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


def headed(base: Encoder, config: ModelConfig, dropout: float, seed: int) -> Encoder:
    """The encoder of `config` with the layers of `base`, which it takes over, and a head that has learned nothing."""
    with torch.device("meta"):
        made = Encoder(config, dropout)
    made.model = base.model
    for name, p in list(made.named_parameters()):
        if p.is_meta:
            place, _, leaf = name.rpartition(".")
            setattr(made.get_submodule(place), leaf, nn.Parameter(new_head(config, name, seed)))
    return made


def new_head(config: ModelConfig, name: str, seed: int) -> Tensor:
    """The weight `name` of a head that has learned nothing: a pure function of its arguments."""
    with torch.device("meta"):
        made = Encoder(config)
    shape = tuple(made.get_parameter(name).shape)
    weight = torch.empty(shape)
    initial.fill(weight, name, (0,) * len(shape), shape, initial.beginning(made, name, shape, config), seed)
    return weight


def span_losses(logits: Tensor, choices: Tensor, targets: Tensor) -> Tensor:
    """(B,) float32: in nats, the mean of what the beginning and the end of each answer cost.

    logits: (B, T, 2). choices: (B, T) boolean, where an answer may begin and end. targets: (B, 2) positions.
    """
    scores = logits.float().masked_fill(~choices.unsqueeze(-1), float("-inf"))
    return F.cross_entropy(scores, targets, reduction="none").mean(1)
