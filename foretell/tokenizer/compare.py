"""Several tokenizers on one text: how many tokens they make of it, what they do not know, how fast they are.

Bytes per token is the fair measure of compression: bytes of UTF-8 are the same for all, characters are not (a Chinese
one is three bytes). Speed is the best of two encodings of the texts, on all the threads that the library takes.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from foretell.errors import DataError
from foretell.tokenizer import Tokenizer

_DECODED = 1 << 20  # characters that are decoded to see whether they come back


def compare(texts: list[str], tokenizers: dict[str, Tokenizer]) -> dict[str, Any]:
    """Sizes of the texts, and of each tokenizer, by name: tokens, bytes and characters a token, unknown share, speed.

    `unknown` is the share of tokens that stand for text the vocabulary does not have; `exact` says whether the first
    megabyte comes back as it was. Raises DataError where there is no text.
    """
    size, characters = sum(len(t.encode()) for t in texts), sum(map(len, texts))
    if not size:
        raise DataError("there is no text to compare tokenizers on")
    rows = [_row(name, t, texts, size, characters) for name, t in tokenizers.items()]
    return {"bytes": size, "characters": characters, "documents": len(texts), "tokenizers": rows}


def _row(name: str, tokenizer: Tokenizer, texts: list[str], size: int, characters: int) -> dict[str, Any]:
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        encoded = tokenizer.encode_batch(texts)
        seconds.append(time.perf_counter() - start)
    ids = np.concatenate(encoded)
    unknown = int((ids == tokenizer.unk_id).sum()) if tokenizer.unk_id is not None else 0
    return {
        "name": name,
        "kind": tokenizer.kind,
        "vocab_size": tokenizer.vocab_size,
        "tokens": len(ids),
        "bytes_per_token": size / max(1, len(ids)),
        "characters_per_token": characters / max(1, len(ids)),
        "unknown": unknown / max(1, len(ids)),
        "used": len(np.unique(ids)),
        "exact": _comes_back(tokenizer, texts),
        "bytes_per_second": size / min(seconds),
    }


def _comes_back(tokenizer: Tokenizer, texts: list[str]) -> bool:
    left = _DECODED
    for text in texts:
        part = text[:left]
        if tokenizer.decode(tokenizer.encode(part)) != part:
            return False
        left -= len(part)
        if left <= 0:
            break
    return True
