"""From loss to how well a task is done: counts of right answers of several models, the curve through them, a forecast.

    accuracy(L) = c + (1 - c) * g(slope * (middle - L)),    c: what guessing gets right, g: rises from 0 to 1

A regression of counts, not of shares: a model that answers k of n questions says as much as n questions can. Its
deviance is divided by a factor that is estimated too (extended quasi-likelihood, Nelder and Pregibon, 1987): above 1
where models of one loss differ by more than questions drawn at random explain, below 1 where they differ by less, as
models do that answer the same questions. Priors are weak: a curve that rises, by about five in logits over the
losses that there are, give or take a factor of three. Where g is not known its shape is averaged over: the logistic and
two that are steeper on one side, each with the weight that the counts give it. The posterior is summed on a grid.

The second of two steps (loss from size and tokens, accuracy from loss), as in Gadre et al. (2024, arXiv:2403.08540, eq.
5), Llama 3 (2024, arXiv:2407.21783, section 3.2.1) and OLMo's ladder (Bhagia et al., 2024; `accuracy.py`). Gadre fits
error = e - k * exp(-g * L) to the mean of many tasks by least squares; Llama 3 a sigmoid of the right answer's own
likelihood, with the known models of others in the fit. Here the floor is no parameter but c, the loss is the
validation text's, the fit knows how many questions were asked, and the answer is an interval.

Not handled: tasks that models do worse as their loss falls, accuracies that level off below 1, models of several
families (whose losses are on different text), and a step that lies below the best loss: the curve goes on as it began.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import PlanError
from foretell.plan.fit import student_95

FEWEST = 5  # models
SHAPES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "early": lambda x: -np.expm1(-np.exp(x)),  # slow to rise from chance, quick to be perfect
    "late": lambda x: np.exp(-np.exp(-x)),
}
# Normal priors: of the height at the mean loss, of the logarithm of the rise over the losses, of the factor's.
_HEIGHT, _RISE, _FACTOR = (-1.0, 3.0), (math.log(2.0), 1.0), (0.0, 0.6)
_COARSE, _FINE, _FACTORS = 61, 49, 13
_DRAWS = 20_000
_FAR = 60.0  # of an exponent


@dataclass(frozen=True)
class Graded:
    """One model: its validation loss, and how many of the items of a task it got right."""

    loss: float
    correct: int
    items: int


@dataclass(frozen=True)
class Curve:
    """The likeliest curve of the likeliest shape. factor: of the variance of counts, over that of drawn questions.

    losses: the lowest and the highest of the models. shapes: the weight of each shape.
    """

    shape: str
    chance: float
    middle: float
    slope: float
    factor: float
    losses: tuple[float, float]
    models: int
    shapes: Mapping[str, float]


@dataclass(frozen=True)
class _Posterior:
    """Points of the grid of one shape, (K,) each, with weights that sum to that of the shape."""

    shape: str
    height: np.ndarray
    rise: np.ndarray
    factor: np.ndarray
    weight: np.ndarray


def fit(models: Sequence[Graded], chance: float) -> Curve:
    """The curve through models of one family. chance: 1 / choices, 0 of a cloze.

    PlanError where they are fewer than five, all of one loss, or counts are none.
    """
    check(models, chance)
    return _best(models, chance, _posteriors(models, chance))


def accuracy(curve: Curve, loss: float) -> float:
    """The curve's share of right answers at a loss."""
    x = min(max(curve.slope * (curve.middle - loss), -_FAR), _FAR)
    return float(curve.chance + (1 - curve.chance) * SHAPES[curve.shape](np.array(x)))


def forecast(
    models: Sequence[Graded], chance: float, loss: Mapping[str, float], items: int
) -> tuple[dict[str, float], Curve]:
    """The share of the same `items` that a model of this loss will get right, {value, low, high}, and the curve.

    loss: {value, low, high}, or {value} of a loss that is known. The central 90% interval holds what is not known of
    the curve, its shape and the loss, and the scatter of models about it. Raises as `fit` does.
    """
    check(models, chance)
    found = _posteriors(models, chance)
    rng = np.random.default_rng(0)
    losses = np.array([m.loss for m in models])
    where = (losses.mean() - _drawn_losses(loss, rng)) / np.ptp(losses)
    parts = [_drawn_shares(p, chance, where, items, rng) for p in found]
    shares = np.concatenate([s for s, _ in parts])
    weights = np.concatenate([w for _, w in parts])
    order = np.argsort(shares)
    up = np.cumsum(weights[order])
    low, value, high = np.interp([0.05, 0.5, 0.95], (up - weights[order] / 2) / up[-1], shares[order])
    return {"value": float(value), "low": float(low), "high": float(high)}, _best(models, chance, found)


def check(models: Sequence[Graded], chance: float) -> None:
    """PlanError where no curve can be put through the models."""
    if len(models) < FEWEST or len({m.loss for m in models}) < 3:
        raise PlanError(
            f"{len(models)} models of {len({m.loss for m in models})} losses are too few for the curve from loss to a "
            f"task; it needs {FEWEST} of 3 losses"
        )
    if not 0 <= chance < 1:
        raise PlanError(f"chance is {chance:g}; it must be at least 0 and below 1")
    for m in models:
        if not (math.isfinite(m.loss) and 0 <= m.correct <= m.items and m.items > 0):
            raise PlanError(f"a model of loss {m.loss:g} got {m.correct:,} of {m.items:,} items right")


def _best(models: Sequence[Graded], chance: float, found: Sequence[_Posterior]) -> Curve:
    """The point of most weight, in units of the loss."""
    losses = np.array([m.loss for m in models])
    weights = {p.shape: float(p.weight.sum()) for p in found}
    p = max(found, key=lambda q: weights[q.shape])
    i = int(np.argmax(p.weight))
    slope = float(p.rise[i] / np.ptp(losses))
    ends = (float(losses.min()), float(losses.max()))
    middle = float(losses.mean() + p.height[i] / slope)
    return Curve(p.shape, chance, middle, slope, float(p.factor[i]), ends, len(models), weights)


def _posteriors(models: Sequence[Graded], chance: float) -> list[_Posterior]:
    """Of each shape, on a coarse grid and then on a fine one over what the coarse one leaves."""
    table = np.array([[m.loss, m.correct, m.items] for m in models], dtype=float)
    found = []
    for shape in SHAPES:
        ranges = [(-9.0, 9.0), (math.log(0.05), math.log(50.0))]
        for points in (_COARSE, _FINE):
            height, rise = (np.linspace(*r, points) for r in ranges)
            factor = np.linspace(math.log(0.2), math.log(8.0), _FACTORS)
            density = _log_density(table, chance, shape, height, rise, factor)
            ranges = [_kept(density, axis, grid) for axis, grid in enumerate((height, rise))]
        cell = (height[1] - height[0]) * (rise[1] - rise[0])
        points_of = [a.ravel() for a in np.meshgrid(height, np.exp(rise), np.exp(factor), indexing="ij")]
        found.append((shape, points_of, density.ravel() + math.log(cell)))
    most = max(d.max() for _, _, d in found)
    total = sum(np.exp(d - most).sum() for _, _, d in found)
    return [_Posterior(s, at[0], at[1], at[2], np.exp(d - most) / total) for s, at, d in found]


def _kept(density: np.ndarray, axis: int, grid: np.ndarray) -> tuple[float, float]:
    """Where along an axis anything of the posterior is, and a point more."""
    others = tuple(i for i in range(3) if i != axis)
    there = np.flatnonzero(density.max(axis=others) > density.max() - 14)
    return float(grid[max(there[0] - 1, 0)]), float(grid[min(there[-1] + 1, len(grid) - 1)])


def _log_density(
    table: np.ndarray, chance: float, shape: str, height: np.ndarray, rise: np.ndarray, factor: np.ndarray
) -> np.ndarray:
    """(heights, rises, factors): log of prior times quasi-likelihood. table: (models, 3) loss, right, asked."""
    losses, right, asked = table.T
    where = (losses.mean() - losses) / np.ptp(losses)
    x = height[:, None, None] + np.exp(rise)[None, :, None] * where
    share = chance + (1 - chance) * SHAPES[shape](np.clip(x, -_FAR, _FAR))
    share = np.clip(share, 1e-9, 1 - 1e-9)
    best = np.clip(right / asked, 1e-9, 1 - 1e-9)
    likely = right * np.log(share / best) + (asked - right) * np.log((1 - share) / (1 - best))
    of_factor = -len(table) / 2 * factor - 0.5 * ((factor - _FACTOR[0]) / _FACTOR[1]) ** 2
    of_curve = -0.5 * ((height[:, None] - _HEIGHT[0]) / _HEIGHT[1]) ** 2 - 0.5 * ((rise - _RISE[0]) / _RISE[1]) ** 2
    return likely.sum(axis=2)[:, :, None] / np.exp(factor) + of_curve[:, :, None] + of_factor


def _drawn_losses(loss: Mapping[str, float], rng: np.random.Generator) -> np.ndarray:
    """Losses of a forecast, whose logarithm has a normal half on each side of its value."""
    if "low" not in loss:
        return np.full(_DRAWS, loss["value"])
    z = rng.standard_normal(_DRAWS)
    sides = [math.log(loss["value"] / loss["low"]), math.log(loss["high"] / loss["value"])]
    return loss["value"] * np.exp(np.where(z < 0, sides[0], sides[1]) * z / student_95(10**9))


def _drawn_shares(
    p: _Posterior, chance: float, where: np.ndarray, items: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Shares of right answers by one shape, each for a loss that was drawn, and their weights."""
    weight = p.weight.sum()
    drawn = rng.choice(len(p.weight), len(where), p=p.weight / weight)
    x = p.height[drawn] + p.rise[drawn] * where
    share = np.clip(chance + (1 - chance) * SHAPES[p.shape](np.clip(x, -_FAR, _FAR)), 1e-9, 1 - 1e-9)
    strength = np.maximum(items / p.factor[drawn] - 1, 1e-3)  # of a beta with the counts' mean and variance
    right = np.round(items * rng.beta(share * strength, (1 - share) * strength))
    return right / items, np.full(len(where), weight / len(where))


def told(curve: Curve) -> dict[str, Any]:
    """The JSON of a curve."""
    return {**vars(curve), "losses": list(curve.losses), "shapes": dict(curve.shapes)}
