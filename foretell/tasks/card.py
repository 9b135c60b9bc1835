"""task.json beside a model: what it was tuned for, and how it wants to be asked. See docs/formats.md."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from foretell.config import TaskConfig
from foretell.errors import ModelError
from foretell.tokenizer.chat import TEMPLATES, Template

FILE = "task.json"
FORMAT_VERSION = 1
_LARGEST_BYTES = 1 << 20


class Card(NamedTuple):
    """What a model was tuned for, and of a decoder the chat template it was tuned with."""

    task: TaskConfig
    template: Template | None


def contents(card: Card) -> dict[str, Any]:
    """The file, as JSON."""
    template = None if card.template is None else asdict(card.template)
    return {"format_version": FORMAT_VERSION, "task": card.task.model_dump(exclude_none=True), "template": template}


def read(path: Path) -> Card | None:
    """The card of a run folder, or of a model's folder; None where there is none. ModelError for a damaged one."""
    folder = Path(path)
    file = next((f for f in (folder / "model" / FILE, folder / FILE) if f.is_file()), None)
    if file is None:
        return None
    if file.stat().st_size > _LARGEST_BYTES:
        raise ModelError(f"{file}: {file.stat().st_size:,} bytes are too many for a card ({_LARGEST_BYTES:,})")
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        version, template = told["format_version"], told["template"]
        if version > FORMAT_VERSION:
            raise ModelError(f"{file}: format_version {version} is newer than this Foretell reads ({FORMAT_VERSION})")
        own = None if template is None else Template(**template)
        if own is not None and own.name not in TEMPLATES:
            raise ModelError(f"{file}: there is no chat template {own.name!r}")
        return Card(TaskConfig.model_validate(told["task"]), own)
    except (ValueError, KeyError, TypeError, RecursionError, ValidationError) as e:
        raise ModelError(f"{file}: not the card of a task: {' '.join(str(e).split())[:200]}") from None
