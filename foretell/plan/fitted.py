"""A cost as a sum of terms with measured coefficients, and what the terms miss interpolated between measured shapes.

    seconds(terms, place) = (terms . coefficients) exp(residual(place))

The terms know how a cost grows (operations, bytes, calls), so the sum holds beyond the measured shapes; the residual
knows what is particular to some of them (caches, tiles, threads). Coefficients are non-negative and minimise squares of
relative errors. The residual is a Gaussian process (Rasmussen and Williams, 2006, ch. 2) in the logarithm of seconds
over the logarithms of sizes: near measured shapes it repeats their mean error, far from all of them it is nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

# Standard deviation of the logarithm of one timing, and octaves over which shapes are alike.
NOISE, OCTAVES = 0.03, 1.5
AMPLITUDE = 0.12
# A timing that lies further than this from what its neighbours say, as a logarithm, counts less the further it lies.
DISTURBED, ROUNDS = 0.06, 6
SWEEPS = 2000


@dataclass(frozen=True)
class Fitted:
    """A fitted cost: coefficients of the terms, and the measured places with their weights in the residual."""

    coefficients: np.ndarray
    places: np.ndarray
    weights: np.ndarray
    amplitude: float
    left_out: np.ndarray  # log(measured / forecast) of each measured place, forecast from the others

    def seconds(self, terms: Sequence[float], place: Sequence[float]) -> float:
        """The cost at `place` (log2 of sizes), for its terms."""
        residual = _alike(np.array([place], float), self.places, self.amplitude)[0] @ self.weights
        return float(np.dot(terms, self.coefficients) * math.exp(residual))


def fit(
    terms: Sequence[Sequence[float]],
    places: Sequence[Sequence[float]],
    seconds: Sequence[float],
    amplitude: float = AMPLITUDE,
) -> Fitted:
    """Fit measured seconds (N,) with terms (N, k), none negative, at places (N, d), log2 of sizes.

    amplitude: the standard deviation that the logarithm of what the terms miss is expected to have.
    """
    a, x, y = np.array(terms, float), np.array(places, float), np.array(seconds, float)
    trust = np.ones(len(y))
    for _ in range(ROUNDS):
        coefficients = non_negative(trust[:, None] * a / y[:, None], trust)
        missed = np.log(y / (a @ coefficients))
        covariance = _alike(x, x, amplitude)
        inverse = np.linalg.inv(covariance + np.diag((NOISE / trust) ** 2))
        off = missed - covariance @ (inverse @ missed)
        trust = np.minimum(1.0, DISTURBED / np.maximum(np.abs(off), 1e-9))
    weights = inverse @ missed
    return Fitted(coefficients, x, weights, amplitude, weights / np.diag(inverse))


def _alike(a: np.ndarray, b: np.ndarray, amplitude: float) -> np.ndarray:
    """Covariance of the residual between places (N, d) and (M, d)."""
    square = (((a[:, None] - b[None]) / OCTAVES) ** 2).sum(-1)
    return np.asarray(amplitude**2 * np.exp(-square / 2))


def non_negative(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The x >= 0 that minimises |a x - b|^2, by coordinate descent; columns that are all zero get 0."""
    size = np.sqrt((a**2).sum(0))
    scale = np.where(size > 0, size, 1.0)
    gram, right = (a / scale).T @ (a / scale), (a / scale).T @ b
    x = np.zeros(a.shape[1])
    for _ in range(SWEEPS):
        before = x.copy()
        for j in range(len(x)):
            if gram[j, j] > 0:
                x[j] = max(0.0, x[j] + (right[j] - gram[j] @ x) / gram[j, j])
        if np.abs(x - before).max() <= 1e-12 * max(1.0, np.abs(x).max()):
            break
    return np.asarray(x / scale)
