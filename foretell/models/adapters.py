"""Low-rank adapters (Hu et al., 2021) in peft's format: adapter_config.json and adapter_model.safetensors, in and out.

A product's weight W becomes W + s B A, with A (r, in) and B (out, r); s is alpha / r, or alpha / sqrt(r) where
`use_rslora` says so. Names are those of the Hugging Face folder of the base, with base_model.model. before them. Read
and written is plain LoRA of products; what changes it (DoRA, ranks by pattern, biases, whole modules, embeddings) is
refused by name. Format: peft 0.19 to 0.21.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from foretell.errors import ModelError
from foretell.models import folders
from foretell.models.hf import configs, names

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# What alone can be read of other keys; None stands for absent, null, false or empty.
_DEMANDED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": (None, "none"),
    "use_dora": (None,),
    "rank_pattern": (None,),
    "alpha_pattern": (None,),
    "modules_to_save": (None,),
    "layer_replication": (None,),
    "trainable_token_indices": (None,),
    "lora_bias": (None,),
    "alora_invocation_tokens": (None,),
    "target_parameters": (None,),
    "use_qalora": (None,),
}


@dataclass(frozen=True)
class Adapter:
    """scale: s above. pairs: A and B of each product, by its name in the base's Hugging Face folder.

    transposed: the base has its weights as (in, out), as GPT-2 has.
    """

    base: str
    scale: float
    pairs: dict[str, tuple[Tensor, Tensor]]
    transposed: bool = False

    def base_of(self, folder: Path) -> Path:
        """Where the base is: as the adapter says, from here or from beside its folder."""
        for path in (Path(self.base), folder / self.base):
            if self.base and path.exists():
                return path
        raise ModelError(
            f"{folder / CONFIG}: its base {self.base!r} is not on this machine; set base_model_name_or_path"
        )

    def deltas(self, stored: Callable[[str], Tensor]) -> Callable[[str], Tensor]:
        """The base's weights with what the adapter adds to them."""

        def adapted(name: str) -> Tensor:
            weight = stored(name)
            pair = self.pairs.get(name.removesuffix(".weight"))
            if pair is None or not name.endswith(".weight"):
                return weight
            delta = self.scale * (pair[1] @ pair[0])
            delta = delta.T if self.transposed else delta
            if delta.shape != weight.shape:
                raise ModelError(f"the adapter of {name} is for {list(delta.shape)}, the base has {list(weight.shape)}")
            return weight + delta

        return adapted


def read(folder: Path) -> Adapter:
    """The adapter in a folder. ModelError for what is none, or none that is read."""
    told = configs.read_json(folder / CONFIG)
    for key, values in _DEMANDED.items():
        given = told.get(key)
        if given not in values and not (None in values and not given):
            raise ModelError(f"{folder / CONFIG}: {key} = {json.dumps(given)[:100]} is not read; plain LoRA is")
    rank, alpha, base = told.get("r"), told.get("lora_alpha"), told.get("base_model_name_or_path")
    if type(rank) is not int or rank < 1 or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ModelError(f"{folder / CONFIG}: r = {rank!r} and lora_alpha = {alpha!r} must be above 0")
    try:
        tensors = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as e:
        raise ModelError(f"{folder / WEIGHTS}: not a whole safetensors file: {e}") from None
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        place, half = name.removeprefix(_PREFIX).removesuffix(".weight").rpartition(".")[::2]
        if not name.startswith(_PREFIX) or half not in ("lora_A", "lora_B") or tensor.ndim != 2:
            raise ModelError(f"{folder / WEIGHTS}: {name} {list(tensor.shape)} is no part of a product's adapter")
        halves.setdefault(place, {})[half] = tensor.float()
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for place, found in halves.items():
        if len(found) != 2 or found["lora_A"].shape[0] != rank or found["lora_B"].shape[1] != rank:
            raise ModelError(f"{folder / WEIGHTS}: {place} has no lora_A and lora_B of rank {rank}")
        pairs[place] = found["lora_A"], found["lora_B"]
    scale = alpha / (math.sqrt(rank) if told.get("use_rslora") else rank)
    transposed = told.get("fan_in_fan_out") is True
    return Adapter(base if isinstance(base, str) else "", scale, pairs, transposed)


def write(
    folder: Path, rules: str, base: str, rank: int, alpha: float, dropout: float, tensors: Iterable[tuple[str, Tensor]]
) -> bool:
    """Write the folder, whole or not at all; tensors: `PRODUCT.lora_A` and `PRODUCT.lora_B` by our names.

    False, and nothing is written, where the base's folder joins or transposes products (GPT-2): peft has no such
    adapter.
    """
    parts: dict[str, Tensor] = {}
    for name, tensor in tensors:
        product, _, half = name.rpartition(".")
        theirs = names.alike(rules, f"{product}.weight")
        if theirs is None:
            return False
        parts[f"{_PREFIX}{theirs.removesuffix('.weight')}.{half}.weight"] = tensor.detach().cpu().contiguous()
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({n.rsplit(".", 3)[1] for n in parts}),
    }
    with folders.replaced(folder) as partial:
        save_file(parts, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / CONFIG).write_text(json.dumps(described, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return True
