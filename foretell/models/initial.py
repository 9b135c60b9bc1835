"""Initial weights: each row a pure function of (seed, name of the parameter, number of the row).

So a process that holds a part of a matrix draws that part alone, and a model is the same on every layout, whatever part
is drawn where and in what order. Rows are drawn a block at a time, from a generator of the block's own.

Embeddings and routers are normal(initializer_range), matrices normal(1 / sqrt(fan in)), biases and the matrices that
write to the residual 0: all layers start as the identity, so the first steps may be large (Zhang et al., 2019, Fixup;
Yang et al., 2022, muP). What differs from that the modules say themselves: a norm where its weight begins (`begins`), a
layer that its branches do not begin at 0 (`starts_as_identity`), an attention that its products are scaled otherwise.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import torch
from torch import Tensor, nn

from foretell.config import ModelConfig
from foretell.models.core import Attention

_BLOCK_NUMBERS = 1 << 16
_ZERO, _TO_RESIDUAL = (".bias", "expert_bias"), ("o_proj.weight", "down_proj.weight", "experts.down_proj")
_TABLES = (
    *("embed_tokens.weight", "embed_positions.weight", "embed_types.weight", "relative_bias.weight"),
    *("lm_head.weight", "mlp.gate.weight"),
)


class Beginning(NamedTuple):
    """How a parameter begins: all of it at `number`, or drawn with `number` as its standard deviation."""

    number: float
    drawn: bool


def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of a whole model."""
    for name, p in model.named_parameters():
        fill(p, name, (0,) * p.ndim, p.shape, beginning(model, name, p.shape, config), seed)


def beginning(model: nn.Module, path: str, shape: tuple[int, ...], config: ModelConfig) -> Beginning:
    """How the parameter at `path` of a model, or of a stage of one, begins; `shape` is that of the whole."""
    if path.endswith(_ZERO):
        return Beginning(0.0, drawn=False)
    if path.endswith(_TO_RESIDUAL) and model.get_submodule(path.rsplit(".", 3)[0]).starts_as_identity:
        return Beginning(0.0, drawn=False)
    owner = path.rpartition(".")[0]
    if len(shape) < 2:
        return Beginning(float(model.get_submodule(owner).begins), drawn=False)  # type: ignore[arg-type]
    deviation = config.initializer_range if path.endswith(_TABLES) else shape[-1] ** -0.5
    if owner.endswith("q_proj"):
        attention = model.get_submodule(owner.rpartition(".")[0])
        if isinstance(attention, Attention) and attention.scale is not None:  # the products begin as large as ever
            deviation *= attention.head_dim**-0.5 / attention.scale
    return Beginning(deviation, drawn=True)


@torch.no_grad()
def fill(
    part: Tensor, name: str, offset: tuple[int, ...], shape: tuple[int, ...], begins: Beginning, seed: int
) -> None:
    """Fill the `part` of the parameter `name` of that `shape` that begins at `offset`, in place."""
    if not begins.drawn:
        part.fill_(begins.number)
    elif len(shape) == 3:  # a stack of matrices, each by its own name
        for n in range(part.shape[0]):
            fill(part[n], f"{name}.{offset[0] + n}", offset[1:], shape[1:], begins, seed)
    else:
        _fill_rows(part, f"{seed} {name}", offset, shape[1], begins.number)


def _fill_rows(part: Tensor, key: str, offset: tuple[int, ...], columns: int, deviation: float) -> None:
    rows = max(1, _BLOCK_NUMBERS // columns)  # of a block
    first, last = offset[0], offset[0] + part.shape[0]
    for block in range(first // rows, -(-last // rows)):
        digest = hashlib.blake2b(f"{key} {block}".encode(), digest_size=8).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
        drawn = torch.empty(rows, columns).normal_(0.0, deviation, generator=generator)
        start, end = max(first, block * rows), min(last, (block + 1) * rows)
        wanted = drawn[start - block * rows : end - block * rows, offset[1] : offset[1] + part.shape[1]]
        part[start - first : end - first] = wanted.to(part.device, part.dtype)
