"""Metrics, their intervals, and the comparison of two systems; no torch, and every library is imported when it is used.

A metric is a `Measure`: statistics of each item and the function from their sum to the score. `score` gives it a 95%
interval, `compare` tests two systems on the same items, `card` makes it a section of `eval.json`. See docs/metrics.md.
"""

from foretell.metrics.answers import answer_tokens, best_threshold, squad
from foretell.metrics.classification import accuracy, calibration_error, confusion, macro_f1, per_class
from foretell.metrics.compare import Comparison, compare
from foretell.metrics.divergence import mauve
from foretell.metrics.diversity import distinct, repetition, self_bleu
from foretell.metrics.measure import Measure, Score, card, ratio, score
from foretell.metrics.ranking import rank, selection
from foretell.metrics.resample import COVERAGE, RESAMPLES, ratio_interval
from foretell.metrics.summaries import rouge
from foretell.metrics.translation import bleu, chrf
from foretell.metrics.units import units, words

__all__ = [
    "COVERAGE",
    "RESAMPLES",
    "Comparison",
    "Measure",
    "Score",
    "accuracy",
    "answer_tokens",
    "best_threshold",
    "bleu",
    "calibration_error",
    "card",
    "chrf",
    "compare",
    "confusion",
    "distinct",
    "macro_f1",
    "mauve",
    "per_class",
    "rank",
    "ratio",
    "ratio_interval",
    "repetition",
    "rouge",
    "score",
    "selection",
    "self_bleu",
    "squad",
    "units",
    "words",
]
