"""A model whose weights are this process's parts of the whole, and what must be known of each part.

`divided` makes the parts: tensor and expert parallelism by the table of `plan/layout.py`, then FSDP2 along dim 0. The
weights are drawn part by part (`models/initial.py`), so nothing whole is ever held. `Part.local` is what the optimiser
works on: a plain tensor that shares memory with FSDP2's shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor

from foretell import runtime
from foretell.config import ModelConfig
from foretell.distributed.mesh import Mesh
from foretell.distributed.stages import is_again
from foretell.models import initial
from foretell.models.decoder import Decoder
from foretell.models.model import Model, layers
from foretell.plan import layout
from foretell.plan.layout import Split, before_fsdp, box
from foretell.vectors.embedding import EMBEDDING, Start

# A whole weight by its name in the whole model and its shape.
Weights = Callable[[str, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class Part:
    """One parameter as this process holds it. name: in the whole model. owner: the model's own parameter."""

    name: str
    owner: nn.Parameter
    local: nn.Parameter
    offset: tuple[int, ...]
    shape: tuple[int, ...]  # of the whole
    split: Split
    is_copy: bool = False  # of what an earlier stage of a pipeline has, too: that one's is saved and counted

    def gradient(self) -> Tensor | None:
        """This part's gradient as a plain tensor."""
        grad = self.owner.grad
        return grad.to_local() if isinstance(grad, DTensor) else grad


def whole_name(path: str, tied: bool) -> str:
    """The name in the whole model of a parameter of a stage."""
    return "model.embed_tokens.weight" if tied and path == "lm_head.weight" else path


def narrow(model: Model, mesh: Mesh) -> dict[str, tuple[int, ...]]:
    """Replace each parameter of a model on the meta device by memory for this rank's part.

    Returns the whole shapes by the names they have here.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    made: dict[nn.Parameter, nn.Parameter] = {}
    for path, p in list(model.named_parameters(remove_duplicate=False)):
        place, _, leaf = path.rpartition(".")
        if p not in made:
            shapes[path] = tuple(p.shape)
            _, size = before_fsdp(path, shapes[path], mesh.degrees, mesh.place)
            made[p] = nn.Parameter(torch.empty(size, device=runtime.device()), requires_grad=p.requires_grad)
        setattr(model.get_submodule(place), leaf, made[p])
    return shapes


@torch.no_grad()
def fill(
    model: Model,
    config: ModelConfig,
    mesh: Mesh,
    shapes: dict[str, tuple[int, ...]],
    seed: int | None,
    start: Start | None = None,
    weights: Weights | None = None,
) -> None:
    """The tables of positions and, where there is a seed, the initial weights of a narrowed model.

    start: what the embedding table begins from instead, on every process that has a part of it. weights: where all
    initial weights come from, one whole weight at a time, in place of being drawn.
    """
    if isinstance(model, Decoder):
        model.model.fill_tables(config.needed("max_position_embeddings"), runtime.device())
    if seed is None:
        return
    for name, p in model.named_parameters():
        offset, _ = before_fsdp(name, shapes[name], mesh.degrees, mesh.place)
        known = whole_name(name, config.tie_word_embeddings)
        if weights is not None:
            whole = weights(known, shapes[name])
            p.copy_(whole[tuple(slice(o, o + n) for o, n in zip(offset, p.shape, strict=True))])
        else:
            begins = initial.beginning(model, name, shapes[name], config)
            initial.fill(p, known, offset, shapes[name], begins, seed)
        if start is not None and known == EMBEDDING:
            start.fill(p, offset)


def shard(model: Model, mesh: Mesh, dtype: torch.dtype, reshard: bool, offload: bool) -> None:
    """FSDP2 over every layer and over what is left. Weights travel in `dtype`, gradients in float32.

    reshard: give a layer's weights back after its forward pass; not in a pipeline, which needs them soon again.
    offload: keep the shards and their gradients on the host, where the optimiser then works on them.
    """
    place = CPUOffloadPolicy(pin_memory=runtime.device().type == "cuda") if offload else OffloadPolicy()
    fsdp = partial(fully_shard, offload_policy=place)
    policy = MixedPrecisionPolicy(
        param_dtype=None if dtype == torch.float32 else dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for layer in layers(model):
        experts = getattr(layer.mlp, "experts", None)
        if experts is not None and mesh.degrees.experts_apart:
            fsdp(experts, mesh=mesh.expert_fsdp, mp_policy=policy, reshard_after_forward=reshard)
        fsdp(layer, mesh=mesh.fsdp, mp_policy=policy, reshard_after_forward=reshard)
    whole = MixedPrecisionPolicy(reduce_dtype=torch.float32, cast_forward_inputs=False)
    fsdp(model, mesh=mesh.fsdp, mp_policy=whole, reshard_after_forward=False)
    if mesh.degrees.pp == 1:
        register_fsdp_forward_method(model, "hidden" if isinstance(model, Decoder) else "features")


def parts(model: Model, mesh: Mesh, shapes: dict[str, tuple[int, ...]]) -> Iterator[Part]:
    """Every parameter of the model that learns as a part; a tied table once."""
    tied = model.config.tie_word_embeddings
    for name, p in model.named_parameters():
        if not p.requires_grad:
            continue
        tensor = p.data
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        offset, size = box(name, shapes[name], mesh.degrees, mesh.place)
        if tuple(local.shape) != size:
            raise RuntimeError(f"{name}: FSDP2 holds {tuple(local.shape)} here, plan/layout.py says {size}")
        known = whole_name(name, tied)
        yield Part(known, p, nn.Parameter(local), offset, shapes[name], layout.split(name), is_again(model, name))
