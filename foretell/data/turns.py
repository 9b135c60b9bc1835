"""One record of JSON as a conversation or a preference in one form, or why it is none. See `conversations.py`."""

from __future__ import annotations

import json
from typing import Any

from foretell.data import labelled
from foretell.data.records import Turns
from foretell.tokenizer import chat

# What roles are called elsewhere: ShareGPT, Gemma, CrossWOZ.
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}
_ROLES |= {"usr": "user", "sys": "assistant"}


def canonical(value: Any, turns: Turns) -> str:
    """The document of a record. Raises ValueError or ConfigError, which says what is wrong."""
    if not isinstance(value, dict):
        raise ValueError(f"a record is {type(value).__name__}, not an object")
    if turns.template is None:
        return labelled.canonical(value, turns)
    if turns.kind == "preference":
        found = _preference(value)
        chat.render(turns.template, [*found["prompt"], _message("assistant", found["chosen"])])
        return _written(found)
    messages = messages_of(value)
    if not any(m["role"] == "assistant" and m["content"].strip() for m in messages):
        raise ValueError("no answer: no message of the assistant says anything")
    chat.render(turns.template, messages)  # which not every order of roles has
    return _written(messages)


def _written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def messages_of(value: dict[str, Any]) -> list[dict[str, str]]:
    """The messages of a record in one of the forms of a conversation. ValueError says what is wrong."""
    if "messages" in value:
        return _messages(value["messages"])
    if "instruction" in value:
        asked, more = _text(value["instruction"], "instruction"), value.get("input") or ""
        asked = f"{asked}\n\n{_text(more, 'input')}" if more else asked
        return [_message("user", asked), _message("assistant", _text(value.get("output"), "output"))]
    if "prompt" not in value:
        raise ValueError("no conversation: neither messages, nor prompt and completion, nor instruction and output")
    said = value.get("completion")
    answer = _messages(said) if isinstance(said, list) else [_message("assistant", _text(said, "completion"))]
    return [*_prompt(value["prompt"]), *answer]


def _preference(value: dict[str, Any]) -> dict[str, Any]:
    sides: dict[str, str] = {}
    prompt = _prompt(value["prompt"]) if value.get("prompt") else None
    for side in ("chosen", "rejected"):
        said = value.get(side)
        if isinstance(said, list):
            *before, last = _messages(said)
            if last["role"] != "assistant":
                raise ValueError(f"{side} does not end with a message of the assistant")
            if prompt is None:
                prompt = before
            elif before not in ([], prompt):
                raise ValueError(f"{side} begins with another prompt")
            sides[side] = last["content"]
        else:
            sides[side] = _text(said, side)
    if not prompt:
        raise ValueError("no prompt")
    if sides["chosen"] == sides["rejected"]:
        raise ValueError("chosen and rejected say the same")
    return {"prompt": prompt, **sides}


def _prompt(value: Any) -> list[dict[str, str]]:
    return _messages(value) if isinstance(value, list) else [_message("user", _text(value, "prompt"))]


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not value:
        raise ValueError("messages is no list of messages")
    found = []
    for n, m in enumerate(value):
        if not isinstance(m, dict):
            raise ValueError(f"message {n} is {type(m).__name__}, not an object")
        role = m.get("role", m.get("from"))
        role = _ROLES.get(role, role) if isinstance(role, str) else role
        if role not in ("system", "user", "assistant"):
            raise ValueError(f"message {n} has the role {role!r}; there are system, user and assistant")
        found.append(_message(role, _text(m.get("content", m.get("value")), f"the content of message {n}")))
    return found


def _message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{what} is {'absent' if value is None else type(value).__name__}, not a string")
    if not value.strip():
        raise ValueError(f"{what} is empty")
    return value.replace("\r\n", "\n").replace("\r", "\n")
