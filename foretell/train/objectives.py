"""What a run learns: whether its config, model and text can, and the batches of it as tensors.

The rows themselves are made by `data/objectives.py`, which evaluation shares.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from foretell import config as run_config
from foretell.config import RunConfig
from foretell.config.model import ENCODER_DECODERS
from foretell.data import Data, objectives
from foretell.data.objectives import OF_CONVERSATIONS, UNSCORED, WITH_HEAD, WITH_SOURCE, Rows
from foretell.errors import ConfigError
from foretell.models.model import Given

DRAWN = 64  # micro-batches that are looked at before a run
_OF_KINDS = {
    "encoder": ("masked", "labels", "spans"),
    "encoder-decoder": ("span_corruption", "seq2seq"),
    "decoder": ("next_token", "fill_in_the_middle", "prefix", "answers", "dpo"),
}


class Batch(NamedTuple):
    """A micro-batch. inputs, targets: (B, T). segments: (B, T) document numbers to keep apart, or None.

    given: what rows have besides. scored: how many targets count. document: of preferences the number of the pair.
    """

    inputs: Tensor
    targets: Tensor
    segments: Tensor | None
    given: Given | None
    scored: int
    document: Tensor | None = None


def tensors(rows: Rows, device: torch.device, within: bool, partly: bool) -> Batch:
    """Rows as tensors. within: whether attention stays inside documents. partly: whether some targets do not count."""
    there = [None if a is None else torch.from_numpy(a).to(device) for a in rows]
    inputs, targets, segments, prefix, source, real, document, marks = there
    assert inputs is not None
    assert targets is not None
    plain = prefix is None and source is None and marks is None
    given = None if plain else Given(prefix, source, real, marks)
    scored = int((rows.targets != UNSCORED).sum()) if partly else rows.targets.size
    return Batch(inputs, targets, segments if within else None, given, scored, document)


def fitting(config: RunConfig, data: Data) -> RunConfig:
    """The config with the objective that this data is for, where none was chosen; conversations see only themselves.

    Raises ConfigError where another objective was chosen for conversations, or attention across them.
    """
    kind = data.conversations
    if data.task is not None:
        return _with_head(config, data, data.task)
    if kind is None:
        return config
    wanted, t = OF_CONVERSATIONS[kind], config.train
    if "objective" in t.model_fields_set and t.objective != wanted:
        raise ConfigError(
            f"train.objective={t.objective} is nothing for this data, which is {kind}: leave it out, or set {wanted}"
        )
    if "packing" in config.data.model_fields_set and config.data.packing != "within":
        raise ConfigError("data.packing=across does not go with conversations, which see only themselves; leave it out")
    changes: dict[str, object] = {"objective": wanted}
    if wanted == "dpo":
        if t.compile == "on" or t.base is None:
            compiled = "train.compile=on does not go with train.objective=dpo; leave it out"
            raise ConfigError(
                compiled if t.base else "train.objective=dpo holds a model to its base: give --base MODEL"
            )
        changes |= {"compile": "off", "micro_batch_size": t.micro_batch_size or 2}
    return run_config.updated(config, train=changes, data={"packing": "within"})


def _with_head(config: RunConfig, data: Data, task: str) -> RunConfig:
    """The config of an encoder with the head that the data is for. ConfigError where it wants another."""
    t = config.train
    if "objective" in t.model_fields_set and t.objective != task:
        raise ConfigError(
            f"train.objective={t.objective} is nothing for data.format={task}: leave it out, or set {task}"
        )
    if "packing" in config.data.model_fields_set:
        raise ConfigError(
            f"data.packing has no effect with data.format={task}, where a row is one record; leave it out"
        )
    if t.compile == "on":
        raise ConfigError(f"train.compile=on does not go with train.objective={task}, whose rows differ in length")
    model: dict[str, object] = {"head": task}
    if task == "labels":
        model["labels"] = tuple(data.index["task"]["labels"])
    if t.base is None and "model_type" not in config.model.model_fields_set:
        model["model_type"] = "bert"
    return run_config.updated(config, model=model, train={"objective": task, "compile": "off"})


def lasting(config: RunConfig, data: Data) -> RunConfig:
    """The config with the tokens that its epochs come to. ConfigError where it says another length as well."""
    t = config.train
    if t.epochs is None:
        return config
    rows = objectives.count(data, "train", t.objective, t.context)
    tokens = max(1, round(t.epochs * rows)) * t.context
    for key, other in (("budget", t.budget), ("tokens", None if t.tokens == tokens else t.tokens)):
        if other is not None:
            raise ConfigError(
                f"train.epochs ({t.epochs:g}, which is {tokens:,} tokens) and train.{key} ({other}) are two lengths; "
                "leave one out"
            )
    return run_config.updated(config, train={"tokens": tokens})


def drawn(config: RunConfig, data: Data) -> RunConfig:
    """A completed config with what rows of this text come to, where the text decides: the first micro-batches say it.

    Rows are padded to the longest of their micro-batch, and not all of their tokens are asked for.
    """
    t = config.train
    if t.objective not in objectives.PARTLY or t.objective == "dpo":
        return config
    sequences, micro = t.needed("global_batch_tokens") // t.context, t.needed("micro_batch_size")
    start, parts = config.model.decoder_start_token_id, list[Rows]()
    for step in range(-(-DRAWN * micro // sequences)):
        where: dict[str, Any] = {"seed": t.seed, "step": step, "batch_size": sequences, "context": t.context}
        found = objectives.rows(t.objective, data, "train", start=start, **where).by_length()
        some = [found.part(slice(i, i + micro)) for i in range(0, sequences, micro)]
        parts += some if t.compile == "on" else [part.trimmed(1) for part in some]
    rows = sum(len(part.inputs) for part in parts)
    asked = [part.inputs.size if t.objective == "spans" else int((part.targets != UNSCORED).sum()) for part in parts]
    changes: dict[str, float] = {
        "row_tokens": round(sum(part.inputs.size for part in parts) / rows, 2),
        "row_scored": round(sum(asked) / rows, 2),
        "most_scored": max(asked),
    }
    if t.objective in WITH_SOURCE:
        changes["row_source"] = round(sum(part.source.size for part in parts if part.source is not None) / rows, 2)
    return run_config.updated(config, train=changes)


def check(config: RunConfig, data: Data) -> None:
    """Raises ConfigError or DataError where this model cannot learn this from this text on this layout."""
    kind, objective, p = config.model.model_type, config.train.objective, config.parallel
    of = "encoder" if kind == "bert" else "encoder-decoder" if kind in ENCODER_DECODERS else "decoder"
    if objective not in _OF_KINDS[of]:
        fitting = " or ".join(_OF_KINDS[of])
        raise ConfigError(f"train.objective={objective} is nothing for {kind}, a kind of {of}: set {fitting}")
    if objective == "dpo" and config.train.needed("micro_batch_size") % 2:
        micro = config.train.micro_batch_size
        raise ConfigError(f"train.objective=dpo wants an even train.micro_batch_size, which is {micro}")
    for axis in ("tp", "pp", "cp") if objective == "dpo" or objective in WITH_HEAD else ():
        if (degree := getattr(p, axis)) > 1:
            raise ConfigError(
                f"parallel.{axis} ({degree}) cannot be had with train.objective={objective} yet; divide by dp_shard or "
                "dp_replicate"
            )
    if config.train.label_smoothing and (p.tp > 1 or objective == "dpo"):
        what = f"parallel.tp ({p.tp})" if p.tp > 1 else "train.objective=dpo"
        raise ConfigError(f"train.label_smoothing ({config.train.label_smoothing}) cannot be had with {what}; set it 0")
    objectives.special_ids(data.tokenizer, objective)
    objectives.count(data, "train", objective, config.train.context)
    if objective == "span_corruption":
        objectives.check_context(config.train.context)
    if config.data.packing == "within" and objective in WITH_SOURCE:
        raise ConfigError(f"data.packing=within does not go with train.objective={objective}; leave it out")
    if p.cp > 1 and of == "encoder-decoder":
        raise ConfigError(
            f"parallel.cp ({p.cp}) cannot be had with {kind} yet; divide by dp_shard, dp_replicate, tp or pp"
        )
