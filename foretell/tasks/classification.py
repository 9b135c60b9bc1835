"""Classification: what an encoder with a head for labels says of texts.

Texts go through the model in batches of like length, padded and masked, so that what is said of one does not depend on
its neighbours. A text that is longer than the model's context keeps its beginning.

Shapes: N texts, C labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from foretell.data import windows
from foretell.data.windows import Row
from foretell.errors import ModelError
from foretell.models.encoder import Encoder
from foretell.models.model import Given, Model, features
from foretell.tokenizer import Tokenizer

BATCH_TOKENS = 1 << 13


@torch.no_grad()
def label_logits(
    model: Model, tokenizer: Tokenizer, texts: Sequence[str], *, batch_tokens: int = BATCH_TOKENS
) -> np.ndarray:
    """(N, C) float32: of each text what the head says of each label (`model.config.labels`), in the order of texts.

    batch_tokens: padded tokens of a batch, at most, or one text. Raises ModelError where the model has no such head,
    DataError for what is no Unicode text. Training mode is left as it was.
    """
    encoder = having(model, "labels")
    longest = encoder.config.needed("max_position_embeddings")
    rows = [windows.text_row(tokenizer, ids, longest) for ids in tokenizer.encode_batch(list(texts))]
    found = np.zeros((len(rows), len(encoder.config.labels or ())), np.float32)
    for which, logits, _ in batches(encoder, tokenizer, rows, batch_tokens):
        found[which] = logits.squeeze(1).cpu().numpy()
    return found


def having(model: Model, head: str) -> Encoder:
    """The model, which must be an encoder with that head. ModelError says how one is trained."""
    if not isinstance(model, Encoder) or not model.has_head or model.config.head != head:
        raise ModelError(
            f"this wants an encoder with a head for {head}; train one: foretell train --base MODEL data.format={head}"
        )
    return model


def batches(
    model: Encoder, tokenizer: Tokenizer, rows: Sequence[Row], batch_tokens: int
) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
    """Numbers of rows of like length, the longest first, with what the head says of them, in float32, and marks."""
    device, training = next(model.parameters()).device, model.training
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n].tokens))
    start = 0
    model.eval()
    try:
        while start < len(order):
            width = len(rows[order[start]].tokens)
            which = order[start : start + max(1, batch_tokens // width)]
            start += len(which)
            made = windows.padded([rows[n] for n in which], np.zeros(0), width, tokenizer.eot_id or 0)
            inputs, marks = torch.from_numpy(made.inputs).to(device), torch.from_numpy(made.marks).to(device)
            yield which, model.lm_head(features(model, inputs, None, Given(marks=marks))).float(), marks
    finally:
        model.train(training)
