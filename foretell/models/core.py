"""The parts that every Transformer here is made of (Vaswani et al., 2017): norms, attention, feed-forward, layers.

A family (`llama.py`, `gpt2.py`, `bert.py`, ...) says which parts its layers have; no part knows a family. Names are
those of Llama in Hugging Face transformers, whatever a family's own: so one table says how weights are divided.

Shapes: B batch, T time, S time of keys (cached and new), D hidden, H heads, K KV heads, E head dim, F feed-forward.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretell.models.attention import attend
from foretell.models.rope import Rotary, rotate

Activation = Callable[[Tensor], Tensor]
Norm = Callable[[int], nn.Module]
Angles = tuple[Tensor, Tensor]
Kept = dict[int, tuple[Tensor, Tensor]]  # keys and values (B, K, S, E) of each layer


class Cache(Protocol):
    """Keys and values of the tokens already seen. `generate` owns the implementation."""

    length: int

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, K, T, E) keys and values of one layer; return all of that layer's, (B, K, S, E)."""
        ...


class RMSNorm(nn.Module):
    """Scales each vector to unit root mean square, times a learned weight (Zhang and Sennrich, 2019)."""

    begins = 1.0  # the weight

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class LayerNorm(nn.Module):
    """Each vector to mean 0 and variance 1, times a learned weight, plus a learned bias (Ba et al., 2016)."""

    begins = 1.0  # the weight; the bias at 0, as all biases

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


class Dropout(nn.Module):
    """Zeroes each number with probability p and scales the others up; in training only.

    On a CPU, where torch spends longer on its random numbers than a layer does on its norms, a number costs one random
    byte, so p is rounded to a 256th there.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.dropped = p, round(256 * p)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if x.device.type != "cpu":
            return F.dropout(x, self.p)
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        kept = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.dropped
        return x * kept * (256 / (256 - self.dropped))


class Attention(nn.Module):
    """Attention of queries over keys and values, K of them for H queries (Ainslie et al., 2023).

    layer: its number in the model, by which the cache knows it. bias: of queries, keys and values; output_bias. norm:
    of each query's and key's E numbers (Dehghani et al., 2023), or none. scale: of the products, E^-0.5 unless given.
    window: how far a token sees, itself included. causal: whether it sees only what stands before it.
    """

    q_norm: nn.Module | None
    k_norm: nn.Module | None

    def __init__(
        self,
        D: int,
        H: int,
        K: int,
        E: int,
        *,
        layer: int,
        kernel: str = "sdpa",
        bias: bool = False,
        output_bias: bool = False,
        norm: Norm | None = None,
        scale: float | None = None,
        window: int | None = None,
        causal: bool = True,
    ) -> None:
        super().__init__()
        self.layer, self.head_dim, self.kernel = layer, E, kernel
        self.scale, self.window, self.causal = scale, window, causal
        self.attend = attend  # another one where other processes have a part of the sequence
        self.q_proj = nn.Linear(D, H * E, bias=bias)
        self.k_proj = nn.Linear(D, K * E, bias=bias)
        self.v_proj = nn.Linear(D, K * E, bias=bias)
        self.o_proj = nn.Linear(H * E, D, bias=output_bias)
        self.q_norm, self.k_norm = (norm(E), norm(E)) if norm else (None, None)

    def forward(
        self,
        x: Tensor,
        angles: Angles | None,
        mask: Tensor | None,
        cache: Cache | None = None,
        memory: Tensor | None = None,
        kept: Kept | None = None,
    ) -> Tensor:
        """x (B, T, D) to the same. angles: of the positions, or None. mask: as `attend` wants it.

        memory: (B, S, D) that keys and values are made of in place of x. kept: where those of a memory are put by
        layer, and found again, so that they are made once; B may then be a multiple of the memory's rows, each of which
        is for so many rows of x that follow each other.
        """
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, -1, self.head_dim)
        if kept is not None and self.layer in kept:
            k, v = kept[self.layer]
            q = q.reshape(len(k), -1, *q.shape[2:])  # beams of one memory stand beside each other, as its queries
            y = self.attend(q.transpose(1, 2), k, v, "sdpa", mask, causal=self.causal, scale=self.scale)
            return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))
        source = x if memory is None else memory
        k = self.k_proj(source).view(B, source.shape[1], -1, self.head_dim)
        v = self.v_proj(source).view(B, source.shape[1], -1, self.head_dim).transpose(1, 2)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = q.transpose(1, 2), k.transpose(1, 2)
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        if kept is not None:
            kept[self.layer] = k, v
        kernel = self.kernel if self.training else "sdpa"
        y = self.attend(q, k, v, kernel, mask, causal=self.causal, scale=self.scale)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """Feed-forward of width F: gated, down(act(gate(x)) * up(x)) (Shazeer, 2020)."""

    def __init__(self, D: int, F: int, activation: Activation = F.silu) -> None:
        super().__init__()
        self.activation = activation
        self.gate_proj = nn.Linear(D, F, bias=False)
        self.up_proj = nn.Linear(D, F, bias=False)
        self.down_proj = nn.Linear(F, D, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.gate_proj(x)) * self.up_proj(x))


class PlainMLP(nn.Module):
    """Feed-forward of width F without a gate: down(act(up(x)))."""

    def __init__(self, D: int, F: int, activation: Activation, bias: bool = True) -> None:
        super().__init__()
        self.activation = activation
        self.up_proj = nn.Linear(D, F, bias=bias)
        self.down_proj = nn.Linear(F, D, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class Layer(nn.Module):
    """Attention, then feed-forward, each of what a norm leaves of its input, and added to it.

    rotary: which of the model's tables of angles its attention has, or None.
    """

    starts_as_identity = True  # what its branches write is 0 at first

    def __init__(
        self, self_attn: Attention, mlp: nn.Module, norm: Norm, D: int, dropout: float, rotary: int | None = 0
    ) -> None:
        super().__init__()
        self.self_attn = self_attn
        self.mlp = mlp
        self.input_layernorm = norm(D)
        self.post_attention_layernorm = norm(D)
        self.dropout = Dropout(dropout)
        self.rotary = rotary

    def forward(self, x: Tensor, angles: Angles | None, mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), angles, mask, cache))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class PostNormLayer(Layer):
    """The order of the first Transformers: a norm of the sum behind each of the two."""

    def forward(self, x: Tensor, angles: Angles | None, mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = self.input_layernorm(x + self.dropout(self.self_attn(x, angles, mask, cache)))
        return self.post_attention_layernorm(x + self.dropout(self.mlp(x)))


def near(mask: Tensor | None, window: int, queries: int, keys: int) -> Tensor | None:
    """A mask that also keeps `queries`, the last of so many keys, from seeing further than `window` back.

    mask: (B or 1, 1, T, S) boolean or None for causal; None is returned where the window hides nothing.
    """
    if keys <= window:
        return mask
    device = None if mask is None else mask.device
    place = torch.arange(keys, device=device)
    back = place[keys - queries :, None] - place
    seen = (back < window) & (back >= 0)
    return seen[None, None] if mask is None else mask & seen


@dataclass(frozen=True)
class Parts:
    """What a family makes of a config: layers and what stands around them.

    rotary: tables of angles, to which `Layer.rotary` points. positions: rows of a learned table of positions, 0 for
    none. scale: what embeddings are multiplied by.
    """

    layers: list[Layer]
    norm: nn.Module
    rotary: tuple[Rotary, ...] = ()
    positions: int = 0
    scale: float = 1.0
