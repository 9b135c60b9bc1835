"""Low-rank adapters (Hu et al., 2021): a product W x becomes W x + s B A x, of which only A and B learn.

Put on a built model from outside: two parameters on each nn.Linear, and a hook that adds what they give. B begins as
zeros, so an adapted model begins as its base. s is alpha / rank. Adapters are float32 whatever the run computes in. The
format on disk is peft's (`models/adapters.py`). On several processes an adapter is divided with its product
(`plan/layout.py`). Not handled: experts, which are stacks and no nn.Linear; stages of a pipeline.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from foretell.config import LoraConfig
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
            a.data.copy_(initial(f"{name}.lora_A", (rank, linear.in_features), seed))
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


def initial(name: str, shape: tuple[int, ...], seed: int) -> Tensor:
    """What the adapter of that name begins as, whole: B zeros, A uniform in +-1 / sqrt(columns), as nn.Linear's."""
    product, _, half = name.rpartition(".")
    if half == "lora_B":
        return torch.zeros(shape)
    digest = hashlib.blake2b(f"{seed} {product}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
    bound = shape[1] ** -0.5
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def _added(linear: Any, inputs: tuple[Tensor, ...], output: Tensor, *, scale: float, dropout: float) -> Tensor:
    """The hook of a product: its output (..., out) and what its adapter makes of its input (..., in)."""
    # Dropout of nothing would make a copy of its input for each product, and keep it.
    x = F.dropout(inputs[0], dropout, linear.training) if dropout else inputs[0]
    narrow = F.linear(x, linear.lora_A).flatten(0, -2)
    return torch.addmm(output.flatten(0, -2), narrow, linear.lora_B.T, alpha=scale).view_as(output)


def of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The adapters of a model by name: `PRODUCT.lora_A`, `PRODUCT.lora_B`."""
    return ((n, p.detach()) for n, p in model.named_parameters() if n.endswith(HALVES))


@torch.no_grad()
def merged(
    weights: Iterable[tuple[str, Tensor]], adapters: dict[str, Tensor], c: LoraConfig
) -> Iterator[tuple[str, Tensor]]:
    """Weights by name, adapters (as `of` gives them) added to their products, one product at a time."""
    for name, tensor in weights:
        product = name.removesuffix(".weight")
        if name.endswith(HALVES):
            continue
        if f"{product}.lora_A" in adapters:
            yield name, tensor + scale(c) * (adapters[f"{product}.lora_B"] @ adapters[f"{product}.lora_A"])
        else:
            yield name, tensor
