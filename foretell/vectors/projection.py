"""Vectors in two dimensions, and groups of them, for the map: PCA, exact t-SNE, k-means. Small and deterministic.

t-SNE (van der Maaten and Hinton, 2008) with every pair, so its work grows with the square of the words: a thousand take
seconds, ten thousand too long. It begins from the principal components, so the same vectors give the same map.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

MOST_WORDS = 5000
_ROUNDS, _EARLY = 500, 150
_EXAGGERATION = 12.0


def pca(points: np.ndarray) -> np.ndarray:
    """The first two principal components of points (n, D): (n, 2), each with its largest part positive."""
    centred = torch.from_numpy(points).double()
    centred = centred - centred.mean(0)
    _, _, axes = torch.linalg.svd(centred, full_matrices=False)
    flat = centred @ axes[:2].T
    if flat.shape[1] < 2:
        flat = torch.cat([flat, torch.zeros(len(flat), 2 - flat.shape[1], dtype=flat.dtype)], 1)
    largest = flat.abs().argmax(0)
    return np.asarray((flat * torch.sign(flat[largest, torch.arange(2)] + 1e-300)).numpy())


def affinities(points: np.ndarray, perplexity: float) -> Tensor:
    """t-SNE's symmetric P (n, n), sum 1: each row's Gaussian is as wide as gives it that perplexity (bisection)."""
    x = torch.from_numpy(points).double()
    square = torch.cdist(x, x).square()
    square.fill_diagonal_(math.inf)
    square = square - square.min(1, keepdim=True).values
    low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), math.inf).double()
    beta = torch.ones(len(x), 1).double()
    wanted = math.log(perplexity)
    for _ in range(60):
        p = torch.exp(-beta * square)
        p = p / p.sum(1, keepdim=True)
        entropy = -(p * p.clamp_min(1e-300).log()).sum(1, keepdim=True)
        wide = entropy > wanted
        low, high = torch.where(wide, beta, low), torch.where(wide, high, beta)
        beta = torch.where(high.isinf(), beta * 2, (low + high) / 2)
    return (p + p.T) / (2 * len(x))


def tsne(points: np.ndarray, told: Callable[[float], None], perplexity: float = 30.0) -> np.ndarray:
    """A map (n, 2) on which near points (n, D) lie near. `told` gets the share that is done."""
    n = len(points)
    if n < 4:
        return pca(points)
    p = affinities(points, min(perplexity, (n - 1) / 3)).float()
    start = pca(points)
    y = torch.from_numpy(start / max(float(start[:, 0].std()), 1e-12) * 1e-4).float()
    speed, gain = torch.zeros_like(y), torch.ones_like(y)
    rate = max(n / _EXAGGERATION / 4, 50.0)
    for turn in range(_ROUNDS):
        early = turn < _EARLY
        slope = _slope(y, p * _EXAGGERATION if early else p)
        gain = torch.where(slope * speed < 0, gain + 0.2, gain * 0.8).clamp_min(0.01)
        speed = (0.5 if early else 0.8) * speed - rate * gain * slope
        y = y + speed
        y = y - y.mean(0)
        if turn % 25 == 24:
            told((turn + 1) / _ROUNDS)
    return np.asarray(y.double().numpy())


def _slope(y: Tensor, p: Tensor) -> Tensor:
    """The gradient of t-SNE's divergence."""
    near = 1.0 / (1.0 + torch.cdist(y, y).square())
    near.fill_diagonal_(0.0)
    pull = (p - near / near.sum()) * near
    return 4.0 * (pull.sum(1, keepdim=True) * y - pull @ y)


def groups(points: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """The group (n,) of each of the points (n, D), by k-means on what they are; group 0 is the largest."""
    order = np.random.default_rng(seed)
    count = min(count, len(points))
    centres = [points[int(order.integers(len(points)))]]
    for _ in range(count - 1):  # k-means++
        away = np.min([((points - c) ** 2).sum(1) for c in centres], axis=0)
        total = float(away.sum())
        share = away / total if total > 0 else np.full(len(points), 1 / len(points))
        centres.append(points[int(order.choice(len(points), p=share / share.sum()))])
    middle = np.array(centres)
    group = np.zeros(len(points), np.int64)
    for _ in range(50):
        distance = ((middle**2).sum(1) - 2 * points @ middle.T).argmin(1)
        if (distance == group).all():
            break
        group = distance
        middle = np.array([points[group == g].mean(0) if (group == g).any() else middle[g] for g in range(count)])
    by_size = np.argsort(-np.bincount(group, minlength=count), kind="stable")
    return np.argsort(by_size)[group]
