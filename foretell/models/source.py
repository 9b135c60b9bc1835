"""A stored model of whatever form, with weights that are read when they are asked for.

`open(path)` takes a run folder, a Hugging Face folder, a GGUF file, or a folder with an adapter (peft's format, which
is added to its base). `load` gives the whole model; a process that holds a part of it asks for one weight after
another. Not handled: an adapter whose base is not on this machine.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from foretell.config import ModelConfig
from foretell.errors import ModelError
from foretell.models import adapters, gguf, hf
from foretell.models.hf import Chat, configs, encoders, names
from foretell.models.model import Model
from foretell.tokenizer import Tokenizer

_MOST_ADAPTERS = 8  # on top of each other


@dataclass(frozen=True)
class Source:
    """A stored model. files: what it is read from. rules: how its weights are called (`models/hf/names.py`).

    stored: a weight by its name in a Hugging Face folder, in float32. bare: an encoder without its head.
    """

    path: Path
    files: tuple[Path, ...]
    config: ModelConfig
    tokenizer: Tokenizer
    chat: Chat
    rules: str
    stored: Callable[[str], Tensor]
    bare: bool = False

    def weight(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """The whole weight `name` of our model, which has that shape, in float32."""
        return hf.weights(self.rules, {name: torch.empty(shape, device="meta")}, self.stored, self.path)[name]

    def model(self, dropout: float = 0.0, kernel: str = "sdpa") -> Model:
        """The whole model on the CPU, in evaluation mode. ModelError where weights are missing or of another shape."""
        return hf.built(
            self.config, self.rules, self.stored, bare=self.bare, path=self.path, dropout=dropout, kernel=kernel
        )

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the names and contents of the files."""
        whole = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as f:
                whole.update(f"{file.name} {hashlib.file_digest(f, 'sha256').hexdigest()}\n".encode())
        return whole.hexdigest()


def load(path: Path) -> tuple[Model, Tokenizer]:
    """The model, in float32, on the CPU, in evaluation mode, and its tokenizer. ModelError says what does not fit."""
    found = open(path)
    return found.model(), found.tokenizer


def open(path: Path, depth: int = 0) -> Source:
    """The stored model at `path`. ModelError where there is none, or none that can be read."""
    path = Path(path)
    if path.is_file():
        return _gguf(path)
    if (path / "config.toml").exists():
        if not (path / "model" / "config.json").exists():
            raise ModelError(
                f"{path} has no finished model yet; finish it with: "
                f"foretell train --name {path.name} --out {path.parent} --resume"
            )
        path = path / "model"
    if (path / adapters.CONFIG).is_file() and not (path / "config.json").is_file():
        return _adapted(path, depth)
    return _folder(path)


def _folder(path: Path) -> Source:
    """A Hugging Face folder."""
    found = hf.open(path)
    return Source(path, found.files, found.config, found.tokenizer, _chat(path), found.rules, found.stored, found.bare)


def _chat(folder: Path) -> Chat:
    """The chat template of a folder: in tokenizer_config.json, or as transformers 5 writes it, in a file of its own."""
    file = folder / "tokenizer_config.json"
    told = configs.read_json(file) if file.is_file() else {}
    template = told.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = [t.get("template") for t in template if isinstance(t, dict) and t.get("name") == "default"]
        template = named[0] if named else None
    own = folder / "chat_template.jinja"
    if own.is_file() and own.stat().st_size < 1 << 20:
        template = own.read_text(encoding="utf-8", errors="replace")
    marks = []
    for key in ("bos_token", "eos_token"):
        mark = told.get(key)
        mark = mark.get("content") if isinstance(mark, dict) else mark
        marks.append(mark if isinstance(mark, str) else "")
    return Chat(template if isinstance(template, str) else None, *marks)


def _gguf(path: Path) -> Source:
    """A GGUF file."""
    file = gguf.read(path)
    _, stored = gguf.stored(file)
    described = gguf.config(file)
    bare = described["model_type"] in encoders.KINDS
    config = (encoders.table if bare else configs.table)(described, str(path))
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    marks = []
    for key in ("bos", "eos"):
        n = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        known = isinstance(tokens, list) and isinstance(n, int) and 0 <= n < len(tokens)
        marks.append(str(tokens[n]) if known else "")  # type: ignore[index]
    template = file.metadata.get("tokenizer.chat_template")
    chat = Chat(template if isinstance(template, str) else None, *marks)
    tokenizer = gguf.tokenizer(file)
    if tokenizer.vocab_size > (config.vocab_size or 0):
        raise ModelError(
            f"{path}: the tokenizer has {tokenizer.vocab_size:,} ids, the model's table {config.vocab_size:,} rows"
        )
    return Source(path, (path,), config, tokenizer, chat, names.dialect(config, bare), stored, bare)


def _adapted(path: Path, depth: int) -> Source:
    """An adapter, added to its base."""
    if depth >= _MOST_ADAPTERS:
        raise ModelError(f"{path}: more than {_MOST_ADAPTERS} adapters stand on each other")
    adapter = adapters.read(path)
    base = open(adapter.base_of(path), depth + 1)
    parts = adapter.deltas(base.stored)
    files = (*base.files, path / adapters.CONFIG, path / adapters.WEIGHTS)
    return Source(path, files, base.config, base.tokenizer, base.chat, base.rules, parts, base.bare)
