"""`embed`: a vector for each text, by an encoder: the mean of its tokens' last states, made of length 1.

So the product of two vectors is the cosine between them (Reimers and Gurevych, 2019). Texts go through the model in
batches of like length, padded and masked, so that a vector does not depend on its neighbours. Not handled: other ways
of pooling, instructions before a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from foretell.errors import ConfigError, DataError, ModelError
from foretell.models.encoder import Encoder
from foretell.tokenizer import Tokenizer, check_encodable

BATCH_TOKENS = 1 << 13
SUFFIXES = (".npy", ".safetensors")


class Vectors(NamedTuple):
    """vectors: (texts, D) float32, each of length 1. cut: how many texts were longer than the model's context."""

    vectors: np.ndarray
    cut: int


@torch.no_grad()
def embed(model: Any, tokenizer: Tokenizer, texts: Sequence[str]) -> Vectors:
    """The vectors of texts, in their order. A text longer than the model's context is cut, and counted.

    The tokens are those that the tokenizer itself makes of a text, its [CLS] and [SEP] included where it has such.
    Raises ModelError where the model is no encoder, DataError for what is no Unicode text.
    """
    if not isinstance(model, Encoder):
        raise ModelError("embed wants an encoder, such as bert; this model predicts what comes next")
    for text in texts:
        check_encodable(text)
    longest = model.config.needed("max_position_embeddings")
    rows, cut = _tokens(tokenizer, texts, longest)
    device, training = next(model.parameters()).device, model.training
    found = np.zeros((len(rows), model.config.sizes.D), np.float32)
    model.eval()
    try:
        for batch in _batches(rows):
            length = len(rows[batch[0]])
            ids = torch.zeros(len(batch), length, dtype=torch.int64)
            mask = torch.zeros(len(batch), length, dtype=torch.bool)
            for n, row in enumerate(batch):
                ids[n, : len(rows[row])] = torch.tensor(rows[row])
                mask[n, : len(rows[row])] = True
            found[batch] = model.pooled(ids.to(device), mask.to(device)).cpu().numpy()
    finally:
        model.train(training)
    return Vectors(found, cut)


def _tokens(tokenizer: Tokenizer, texts: Sequence[str], longest: int) -> tuple[list[list[int]], int]:
    """The ids of each text, at least one and at most `longest`; and how many texts were cut."""
    inner, cut, rows = tokenizer.inner, 0, []
    room = longest - inner.num_special_tokens_to_add(is_pair=False)
    for encoding in inner.encode_batch(list(texts), add_special_tokens=False):
        if len(encoding.ids) > room:
            cut += 1
            encoding.truncate(room)
        ids = inner.post_process(encoding, None, True).ids
        rows.append(ids or [tokenizer.eot_id or 0])
    return rows, cut


def _batches(rows: list[list[int]]) -> Iterator[list[int]]:
    """Numbers of rows of like length, the longest first."""
    order = sorted(range(len(rows)), key=lambda n: -len(rows[n]))
    start = 0
    while start < len(order):
        count = max(1, BATCH_TOKENS // len(rows[order[start]]))
        yield order[start : start + count]
        start += count


def lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not empty. DataError where it cannot be read."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as e:
        raise DataError(f"{path}: cannot be read: {e.strerror}") from None
    except UnicodeDecodeError as e:
        raise DataError(f"{path}: not UTF-8 at byte {e.start:,}") from None
    return [line for line in text.splitlines() if line.strip()]


def write(vectors: np.ndarray, path: Path) -> None:
    """Write (texts, D) float32 as .npy or .safetensors (one tensor, `vectors`). ConfigError for another suffix."""
    if path.suffix == ".npy":
        np.save(path, vectors)
    elif path.suffix == ".safetensors":
        from safetensors.numpy import save_file

        save_file({"vectors": vectors}, path)
    else:
        raise ConfigError(f"{path}: vectors are written as {' or '.join(SUFFIXES)}, by the name of the file")
