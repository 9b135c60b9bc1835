"""Corpus BLEU and chrF of translations, by sacreBLEU (Post, 2018): raw case, detokenised text, its signature kept.

sacreBLEU counts; from its counts per sentence the score of any sum is computed here for many sums at once, which
makes an interval a matter of milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foretell.errors import MissingExtra
from foretell.metrics.measure import Measure, listed, same_length
from foretell.metrics.units import spaced

# Languages written without spaces, in which the default `13a` would see one long word. Mecab is no dependency here.
_TOKENIZERS = {"zh": "zh", "ja": "char", "th": "char"}
_ORDERS = 4
_CHARACTERS = 6


def bleu(
    hypotheses: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    language: str = "en",
    tokenize: str | None = None,
    lowercase: bool = False,
) -> Measure:
    """Corpus BLEU, 0 to 100, of translations into `language` against one reference or several for each.

    `tokenize`: a tokenizer of sacreBLEU's; unset it is `zh` for Chinese, `char` for Japanese and Thai, `13a` for all
    else. Four orders, exponential smoothing. Give plain text: text that was tokenised before scores differently.
    DataError where the numbers differ or the text is of another script than the language, MissingExtra without
    sacreBLEU.
    """
    several = _references(hypotheses, references)
    if tokenize is None and language not in _TOKENIZERS:
        spaced((r for refs in several for r in refs), language)
    metric = _sacrebleu().BLEU(tokenize=tokenize or _TOKENIZERS.get(language, "13a"), lowercase=lowercase)
    return Measure("bleu", _rows(metric, hypotheses, several), bleu_of, str(metric.get_signature()))


def chrf(hypotheses: Sequence[str], references: Sequence[str | Sequence[str]], *, word_order: int = 0) -> Measure:
    """chrF2, 0 to 100 (Popović, 2015): F of character n-grams up to six; with `word_order=2`, chrF++. For any language.

    Errors as `bleu`.
    """
    metric = _sacrebleu().CHRF(word_order=word_order)
    name = "chrf" + "+" * word_order
    return Measure(
        name, _rows(metric, hypotheses, _references(hypotheses, references)), _chrf_of, str(metric.get_signature())
    )


def bleu_of(sums: np.ndarray) -> np.ndarray:
    """BLEU [...] of sums [..., 10]: lengths of hypothesis and reference, matches and n-grams of four orders each."""
    length, wanted = sums[..., 0], sums[..., 1]
    correct, total = sums[..., 2 : 2 + _ORDERS], sums[..., 2 + _ORDERS :]
    with np.errstate(divide="ignore", invalid="ignore"):
        # Each order without a match counts half of what the one before it did: smoothing `exp`, as in mteval-v13a.
        missed = correct == 0
        precision = np.where(missed, 0.5 ** np.cumsum(missed, -1), correct) / total
        penalty = np.where(length < wanted, np.exp(1 - wanted / length), 1.0)
        values = 100 * penalty * np.exp(np.log(precision).mean(-1))
    return np.where((total > 0).all(-1) & (correct > 0).any(-1), values, 0.0)


def _chrf_of(sums: np.ndarray) -> np.ndarray:
    """chrF [...] of sums [..., 3 * orders]: n-grams of hypothesis and reference and their matches, order by order."""
    ours, theirs, matched = (sums[..., i::3] for i in range(3))
    counted = (ours > 0) & (theirs > 0)
    orders = np.maximum(counted.sum(-1), 1)
    precision = np.divide(matched, ours, out=np.zeros_like(matched), where=counted).sum(-1) / orders
    recall = np.divide(matched, theirs, out=np.zeros_like(matched), where=counted).sum(-1) / orders
    below = 4 * precision + recall
    return np.divide(500 * precision * recall, below, out=np.zeros_like(below), where=below > 0)


def _references(hypotheses: Sequence[str], references: Sequence[str | Sequence[str]]) -> list[list[str]]:
    same_length("hypotheses", hypotheses, "references", references)
    return listed(references)


def _rows(metric: Any, hypotheses: Sequence[str], several: list[list[str]]) -> np.ndarray:
    streams = [[r[i] if i < len(r) else None for r in several] for i in range(max(map(len, several)))]
    # What sacreBLEU's own tests of significance work on; it has no public name for it.
    return np.array(metric._extract_corpus_statistics(hypotheses, streams), np.float64)


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError:
        raise MissingExtra("scoring translations", "tasks") from None
    return metrics
