"""Training batches: a pure function of (seed, step), whatever the number of readers, ranks or restarts.

The token stream of a split is a circle: before its first token stands <|endoftext|>, which is also its last token. An
epoch lays windows of T targets side by side from an offset of its own and visits each exactly once, in an order given
by a keyed permutation that is computed, not stored (a Feistel network on the window number, cycle-walked; Black and
Rogaway, 2002). So any sample of any step is found in O(1) time and memory. Fewer than T tokens an epoch are left out,
other ones each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from foretell.data.shards import Tokens
from foretell.errors import DataError
from foretell.tokenizer import Tokenizer

_ROUNDS = 6


class Text(Protocol):
    """Tokens in documents: prepared data, or texts of the moment."""

    @property
    def tokenizer(self) -> Tokenizer:
        """Theirs."""
        ...

    @property
    def has_pairs(self) -> bool:
        """Whether each document is a source and a target."""
        ...

    def tokens(self, split: str) -> Tokens:
        """All tokens of a split."""
        ...

    def document_ends(self, split: str) -> np.ndarray:
        """(documents,) int64: position after each document."""
        ...


def batch(
    data: Text, split: str, *, seed: int, step: int, batch_size: int, context: int, rows: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs, targets and segments, each (B, T) int64; of the batch's sequences only `rows` where they are given.

    An input is the token before its target; <|endoftext|> is the input before a document's first token. `segments`
    numbers the documents inside a window: positions with the same number belong to one document. Raises DataError when
    the split is shorter than one window.
    """
    tokens = data.tokens(split)
    chosen = np.arange(batch_size, dtype=np.int64) if rows is None else np.array(rows, np.int64)
    starts = _starts(len(tokens), split, seed, chosen + step * batch_size, context)
    window = np.stack([_circular(tokens, int(s) - 1, context + 1) for s in starts])
    inputs, targets = window[:, :-1], window[:, 1:]
    return inputs, targets, np.cumsum(inputs == data.tokenizer.eot_id, axis=1)


def place(data: Text, split: str, *, seed: int, step: int, batch_size: int, context: int, row: int) -> tuple[int, str]:
    """Where a sequence of a batch stands: the number of its first target in the split, and its text."""
    tokens = data.tokens(split)
    sample = np.array([row + step * batch_size], np.int64)
    start = int(_starts(len(tokens), split, seed, sample, context)[0]) % len(tokens)
    return start, data.tokenizer.decode(_circular(tokens, start, context).tolist())


def _starts(length: int, split: str, seed: int, sample: np.ndarray, context: int) -> np.ndarray:
    """The first target of each sample, on the circle of `length` tokens."""
    windows = window_count(length, context, split)
    starts = np.empty(len(sample), np.int64)
    for epoch in np.unique(sample // windows):
        here = sample // windows == epoch
        order = permuted(sample[here] % windows, windows, key_of(seed, int(epoch), "order"))
        starts[here] = key_of(seed, int(epoch), "offset") % length + order * context
    return starts


def window_count(tokens: int, context: int, split: str = "train") -> int:
    """Windows of an epoch."""
    if tokens < context:
        raise DataError(
            f"the {split} split has {tokens:,} tokens, less than one context of {context:,}; lower train.context"
        )
    return tokens // context


def permuted(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """Image of each index in [0, n) under the permutation of [0, n) that `key` names."""
    half = max(1, ((n - 1).bit_length() + 1) // 2)
    mask = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    keys = [np.uint64(key_of(key, r, "round") & (2**64 - 1)) for r in range(_ROUNDS)]
    result = index.astype(np.uint64)
    outside = np.ones(len(result), bool)
    while outside.any():  # the domain is below 4 n, so a walk is short
        value = result[outside]
        left, right = value >> shift, value & mask
        for k in keys:
            left, right = right, left ^ (_mixed(right ^ k) & mask)
        result[outside] = (left << shift) | right
        outside = result >= n
    return result.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al., 2014)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def key_of(seed: int, number: int, use: str) -> int:
    """63 bits from a seed, a number and a word."""
    data = f"{seed} {number} {use}".encode()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little") >> 1


def _circular(tokens: Tokens, start: int, length: int) -> np.ndarray:
    """`length` tokens from `start` on, around the end of the stream."""
    start %= len(tokens)
    part = tokens[start : start + length]
    while len(part) < length:
        part = np.concatenate([part, tokens[: length - len(part)]])
    return part.astype(np.int64)
