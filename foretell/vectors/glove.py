"""GloVe (Pennington et al., 2014, "Global Vectors for Word Representation"): least squares on log co-occurrences.

    J = 1/2 sum_ij f(X_ij) (w_i . c_j + b_i + b'_j - log X_ij)^2,  f(x) = min(1, (x / x_max)^0.75)

over both directions of every pair, by AdaGrad. The word's vector is w_i + c_i. As the authors' program: weights begin
uniform in +-0.5 / dim, the sums of squares at 1, the rate is 0.05. Unlike it, a step takes a batch of pairs at once:
the gradients of a row are summed before the square is taken, and rows are updated without races, so that the same seed
gives the same vectors. Large parts of a step are products of whole arrays, in torch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

RATE = 0.05
POWER = 0.75
BATCH = 4096  # pairs a step, each in both directions


class Tables:
    """Words' vectors in rows 0 to size - 1, contexts' in the rows behind; a bias for each; the squares of AdaGrad."""

    def __init__(self, size: int, dim: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.size = size
        self.vectors = (torch.rand(2 * size, dim, generator=generator) - 0.5) / dim
        self.biases = (torch.rand(2 * size, generator=generator) - 0.5) / dim
        self.vector_squares, self.bias_squares = torch.ones(2 * size, dim), torch.ones(2 * size)

    def words(self) -> np.ndarray:
        """(size, dim): what is kept."""
        return (self.vectors[: self.size] + self.vectors[self.size :]).numpy()


def directed(i: Tensor, j: Tensor, x: Tensor, size: int, x_max: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Both directions of pairs i <= j: rows of words, rows of contexts, log X, f(X), each (2 n,).

    A word beside itself is one entry of X, so its second direction weighs nothing.
    """
    weight = (x / x_max).clamp(max=1.0).pow(POWER)
    second = torch.where(i == j, 0.0, weight)
    log = x.log()
    return torch.cat([i, j]), torch.cat([j, i]) + size, torch.cat([log, log]), torch.cat([weight, second])


def gradients(
    vectors: Tensor, biases: Tensor, rows: Tensor, contexts: Tensor, log: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The loss of some entries and its gradient: (loss, rows met (n,), by vectors (n, dim), by biases (n,)).

    vectors: (2 V, dim); biases: (2 V,); rows, contexts: (m,) rows of both; log, weight: (m,).
    """
    w, c = vectors.index_select(0, rows), vectors.index_select(0, contexts)
    difference = (w * c).sum(1) + biases[rows] + biases[contexts] - log
    slope = weight * difference
    met, place = torch.unique(torch.cat([rows, contexts]), return_inverse=True)
    of_row, of_context = place[: len(rows)], place[len(rows) :]
    by_vector = torch.zeros(len(met), vectors.shape[1], dtype=vectors.dtype)
    by_vector.index_add_(0, of_row, c.mul_(slope[:, None]))
    by_vector.index_add_(0, of_context, w.mul_(slope[:, None]))
    by_bias = torch.zeros(len(met), dtype=biases.dtype).index_add_(0, place, torch.cat([slope, slope]))
    return 0.5 * (slope * difference).sum(), met, by_vector, by_bias


def step(tables: Tables, entries: tuple[Tensor, Tensor, Tensor, Tensor], rate: float = RATE) -> float:
    """One step of AdaGrad on some entries (see `directed`); the loss before it."""
    loss, met, by_vector, by_bias = gradients(tables.vectors, tables.biases, *entries)
    for table, squares, by in (
        (tables.vectors, tables.vector_squares, by_vector),
        (tables.biases, tables.bias_squares, by_bias),
    ):
        total = squares.index_select(0, met).addcmul_(by, by)
        squares.index_copy_(0, met, total)
        table.index_add_(0, met, by.mul_(total.rsqrt_()), alpha=-rate)
    return float(loss)


def glove(
    pairs: np.ndarray,
    size: int,
    *,
    dim: int,
    epochs: int,
    x_max: float,
    seed: int,
    told: Callable[[float], None],
) -> tuple[np.ndarray, list[float]]:
    """Vectors (size, dim), float32, from counted pairs (see `cooccurrence.count`), and each epoch's mean loss.

    The loss is that of an entry, weighted, measured while it is learned. `told` gets the share that is done.
    """
    tables = Tables(size, dim, seed)
    order = np.random.default_rng(seed)
    losses: list[float] = []
    steps, done, last = epochs * max(1, -(-len(pairs) // BATCH)), 0, 0.0
    for _ in range(epochs):
        total = 0.0
        for batch in _batches(pairs, order):
            i, j = (torch.from_numpy(batch[k].astype(np.int64)) for k in ("i", "j"))
            x = torch.from_numpy(batch["x"].astype(np.float32))
            total += step(tables, directed(i, j, x, size, x_max))
            done += 1
            if time.monotonic() - last > 0.2:
                last = time.monotonic()
                told(done / steps)
        losses.append(total / max(1, 2 * len(pairs)))
    return tables.words(), losses


def _batches(pairs: np.ndarray, order: np.random.Generator) -> Iterator[np.ndarray]:
    """The pairs, which lie in random order, cut at another place each time, the batches in another order."""
    if not len(pairs):
        return
    shift = int(order.integers(BATCH)) if len(pairs) > BATCH else 0
    edges = np.unique(np.concatenate([[0, len(pairs)], np.arange(shift, len(pairs), BATCH)]))
    for n in order.permutation(len(edges) - 1):
        yield pairs[edges[n] : edges[n + 1]]
