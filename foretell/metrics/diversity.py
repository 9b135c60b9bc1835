"""Diversity and repetition of generated text: distinct-n, rep-n, self-BLEU.

Texts are cut into `units` (Han characters, words, marks of punctuation); whoever wants a model's own tokens gives
sequences of those. All depend on the length of the texts and, but for rep-n, on their number: compare like with like
only.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence

import numpy as np

from foretell.errors import DataError
from foretell.metrics.measure import Measure, jackknifed, ratio
from foretell.metrics.translation import bleu_of
from foretell.metrics.units import ngrams, tokenised

_ORDERS = (1, 2, 3, 4)


def distinct(texts: Sequence[str | Sequence[Hashable]], n: int) -> Measure:
    """distinct-n, 0 to 1: different n-grams over all n-grams of all texts together (Li et al., 2016).

    Its interval is the jackknife's: a text that is drawn twice adds n-grams but none that is new, so resamples lie
    below the score. DataError where no text has n tokens.
    """
    counts = [Counter(ngrams(t, n)) for t in tokenised(texts)]
    holders = Counter(g for c in counts for g in c)
    size = np.array([c.total() for c in counts])
    if not size.sum():
        raise DataError(f"none of {len(texts):,} texts has {n} tokens: distinct-{n} is of longer texts")
    alone = np.array([sum(holders[g] == 1 for g in c) for c in counts])
    value = len(holders) / size.sum()
    left = size.sum() - size
    without = np.divide(len(holders) - alone, left, out=np.full(len(size), value), where=left > 0)
    return jackknifed(f"distinct_{n}", float(value), without, _how(texts))


def repetition(texts: Sequence[str | Sequence[Hashable]], n: int = 4) -> Measure:
    """rep-n, 0 to 1: the share of a text's n-grams that stood in it before, mean over texts (Welleck et al., 2020).

    A text of less than n tokens repeats nothing, and is left out of the mean.
    """
    grams = [ngrams(t, n) for t in tokenised(texts)]
    if not any(grams):
        raise DataError(f"none of {len(texts):,} texts has {n} tokens: rep-{n} is of longer texts")
    shares = np.array([1 - len(set(g)) / len(g) if g else 0.0 for g in grams])
    return ratio(f"rep_{n}", shares, np.array([len(g) > 0 for g in grams]), _how(texts))


def self_bleu(texts: Sequence[str | Sequence[Hashable]]) -> Measure:
    """Self-BLEU, 0 to 100: BLEU-4 of each text with all others as its references, mean over texts (Zhu et al., 2018).

    Higher is less diverse. Sentence BLEU as sacreBLEU smooths it. The interval leaves out that texts are each other's
    references, and is somewhat too narrow. DataError below two texts.
    """
    if len(texts) < 2:
        raise DataError(f"{len(texts)} text has no others to be compared with: give at least two")
    tokens = tokenised(texts)
    counts = [Counter(g for n in _ORDERS for g in ngrams(t, n)) for t in tokens]
    # For each n-gram the largest count in one text and in any other: what the others hold at most is one of the two.
    most: dict[tuple[Hashable, ...], tuple[int, int, int]] = defaultdict(lambda: (0, -1, 0))
    for i, c in enumerate(counts):
        for gram, count in c.items():
            first, holder, second = most[gram]
            most[gram] = (count, i, first) if count > first else (first, holder, max(second, count))
    lengths = np.array([len(t) for t in tokens])
    rows = np.zeros((len(tokens), 10))
    for i, c in enumerate(counts):
        rows[i, :2] = lengths[i], _closest(lengths, i)
        for gram, count in c.items():
            first, holder, second = most[gram]
            rows[i, 1 + len(gram)] += min(count, second if holder == i else first)
            rows[i, 5 + len(gram)] += count
    return ratio("self_bleu", bleu_of(rows) / 100, None, f"order:4|smooth:exp|{_how(texts)}", scale=100.0)


def _closest(lengths: np.ndarray, i: int) -> int:
    """The length, of another text, that is closest to that of text i; of two as close, the shorter."""
    others = np.delete(lengths, i)
    return int(min(others, key=lambda n: (abs(n - lengths[i]), n)))


def _how(texts: Sequence[str | Sequence[Hashable]]) -> str:
    return f"tok:{'units' if isinstance(texts[0], str) else 'given'}"
