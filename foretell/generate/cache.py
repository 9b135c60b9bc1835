"""Keys and values of the tokens already seen, in memory that is taken once.

One tensor a layer for keys and one for values, (B, K, longest, E); appending writes into it and reading returns a view,
so a step copies only its own token. Rows of finished prompts are dropped by `keep`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foretell.config import ModelConfig
from foretell.models.core import Kept


class KVCache:
    """Implements `models.decoder.Cache`. `length` counts positions, padding on the left included."""

    def __init__(self, c: ModelConfig, rows: int, longest: int, dtype: torch.dtype, device: torch.device) -> None:
        shape = (rows, c.num_key_value_heads or 0, longest, c.head_dim or 0)
        self._last = (c.num_decoder_layers or c.num_hidden_layers or 0) - 1
        self._keys = [torch.empty(shape, dtype=dtype, device=device) for _ in range(self._last + 1)]
        self._values = [torch.empty(shape, dtype=dtype, device=device) for _ in range(self._last + 1)]
        self.length = 0

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        start, end = self.length, self.length + k.shape[2]
        keys, values = self._keys[layer], self._values[layer]
        keys[:, :, start:end] = k
        values[:, :, start:end] = v
        if layer == self._last:  # every layer of a step starts at the same place
            self.length = end
        return keys[:, :, :end], values[:, :, :end]

    def put(self, rows: slice, other: KVCache, end: int) -> None:
        """Take what `other` holds for these rows, so that it stands before `end`; in front of it come zeros."""
        for own, given in zip([*self._keys, *self._values], [*other._keys, *other._values], strict=True):
            own[rows, :, : end - other.length] = 0.0
            own[rows, :, end - other.length : end] = given[:, :, : other.length]

    def keep(self, rows: Tensor, start: int = 0) -> None:
        """Keep only these rows, in this order; a row may be there several times.

        start: positions before it are known to be the same already, and are left alone where no row goes or comes.
        """
        self._keys = [self._kept(t, rows, start) for t in self._keys]
        self._values = [self._kept(t, rows, start) for t in self._values]

    def _kept(self, old: Tensor, rows: Tensor, start: int) -> Tensor:
        start = start if len(rows) == len(old) else 0
        moved = old[:, :, start : self.length].index_select(0, rows)
        new = old[: len(rows)] if len(rows) <= len(old) else old.new_empty(len(rows), *old.shape[1:])
        new[:, :, start : self.length] = moved
        return new


class SourceCache(KVCache):
    """An encoder-decoder's: of the target's tokens, and of the memory what its first step makes, by layer."""

    def __init__(self, c: ModelConfig, rows: int, longest: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(c, rows, longest, dtype, device)
        self.memory: Kept = {}

    def keep(self, rows: Tensor, start: int = 0, sources: Tensor | None = None) -> None:
        """As a `KVCache` does. sources: which memories stay, where each is for several rows that follow each other."""
        super().keep(rows, start)
        which = rows if sources is None else sources
        self.memory = {n: (k.index_select(0, which), v.index_select(0, which)) for n, (k, v) in self.memory.items()}
