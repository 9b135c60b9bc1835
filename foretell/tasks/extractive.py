"""Extractive question answering: where in a context an encoder with a head for spans sees the answer.

A context that is longer than the model's is met in windows. As in the scripts of BERT (Devlin et al., 2019) and SQuAD
v2: an answer's score is the sum of what its first and its last token score; its first token counts only in the window
in which it has most around it; the best of all windows wins. What [CLS] scores, in the window where that is least,
says that there is no answer; whoever asks decides by how much it must be more. An answer is a part of the context,
letter by letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from foretell.data import windows
from foretell.data.windows import Row
from foretell.models.model import Model
from foretell.tasks.classification import BATCH_TOKENS, batches, having
from foretell.tokenizer import Tokenizer, check_encodable


class Found(NamedTuple):
    """An answer: text = context[start:end], in characters. score: of it; null: of there being none. Both are logits."""

    text: str
    start: int
    end: int
    score: float
    null: float


@dataclass(frozen=True)
class _Window:
    """Tokens first to first + length of the context of item `item`; own: which of them have most around them here."""

    item: int
    first: int
    own: np.ndarray
    row: Row


@torch.no_grad()
def spans(
    model: Model,
    tokenizer: Tokenizer,
    items: Sequence[tuple[str, str]],
    *,
    context: int | None = None,
    stride: int | None = None,
    longest_answer: int = 30,
    candidates: int = 20,
    batch_tokens: int = BATCH_TOKENS,
) -> list[Found]:
    """Of each (question, context) the best answer, in the order of items. A context without tokens has "".

    context: tokens of a row, the model's own by default. stride: tokens from one window to the next, half of what one
    holds by default. longest_answer: in tokens. candidates: first and last tokens that are tried in each window.
    Raises ModelError where the model has no such head, DataError for what is no Unicode text.
    """
    encoder = having(model, "spans")
    longest = min(context or 1 << 30, encoder.config.needed("max_position_embeddings"))
    windows.check_context(longest)
    places: dict[str, np.ndarray] = {}
    found = [Found("", 0, 0, float("-inf"), float("inf")) for _ in items]
    every = list[_Window]()
    for n, (question, text) in enumerate(items):
        every += _windows(tokenizer, n, question, text, longest, stride, places)
    for which, logits, _ in batches(encoder, tokenizer, [w.row for w in every], batch_tokens):
        for n, scores in zip(which, logits.cpu().numpy(), strict=True):
            window = every[n]
            text = items[window.item][1]
            best = _best(scores, window, longest_answer, candidates)
            null = min(found[window.item].null, float(scores[0].sum()))
            if best is not None and best[2] > found[window.item].score:
                first, last, score = best
                start, end = _trimmed(text, int(places[text][first, 0]), int(places[text][last, 1]))
                found[window.item] = Found(text[start:end], start, end, score, null)
            found[window.item] = found[window.item]._replace(null=null)
    return found


def _windows(
    tokenizer: Tokenizer,
    item: int,
    question: str,
    text: str,
    context: int,
    stride: int | None,
    places: dict[str, np.ndarray],
) -> list[_Window]:
    """The windows over the context of one item; `places` is told where its tokens stand."""
    check_encodable(question)
    asked = tokenizer.encode_batch([question])[0]
    ids, places[text] = tokenizer.located(text)
    cut = windows.parts(len(ids), len(asked), context, stride)
    around = np.full((len(cut), len(ids)), -1)  # of each token, in each window, the less of what stands on its sides
    for n, (a, b) in enumerate(cut):
        here = np.arange(a, b)
        around[n, a:b] = np.minimum(here - a, b - 1 - here)
    most = around.argmax(0)
    return [
        _Window(item, a, most[a:b] == n, windows.asked_row(tokenizer, asked, ids[a:b], context))
        for n, (a, b) in enumerate(cut)
    ]


def _best(scores: np.ndarray, window: _Window, longest: int, candidates: int) -> tuple[int, int, float] | None:
    """First and last token in the context, and the score, of the best answer in a window; scores: (T, 2)."""
    begins = window.row.begins
    here = scores[begins : begins + len(window.own)]
    firsts = np.argsort(-np.where(window.own, here[:, 0], -np.inf), kind="stable")[:candidates]
    lasts = np.argsort(-here[:, 1], kind="stable")[:candidates]
    size = lasts[None, :] - firsts[:, None] + 1
    fits = (size >= 1) & (size <= longest) & window.own[firsts][:, None]
    if not fits.any():
        return None
    total = np.where(fits, here[firsts, 0][:, None] + here[lasts, 1][None, :], -np.inf)
    i, j = np.unravel_index(int(total.argmax()), total.shape)
    return window.first + int(firsts[i]), window.first + int(lasts[j]), float(total[i, j])


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Without the spaces at both ends, which some tokens have."""
    part = text[start:end]
    return start + len(part) - len(part.lstrip()), end - len(part) + len(part.rstrip())
