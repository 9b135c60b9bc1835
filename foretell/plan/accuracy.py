"""From loss to task accuracy: accuracy = low + (high - low) / (1 + exp(slope * (loss - middle))).

The second step of the OLMo ladder (Bhagia et al., 2024): accuracy is at chance where the loss is high and levels off
where it is low. Least squares; `low` and `high` are linear, so that only (middle, slope) are searched, on a grid that
is refined four times. Not handled: accuracies that fall with the loss, counts of questions as weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foretell.errors import PlanError

FEWEST = 5


@dataclass(frozen=True)
class Sigmoid:
    """The fitted curve, and the standard deviation of the accuracies about it."""

    low: float
    high: float
    middle: float
    slope: float
    spread: float


def fit(losses: Sequence[float], accuracies: Sequence[float]) -> Sigmoid:
    """The curve through pairs of loss and accuracy (a share of 1). PlanError where there are fewer than five."""
    loss, accuracy = np.array(losses, dtype=float), np.array(accuracies, dtype=float)
    if len(loss) < FEWEST or np.ptp(loss) == 0:
        raise PlanError(f"{len(loss)} rows with an accuracy are too few: it needs {FEWEST}, of different losses")
    if (wrong := accuracy[(accuracy < 0) | (accuracy > 1)]).size:
        raise PlanError(f"an accuracy is {wrong[0]:g}; it must be a share between 0 and 1")
    width = float(np.ptp(loss))
    middles = np.linspace(float(loss.min()) - width, float(loss.max()) + width, 61)
    slopes = np.geomspace(0.5, 100, 41) / width
    step, ratio = float(middles[1] - middles[0]), float(slopes[1] / slopes[0])
    best: tuple[float, ...] = (math.inf,)
    for _ in range(5):
        best = min(best, *(_linear(loss, accuracy, float(m), float(k)) for m in middles for k in slopes))
        middle, slope = best[3:]
        middles, slopes = np.linspace(middle - step, middle + step, 15), slope * np.geomspace(1 / ratio, ratio, 15)
        step, ratio = step / 7, ratio ** (1 / 7)
    squares, low, high, middle, slope = best
    return Sigmoid(low, high, middle, slope, math.sqrt(squares / max(len(loss) - 4, 1)))


def _linear(loss: np.ndarray, accuracy: np.ndarray, middle: float, slope: float) -> tuple[float, ...]:
    """Sum of squares, low, high (0 <= low <= high <= 1), and the point itself."""
    share = 1 / (1 + np.exp(np.clip(slope * (loss - middle), -500, 500)))
    centred = share - share.mean()
    rise = float(centred @ accuracy / max(float(centred @ centred), 1e-300))
    low = float(accuracy.mean() - rise * share.mean())
    if rise < 0 or low < 0 or low + rise > 1:
        low = min(max(low, 0.0), 1.0)
        rise = float(share @ (accuracy - low) / max(float(share @ share), 1e-300))
        rise = min(max(rise, 0.0), 1.0 - low)
    return float(np.sum((accuracy - low - rise * share) ** 2)), low, low + rise, middle, slope


def accuracy(curve: Sigmoid, loss: float) -> float:
    """The curve's accuracy at a loss."""
    return curve.low + (curve.high - curve.low) / (1 + math.exp(min(curve.slope * (loss - curve.middle), 500.0)))


def forecast(curve: Sigmoid, loss: dict[str, float]) -> dict[str, float]:
    """The accuracy at a forecast loss {value, low, high}, with the interval of the loss and the spread of the rows."""
    value = accuracy(curve, loss["value"])
    normal = 1.645 * curve.spread
    above, below = accuracy(curve, loss["low"]) - value, value - accuracy(curve, loss["high"])
    return {
        "value": value,
        "low": max(0.0, value - math.hypot(below, normal)),
        "high": min(1.0, value + math.hypot(above, normal)),
    }
