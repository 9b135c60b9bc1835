"""Accuracy, macro-F1, scores by class and confusion, by scikit-learn's definitions; the error of confidence."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from foretell.errors import DataError, MissingExtra
from foretell.metrics.measure import Measure, jackknifed, ratio, same_length

_BINS = 15


def accuracy(predicted: Sequence[str] | Sequence[int], gold: Sequence[str] | Sequence[int]) -> Measure:
    """The share of items whose predicted label is the right one, 0 to 1."""
    same_length("predicted labels", predicted, "right labels", gold)
    return ratio("accuracy", np.array([p == g for p, g in zip(predicted, gold, strict=True)]), None, "items")


def macro_f1(
    predicted: Sequence[str] | Sequence[int],
    gold: Sequence[str] | Sequence[int],
    *,
    labels: Sequence[str] | Sequence[int] | None = None,
) -> Measure:
    """The mean over classes of F1, 0 to 1. Classes are those among right or predicted labels, as in scikit-learn.

    With `labels`, the classes are those of them that occur; a prediction outside of them is a miss and no class. Give
    all labels of the task wherever two systems are compared or a model may say anything. DataError for a right label
    outside.
    """
    same_length("predicted labels", predicted, "right labels", gold)
    if labels is not None and (outside := [g for g in gold if g not in set(labels)]):
        raise DataError(f"right label {outside[0]!r} is none of the {len(labels):,} labels: name them all")
    known = sorted(set(gold), key=str) if labels is None else list(dict.fromkeys(labels))
    extra = sorted(set(predicted) - set(known), key=str) if labels is None else []
    column = {label: i for i, label in enumerate([*known, *extra])}
    # One column more for what is no class, left out of the rows again.
    p, g = (np.array([column.get(label, len(column)) for label in items]) for items in (predicted, gold))
    rows = np.zeros((len(g), 3, len(column) + 1), np.uint8)
    items = np.arange(len(g))
    rows[items, 0, g] = p == g
    rows[items, 1, p] = 1
    rows[items, 2, g] = 1
    # Two systems with classes of their own are not the same metric: `compare` sees it by the names' checksum.
    named = f"|never right:{len(extra)}:{zlib.crc32(repr(extra).encode()):08x}" if extra else ""
    how = f"f1:macro|classes:{len(column)}|absent:left out{named}"
    return Measure("macro_f1", rows[..., :-1].reshape(len(g), -1), _macro_f1_of, how, (0.0, 1.0))


def per_class(
    predicted: Sequence[str] | Sequence[int], gold: Sequence[str] | Sequence[int]
) -> dict[str, dict[str, float]]:
    """Precision, recall, F1 and number of items of each class, by scikit-learn; a class without any has 0.0."""
    same_length("predicted labels", predicted, "right labels", gold)
    library = _sklearn_metrics()
    labels = sorted({*predicted, *gold}, key=str)
    table = library.precision_recall_fscore_support(gold, predicted, labels=labels, zero_division=0.0)
    keys = ("precision", "recall", "f1", "items")
    return {
        str(label): {k: float(v) if k != "items" else int(v) for k, v in zip(keys, row, strict=True)}
        for label, row in zip(labels, np.stack(table, axis=1), strict=True)
    }


def confusion(
    predicted: Sequence[str] | Sequence[int], gold: Sequence[str] | Sequence[int]
) -> tuple[list[str], np.ndarray]:
    """The classes and how often class i (row) was taken for class j (column), by scikit-learn."""
    same_length("predicted labels", predicted, "right labels", gold)
    labels = sorted({*predicted, *gold}, key=str)
    return [str(label) for label in labels], _sklearn_metrics().confusion_matrix(gold, predicted, labels=labels)


def calibration_error(
    confidence: Sequence[float] | np.ndarray, correct: Sequence[bool] | np.ndarray, *, bins: int = _BINS
) -> Measure:
    """Expected calibration error, 0 to 1: |accuracy - mean confidence| in bins of equal width, weighted by items.

    Guo et al., 2017: bins are open below and closed above; 0 belongs to the first. `confidence` [N]: the probability
    of the predicted label. The error is biased upwards where bins hold few items, and drawing items again adds as
    much once more, so its interval is the jackknife's. DataError for a confidence outside 0..1.
    """
    same_length("confidences", confidence, "outcomes", correct)
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    outside = ~((sure >= 0) & (sure <= 1))
    if outside.any():
        raise DataError(f"confidence {sure[outside][0]} of item {outside.argmax()} is no probability: give 0 to 1")
    rows = np.zeros((len(sure), 2, bins))
    at = np.arange(len(sure)), slice(None), np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)
    rows[at] = np.stack([right - sure, np.ones_like(sure)], axis=1)
    total = rows.sum(0)
    without = np.array([1.0]) if len(sure) == 1 else _calibration_error_of(total - rows)
    return jackknifed("calibration_error", float(_calibration_error_of(total)), without, f"bins:{bins}|width:equal")


def _calibration_error_of(sums: np.ndarray) -> np.ndarray:
    return np.abs(sums[..., 0, :]).sum(-1) / sums[..., 1, :].sum(-1)


def _macro_f1_of(sums: np.ndarray) -> np.ndarray:
    hit, predicted, gold = np.moveaxis(sums.reshape(*sums.shape[:-1], 3, -1), -2, 0)
    both = predicted + gold
    f1 = np.divide(2 * hit, both, out=np.zeros_like(both), where=both > 0)
    return f1.sum(-1) / np.maximum((both > 0).sum(-1), 1)


def _sklearn_metrics() -> Any:
    try:
        from sklearn import metrics
    except ImportError:
        raise MissingExtra("scores by class", "tasks") from None
    return metrics
