"""Low-rank adapters (Hu et al., 2021): a product W x becomes W x + s B A x, of which only A and B learn.

Put on a built model from outside: two parameters on each nn.Linear, and a hook that adds what they give. B begins as
zeros, so an adapted model begins as its base. s is alpha / rank. Adapters are float32 whatever the run computes in. The
format on disk is peft's (`models/adapters.py`). Not handled: experts, which are stacks and no nn.Linear; several
processes.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretell.config import LoraConfig, RunConfig
from foretell.errors import ConfigError

HALVES = ("lora_A", "lora_B")


def adapt(model: nn.Module, c: LoraConfig, seed: int) -> None:
    """Freeze a model and give the products that [lora] names adapters, drawn from the seed and the product's name.

    Raises ConfigError for a target that is no product of its layers.
    """
    model.requires_grad_(False)
    rank = c.rank or 0
    for name, linear in targets(model, c.targets):
        device = linear.weight.device
        a = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        if device.type != "meta":
            a.data.copy_(_drawn(f"{seed} {name}", rank, linear.in_features))
        linear.register_parameter("lora_A", a)
        linear.register_parameter("lora_B", nn.Parameter(torch.zeros(linear.out_features, rank, device=device)))
        linear.register_forward_hook(partial(_added, scale=scale(c), dropout=c.dropout))


def scale(c: LoraConfig) -> float:
    """What an adapter's output is multiplied by."""
    return (2.0 if c.alpha is None else c.alpha / (c.rank or 1)) if c.rank else 0.0


def targets(model: nn.Module, names: list[str] | None) -> list[tuple[str, nn.Linear]]:
    """The products of a model's layers that are called so, all whose names end in _proj by default."""
    inside = [
        (n, m)
        for n, m in model.named_modules()
        if isinstance(m, nn.Linear) and ".layers." in f".{n}" and n.endswith("_proj")
    ]
    there = sorted({n.rpartition(".")[2] for n, _ in inside})
    for wanted in names or []:
        if wanted not in there:
            near = difflib.get_close_matches(wanted, there, n=1, cutoff=0.0)
            what = f"nearest: {near[0]}; there are {', '.join(there)}" if near else "its layers have none"
            raise ConfigError(f"lora.targets: the model has no product {wanted!r}; {what}")
    if not inside or names == []:
        raise ConfigError("the layers of this model have no products that could have an adapter")
    return [(n, m) for n, m in inside if names is None or n.rpartition(".")[2] in names]


def _drawn(key: str, rank: int, columns: int) -> Tensor:
    """Uniform in +-1 / sqrt(columns), as peft and nn.Linear begin."""
    digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    return torch.empty(rank, columns).uniform_(-(columns**-0.5), columns**-0.5, generator=generator)


def _added(linear: Any, inputs: tuple[Tensor, ...], output: Tensor, *, scale: float, dropout: float) -> Tensor:
    """The hook of a product: its output (..., out) and what its adapter makes of its input (..., in)."""
    # Dropout of nothing would make a copy of its input for each product, and keep it.
    x = F.dropout(inputs[0], dropout, linear.training) if dropout else inputs[0]
    return output + scale * F.linear(F.linear(x, linear.lora_A), linear.lora_B)


def of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The adapters of a model by name: `PRODUCT.lora_A`, `PRODUCT.lora_B`."""
    return ((n, p.detach()) for n, p in model.named_parameters() if n.endswith(HALVES))


@torch.no_grad()
def merged(model: nn.Module, config: RunConfig) -> Iterator[tuple[str, Tensor]]:
    """The weights of a model by name, adapters added to their products. One product more than the model is held."""
    adapters = dict(of(model))
    for name, tensor in model.state_dict().items():
        product = name.removesuffix(".weight")
        if name.endswith(HALVES):
            continue
        if f"{product}.lora_A" in adapters:
            delta = adapters[f"{product}.lora_B"] @ adapters[f"{product}.lora_A"]
            yield name, tensor + scale(config.lora) * delta
        else:
            yield name, tensor
