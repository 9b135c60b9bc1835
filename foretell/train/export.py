"""What a finished run leaves: `model/`, a Hugging Face folder, and of a run with adapters `adapter/` as peft has it."""

from __future__ import annotations

import json
from pathlib import Path

from foretell import checkpoint
from foretell.checkpoint import files
from foretell.config import RunConfig
from foretell.data import Data
from foretell.errors import CheckpointError
from foretell.models import adapters, hf
from foretell.models.hf import Chat
from foretell.models.source import Source
from foretell.tasks import card
from foretell.tasks.card import Card
from foretell.tokenizer import chat
from foretell.train import lora, tune
from foretell.train.alone import Alone, Team


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
        hf.save(team.model, data.tokenizer, run / "model", dict(lora.merged(team.model, config)), brought)
        if config.lora.rank is not None and base is not None:
            alpha = lora.scale(config.lora) * config.lora.rank
            facts = (base.rules, str(base.path.absolute()), config.lora.rank, alpha, config.lora.dropout)
            adapters.write(run / "adapter", *facts, lora.of(team.model))
        return
    last = checkpoint.open_latest(run / "checkpoints", "model.")
    if last is None:
        raise CheckpointError(f"{run / 'checkpoints'}: no checkpoint to export; resume the run")
    hf.write(config.model, last.tensors("model."), data.tokenizer, run / "model", brought=brought)


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
