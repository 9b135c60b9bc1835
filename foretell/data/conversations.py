"""Conversations and preferences from JSON lines, and their tokens: what is said, and which of it is an answer.

    {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}     data.format=chat
    {"prompt": ..., "completion": ...}      {"instruction": ..., "input": ..., "output": ...}   the same in one turn
    {"prompt": ..., "chosen": ..., "rejected": ...}                                             data.format=preference

A prompt is text, or messages; so are chosen and rejected (then the last message counts, and a prompt may be left out).
A record becomes one document, JSON in one form whatever it came in, so that duplicates are found; the tokenizer sees
what the chat template makes of it (`tokenizer/chat.py`). Beside each token stands a byte: ANSWER where its loss counts,
SECOND where the rejected one begins. Not handled: tools, images, several answers of one turn.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from foretell.config import DataConfig
from foretell.data import labelled
from foretell.data.formats import TEXT_KEYS
from foretell.data.readers import Entry
from foretell.data.records import Turns
from foretell.data.streams import blocks
from foretell.errors import ConfigError
from foretell.tokenizer import Tokenizer, chat
from foretell.tokenizer.chat import Template

ANSWER, SECOND = 1, 2
_FIRST_RECORD_BYTES = 1 << 22


def kind_of(value: Any) -> str | None:
    """`chat` or `preference`, where a record of JSON has one of the forms, and no text beside it."""
    if not isinstance(value, dict) or any(key in value for key in TEXT_KEYS):
        return None
    if {"chosen", "rejected"} <= value.keys():
        return "preference"
    one_turn = {"prompt", "completion"} <= value.keys() or {"instruction", "output"} <= value.keys()
    return "chat" if isinstance(value.get("messages"), list) or one_turn else None


def recognised(entries: Sequence[Entry]) -> str | None:
    """The form of the first record of the first file of JSON lines among the inputs; None where it is text."""
    for entry in entries:
        if entry.path is None or not {".jsonl", ".ndjson"} & set(entry.path.suffixes):
            continue
        start = b""
        try:
            for block in blocks(entry.path):
                start += block
                if b"\n" in start.lstrip() or len(start) > _FIRST_RECORD_BYTES:
                    break
            return kind_of(json.loads(start.lstrip().partition(b"\n")[0]))
        except (OSError, ValueError, RecursionError):
            return None
    return None


def settled(c: DataConfig, entries: Sequence[Entry]) -> DataConfig:
    """The config with what the inputs are, where it does not say so. ConfigError as `turns_of`."""
    if c.format is None and c.text_key is None and c.source_key is None:
        c = c.model_copy(update={"format": recognised(entries)})
    turns_of(c)
    return c


def turns_of(c: DataConfig) -> Turns | None:
    """What the records are, where they are no texts. ConfigError for what does not go with that."""
    for key, value, wanted in (("labels", c.labels, "labels"), ("stride", c.stride, "spans")):
        if value is not None and c.format != wanted:
            raise ConfigError(f"data.{key} goes with data.format={wanted} alone; set that, or leave it out")
    if c.format not in ("chat", "preference", *labelled.KINDS):
        return None
    for key in ("text_key", "source_key", "target_key", "languages", "decontaminate"):
        if getattr(c, key) is not None:
            raise ConfigError(f"data.{key} does not go with data.format={c.format}; leave it out")
    if c.quality or c.split == "tail":
        what = "quality" if c.quality else "split=tail"
        raise ConfigError(f"data.{what} does not go with data.format={c.format}; leave it out")
    if c.format in labelled.KINDS:
        return _labelled(c)
    if c.chat_template is None:
        raise ConfigError(
            f"data.format={c.format} needs a chat template: give a model that has one (--base), or data.chat_template, "
            f"one of {', '.join(chat.TEMPLATES)}"
        )
    return Turns(c.format, template(c))


def _labelled(c: DataConfig) -> Turns:
    """Texts with labels, or questions."""
    kind = str(c.format)
    if c.personal_data != "keep" or c.chat_template is not None:
        what = "chat_template" if c.chat_template is not None else f"personal_data={c.personal_data}"
        raise ConfigError(f"data.{what} does not go with data.format={kind}; leave it out")
    if c.labels is not None and len(set(c.labels)) < len(c.labels):
        raise ConfigError("data.labels names a label twice")
    return Turns(kind, labels=None if c.labels is None else tuple(c.labels))


def template(c: DataConfig, end: str = "") -> Template:
    """The chat template of the config. end: the mark behind an answer where the config has none."""
    return chat.named(c.chat_template or "", c.chat_bos or "", c.chat_eos or end, c.chat_system)


def end_mark(tokenizer: Tokenizer) -> str:
    """The text of the token that ends a text."""
    return "" if tokenizer.eot_id is None else str(tokenizer.inner.id_to_token(tokenizer.eot_id))


def encoded(tokenizer: Tokenizer, own: Template, text: str) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and their bytes of one document: a conversation, or the chosen and the rejected one with an end between.

    Raises ConfigError where the template has no such order of roles.
    """
    value = json.loads(text)
    if isinstance(value, list):
        ids, answers = chat.encode(tokenizer, chat.render(own, value))
        return np.array(ids, np.uint32), np.array(answers, np.uint8) * ANSWER
    tokens, marks = list[int](), list[int]()
    for n, side in enumerate(("chosen", "rejected")):
        messages = [*value["prompt"], {"role": "assistant", "content": value[side]}]
        rendered = chat.render(own, messages)
        last = chat.Rendered(rendered.text, rendered.answers[-1:], rendered.parts)
        ids, answers = chat.encode(tokenizer, last)
        if n:
            tokens, marks = [*tokens, tokenizer.eot_id or 0], [*marks, 0]
        marks += [int(a) * ANSWER + (SECOND if n and k == 0 else 0) for k, a in enumerate(answers)]
        tokens += ids
    return np.array(tokens, np.uint32), np.array(marks, np.uint8)
