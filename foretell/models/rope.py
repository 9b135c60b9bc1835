"""Rotary positions (Su et al., 2021), and the ways to stretch them to longer texts than a model was trained on.

A head's numbers are turned in pairs by angles that grow with the position, each pair at a frequency of its own.
`linear` (Chen et al., 2023) slows all frequencies down; `llama3` (Llama 3, 2024) only the low ones, with a smooth
passage; `yarn` (Peng et al., 2023) as well, by the number of turns within the old context, and it makes attention a
little sharper. Keys and formulas are those of Hugging Face transformers' `rope_parameters`. Not handled: dynamic NTK,
LongRoPE.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from foretell.config import RopeScaling


def frequencies(head_dim: int, theta: float, scaling: RopeScaling | None = None) -> tuple[Tensor, float]:
    """Radians a position of each pair, (E / 2,) in float32, and the factor of cos and sin."""
    plain = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    if scaling is None:
        return plain, 1.0
    slow = plain / scaling.factor
    if scaling.rope_type == "linear":
        return slow, 1.0
    old = scaling.original_max_position_embeddings
    if scaling.rope_type == "llama3":
        turns = old * plain / (2 * math.pi)  # within the old context
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return slow * (1 - kept) + plain * kept, 1.0

    def pair(turns: float) -> float:
        """The pair that makes so many turns within the old context."""
        return head_dim * math.log(old / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = max(math.floor(pair(scaling.beta_fast)), 0), min(math.ceil(pair(scaling.beta_slow)), head_dim - 1)
    slowed = ((torch.arange(head_dim // 2) - first) / max(last - first, 0.001)).clamp(0, 1)
    sharper = scaling.attention_factor or (0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0)
    return slow * slowed + plain * (1 - slowed), sharper


def rotary_tables(
    length: int, head_dim: int, theta: float, scaling: RopeScaling | None = None
) -> tuple[Tensor, Tensor]:
    """cos and sin, each (length, E) in float32, for `rotate`."""
    frequency, factor = frequencies(head_dim, theta, scaling)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos() * factor, angle.sin() * factor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + E/2) of x (B, heads, T, E) by the angles of their positions."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Rotary(nn.Module):
    """The tables of one kind of layer. Not in a model's state: `fill` makes them anew, of any length."""

    cos: Tensor
    sin: Tensor

    def __init__(self, head_dim: int, theta: float, scaling: RopeScaling | None, length: int) -> None:
        super().__init__()
        self.head_dim, self.theta, self.scaling = head_dim, theta, scaling
        cos, sin = rotary_tables(length, head_dim, theta, scaling)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def fill(self, length: int, device: torch.device | str = "cpu") -> None:
        """Tables for so many positions."""
        cos, sin = rotary_tables(length, self.head_dim, self.theta, self.scaling)
        self.cos, self.sin = cos.to(device), sin.to(device)

    def forward(self, start: int, T: int, positions: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin of positions start..start + T - 1, (T, E), or of `positions` (B, T), (B, 1, T, E)."""
        if positions is None:
            cos, sin = self.cos[start : start + T], self.sin[start : start + T]
        else:
            cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        return cos.to(dtype), sin.to(dtype)
