"""The forecast of a run that was not made: an average over scaling laws, weighed by how well they explain the rows.

The laws are L = E + s*h with h = ((N^-alpha / k)^(1/p) + (k*D^-beta)^(1/p))^p, sizes and tokens counted from the middle
of the table. On a grid of (alpha, beta, p, k), each point with its prior, the linear part (E, s) and the noise are
integrated out, which for Gaussian noise is one weighted least squares a point. The answer is a mixture of normal
distributions of log L at the target. So nothing is decided that the rows do not decide: where they cannot tell the
floor from the exponents, the laws that differ stay in the mixture, and the interval widens with the way to the target.

Rows count by how much they say about the target: noise grows where a run has fewer tokens than the target, and where
its loss is above what the table reaches for that compute; outliers are weighed down as under Student's t. The
likelihood counts all rows together as five at most, because rows share what the law gets wrong: a tempered posterior.

The constants were chosen with public tables in sight; CALIBRATION is the factor at which the central 90% of back-tests
hold 90%, tested on tables left out (benchmarks/law_backtests.py, docs/scaling-laws.md). Not handled: losses that do not
fall with compute, targets smaller than the rows.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np

# Exponents, couplings and balances of the two terms on the grid.
EXPONENTS = np.geomspace(0.1, 0.7, 9)
COUPLINGS = np.array([0.22, 0.4, 0.65, 1.0])
BALANCES = np.linspace(-2.4, 2.4, 9)
NOISES = np.geomspace(0.0007, 0.05, 8)
# Prior: log exponents (mean, spread, spread between the two), log balance, floor over the lowest loss (mean, spread).
EXPONENT, EXPONENT_SPREAD, BETWEEN, BALANCE_SPREAD = math.log(0.30), 0.3, 0.3, 1.2
FLOOR, FLOOR_SPREAD = 0.55, 0.12
# The floor in bits a byte, for rungs far above it, where the loss of the best says little of the floor. Published laws:
# near 0.6 (Hoffmann et al., 2022, 1.69 nats a token; Besiroglu et al., 2024, 1.82; a token taken as 4.3 bytes).
FLOOR_BITS, FLOOR_BITS_SPREAD = 0.5, 0.2
# How the log noise variance of a row grows: with log of the tokens it lacks to the target, and log loss above the
# frontier.
FEWER, DEARER = 0.4, 40.0
MOST = 5.0  # what all rows together count at most
TAIL, ROUNDS = 4.0, 4  # degrees of freedom of Student's t, and how often its weights are renewed
CALIBRATION = 0.67


@dataclass(frozen=True)
class Mixture:
    """Normal distributions of log loss: weights that sum to 1, means, standard deviations."""

    weights: np.ndarray
    means: np.ndarray
    deviations: np.ndarray


@functools.cache
def grid() -> tuple[np.ndarray, ...]:
    """Points of the prior that matter: alpha, beta, p, log k, and the logarithm of the prior."""
    points = np.meshgrid(EXPONENTS, EXPONENTS, COUPLINGS, BALANCES, indexing="ij")
    alpha, beta, power, balance = (g.ravel() for g in points)
    first, second = np.log(alpha) - EXPONENT, np.log(beta) - EXPONENT
    prior = -(first**2 + second**2) / EXPONENT_SPREAD**2 / 2
    prior = prior - ((first - second) / BETWEEN) ** 2 / 2 - (balance / BALANCE_SPREAD) ** 2 / 2
    kept = prior > prior.max() - 9
    return alpha[kept], beta[kept], power[kept], balance[kept], prior[kept]


def trust(size: np.ndarray, tokens: np.ndarray, loss: np.ndarray, target: float) -> np.ndarray:
    """The weight of each row, 1 for the best: the inverse of its relative noise variance.

    size, tokens: (R,) logarithms; loss: (R,); target: log tokens of the target.
    """
    compute = size + tokens
    frontier = np.array([np.log(loss[compute <= c + 1e-9].min()) for c in compute])
    grown = FEWER * np.maximum(target - tokens, 0.0) + DEARER * (np.log(loss) - frontier)
    return np.exp(grown.min() - grown)


def average(
    table: np.ndarray,
    parameters: float,
    tokens: float,
    seeds: float | None = None,
    stretch: float = CALIBRATION,
    bit: float | None = None,
) -> Mixture:
    """The distribution of log loss at the target. table: (R, 3) of parameters, tokens' worth, loss.

    seeds: standard deviation of log loss between seeds, where it is known; the noise of the target is at least that.
    stretch: the factor by which the distribution is widened about its mean. bit: one bit a byte in the unit of the
    losses, where it is known: then the floor's prior is in bits a byte.
    """
    size, data, loss = np.log(table[:, 0]), np.log(table[:, 1]), table[:, 2]
    at = (math.log(parameters), math.log(tokens))
    trusted = trust(size, data, loss, at[1])
    middle = (float(trusted @ size / trusted.sum()), float(trusted @ data / trusted.sum()))
    shape = _shape(size - middle[0], data - middle[1]) / loss
    ahead = _shape(np.array([at[0] - middle[0]]), np.array([at[1] - middle[1]]))[:, 0]
    robust = np.ones(len(loss))
    for _ in range(ROUNDS):
        weights = trusted * robust
        found = _solved(shape, ahead, loss, weights * min(1.0, MOST / weights.sum()), bit)
        best = int(np.argmax(found[0]))
        residual = 1 - found[3][best] / loss - found[4][best] * shape[best % len(shape)]
        deviation = NOISES[best // len(shape)]
        robust = (TAIL + 1) / (TAIL + residual**2 * trusted / deviation**2)
    return _mixture(found, seeds, stretch)


def _shape(size: np.ndarray, data: np.ndarray) -> np.ndarray:
    """h of every law of the grid at rows of (size, data): (G, R)."""
    alpha, beta, power, balance, _ = (v[:, None] for v in grid())
    both = np.logaddexp((-alpha * size - balance / 2) / power, (-beta * data + balance / 2) / power)
    return np.exp(power * both)


def _solved(
    shape: np.ndarray, ahead: np.ndarray, loss: np.ndarray, weights: np.ndarray, bit: float | None
) -> tuple[np.ndarray, ...]:
    """Log evidence, log forecast, its variance without noise, E and s for every noise and law: (S * G,) each.

    The least squares are of (E + s*h)/L - 1: relative errors, so that the noise is one number for all rows.
    """
    lowest, middle = float(loss.min()), float(np.exp(np.average(np.log(loss), weights=weights)))
    floor, spread = (
        (FLOOR * lowest, FLOOR_SPREAD * lowest) if bit is None else (FLOOR_BITS * bit, FLOOR_BITS_SPREAD * bit)
    )
    wanted = np.array([floor, 0.25 * middle])
    firm = np.array([1 / spread**2, 1 / (0.5 * middle) ** 2])
    inverse, count = 1 / loss, weights.sum()
    precision = NOISES[:, None] ** -2
    one, cross, two = weights @ inverse**2, shape @ (weights * inverse), shape**2 @ weights
    m11, m12, m22 = one * precision + firm[0], cross * precision, two * precision + firm[1]
    r1 = (weights @ inverse) * precision + firm[0] * wanted[0]
    r2 = (shape @ weights) * precision + firm[1] * wanted[1]
    determinant = m11 * m22 - m12**2
    base, scale = (m22 * r1 - m12 * r2) / determinant, (m11 * r2 - m12 * r1) / determinant
    evidence = -(count * precision + firm @ wanted**2 - base * r1 - scale * r2) / 2 - np.log(determinant) / 2
    evidence = evidence - count * np.log(NOISES)[:, None] + grid()[-1]
    evidence = np.where((base > 0) & (scale > 0), evidence, -np.inf)
    value = np.maximum(base + scale * ahead, 1e-9)
    by_floor, by_scale = 1 / value, ahead / value
    variance = (by_floor**2 * m22 - 2 * by_floor * by_scale * m12 + by_scale**2 * m11) / determinant
    return tuple(v.ravel() for v in (evidence, np.log(value), variance, base, scale))


def _mixture(found: tuple[np.ndarray, ...], seeds: float | None, stretch: float) -> Mixture:
    evidence, means, variance, _, _ = found
    weights = np.exp(evidence - evidence.max())
    kept = weights > 1e-6
    weights = weights[kept] / weights[kept].sum()
    own = np.maximum(np.repeat(NOISES**2, len(means) // len(NOISES))[kept], (seeds or 0.0) ** 2)
    means, deviations = means[kept], np.sqrt(variance[kept] + own)
    # The distribution is stretched about its mean as a whole, between the laws and inside each.
    centre = float(weights @ means)
    return Mixture(weights, centre + stretch * (means - centre), stretch * deviations)


def quantile(mixture: Mixture, share: float) -> float:
    """The log loss below which `share` of the mixture lies, by bisection."""
    low = float((mixture.means - 9 * mixture.deviations).min())
    high = float((mixture.means + 9 * mixture.deviations).max())
    for _ in range(60):
        middle = (low + high) / 2
        below = [0.5 * math.erfc(-x) for x in (middle - mixture.means) / mixture.deviations / math.sqrt(2)]
        low, high = (middle, high) if float(mixture.weights @ np.array(below)) < share else (low, middle)
    return (low + high) / 2
