"""Robust fits of sums of power laws: the descent under `plan/law.py`, for many starts or resamples at once.

The model of a row is m = E + a*exp(-alpha*n) + b*exp(-beta*d), where n and d are the logarithms of its parameters and
its tokens over their geometric means, so that `a` and `b` are the two terms in the middle of the table. Its cost is the
sum of Huber's loss (delta 1e-3, Hoffmann et al., 2022) of log m - log L: with so small a delta nearly the sum of
absolute errors, which outliers hardly move. Repeats: d is that of the tokens' worth, which falls with the repeat constant.

Three stages. `linear` is variable projection: exponents given, E, a, b >= 0 by reweighted least squares on every face
of their cone. `descend` is Levenberg-Marquardt on all parameters with Huber's weights, inside a box, each start with
its own damping. `polish` is Newton with the exact second derivatives from the best of them. All gradients are
analytic (tests compare them with differences). Not handled: rows that depend on each other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DELTA = 1e-3
# The parameters of the general law; a form frees some of them (law.py).
NAMES = ("E", "a", "b", "alpha", "beta", "repeat")
LOW = np.array([0.0, 0.0, 0.0, 0.01, 0.01, np.log(0.5)])
HIGH = np.array([np.inf, np.inf, np.inf, 2.5, 2.5, np.log(1e4)])


@dataclass(frozen=True)
class Problem:
    """A table in logarithms, and the form: theta = fixed + basis @ z.

    n, d: (R,) log size and log tokens, centred; loss: (R,) log of the loss; unique: (R,) log of unique tokens, centred
    like d, or None. basis: (6, K); fixed: (6,); low, high: (K,) the box of z.
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
    """Log of the tokens' worth and its derivative by log R*, both (S, R), for S values of log R* (Muennighoff, 2023).

    D' = U + U*R**(1 - exp(-R/R*)), with R = D/U - 1 repeats.
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
    e, a, b, alpha, beta, repeat = theta.T[:, :, None]
    d, slope = worth(p.d, p.unique, repeat[:, 0])
    one, two = np.exp(-alpha * p.n), np.exp(-beta * d)
    m = np.maximum(e + a * one + b * two, 1e-300)
    full = np.stack(
        [np.ones_like(m), one, two, -a * one * p.n, -b * two * d, -b * beta * two * slope],
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
    p: Problem, z: np.ndarray, weights: np.ndarray, rounds: int = 200, tolerance: float = 1e-9
) -> tuple[np.ndarray, np.ndarray, int]:
    """From S starts z (S, K) downhill under row weights (R,) or (S, R): points, costs, rounds used."""
    damping = np.full(len(z), 1e-3)
    mean, slopes = model(p, z)
    value = cost(mean - p.loss, weights)
    calm = np.zeros(len(z), dtype=int)
    for used in range(1, rounds + 1):
        residual = mean - p.loss
        pulled = weights * _pull(residual)
        gradient = np.einsum("srk,sr->sk", slopes, pulled * residual)
        hessian = np.einsum("srk,sr,srl->skl", slopes, pulled, slopes)
        step = _step(p, z, gradient, hessian, damping)
        tried = np.clip(z + step, p.low, p.high)
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
        if (calm >= 8).all():
            break
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
        solved = np.linalg.solve(damped, -np.where(free, gradient, 0.0)[..., None])[..., 0]
    except np.linalg.LinAlgError:
        solved = -np.where(free, gradient, 0.0) / size
    return solved


def polish(
    p: Problem, z: np.ndarray, weights: np.ndarray, rounds: int = 300
) -> tuple[np.ndarray, float, np.ndarray, int]:
    """Newton from one point z (K,): the point, its cost, the gradient by each parameter, rounds used.

    Huber's second derivative is 1 inside delta and 0 outside, which with the model's own curvature may make the
    Hessian indefinite; the damping grows until a step descends.
    """
    damping, used = 1e-3, 0
    gradient, hessian, value = _exact(p, z, weights)
    for used in range(1, rounds + 1):
        free = ~held(p, z[None], gradient[None])[0]
        if np.max(np.abs(gradient * free * np.maximum(np.abs(z), 1e-3)), initial=0.0) < 1e-13:
            break
        step = _step(p, z[None], gradient[None], hessian[None], np.array([damping]))[0]
        tried = np.clip(z + step, p.low, p.high)
        new_gradient, new_hessian, new_value = _exact(p, tried, weights)
        if new_value < value:
            z, gradient, hessian, value = tried, new_gradient, new_hessian, new_value
            damping = max(damping / 10, 1e-14)
        else:
            damping *= 4
        if damping > 1e12:
            break
    return z, value, gradient, used


def _exact(p: Problem, z: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Gradient, Hessian and cost at one point. The repeat constant's own curvature is left out: it only damps."""
    mean, slopes = model(p, z[None])
    residual, slope = mean[0] - p.loss, slopes[0]
    inside = (np.abs(residual) <= DELTA).astype(float)
    psi = weights * np.clip(residual, -DELTA, DELTA)
    theta = p.fixed + p.basis @ z
    _, a, b, alpha, beta, repeat = theta
    d = worth(p.d, p.unique, np.array([repeat]))[0][0]
    m = np.exp(mean[0])
    one, two = psi / m * np.exp(-alpha * p.n), psi / m * np.exp(-beta * d)
    second = np.zeros((6, 6))
    second[1, 3] = second[3, 1] = -np.sum(one * p.n)
    second[2, 4] = second[4, 2] = -np.sum(two * d)
    second[3, 3] = a * np.sum(one * p.n**2)
    second[4, 4] = b * np.sum(two * d**2)
    hessian = p.basis.T @ second @ p.basis + np.einsum("rk,r,rl->kl", slope, weights * inside - psi, slope)
    return psi @ slope, hessian, float(cost(residual, weights))
