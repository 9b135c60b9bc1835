"""Scores of a model on text: any documents (`evaluate`), or a split of prepared data (`evaluate_split`).

Each document stands alone: the first input is <|endoftext|>, which is not a target, so a model of ours scores every
token. A tokenizer without a token to begin with leaves the first token of a window unscored; the result then says so.
Longer documents than `context` are cut into windows every `stride` tokens. bits_per_byte divides by all UTF-8 bytes of
the text, scored or not, so it compares across tokenizers. Intervals: see `foretell.metrics`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from foretell.data import Data, Document
from foretell.data.records import Rejected
from foretell.errors import ConfigError, DataError, ModelError
from foretell.evaluate.result import Counts, counted, summary
from foretell.evaluate.scoring import Crew, Window, score, windows
from foretell.models.decoder import Decoder
from foretell.tokenizer import Tokenizer

# Beyond this a window costs more attention than it brings.
_LONGEST_DEFAULT = 2048
_BATCH_SIZE = 16
_TEXTS_AT_ONCE, _CHARACTERS_AT_ONCE = 1024, 1 << 20


def evaluate(
    model: Decoder,
    tokenizer: Tokenizer,
    documents: Iterable[Document | Rejected | str],
    *,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Score documents in float32: loss perplexity word_perplexity|char_perplexity bits_per_byte accuracy tokens bytes
    documents ci{metric: [low, high]}, and how it was done.

    context: window in tokens, the model's when None, at most 2,048 then. stride: tokens between windows, context when
    None. batch_size: windows of full length at once, 16 when None; it does not move the result. A rejected record is
    counted as `quarantined`. Raises DataError when there is nothing to score.
    """
    context, stride = _window(model, context, stride)
    counts: list[Counts] = []
    quarantined: list[Rejected] = []

    def all_windows() -> Iterator[Window]:
        for texts in _grouped(documents, quarantined):
            for text, tokens in zip(texts, tokenizer.encode_batch(texts), strict=True):
                counts.append(counted(text))
                yield from windows(len(counts) - 1, tokens, tokenizer.bos_id, context, stride)

    sums = score(model, all_windows(), (batch_size or _BATCH_SIZE) * context)
    told: dict[str, Any] = {"context": context, "stride": stride}
    if quarantined and not counts:
        raise DataError("nothing to score: {}, byte {}: {}".format(*quarantined[0]))
    if quarantined:
        told |= {"quarantined": len(quarantined), "first_quarantined": "{}, byte {}: {}".format(*quarantined[0])}
    if tokenizer.bos_id is None:
        told["note"] = "this tokenizer has no token to begin with: the first token of each window is not scored"
    of_documents = sums.of_documents(len(counts))
    if not np.isfinite(of_documents[0]).all():  # and JSON has no NaN
        raise ModelError("the model's predictions are not numbers (NaN or infinite): its weights are damaged")
    return summary(of_documents, counts, told)


def evaluate_split(
    model: Decoder,
    data: Data,
    split: str,
    *,
    max_tokens: int | None = None,
    context: int | None = None,
    stride: int | None = None,
    batch_size: int | None = None,
    crew: Crew | None = None,
) -> dict[str, Any]:
    """The same for a split of prepared data. max_tokens: score only the first so many tokens of it. crew: the processes
    that hold the model together, all of which must call this.

    Leaves random state and training mode as they were.
    """
    context, stride = _window(model, context, stride)
    tokens, ends = data.tokens(split), data.document_ends(split)
    table = _token_bytes(data.tokenizer)
    counts: list[Counts] = []

    def all_windows() -> Iterator[Window]:
        start, left = 0, math.inf if max_tokens is None else max_tokens
        for end in map(int, ends):
            document = tokens[start : end - 1][: None if left == math.inf else int(left)]
            start, left = end, left - len(document)
            counts.append(counted(b"".join([table[t] for t in document.tolist()]).decode(errors="replace")))
            yield from windows(len(counts) - 1, document, data.tokenizer.bos_id, context, stride)
            if left <= 0:
                return

    sums = score(model, all_windows(), (batch_size or _BATCH_SIZE) * context, crew)
    if max_tokens is None and len(counts) == len(ends):
        exact = data.document_bytes(split).tolist()
        counts = [c._replace(bytes=n) for c, n in zip(counts, exact, strict=True)]
    return summary(sums.of_documents(len(counts)), counts, {"context": context, "stride": stride})


def _token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    return [tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]


def _window(model: Decoder, context: int | None, stride: int | None) -> tuple[int, int]:
    longest = model.config.max_position_embeddings or 1
    context = min(longest, _LONGEST_DEFAULT) if context is None else context
    stride = context if stride is None else stride
    if not 2 <= context <= longest:
        raise ConfigError(f"context ({context:,}) must be from 2 to the model's own {longest:,}")
    if not 1 <= stride <= context:
        raise ConfigError(f"stride ({stride:,}) must be from 1 to context ({context:,}), or tokens would be left out")
    return context, stride


def _grouped(documents: Iterable[Document | Rejected | str], quarantined: list[Rejected]) -> Iterator[list[str]]:
    """Texts some hundred at a time, for the tokenizer's sake."""
    group: list[str] = []
    size = 0
    for document in documents:
        if isinstance(document, Rejected):
            quarantined.append(document)
            continue
        text = document if isinstance(document, str) else document.text
        group.append(text)
        size += len(text)
        if size >= _CHARACTERS_AT_ONCE or len(group) >= _TEXTS_AT_ONCE:
            yield group
            group, size = [], 0
    if group:
        yield group
