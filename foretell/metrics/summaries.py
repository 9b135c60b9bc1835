"""ROUGE of summaries, by rouge-score (Lin, 2004), with a tokenizer that knows Chinese.

rouge-score's own tokenizer keeps a to z and 0 to 9 and drops the rest: Chinese text scores 0.0 in silence, and "Straße"
falls into two words. So it is used for English only, where published numbers are made with it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from foretell.errors import MissingExtra
from foretell.metrics.measure import Measure, listed, ratio, same_length
from foretell.metrics.units import spaced, words

_KINDS = ["rouge1", "rouge2", "rougeL"]


class _Words:
    """`words` in the form that rouge-score takes."""

    @staticmethod
    def tokenize(text: str) -> list[str]:
        return words(text)


def rouge(
    summaries: Sequence[str],
    references: Sequence[str | Sequence[str]],
    *,
    language: str = "en",
    stemmer: bool = True,
) -> dict[str, Measure]:
    """ROUGE-1, -2 and -L, mean F measure over items, 0 to 100, under `rouge1`, `rouge2` and `rougeL`.

    English: rouge-score's own tokenizer, with Porter's stemmer unless `stemmer` is false. Any other language: Han
    characters and kana one by one, words for the rest, no stemmer. Of several references the best one counts, for
    each of the three by itself (rouge-score's `score_multi`). DataError where numbers differ or an item has no
    reference; MissingExtra.
    """
    same_length("summaries", summaries, "references", references)
    several = listed(references)
    if english := language == "en":
        spaced((r for refs in several for r in refs), language)
    scorer, version = _scorer(english, stemmer)
    found = [scorer.score_multi(r, s) for s, r in zip(summaries, several, strict=True)]
    nrefs = str(len(several[0])) if len({len(r) for r in several}) == 1 else "var"
    cut = f"tok:default|stemmer:{'porter' if stemmer else 'no'}" if english else "tok:characters-and-words|stemmer:no"
    how = f"nrefs:{nrefs}|best:each|{cut}|f:mean|rouge-score:{version}"
    return {kind: ratio(kind, np.array([f[kind].fmeasure for f in found]), None, how, scale=100.0) for kind in _KINDS}


def _scorer(english: bool, stemmer: bool) -> tuple[Any, str]:
    try:
        from importlib.metadata import version

        from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise MissingExtra("scoring summaries", "tasks") from None
    scorer = RougeScorer(_KINDS, use_stemmer=stemmer) if english else RougeScorer(_KINDS, tokenizer=_Words())
    return scorer, version("rouge-score")
