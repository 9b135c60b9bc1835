"""Initial weights: each row a pure function of (seed, name of the parameter, number of the row).

So a process that holds a part of a matrix draws that part alone, and a model is the same on every layout, whatever part
is drawn where and in what order. Rows are drawn a block at a time, from a generator of the block's own.

Embeddings and routers are normal(initializer_range), matrices normal(1 / sqrt(fan in)), biases and the matrices that
write to the residual 0: all layers start as the identity, so the first steps may be large (Zhang et al., 2019, Fixup;
Yang et al., 2022, muP).
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from foretell.config import ModelConfig

_BLOCK_NUMBERS = 1 << 16
_ZERO, _TO_RESIDUAL = (".bias", "expert_bias"), ("o_proj.weight", "down_proj.weight", "experts.down_proj")
_TABLES = (
    *("embed_tokens.weight", "embed_positions.weight", "embed_types.weight", "relative_bias.weight"),
    *("lm_head.weight", "mlp.gate.weight"),
)


def initialise(model: nn.Module, config: ModelConfig, seed: int) -> None:
    """Fill every parameter of a whole model."""
    for name, p in model.named_parameters():
        fill(p, name, (0,) * p.ndim, p.shape, config, seed)


@torch.no_grad()
def fill(
    part: Tensor, name: str, offset: tuple[int, ...], shape: tuple[int, ...], config: ModelConfig, seed: int
) -> None:
    """Fill the `part` of the parameter `name` of that `shape` that begins at `offset`, in place."""
    gemma = config.model_type == "gemma3_text"
    # A norm behind a branch, as Gemma has it, wants no zeros: its gradient there is 1 / sqrt(eps).
    if name.endswith(_ZERO) or (name.endswith(_TO_RESIDUAL) and not gemma):
        part.zero_()
    elif len(shape) < 2:
        part.fill_(0.0 if gemma else 1.0)  # Gemma's norms multiply by 1 + weight
    elif len(shape) == 3:  # a stack of matrices, each by its own name
        for n in range(part.shape[0]):
            fill(part[n], f"{name}.{offset[0] + n}", offset[1:], shape[1:], config, seed)
    else:
        table = name.endswith(_TABLES)
        deviation = config.initializer_range if table else shape[1] ** -0.5
        if config.model_type == "t5" and name.endswith("q_proj.weight"):  # its products are not scaled, so these are
            deviation *= config.sizes.E**-0.5
        _fill_rows(part, f"{seed} {name}", offset, shape[1], deviation)


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
