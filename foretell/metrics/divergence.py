"""MAUVE (Pillutla et al., 2021): how far generated texts are from human ones, from a vector for each text.

The vectors of both sides are put in common clusters; the two histograms over clusters give a curve of divergences
against their mixtures; the score is the area under it, 1.0 where the two are alike. Any encoder's vectors do
(`foretell embed`), but scores compare only where encoder, number of texts, buckets and seed are the same.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from foretell.errors import DataError, MissingExtra
from foretell.metrics.measure import Measure, jackknifed

_SCALE = 5.0
_MIXTURES = 25
_VARIANCE = 0.9


def mauve(
    human: np.ndarray, model: np.ndarray, *, buckets: int | None = None, scale: float = _SCALE, seed: int = 0
) -> Measure:
    """MAUVE, 0 to 1, of vectors [N, D] of human texts and [M, D] of generated ones.

    As the authors' program: vectors of length 1, the principal components with 90% of the variance, k-means with a
    tenth as many clusters as texts on the smaller side (`buckets`), 25 mixtures, divergences scaled by 5. Rows are
    the human texts, then the generated ones. Its interval is the jackknife's over texts with the clusters held fixed.
    DataError for shapes that do not fit or too few texts, MissingExtra without scikit-learn.
    """
    human, model = np.asarray(human, np.float64), np.asarray(model, np.float64)
    if human.ndim != 2 or model.ndim != 2 or human.shape[1] != model.shape[1]:
        raise DataError(f"vectors of shapes {human.shape} and {model.shape}: give [N, D] and [M, D]")
    fewest = min(len(human), len(model))
    buckets = buckets or max(2, round(fewest / 10))
    if fewest < 2 or buckets > len(human) + len(model):
        raise DataError(
            f"{len(human):,} human and {len(model):,} generated texts in {buckets:,} buckets: give at "
            "least two texts a side, and more texts than buckets"
        )
    labels, version = _clusters(np.concatenate([human, model]), buckets, seed)
    labels[len(human) :] += buckets
    counts = np.bincount(labels, minlength=2 * buckets)
    of = partial(area, scale=scale)
    # Texts of one side in one bucket weigh the same.
    without = of(np.maximum(counts - np.eye(2 * buckets), 0))[labels]
    how = f"buckets:{buckets}|scale:{scale:g}|variance:{_VARIANCE}|seed:{seed}|scikit-learn:{version}"
    return jackknifed("mauve", float(of(counts)), without, how)


def area(counts: np.ndarray, scale: float = _SCALE) -> np.ndarray:
    """The area under the divergence curve [...] of two histograms side by side [..., 2 * buckets]; 1.0 if equal."""
    p, q = np.moveaxis(counts.reshape(*counts.shape[:-1], 2, -1).astype(np.float64), -2, 0)
    p, q = (side / side.sum(-1, keepdims=True) for side in (p, q))
    x, y = [np.ones(p.shape[:-1])], [np.zeros(p.shape[:-1])]
    for weight in np.linspace(1e-6, 1 - 1e-6, _MIXTURES):
        mixture = weight * p + (1 - weight) * q
        x.append(np.exp(-scale * _divergence(q, mixture)))
        y.append(np.exp(-scale * _divergence(p, mixture)))
    x.append(np.zeros_like(x[0]))
    y.append(np.ones_like(y[0]))
    # Along the curve x falls and y rises; the areas under y(x) and x(y) are the same, so one trapezoid rule does.
    across, up = np.stack(x, -1), np.stack(y, -1)
    return ((across[..., :-1] - across[..., 1:]) * (up[..., :-1] + up[..., 1:])).sum(-1) / 2


def _divergence(p: np.ndarray, mixture: np.ndarray) -> np.ndarray:
    """Kullback-Leibler, nats, over the last axis; the mixture is positive wherever p is."""
    quotient = np.divide(p, mixture, out=np.ones_like(p), where=p > 0)
    return (p * np.log(quotient)).sum(-1)


def _clusters(vectors: np.ndarray, buckets: int, seed: int) -> tuple[np.ndarray, Any]:
    """The cluster [N] of each vector, and the version of the library that found them."""
    try:
        import sklearn
        from sklearn.cluster import KMeans
        from sklearn.decomposition import PCA
    except ImportError:
        raise MissingExtra("MAUVE", "tasks") from None
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    reduced = PCA(random_state=seed + 1).fit(vectors)
    kept = int(np.argmax(np.cumsum(reduced.explained_variance_ratio_) >= _VARIANCE)) + 1
    components = reduced.transform(vectors)[:, :kept]
    found = KMeans(buckets, n_init=5, max_iter=500, random_state=seed + 2).fit(components)
    return found.labels_.astype(np.int64), sklearn.__version__
