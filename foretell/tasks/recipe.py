"""What a task decides of a run where nobody says otherwise: family, form of the examples, sizes, objective, length.

A model that is given brings its family. From nothing translation and summarization begin as an encoder-decoder,
classification and question answering as an encoder, dialogue and generation as a decoder. The sizes are a
beginning, not a tuning; docs/translation.md has what one of them took and reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretell import config as run_config
from foretell.config import RunConfig, TaskConfig
from foretell.config.model import ENCODER_DECODERS
from foretell.errors import ConfigError
from foretell.models import source
from foretell.tasks.records import Reader
from foretell.tasks.tuned import own_template
from foretell.tokenizer import Tokenizer, chat
from foretell.tokenizer.chat import Template

_FAMILIES = {"translation": "marian", "summarization": "marian", "qa": "bert", "classification": "bert"}
_SIZES: dict[str, dict[str, Any]] = {
    "marian": {"hidden_size": 192, "num_hidden_layers": 4, "intermediate_size": 512, "num_attention_heads": 4},
    "bert": {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 1024, "num_attention_heads": 4},
    "qwen3": {"hidden_size": 256, "num_hidden_layers": 4},
}
# Rates and targets from nothing where a family wants others than usual: Marian's table is scaled (docs/log.md).
_LEARNING: dict[str, dict[str, Any]] = {"marian": {"embedding_lr": 0.01, "label_smoothing": 0.1}}
_CONTEXTS = {"translation": 128, "summarization": 384, "qa": 384, "dialogue": 512, "generation": 256}
_CONTEXTS |= {"classification": 64}
_OBJECTIVES = {"pairs": "seq2seq", "labels": "labels", "spans": "spans", "chat": "answers", "text": "next_token"}
_EPOCHS_OF_BASE, _EPOCHS = 3.0, 20.0
_LOOKED_AT = 8_192  # tokens of validation examples whose loss a base has at the end


@dataclass(frozen=True)
class Recipe:
    """A run that is to learn the task of `config`, before its examples are read.

    family: of its model. form: pairs, labels, spans, chat or text, which that kind of model learns from. template: of
    conversations. longest: tokens that the base reads; tokenizer: its own; None without a base.
    """

    config: RunConfig
    family: str
    form: str
    longest: int | None = None
    template: Template | None = None
    tokenizer: Tokenizer | None = None

    @property
    def context(self) -> int:
        """Tokens a row: what is set, else the task's usual number, at most what the base reads."""
        if "context" in self.config.train.model_fields_set:
            return self.config.train.context
        usual = _CONTEXTS[self.config.task.kind or "generation"]
        if self.longest is None:
            return usual
        return min(usual if self.family in ENCODER_DECODERS else max(usual, 256), self.longest)

    @property
    def reader(self) -> Reader | None:
        """What conversations are read with; None where they are none, or the tokenizer is yet to be made."""
        if self.form != "chat" or self.template is None or self.tokenizer is None:
            return None
        return Reader(self.template, self.tokenizer, self.context)

    def settled(self, task: TaskConfig, folder: Path) -> RunConfig:
        """The config of a run that learns `task` from the files in `folder`; what is set stays."""
        c = self.config
        changes = {"train": self._length(), "data": self._data(folder)}
        if self.longest is not None and c.evaluate.max_tokens is None:
            changes["evaluate"] = {"max_tokens": _LOOKED_AT}  # the score is that of the answers
        if self.longest is None:
            sizes = _SIZES.get(self.family, {}) if c.model.hidden_size is None else {}
            changes["model"] = {"model_type": self.family, **sizes, **_set(c.model)}
            learning = _LEARNING.get(self.family, {}) if c.parallel.tp == 1 else {}
            changes["train"] |= {k: v for k, v in learning.items() if k not in _set(c.train)}
            if self.family == "bert" and not c.tokenizer.model_fields_set:
                changes["tokenizer"] = {"kind": "wordpiece"}
        return run_config.updated(c.model_copy(update={"task": task}), **changes)

    def _length(self) -> dict[str, Any]:
        t = self.config.train
        found: dict[str, Any] = {"objective": _OBJECTIVES[self.form], "context": self.context}
        if t.steps is None and t.tokens is None and t.budget is None and t.epochs is None:
            found["epochs"] = _EPOCHS if self.longest is None else _EPOCHS_OF_BASE
        return found

    def _data(self, folder: Path) -> dict[str, Any]:
        files = [str(folder / f"{split}.jsonl") for split in ("train", "valid")]
        found: dict[str, Any] = {"source": files, "split": "name", "test_fraction": 0.0}
        if self.form == "pairs":
            found |= {"source_key": "source", "target_key": "target"}
        elif self.form == "text":
            found["text_key"] = "text"
        else:
            found["format"] = self.form
        if self.template is not None:
            own, c = self.template, self.config.data
            marks = {"chat_bos": own.bos, "chat_eos": own.eos, "chat_system": own.system}
            found["chat_template"] = own.name
            found |= {k: v for k, v in marks.items() if v and getattr(c, k) is None}
        return found


def recipe(c: RunConfig) -> Recipe:
    """The recipe of [task] with the base of [train], or from nothing.

    ConfigError where that kind of model is nothing for the task; ModelError where there is no base that can be read.
    """
    kind = c.task.kind or "generation"
    opened = source.open(Path(c.train.base)) if c.train.base is not None else None
    if opened is not None:
        family, longest = opened.config.model_type, opened.config.needed("max_position_embeddings")
    else:
        family, longest = _set(c.model).get("model_type", _FAMILIES.get(kind, "qwen3")), None
    form, template, named = form_of(family, kind), None, c.data.chat_template
    if form == "chat":
        template = chat.named(named or "plain") if opened is None else own_template(opened, named)
    return Recipe(c, family, form, longest, template, None if opened is None else opened.tokenizer)


def form_of(family: str, kind: str) -> str:
    """pairs, labels, spans, chat or text. ConfigError where that kind of model is nothing for the task."""
    if family == "bert":
        if kind not in ("classification", "qa"):
            raise ConfigError(f"{kind} is nothing for an encoder (bert): it writes no text; choose another --base")
        return "labels" if kind == "classification" else "spans"
    if family in ENCODER_DECODERS:
        if kind not in ("translation", "summarization"):
            raise ConfigError(f"{kind} with an encoder-decoder ({family}) is not handled; choose another --base")
        return "pairs"
    return "text" if kind == "generation" else "chat"


def _set(table: Any) -> dict[str, Any]:
    """The keys of a table of the config that somebody set."""
    return {k: getattr(table, k) for k in table.model_fields_set}
