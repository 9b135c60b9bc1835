"""The default decoder: a Transformer that reads like its papers.

RMSNorm before each branch (Zhang and Sennrich, 2019), rotary positions (Su et al., 2021), grouped queries (Ainslie et
al., 2023), RMSNorm on queries and keys (Dehghani et al., 2023), SwiGLU (Shazeer, 2020), tied embeddings (Press and
Wolf, 2017). This is the architecture and these are the parameter names of Qwen3 in Hugging Face transformers, so a
trained model needs no conversion to be loaded there.

Shapes: B batch, T time, S time of keys (cached and new), D hidden, H heads, K KV heads, E head dim, V vocabulary.
With `num_experts` the feed-forward part is a mixture of experts (`models/moe.py`), as in Qwen3-MoE.
Not handled here: masks other than what the caller passes, sliding windows, RoPE scaling.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretell.config import ModelConfig
from foretell.models import initial
from foretell.models.attention import attend
from foretell.models.moe import MoE


class Cache(Protocol):
    """Keys and values of the tokens already seen. `generate` owns the implementation."""

    length: int

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (B, K, T, E) keys and values of one layer; return all of that layer's, (B, K, S, E)."""
        ...


class RMSNorm(nn.Module):
    """Scales each vector to unit root mean square, times a learned weight."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


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


def rotary_tables(length: int, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin, each (length, E) in float32, for `rotate`."""
    frequency = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), frequency).repeat(1, 2)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (i, i + E/2) of x (B, heads, T, E) by the angles of their positions."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    """Causal attention with grouped queries, rotary positions and norms on queries and keys."""

    def __init__(self, c: ModelConfig, layer: int, kernel: str) -> None:
        super().__init__()
        D, _, H, K, E, _, _ = c.sizes
        self.layer, self.heads, self.kv_heads, self.head_dim, self.kernel = layer, H, K, E, kernel
        self.attend = attend  # another one where other processes have a part of the sequence
        self.q_proj = nn.Linear(D, H * E, bias=False)
        self.k_proj = nn.Linear(D, K * E, bias=False)
        self.v_proj = nn.Linear(D, K * E, bias=False)
        self.o_proj = nn.Linear(H * E, D, bias=False)
        self.q_norm = RMSNorm(E, c.rms_norm_eps)
        self.k_norm = RMSNorm(E, c.rms_norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(B, T, -1, self.head_dim)).transpose(1, 2)
        v = self.v_proj(x).view(B, T, -1, self.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.update(self.layer, k, v)
        y = self.attend(q, k, v, self.kernel if self.training else "sdpa", mask)
        return self.o_proj(y.transpose(1, 2).reshape(B, T, -1))


class MLP(nn.Module):
    """SwiGLU: a gated feed-forward of width F."""

    def __init__(self, c: ModelConfig) -> None:
        super().__init__()
        hidden, inner = c.sizes.D, c.sizes.F
        self.gate_proj = nn.Linear(hidden, inner, bias=False)
        self.up_proj = nn.Linear(hidden, inner, bias=False)
        self.down_proj = nn.Linear(inner, hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    """Attention, then feed-forward, each added to what came in."""

    def __init__(self, c: ModelConfig, layer: int, dropout: float, kernel: str) -> None:
        super().__init__()
        self.self_attn = Attention(c, layer, kernel)
        self.mlp = MoE(c) if c.num_experts else MLP(c)
        self.input_layernorm = RMSNorm(c.sizes.D, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.sizes.D, c.rms_norm_eps)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        x = x + self.dropout(self.self_attn(self.input_layernorm(x), cos, sin, mask, cache))
        return x + self.dropout(self.mlp(self.post_attention_layernorm(x)))


class Transformer(nn.Module):
    """Embedding, layers and the last norm: token ids (B, T) to hidden states (B, T, D)."""

    cos: Tensor
    sin: Tensor

    def __init__(self, c: ModelConfig, dropout: float, kernel: str) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.sizes.V, c.sizes.D)
        self.layers = nn.ModuleList(Layer(c, i, dropout, kernel) for i in range(c.sizes.L))
        self.norm = RMSNorm(c.sizes.D, c.rms_norm_eps)
        self.dropout = Dropout(dropout)
        cos, sin = rotary_tables(c.needed("max_position_embeddings"), c.sizes.E, c.rope_theta)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        T = input_ids.shape[1]
        if positions is None:
            start = cache.length if cache is not None else 0
            cos, sin = self.cos[start : start + T], self.sin[start : start + T]
        else:
            cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        x = self.dropout(self.embed_tokens(input_ids))
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, mask, cache)
        return self.norm(x)


class Decoder(nn.Module):
    """Predicts each next token. `config` must be resolved (`ModelConfig.resolved`).

    kernel: what computes attention in training, `sdpa` (torch's) or `products` (`models/attention.py`).
    """

    def __init__(self, config: ModelConfig, dropout: float = 0.0, kernel: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.model = Transformer(config, dropout, kernel)
        self.lm_head = nn.Linear(config.sizes.D, config.sizes.V, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def hidden(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Final hidden states (B, T, D), after the last norm and before the head.

        input_ids: (B, T) integers. positions: (B, T), default 0..T-1 after what the cache holds. mask: (B or 1, 1, T,
        S) boolean, True where a query may look; default causal. With a cache that already holds tokens and T > 1, pass
        a mask.
        """
        return self.model(input_ids, positions, mask, cache)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """Logits (B, T, V). Arguments as in `hidden`."""
        return self.lm_head(self.hidden(input_ids, positions, mask, cache))

    def initialise(self, seed: int) -> None:
        """The initial weights of a run: see `models/initial.py`."""
        initial.initialise(self, self.config, seed)


def document_mask(segments: Tensor) -> Tensor:
    """(B, 1, T, T) mask that is causal and stays inside one document; segments: (B, T) document numbers."""
    T = segments.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments.device).tril()
    return (segments[:, :, None] == segments[:, None, :]).logical_and(causal).unsqueeze(1)
