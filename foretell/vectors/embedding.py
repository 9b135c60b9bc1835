"""A model's embedding table begun from vectors of its own tokens (`train.init_embedding`).

Rows of tokens that have a vector become that vector, scaled so that all of them together have the standard deviation of
the initial table (`model.initializer_range`); the other rows keep what was drawn. Where the head shares the table it
begins from it too. Whether that helps was measured: docs/vectors.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foretell.config import ModelConfig
from foretell.errors import ConfigError, DataError
from foretell.tokenizer import Tokenizer
from foretell.vectors.folder import open_folder

EMBEDDING = "model.embed_tokens.weight"


@dataclass(frozen=True)
class Start:
    """rows: (n,) ids of the tokens that have a vector, rising; values: (n, D), scaled."""

    rows: Tensor
    values: Tensor

    @torch.no_grad()
    def fill(self, part: Tensor, offset: tuple[int, ...]) -> None:
        """Put in place what falls into the `part` of the table that begins at `offset`."""
        first = int(torch.searchsorted(self.rows, offset[0]))
        end = int(torch.searchsorted(self.rows, offset[0] + part.shape[0]))
        columns = self.values[first:end, offset[1] : offset[1] + part.shape[1]]
        part[(self.rows[first:end] - offset[0]).to(part.device)] = columns.to(part.device, part.dtype)


def start(folder: str | None, tokenizer: Tokenizer, model: ModelConfig) -> Start | None:
    """The beginning of the table of `model` with `tokenizer` from the vectors in `folder`, if one is named.

    Raises ConfigError where they are not of this tokenizer's tokens or not as wide as the model, DataError where the
    folder cannot be read.
    """
    if folder is None:
        return None
    opened = open_folder(Path(folder))
    remedy = "train them by foretell vectors train --units tokens --tokenizer DATA"
    if opened.own is None:
        raise ConfigError(f"train.init_embedding={folder}: vectors of {opened.meta['units']}, not of tokens; {remedy}")
    if opened.own.digest != tokenizer.digest:
        raise ConfigError(f"train.init_embedding={folder}: vectors of another tokenizer's tokens; {remedy}")
    dim, D = opened.vectors.matrix.shape[1], model.needed("hidden_size")
    if dim != D:
        raise ConfigError(
            f"train.init_embedding={folder}: vectors of {dim} dimensions for a model whose hidden_size is {D}; "
            f"train vectors with --dim {D}, or set model.hidden_size={dim}"
        )
    found = [tokenizer.inner.token_to_id(w) for w in opened.vectors.words]
    if None in found:
        raise DataError(f"{folder}: {opened.vectors.words[found.index(None)]!r} is no token of its tokenizer")
    ids = torch.tensor(found)
    rows, order = ids.sort()
    values = torch.from_numpy(opened.vectors.matrix)[order]
    deviation = float(values.std()) if values.numel() > 1 else 0.0
    if not deviation > 0:
        raise ConfigError(f"train.init_embedding={folder}: all its numbers are equal; {remedy}")
    return Start(rows, values * (model.initializer_range / deviation))
