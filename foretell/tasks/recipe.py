"""What a task decides of a run where nobody says otherwise: family, sizes, objective, data, length.

A model that is given brings its family. From nothing translation and summarization begin as an encoder-decoder,
classification and question answering as an encoder, dialogue and generation as a decoder. The sizes are a
beginning, not a tuning; docs/translation.md has what one of them took and reached.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foretell import config as run_config
from foretell.config import RunConfig
from foretell.config.model import ENCODER_DECODERS
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


def family(c: RunConfig) -> str:
    """The family of a model that begins from nothing: the config's, where it names one, else the task's."""
    if "model_type" in c.model.model_fields_set:
        return c.model.model_type
    return _FAMILIES.get(c.task.kind or "", "qwen3")


def settled(
    c: RunConfig, family: str, form: str, longest: int | None, template: Template | None, folder: Path
) -> RunConfig:
    """The config of a run that learns a task from the files in `folder`; what is set stays.

    family: of the model. form: of its records. longest: tokens that the base reads; None without a base.
    template: of conversations.
    """
    t, based = c.train, longest is not None
    train: dict[str, Any] = {"objective": _OBJECTIVES[form]}
    if "context" not in t.model_fields_set:
        train["context"] = context(c, longest)
    if t.steps is None and t.tokens is None and t.budget is None and t.epochs is None:
        train["epochs"] = _EPOCHS_OF_BASE if based else _EPOCHS
    data: dict[str, Any] = {"source": [str(folder / f"{s}.jsonl") for s in ("train", "valid")], "split": "name"}
    data["test_fraction"] = 0.0
    if form == "pairs":
        data |= {"source_key": "source", "target_key": "target"}
    elif form == "text":
        data["text_key"] = "text"
    else:
        data["format"] = form
    if template is not None:
        marks = {"chat_bos": template.bos, "chat_eos": template.eos, "chat_system": template.system}
        data |= {"chat_template": template.name} | {k: v for k, v in marks.items() if v and getattr(c.data, k) is None}
    changes: dict[str, dict[str, Any]] = {"train": train, "data": data}
    if based and c.evaluate.max_tokens is None:
        changes["evaluate"] = {"max_tokens": _LOOKED_AT}  # the score is that of the answers
    if not based:
        sizes = _SIZES.get(family, {}) if c.model.hidden_size is None else {}
        asked = {k: getattr(c.model, k) for k in c.model.model_fields_set}
        changes["model"] = {"model_type": family, **sizes, **asked}
        learning = _LEARNING.get(family, {}) if c.parallel.tp == 1 else {}
        train |= {k: v for k, v in learning.items() if k not in t.model_fields_set}
        if family == "bert" and not c.tokenizer.model_fields_set:
            changes["tokenizer"] = {"kind": "wordpiece"}
    return run_config.updated(c, **changes)


def context(c: RunConfig, longest: int | None) -> int:
    """Tokens a row: the task's usual number, at most what the base reads."""
    usual = _CONTEXTS[c.task.kind or "generation"]
    if "context" in c.train.model_fields_set:
        return c.train.context
    wanted = usual if family(c) in ENCODER_DECODERS or longest is None else max(usual, 256)
    return wanted if longest is None else min(wanted, longest)
