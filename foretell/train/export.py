"""What a finished run leaves: `model/`, a Hugging Face folder, and of a run with adapters `adapter/` as peft has it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from foretell import checkpoint
from foretell.checkpoint import files
from foretell.checkpoint.load import Opened
from foretell.config import RunConfig
from foretell.data import Data
from foretell.errors import CheckpointError
from foretell.models import adapters, hf, initial
from foretell.models.hf import Chat
from foretell.models.model import made
from foretell.models.source import Source
from foretell.tasks import card
from foretell.tasks.card import Card
from foretell.tokenizer import chat
from foretell.train import lora, tune
from foretell.train.alone import Alone, Team
from foretell.vectors import embedding


def model(run: Path, config: RunConfig, data: Data, team: Team) -> None:
    """The folder, from memory or from the checkpoint that all processes have just written; adapters are merged in it.

    Raises CheckpointError where several processes trained and there is none.
    """
    base = tune.base(config)
    _folder(run, config, data, team, base)
    if config.task.kind is not None:
        told = data.index.get("conversations")
        template = chat.named(told["name"], told["bos"], told["eos"], told["system"]) if told else None
        written = json.dumps(card.contents(Card(config.task, template)), ensure_ascii=False, indent=1) + "\n"
        for folder in (run / "model", run / "adapter"):
            if folder.is_dir():
                files.write_atomic(folder / card.FILE, written.encode())


def _folder(run: Path, config: RunConfig, data: Data, team: Team, base: Source | None) -> None:
    brought = _brought(base, data)
    if isinstance(team, Alone):
        learned = dict(lora.of(team.model))
        whole = dict(lora.merged(team.model.state_dict().items(), learned, config.lora))
        hf.save(team.model, data.tokenizer, run / "model", whole, brought)
    else:
        last = checkpoint.open_latest(run / "checkpoints", "model.")
        if last is None:
            raise CheckpointError(f"{run / 'checkpoints'}: no checkpoint to export; resume the run")
        learned = {n: t for n, t in last.tensors("model.") if n.endswith(lora.HALVES)} if config.lora.rank else {}
        parts = lora.merged(_whole(last, config, data), learned, config.lora)
        hf.write(config.model, parts, data.tokenizer, run / "model", brought=brought)
    if config.lora.rank is not None and base is not None:
        alpha = lora.scale(config.lora) * config.lora.rank
        facts = (base.rules, str(base.path.absolute()), config.lora.rank, alpha, config.lora.dropout)
        adapters.write(run / "adapter", *facts, learned.items())


def _whole(last: Opened, config: RunConfig, data: Data) -> Iterator[tuple[str, Tensor]]:
    """Every weight, one at a time: what has learned from the checkpoint, the rest from where the run had it."""
    begun, seed = tune.initial(config), config.train.seed
    start = embedding.start(config.train.init_embedding, data.tokenizer, config.model)
    with torch.device("meta"):
        model = made(config.model)
    names = [(n, tuple(p.shape)) for n, p in model.named_parameters()]
    for name, shape in names:
        if f"model.{name}" in last.catalogue:
            yield name, last.tensor(f"model.{name}")
        elif begun is not None:
            yield name, begun(name, shape)
        else:
            drawn, here = torch.empty(shape), (0,) * len(shape)
            initial.fill(drawn, name, here, shape, initial.beginning(model, name, shape, config.model), seed)
            if start is not None and name == embedding.EMBEDDING:
                start.fill(drawn, here)
            yield name, drawn


def _brought(base: Source | None, data: Data) -> Chat | None:
    """The chat template that the model is to be asked with: its base's, or the one its conversations were written in.

    Of those that were chosen by name chatml alone has a source of its own; the others are named again by whoever asks.
    """
    told = data.index.get("conversations")
    own = base.chat if base is not None else Chat()
    if own.template or not told:
        return own
    template = chat.CHATML if told["name"] == "chatml" else None
    return Chat(template, told["bos"], "<|im_end|>" if template else told["eos"])
