"""What a run makes of a model that exists: its base, what of it learns, and how fast where nobody says.

`settled` closes what a base decides before anything is forecast; `begun` builds the model; `adapted` freezes and adapts
one. The loop knows nothing of it: a parameter that does not learn has no gradient, is in no optimiser and in no
checkpoint, because the base still has it. So the base must stay where it is until a run is finished; its digest is kept
in config.toml, and another is refused.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from foretell import config as run_config
from foretell import runtime
from foretell.config import RunConfig
from foretell.data import Data
from foretell.errors import ConfigError
from foretell.models import source
from foretell.models.encoder import Encoder, headed, new_head
from foretell.models.model import Model, made
from foretell.models.source import Source
from foretell.train import lora

# Peak rates of AdamW where the config names none: usual values, not tuned.
FULL_LR, LORA_LR = 5e-5, 2e-4
FULL_DPO_LR, LORA_DPO_LR = 1e-6, 5e-5


def base(config: RunConfig) -> Source | None:
    """The model that a run goes on from, its weights not read yet."""
    return source.open(Path(config.train.base)) if config.train.base is not None else None


def settled(config: RunConfig) -> RunConfig:
    """The config with what its base and [lora] decide: sizes, optimiser, rate, dropout, how many numbers learn.

    Raises ConfigError where the config says something else than the base, ModelError where there is no base to read.
    """
    found = base(config)
    if found is None:
        if config.lora.rank is not None:
            raise ConfigError("lora.rank is set, but there is no train.base that could be adapted; give --base MODEL")
        return config
    _check_head(config, found)
    for key in sorted(config.model.model_fields_set - {"head", "labels"}):
        own, given = getattr(found.config, key), getattr(config.model, key)
        if given is not None and given != own:
            raise ConfigError(
                f"model.{key} is {given}, but the base {config.train.base} has {own}; leave model.{key} out"
            )
    t = config.train
    changes: dict[str, object] = {"base_digest": found.digest}
    if "optimizer" not in t.model_fields_set:
        changes["optimizer"] = "adamw"
    elif t.optimizer != "adamw" and t.lr is None:
        raise ConfigError(f"train.optimizer={t.optimizer} has no usual rate for going on from a base; give train.lr")
    if t.lr is None:
        rates = (FULL_DPO_LR, LORA_DPO_LR) if t.objective == "dpo" else (FULL_LR, LORA_LR)
        changes["lr"] = rates[config.lora.rank is not None]
    if t.dropout is None:
        changes["dropout"] = 0.0
    model = {k: v for k, v in found.config.model_dump().items() if v is not None}
    model |= {k: v for k in ("head", "labels") if (v := getattr(config.model, k)) is not None}
    return counted(run_config.updated(config, model=model, train=changes))


def _check_head(config: RunConfig, base: Source) -> None:
    """ConfigError where the base has a head that is of no use for what is learned, or none and none is made."""
    wanted, own = config.model.head, base.config.head
    if wanted is None and (base.bare or own is not None):
        has = "no head" if own is None else f"a head for {own}"
        raise ConfigError(f"the base {config.train.base} has {has}, so no token can be predicted with it")
    if wanted is not None and base.config.model_type != "bert":
        raise ConfigError(
            f"train.objective={wanted} wants an encoder; the base {config.train.base} is {base.config.model_type}"
        )
    if wanted == own == "labels" and config.model.labels != base.config.labels:
        here, there = config.model.labels or (), base.config.labels or ()
        raise ConfigError(
            f"the base {config.train.base} has {len(there):,} labels, the data {len(here):,}, or they are in another "
            "order: set data.labels to those of the base"
        )


def _has_its_head(config: RunConfig, base: Source) -> bool:
    """Whether the head of the run is that of its base."""
    return config.model.head is None or config.model.head == base.config.head


def counted(config: RunConfig) -> RunConfig:
    """The config of a sized model with the numbers that learn. ConfigError for what [lora] or train.freeze misnames."""
    if config.lora.rank is None and not config.train.freeze:
        if config.train.trained_parameters is None:
            return config
        return run_config.updated(config, train=dict.fromkeys(("trained_parameters", "added_parameters", "adapted")))
    with torch.device("meta"):
        model = adapted(made(config.model), config)
    learning = [(n, p.numel()) for n, p in model.named_parameters() if p.requires_grad]
    added = sum(size for n, size in learning if n.endswith(lora.HALVES))
    names = sorted({n.rsplit(".", 2)[1] for n, _ in learning if n.endswith(lora.HALVES)})
    numbers = {"trained_parameters": sum(size for _, size in learning), "added_parameters": added or None}
    return run_config.updated(config, train={**numbers, "adapted": names or None})


def adapted(model: Model, config: RunConfig) -> Model:
    """The model with its adapters on, or parts of it frozen, as the config says."""
    patterns = config.train.freeze or []
    if config.lora.rank is None:
        _freeze(model, patterns)
    elif patterns:
        raise ConfigError("train.freeze has no effect with [lora], which freezes the whole base; leave one of them out")
    else:
        lora.adapt(model, config.lora, config.train.seed)
    return model


def begun(config: RunConfig) -> Model | None:
    """The base of a run, whole, on this run's device and as it is trained; None where there is no base."""
    found = base(config)
    if found is None:
        return None
    dropout = config.train.dropout or 0.0
    model = found.model(dropout, config.train.attention)
    if not _has_its_head(config, found) and isinstance(model, Encoder):
        model = headed(model, config.model, dropout, config.train.seed)
    runtime.seed_all(config.train.seed)
    return adapted(model.to(runtime.device()), config)


def initial(config: RunConfig) -> Callable[[str, tuple[int, ...]], Tensor] | None:
    """Where a process that holds a part of the model reads each whole weight; None: weights are drawn."""
    found = base(config)
    if found is None:
        return None

    new = not _has_its_head(config, found)

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        if name.endswith(lora.HALVES):
            return lora.initial(name, shape, config.train.seed)
        if new and not name.startswith("model."):
            return new_head(config.model, name, config.train.seed)
        return found.weight(name, shape)

    return weight


def check(config: RunConfig, data: Data) -> None:
    """Refuse data of another tokenizer than the base's, a base that has changed, and adapters where none can be."""
    if config.parallel.pp > 1 and (config.lora.rank or config.train.freeze):
        what = "lora.rank" if config.lora.rank else "train.freeze"
        raise ConfigError(
            f"parallel.pp ({config.parallel.pp}) cannot be had with {what} yet; divide by dp_shard, dp_replicate or tp"
        )
    found = base(config)
    if found is None:
        return
    if config.lora.rank is not None and not _has_its_head(config, found):
        raise ConfigError(
            f"lora.rank freezes all but the adapters, and {config.train.base} brings no such head: a new one would "
            "learn nothing; leave lora.rank out, or name what is not to learn by train.freeze"
        )
    if found.digest != config.train.base_digest:
        then, now = (config.train.base_digest or "")[:12], found.digest[:12]
        raise ConfigError(f"the base {config.train.base} is not what the run began with ({then} then, {now} now)")
    if data.tokenizer.digest != found.tokenizer.digest:
        raise ConfigError(
            f"{data.path} is in tokens of another tokenizer than that of {config.train.base} "
            f"({data.tokenizer.digest[:12]}, not {found.tokenizer.digest[:12]}); give the text itself, or prepare it "
            "anew with the base's tokenizer"
        )


def _freeze(model: nn.Module, patterns: list[str]) -> None:
    """Parameters whose names match one of the patterns learn nothing. ConfigError where a pattern matches none."""
    names = [n for n, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.0)
            raise ConfigError(f"train.freeze: {pattern!r} matches no parameter; nearest: {', '.join(near)}")
    for name, p in model.named_parameters():
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            p.requires_grad_(False)
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError(f"train.freeze = {patterns} leaves nothing to train")
