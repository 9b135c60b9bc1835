"""One door to the three kinds of model: which class a config means, and what training and scoring ask of each.

Shapes: B batch, S time of a source, T time, D hidden, V vocabulary, N tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from foretell.config import ModelConfig
from foretell.config.model import ENCODER_DECODERS
from foretell.data.windows import REAL, SECOND
from foretell.models.core import Layer
from foretell.models.decoder import Decoder
from foretell.models.encoder import Encoder
from foretell.models.seq2seq import Seq2Seq

Model = Decoder | Encoder | Seq2Seq


class Given(NamedTuple):
    """What a row has besides its inputs: how many of them all may see (B,); a source (B, S) and its mask (B, S).

    marks: (B, T) uint8, what each token is to an encoder with a head (`data/windows.py`).
    """

    prefix: Tensor | None = None
    source: Tensor | None = None
    source_mask: Tensor | None = None
    marks: Tensor | None = None


def made(config: ModelConfig, dropout: float = 0.0, kernel: str = "sdpa") -> Model:
    """The model of a resolved config, its weights not yet drawn."""
    if config.model_type == "bert":
        return Encoder(config, dropout, kernel)
    if config.model_type in ENCODER_DECODERS:
        return Seq2Seq(config, dropout, kernel)
    return Decoder(config, dropout, kernel)


def layers(model: Model) -> Iterator[Layer]:
    """All layers, in the order they run."""
    inner: nn.Module = model.model
    stacks = (model.model.encoder, model.model.decoder) if isinstance(model, Seq2Seq) else (inner,)
    for stack in stacks:
        for layer in stack.layers:  # type: ignore[union-attr]
            assert isinstance(layer, Layer)
            yield layer


def features(model: Model, inputs: Tensor, segments: Tensor | None = None, given: Given | None = None) -> Tensor:
    """What the head's product takes (B, T, D), of inputs (B, T).

    segments: (B, T) document numbers, to keep attention inside documents. An encoder-decoder needs a given source, and
    keeps no documents apart. Of an encoder whose rows have marks they say what is padding, and token types.
    """
    if isinstance(model, Seq2Seq):
        assert given is not None
        assert given.source is not None
        return model.features(given.source, inputs, given.source_mask)
    if given is not None and given.marks is not None:
        assert isinstance(model, Encoder)
        types = (given.marks & SECOND > 0).long() if (model.config.type_vocab_size or 2) > 1 else None
        return model.features(inputs, types, given.marks & REAL > 0)
    prefix = None if given is None else given.prefix
    causal = isinstance(model, Decoder)
    mask = masked(segments, prefix, inputs.shape[1], causal, inputs.device)
    return model.features(inputs, mask=mask) if isinstance(model, Encoder) else model.hidden(inputs, mask=mask)


def head(model: Model, features: Tensor) -> tuple[Tensor, Tensor]:
    """(N, D) features and a weight (V, D) whose product gives the logits; with a bias both are a column wider."""
    weight, bias = model.lm_head.weight, model.lm_head.bias
    if bias is None:
        return features, weight
    ones = features.new_ones(*features.shape[:-1], 1)
    return torch.cat([features, ones], -1), torch.cat([weight, bias[:, None].to(weight.dtype)], 1)


def masked(
    segments: Tensor | None, prefix: Tensor | None, length: int, causal: bool, device: torch.device
) -> Tensor | None:
    """(B, 1, T, T), True where a query may look, or None where the model's own rule says it all.

    segments: (B, T) document numbers, to keep attention inside documents. prefix: (B,) tokens from the first on that
    every token sees.
    """
    if segments is None and prefix is None:
        return None
    seen = torch.ones(1, length, length, dtype=torch.bool, device=device)
    if causal:
        seen = seen.tril()
    if prefix is not None:
        seen = seen | (torch.arange(length, device=device) < prefix[:, None])[:, None, :]
    if segments is not None:
        seen = seen & (segments[:, :, None] == segments[:, None, :])
    return seen.unsqueeze(1)
