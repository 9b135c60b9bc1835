"""Robust fits of sums of power laws: the descent under `plan/law.py`, for many starts or resamples at once.

The model of a row is m = E + (one^(1/p) + two^(1/p))^p with one = a*exp(-alpha*n) and two = b*exp(-beta*d), where n and
d are the logarithms of its parameters and its tokens over their geometric means, so that `a` and `b` are the two terms
in the middle of the table. p = 1 is the plain sum (Hoffmann et al., 2022); a smaller p couples the terms (law.py). The
cost is the sum of Huber's loss (delta 1e-3, as theirs) of log m - log L: with so small a delta nearly the sum of
absolute errors, which outliers hardly move. Where tokens repeat, d is the logarithm of what they are worth.

Three stages. `linear` is variable projection: exponents given and p = 1, E, a, b >= 0 by reweighted least squares on
every face of their cone. `descend` is Levenberg-Marquardt on all parameters with Huber's weights, inside a box, each
start with its own damping. `polish` is Newton from the best of them. The gradient is analytic; the Hessian is its
difference. Not handled: rows that depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DELTA = 1e-3
# The parameters of the general law; a form frees some of them (law.py). `repeat` and `power` are logarithms.
NAMES = ("E", "a", "b", "alpha", "beta", "repeat", "power")
TINY = 1e-12  # a term that is not there: the derivative by `a` needs it positive
LOW = np.array([0.0, TINY, TINY, 0.01, 0.01, np.log(0.5), np.log(0.1)])
HIGH = np.array([np.inf, np.inf, np.inf, 2.5, 2.5, np.log(1e4), np.log(2.0)])


@dataclass(frozen=True)
class Problem:
    """A table in logarithms, and the form: theta = fixed + basis @ z.

    n, d: (R,) log size and log tokens, centred; loss: (R,) log of the loss; unique: (R,) log of unique tokens, centred
    like d, or None. basis: (7, K); fixed: (7,); low, high: (K,) the box of z.
    """

    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray
    unique: np.ndarray | None
    basis: np.ndarray
    fixed: np.ndarray
    low: np.ndarray
    high: np.ndarray


def worth(d: np.ndarray, unique: np.ndarray | None, repeat: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Log of the tokens' worth and its derivative by log R*, both (S, R), for S values of log R*.

    D' = U + U*R**(1 - exp(-R/R*)), with R = D/U - 1 repeats (Muennighoff et al., 2023, eq. 5).
    """
    if unique is None:
        return d[None, :], np.zeros((1, len(d)))
    constant = np.exp(repeat)[:, None]
    times = np.maximum(np.exp(d - unique) - 1, 0.0)[None, :]
    share = times / constant
    kept = np.exp(-share)
    fold = 1 + constant * (1 - kept)
    slope = constant * (1 - kept - share * kept) / fold
    fresh = times == 0
    return np.where(fresh, d, unique + np.log(fold)), np.where(fresh, 0.0, slope)


def model(p: Problem, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """log m (S, R) and its derivatives by z (S, R, K), for z (S, K)."""
    theta = p.fixed + z @ p.basis.T
    e, a, b, alpha, beta, repeat, power = theta.T[:, :, None]
    d, slope = worth(p.d, p.unique, repeat[:, 0])
    exponent = np.exp(power)
    one, two = np.log(np.maximum(a, TINY)) - alpha * p.n, np.log(np.maximum(b, TINY)) - beta * d
    both = np.logaddexp(one / exponent, two / exponent)
    first, second = np.exp(one / exponent - both), np.exp(two / exponent - both)
    term = np.exp(exponent * both)
    # d log(term) / d exponent is the entropy of the two shares.
    entropy = -(first * (one / exponent - both) + second * (two / exponent - both))
    m = e + term
    full = np.stack(
        [
            np.ones_like(m),
            term * first / np.maximum(a, TINY),
            term * second / np.maximum(b, TINY),
            -term * first * p.n,
            -term * second * d,
            -term * second * beta * slope,
            term * entropy * exponent,
        ],
        axis=-1,
    )
    return np.log(m), (full / m[..., None]) @ p.basis


def cost(residuals: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weighted sum of Huber's loss along the last axis."""
    size = np.abs(residuals)
    return np.sum(weights * np.where(size <= DELTA, size**2 / 2, DELTA * (size - DELTA / 2)), axis=-1)


def _pull(residuals: np.ndarray) -> np.ndarray:
    """Huber's derivative over the residual: the weight of a row in reweighted least squares."""
    return DELTA / np.maximum(np.abs(residuals), DELTA)


def linear(p: Problem, alpha: np.ndarray, beta: np.ndarray, repeat: np.ndarray, free: list[int]) -> np.ndarray:
    """E, a, b >= 0 at given exponents: (S, 3). `free` are the columns of (E, a, b) that the form has.

    Each round solves weighted least squares of m/L - 1 on every face of the cone and keeps the best point inside it.
    """
    d, _ = worth(p.d, p.unique, repeat)
    columns = [np.ones((len(alpha), len(p.n))), np.exp(-alpha[:, None] * p.n), np.exp(-beta[:, None] * d)]
    x = np.stack(np.broadcast_arrays(*columns), axis=-1) / np.exp(p.loss)[None, :, None]
    faces = [[i for j, i in enumerate(free) if bits >> j & 1] for bits in range(1, 1 << len(free))]
    weights = np.ones(x.shape[:2])
    best = np.zeros((len(alpha), 3))
    for _ in range(12):
        lowest = np.full(len(alpha), np.inf)
        for face in faces:
            part = x[:, :, face]
            normal = np.einsum("srk,sr,srl->skl", part, weights, part)
            normal += 1e-10 * np.trace(normal, axis1=1, axis2=2)[:, None, None] * np.eye(len(face))
            solved = np.linalg.solve(normal, np.einsum("srk,sr->sk", part, weights)[..., None])[..., 0]
            residual = (part @ solved[..., None])[..., 0] - 1
            value = np.where((solved >= 0).all(axis=1), np.sum(weights * residual**2, axis=1), np.inf)
            better = value < lowest
            lowest = np.where(better, value, lowest)
            point = np.zeros((len(alpha), 3))
            point[:, face] = solved
            best = np.where(better[:, None], point, best)
        predicted = np.maximum((x @ best[..., None])[..., 0], 1e-9)
        weights = _pull(np.log(predicted)) / predicted
    return best


def descend(
    p: Problem, z: np.ndarray, weights: np.ndarray, rounds: int = 300, tolerance: float = 1e-9
) -> tuple[np.ndarray, np.ndarray, int]:
    """From S starts z (S, K) downhill under row weights (R,) or (S, R): points, costs, rounds used."""
    damping = np.full(len(z), 1e-3)
    mean, slopes = model(p, z)
    value = cost(mean - p.loss, weights)
    calm, used = np.zeros(len(z), dtype=int), 0
    while used < rounds and not (calm >= 8).all():
        used += 1
        residual = mean - p.loss
        pulled = weights * _pull(residual)
        gradient = np.einsum("srk,sr->sk", slopes, pulled * residual)
        hessian = np.einsum("srk,sr,srl->skl", slopes, pulled, slopes)
        tried = np.clip(z + _step(p, z, gradient, hessian, damping), p.low, p.high)
        new_mean, new_slopes = model(p, tried)
        new_value = cost(new_mean - p.loss, weights)
        better = new_value < value
        gain = np.where(better, value - new_value, 0.0)
        calm = np.where(gain > tolerance * value, 0, calm + 1)
        z = np.where(better[:, None], tried, z)
        mean = np.where(better[:, None], new_mean, mean)
        slopes = np.where(better[:, None, None], new_slopes, slopes)
        value = np.where(better, new_value, value)
        damping = np.clip(np.where(better, damping / 5, damping * 4), 1e-10, 1e10)
    return z, value, used


def held(p: Problem, z: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Which parameters stand at a bound that the gradient pushes them against."""
    return ((z <= p.low) & (gradient > 0)) | ((z >= p.high) & (gradient < 0))


def _step(p: Problem, z: np.ndarray, gradient: np.ndarray, hessian: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """The damped Newton step in the parameters that may move; the others stay."""
    free = ~held(p, z, gradient)
    eye = np.eye(z.shape[1])
    size = np.maximum(np.abs(np.einsum("skk->sk", hessian)), 1e-12)
    damped = hessian + damping[:, None, None] * size[:, None, :] * eye
    both = free[:, :, None] & free[:, None, :]
    damped = np.where(both, damped, np.where(eye.astype(bool), size[:, None, :], 0.0))
    try:
        return np.linalg.solve(damped, -np.where(free, gradient, 0.0)[..., None])[..., 0]
    except np.linalg.LinAlgError:
        return -np.where(free, gradient, 0.0) / size


def slope_at(p: Problem, z: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The cost and its exact gradient at points z (S, K)."""
    mean, slopes = model(p, z)
    residual = mean - p.loss
    return np.einsum("srk,sr->sk", slopes, weights * np.clip(residual, -DELTA, DELTA)), cost(residual, weights)


def polish(
    p: Problem, z: np.ndarray, weights: np.ndarray, rounds: int = 300
) -> tuple[np.ndarray, float, np.ndarray, int]:
    """Newton from one point z (K,): the point, its cost, the gradient by each parameter, rounds used.

    Huber's second derivative is 1 inside delta and 0 outside, which with the model's own curvature may make the
    Hessian indefinite; the damping grows until a step descends.
    """
    damping, used = 1e-3, 0
    gradient, value = (v[0] for v in slope_at(p, z[None], weights))
    width = len(z)
    while used < rounds and damping < 1e12:
        used += 1
        free = ~held(p, z[None], gradient[None])[0]
        if np.max(np.abs(gradient * free * np.maximum(np.abs(z), 1e-3)), initial=0.0) < 1e-13:
            break
        reach = 1e-6 * np.maximum(np.abs(z), 1e-3)
        around = z + np.concatenate([np.diag(reach), -np.diag(reach)])
        slopes = slope_at(p, around, weights)[0]
        hessian = (slopes[:width] - slopes[width:]) / (2 * reach[:, None])
        hessian = (hessian + hessian.T) / 2
        while damping < 1e12:
            step = _step(p, z[None], gradient[None], hessian[None], np.array([damping]))[0]
            tried = np.clip(z + step, p.low, p.high)
            new_gradient, new_value = (v[0] for v in slope_at(p, tried[None], weights))
            if new_value < value:
                z, gradient, value = tried, new_gradient, float(new_value)
                damping = max(damping / 10, 1e-14)
                break
            damping *= 4
    return z, float(value), gradient, used
