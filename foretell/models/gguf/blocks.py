"""The block formats of ggml, to float32: the same bits as ggml's own, at the speed of the memory.

A block holds 32 or 256 weights: one or two half-precision numbers for the whole, perhaps 6-bit or 8-bit scales of its
sixteenths or eighths, and 4 to 8 bits a weight. Formats: https://github.com/ggml-org/ggml (ggml-quants.c). Bits are
unpacked on 16-bit or 32-bit words, of which one operation takes two or four weights at once; then one conversion and
one or two products run over weights that are still in the cache, because a tensor is taken in pieces of `_PIECE`.

Every weight is computed with the operations, and their order, of the reference: scale x number, plus or minus.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from foretell.errors import ModelError
from foretell.models.gguf.reader import TYPES, Gguf

_PIECE = 1 << 18  # weights at a time: 1 MB of float32
_OF_KIND = {kind: (per_block, block_bytes) for kind, per_block, block_bytes in TYPES.values()}


def tensor(file: Gguf, name: str, dtype: torch.dtype = torch.float32, of: int | None = None) -> Tensor:
    """The tensor of that name in `dtype`, in memory of its own. ModelError when the file has none of that name.

    of: the number of the only part of its first dim that is wanted, one matrix of a stack.
    """
    raw = file.raw(name)
    info = file.tensors[name]
    if of is None:
        return dequantize(raw, info.kind, dtype).view(info.shape)
    return dequantize(raw.reshape(info.shape[0], -1)[of], info.kind, dtype).view(info.shape[1:])


def dequantize(raw: np.ndarray, kind: str, dtype: torch.dtype = torch.float32) -> Tensor:
    """The weights, flat, of the stored bytes (uint8) of a tensor of that kind, a name of `reader.TYPES`."""
    per_block, block_bytes = _OF_KIND[kind]
    if len(raw) % block_bytes:
        raise ModelError(f"{len(raw):,} bytes are no whole number of {kind} blocks of {block_bytes}")
    if raw.ctypes.data % 8 or not raw.flags.writeable:  # torch reads words where they begin, and dislikes fixed memory
        raw = raw.copy()
    stored = torch.from_numpy(raw)
    if kind in _PLAIN:
        plain = stored.view(_PLAIN[kind])
        return plain.clone() if plain.dtype == dtype else plain.to(dtype)
    blocks = stored.view(-1, block_bytes)
    out = _room(len(blocks) * per_block, dtype).view(-1, per_block)
    step = _PIECE // per_block
    for start in range(0, len(blocks), step):
        piece = out[start : start + step]
        if dtype == torch.float32:
            _UNPACK[kind](blocks[start : start + step], piece)
        else:
            wide = torch.empty(piece.shape)
            _UNPACK[kind](blocks[start : start + step], wide)
            piece.copy_(wide)
    return out.view(-1)


def _room(n: int, dtype: torch.dtype) -> Tensor:
    """Fresh memory by way of numpy, which asks for large pages: in small ones it takes longer than the arithmetic.

    As torch's own it begins at a multiple of 64 bytes.
    """
    raw = np.empty(n * dtype.itemsize + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return torch.from_numpy(raw[start : start + n * dtype.itemsize]).view(dtype)


def _half(blocks: Tensor, column: int) -> Tensor:
    """The half-precision number at that 16-bit column of each block (N x 1), as float32."""
    return blocks.view(torch.float16)[:, column : column + 1].float()


def _nibbles(words: Tensor, columns: slice, mask: int) -> tuple[Tensor, Tensor]:
    """The lower and the upper four bits of each byte of those columns of words.

    Whole blocks are unpacked, their heads too: an operation on all of the memory is fast, one on rows of a few words is
    not.
    """
    return (words & mask)[:, columns], (words >> 4).bitwise_and_(mask)[:, columns]


def _q8_0(blocks: Tensor, out: Tensor) -> None:
    out.copy_(blocks[:, 2:].view(torch.int8)).mul_(_half(blocks, 0))


def _q4_0(blocks: Tensor, out: Tensor) -> None:
    q = torch.cat(_nibbles(blocks.view(torch.int16), slice(1, 9), 0x0F0F), 1)
    out.copy_(q.view(torch.int8).sub_(8)).mul_(_half(blocks, 0))


def _q4_1(blocks: Tensor, out: Tensor) -> None:
    q = torch.cat(_nibbles(blocks.view(torch.int32), slice(1, 5), 0x0F0F0F0F), 1)
    out.copy_(q.view(torch.uint8)).mul_(_half(blocks, 0)).add_(_half(blocks, 1))


def _q5_0(blocks: Tensor, out: Tensor) -> None:
    q = torch.cat(_nibbles(blocks.view(torch.int16), slice(3, 11), 0x0F0F), 1)
    q.view(torch.int64).bitwise_or_(_fifth_bits(blocks[:, 2:6]))
    out.copy_(q.view(torch.int8).sub_(16)).mul_(_half(blocks, 0))


def _q5_1(blocks: Tensor, out: Tensor) -> None:
    q = torch.cat(_nibbles(blocks.view(torch.int32), slice(2, 6), 0x0F0F0F0F), 1)
    q.view(torch.int64).bitwise_or_(_fifth_bits(blocks[:, 4:8]))
    out.copy_(q.view(torch.uint8)).mul_(_half(blocks, 0)).add_(_half(blocks, 1))


def _fifth_bits(bits: Tensor) -> Tensor:
    """Four bytes of bits a block (N x 4 uint8) to 32 bytes that are 0 or 16, as words (N x 4 int64)."""
    return _spread()[bits.int()]


@functools.cache
def _spread() -> Tensor:
    """Of every byte, its bits as eight bytes that are 0 or 16, lowest first, in one int64."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return torch.from_numpy((bits << 4).view("<i8")[:, 0].astype(np.int64))


def _q4_k(blocks: Tensor, out: Tensor) -> None:
    words = blocks.view(torch.int32)
    low, high = _nibbles(words, slice(4, 36), 0x0F0F0F0F)
    q = torch.stack([low.view(-1, 4, 8), high.view(-1, 4, 8)], 2)
    _scale_eighths(blocks, words, q, out)


def _q5_k(blocks: Tensor, out: Tensor) -> None:
    words = blocks.view(torch.int32)
    low, high = _nibbles(words, slice(12, 44), 0x0F0F0F0F)
    q = torch.stack([low.view(-1, 4, 8), high.view(-1, 4, 8)], 2)
    eighths = torch.arange(8, dtype=torch.int32)[:, None]
    q.view(-1, 8, 8).bitwise_or_(((words[:, None, 4:12] >> eighths) & 0x01010101) << 4)
    _scale_eighths(blocks, words, q, out)


def _scale_eighths(blocks: Tensor, words: Tensor, q: Tensor, out: Tensor) -> None:
    """Of Q4_K and Q5_K: 6-bit scales and minima of each 32 weights, packed in the words 1 to 3."""
    a, b, both = words[:, 1], words[:, 2], words[:, 3]
    packed = torch.empty(len(blocks), 2, 2, dtype=torch.int32)  # scales, minima; of the first four, of the last
    torch.bitwise_and(words[:, 1:3], 0x3F3F3F3F, out=packed[:, :, 0])
    packed[:, 0, 1] = (both & 0x0F0F0F0F) | ((a >> 2) & 0x30303030)
    packed[:, 1, 1] = ((both >> 4) & 0x0F0F0F0F) | ((b >> 2) & 0x30303030)
    small = packed.view(torch.uint8).view(-1, 2, 8).float()
    scales = (_half(blocks, 0) * small[:, 0])[:, :, None]
    minima = (_half(blocks, 1) * small[:, 1])[:, :, None]
    out.view(-1, 8, 32).copy_(q.view(torch.uint8).view(-1, 8, 32)).mul_(scales).sub_(minima)


def _q6_k(blocks: Tensor, out: Tensor) -> None:
    words = blocks.view(torch.int16)
    low, high = _nibbles(words, slice(64), 0x0F0F)
    q = torch.cat([low.view(-1, 2, 2, 16), high.view(-1, 2, 2, 16)], 2)
    pairs = torch.tensor([0, 2, 4, 6], dtype=torch.int16)[:, None]
    q.bitwise_or_(((words[:, 64:96].view(-1, 2, 1, 16) >> pairs) & 0x0303) << 4)
    scales = _half(blocks, 104) * blocks[:, 192:208].view(torch.int8).float()
    out.view(-1, 16, 16).copy_(q.view(torch.int8).view(-1, 16, 16).sub_(32)).mul_(scales[:, :, None])


_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_UNPACK: dict[str, Callable[[Tensor, Tensor], None]] = {
    "Q8_0": _q8_0,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
