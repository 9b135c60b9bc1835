"""Small models with weights that matter everywhere, and small tokenizers, for tests that need no training."""

import functools

import torch
import torch.nn.functional as F

from foretell import tokenizer
from foretell.config import ModelConfig
from foretell.models.decoder import Decoder
from foretell.tokenizer import Tokenizer

ENGLISH = "The quick brown fox jumps over the lazy dog. It's 1984, isn't it? We'll see; they've gone home.\n"
CHINESE = "话说天下大势，分久必合，合久必分。周末七国分争，并入于秦。😀\n"


@functools.cache
def bpe() -> Tokenizer:
    return tokenizer.train_bpe([ENGLISH * 30, CHINESE * 30], 400)


@functools.cache
def byte_level() -> Tokenizer:
    return tokenizer.byte_tokenizer()


def model(vocab_size: int, context: int = 64, seed: int = 0, **changes: object) -> Decoder:
    """A decoder whose every matrix is random; large weights make its choices clear."""
    config = ModelConfig.model_validate({"hidden_size": 64, "num_hidden_layers": 2, **changes})
    decoder = Decoder(config.resolved(vocab_size, context))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in decoder.parameters():
            if p.ndim < 2:
                p.uniform_(0.5, 1.5, generator=generator)
            else:
                p.normal_(0.0, 1.5 * p.shape[-1] ** -0.5, generator=generator)
    return decoder.eval()


@functools.cache
def trained() -> Decoder:
    """A model of `bpe` and context 64 that has seen the two sentences: it is often right, and not always."""
    own = bpe()
    decoder = Decoder(model(own.vocab_size).config)
    decoder.initialise(0)
    line = torch.tensor([own.eot_id, *own.encode((ENGLISH + CHINESE) * 2)])[:65]
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    for _ in range(40):
        F.cross_entropy(decoder(line[None, :-1])[0], line[1:]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return decoder.eval()
