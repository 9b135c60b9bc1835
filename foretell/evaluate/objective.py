"""Scores of a model at what it was trained for, where that is not each next token: hidden tokens, stretches, targets.

What is asked for is drawn once, by a seed of its own, so that the same text always asks the same. `loss` is nats a
token that was asked for, and bits_per_byte divides by the bytes of these tokens alone: neither is a likelihood of the
text, except for the targets of pairs, nor comparable with that of a model that predicts each next token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from foretell import metrics
from foretell.config.model import ENCODER_DECODERS
from foretell.data import Document, objectives
from foretell.data.loader import Text
from foretell.data.objectives import UNSCORED, Rows
from foretell.data.records import BETWEEN, Rejected
from foretell.data.shards import Tokens
from foretell.data.windows import CHOICE
from foretell.errors import DataError, ModelError
from foretell.evaluate.scoring import Crew, Sums, token_scores
from foretell.models.encoder import span_losses
from foretell.models.model import Given, Model, features, head
from foretell.tokenizer import Tokenizer

SEED = 0
_BATCH_SIZE = 16
_LARGEST_EXPONENT = 700.0


@torch.no_grad()
def evaluate_objective(
    model: Model,
    data: Text,
    split: str,
    objective: str,
    *,
    context: int,
    max_tokens: int | None = None,
    batch_size: int | None = None,
    within: bool = False,
    crew: Crew | None = None,
) -> dict[str, Any]:
    """Score a split: loss perplexity bits_per_byte accuracy tokens bytes documents (rows) ci objective.

    context: of a row. max_tokens: of the text, by rows. within: attention inside documents. crew: the processes that
    hold the model together, all of which must call this. Leaves random state and training mode as they were.
    """
    n = objectives.count(data, split, objective, context)
    n = n if max_tokens is None else max(1, min(n, max_tokens // context))
    own = model if crew is None else crew.chunks
    training = own.training
    own.eval()
    sums, size = Sums(crew), np.zeros((1, n))
    lengths = np.array([len(data.tokenizer.token_bytes(i)) for i in range(model.config.sizes.V)])
    if objective in objectives.WITH_HEAD:  # what is asked for is no text
        lengths = np.zeros(max(context, model.config.sizes.V), np.int64)
    try:
        for numbers, empty in dealt(n, batch_size or _BATCH_SIZE, crew):
            found = objectives.rows(
                objective,
                data,
                split,
                seed=SEED,
                step=0,
                batch_size=n,
                context=context,
                rows=numbers,
                start=model.config.decoder_start_token_id,
            ).trimmed()
            scored = found.targets != UNSCORED
            if empty:
                scored[:] = False
            size[0, numbers] += np.where(scored, lengths[found.targets * scored], 0).sum(1)
            if objective == "spans":
                _score_spans(model, found, numbers, empty, sums, crew)
            else:
                _score(model, found, numbers, scored, within, sums, crew)
    finally:
        own.train(training)
    if crew is not None:
        size = crew.summed(size)
    return _summary(sums.of_documents(n), size[0], {"context": context, "stride": context, "objective": objective})


def dealt(n: int, rows: int, crew: Crew | None) -> Iterator[tuple[list[int], bool]]:
    """This process's batches of the rows 0 to n - 1; where none is left to it, one again that asks nothing."""
    batches = [list(range(i, min(n, i + rows))) for i in range(0, n, rows)]
    dp, rank = (1, 0) if crew is None else (crew.dp, crew.dp_rank)
    for i in range(0, len(batches), dp):
        yield (batches[i + rank], False) if i + rank < len(batches) else (batches[i], True)


def _score(
    model: Model, rows: Rows, numbers: list[int], asked: np.ndarray, within: bool, sums: Sums, crew: Crew | None
) -> None:
    device = next(model.parameters()).device
    inputs, targets, segments, prefix, source, real, _, marks, scored = (
        None if a is None else torch.from_numpy(a).to(device) for a in (*rows, asked)
    )
    assert inputs is not None
    assert targets is not None
    assert scored is not None
    plain = prefix is None and source is None and marks is None
    given = None if plain else Given(prefix, source, real, marks)
    apart = segments if within else None
    if crew is None:
        nll, correct = token_scores(*head(model, features(model, inputs, apart, given)[scored]), targets[scored])
        which = scored.nonzero()[:, 0]
    else:
        which, nll, correct = crew.token_scores(inputs, targets, scored, apart, given)
    row_of, B = which.cpu().numpy(), len(numbers)
    sums.add(
        numbers,
        np.bincount(row_of, nll.double().cpu().numpy(), B).tolist(),
        np.bincount(row_of, minlength=B).tolist(),
        np.bincount(row_of, correct.cpu().numpy(), B).tolist(),
    )


def _score_spans(model: Model, rows: Rows, numbers: list[int], empty: bool, sums: Sums, crew: Crew | None) -> None:
    """Of each question what its answer costs, and whether beginning and end are the likeliest."""
    device = next(model.parameters()).device
    inputs, targets, marks = (torch.from_numpy(a).to(device) for a in (rows.inputs, rows.targets, rows.marks))
    given, choices = Given(marks=marks), marks & CHOICE > 0
    dtype = torch.float32 if crew is None else crew.dtype
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        hidden = features(model, inputs, None, given) if crew is None else crew.hidden(inputs, None, given)
        logits = model.lm_head(hidden).float()
    likeliest = logits.masked_fill(~choices.unsqueeze(-1), float("-inf")).argmax(1)
    counts = [0 if empty else 1] * len(numbers)
    right = (likeliest == targets).all(1).cpu().numpy() * counts
    nll = span_losses(logits, choices, targets).double().cpu().numpy() * counts
    sums.add(numbers, nll.tolist(), counts, right.tolist())


def _summary(sums: tuple[np.ndarray, np.ndarray, np.ndarray], size: np.ndarray, told: dict[str, Any]) -> dict[str, Any]:
    nll, tokens, correct = sums
    if not np.isfinite(nll).all():
        raise ModelError("the model's predictions are not numbers (NaN or infinite): its weights are damaged")

    def exp(x: float) -> float:
        return math.exp(min(x, _LARGEST_EXPONENT))

    values, ci = {}, {}
    for name, top, bottom, f in (
        ("loss", nll, tokens, float),
        ("perplexity", nll, tokens, exp),
        ("bits_per_byte", nll / math.log(2), size, float),
        ("accuracy", correct, tokens, float),
    ):
        if bottom.sum() <= 0:
            continue
        values[name] = f(float(top.sum() / bottom.sum()))
        if (interval := metrics.ratio_interval(top, bottom)) is not None:
            ci[name] = [f(v) for v in interval]
    return {**values, "tokens": int(tokens.sum()), "bytes": int(size.sum()), "documents": len(nll), "ci": ci, **told}


@dataclass(frozen=True)
class Texts:
    """Documents as evaluation meets them, all one split; pairs where each is a source and a target."""

    tokenizer: Tokenizer
    texts: tuple[str, ...]
    has_pairs: bool

    @cached_property
    def _encoded(self) -> tuple[Tokens, np.ndarray]:
        end = self.tokenizer.eot_id
        if end is None:
            raise DataError("this tokenizer has no token that ends a text; what is asked for could not be laid out")
        sides = [side for t in self.texts for side in (t.split(BETWEEN) if self.has_pairs else [t])]
        flat, lengths = self.tokenizer.encode_flat(sides)
        ends = np.cumsum(lengths)
        flat = np.insert(flat.astype(np.int64), ends, end)
        return Tokens([flat], flat.dtype), (ends + np.arange(1, len(ends) + 1))[self.has_pairs :: 1 + self.has_pairs]

    def tokens(self, split: str) -> Tokens:
        return self._encoded[0]

    def document_ends(self, split: str) -> np.ndarray:
        return self._encoded[1]


def evaluate_texts(
    model: Model,
    tokenizer: Tokenizer,
    documents: Iterable[Document | Rejected],
    *,
    has_pairs: bool = False,
    context: int | None = None,
) -> dict[str, Any]:
    """Score documents, or pairs, with an encoder or an encoder-decoder. context: of a row, the model's by default.

    An encoder names hidden tokens; an encoder-decoder writes the targets of pairs, or, of text, what was cut out of it.
    """
    read = list(documents)
    good = tuple(d.text for d in read if isinstance(d, Document))
    bad = [d for d in read if isinstance(d, Rejected)]
    if not good:
        raise DataError(f"nothing to score: {bad[0].source}: {bad[0].reason}" if bad else "nothing to score: no text")
    data = Texts(tokenizer, good, has_pairs)
    paired = "seq2seq" if has_pairs else "span_corruption"
    objective = paired if model.config.model_type in ENCODER_DECODERS else "masked"
    longest = model.config.needed("max_position_embeddings")
    fitting = context or min(longest, 512)
    if fitting > longest:
        raise DataError(f"context ({fitting:,}) must be at most the model's own {longest:,}")
    if objective != "seq2seq":
        fitting = min(fitting, len(data.tokens("")))
    result = evaluate_objective(model, data, "", objective, context=fitting)
    if bad:
        result |= {"quarantined": len(bad), "first_quarantined": "{}, byte {}: {}".format(*bad[0])}
    return result
