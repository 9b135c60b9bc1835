"""Token shards: raw little-endian integers in files, document ends and sizes beside them, one JSON index.

The format stands on one page, docs/formats.md. A prepared folder appears by one rename and is never changed afterwards,
so opening checks the index, its version, and every file's size; `check_digests=True` also reads all bytes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from foretell import tokenizer
from foretell.errors import DataError
from foretell.tokenizer import Tokenizer

FORMAT_VERSION = 1
SPLITS = ("train", "valid", "test")
SHARD_TOKENS = 1 << 27
_END = np.dtype("<i8")
_INDEX: dict[str, type | tuple[type, ...]] = {
    "dtype": str,
    "fingerprint": str,
    "tokenizer": dict,
    "splits": dict,
    "funnel": dict,
    "unique_tokens": int,
    "bytes_per_token": (int, float),
    "text_xz_bits_per_byte": (int, float),
}


def token_dtype(vocab_size: int) -> np.dtype:
    """Two bytes a token where the vocabulary fits into them, else four; little-endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


class Tokens:
    """The shards of a split as one read-only 1-D array: `len`, an index, a slice or an array of positions."""

    def __init__(self, shards: list[np.ndarray], dtype: np.dtype) -> None:
        self._shards = shards
        self.dtype = dtype
        self._ends = np.cumsum([len(s) for s in shards], dtype=np.int64) if shards else np.zeros(1, np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def shape(self) -> tuple[int]:
        return (len(self),)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice):
            return self._slice(*key.indices(len(self)))
        positions = np.asarray(key, np.int64)
        if positions.size and not (-len(self) <= positions.min() and positions.max() < len(self)):
            raise IndexError(f"position outside {len(self):,} tokens")
        positions = np.where(positions < 0, positions + len(self), positions)
        of_shard = np.searchsorted(self._ends, positions, "right")
        result = np.empty(positions.shape, self.dtype)
        for n in np.unique(of_shard):
            here = of_shard == n
            start = self._ends[n] - len(self._shards[n])
            result[here] = self._shards[n][positions[here] - start]
        return result if result.ndim else result[()]

    def _slice(self, start: int, stop: int, step: int) -> np.ndarray:
        if step != 1:
            return self[np.arange(start, stop, step)]
        parts, begin = [], 0
        for shard in self._shards:
            low, high = max(start - begin, 0), min(stop - begin, len(shard))
            if low < high:
                parts.append(shard[low:high])
            begin += len(shard)
        return parts[0] if len(parts) == 1 else np.concatenate(parts) if parts else np.empty(0, self.dtype)


@dataclass(frozen=True)
class Data:
    """A prepared folder, open."""

    path: Path
    index: dict[str, Any]
    tokenizer: Tokenizer

    @functools.cached_property
    def _tokens(self) -> dict[str, Tokens]:
        dtype = np.dtype(self.index["dtype"])
        return {
            split: Tokens([np.memmap(self.path / s["file"], dtype, "r") for s in entry["shards"]], dtype)
            for split, entry in self.index["splits"].items()
        }

    @property
    def corpus(self) -> dict[str, Any]:
        """The facts of the training text that `plan` reads."""
        split = self.index["splits"]["train"]
        return {
            "bytes": split["bytes"],
            "tokens": split["tokens"],
            "documents": split["documents"],
            "unique_tokens": self.index["unique_tokens"],
            "bytes_per_token": self.index["bytes_per_token"],
            "xz_bits_per_byte": self.index["text_xz_bits_per_byte"],
            "vocab_size": self.tokenizer.vocab_size,
        }

    @property
    def has_pairs(self) -> bool:
        """Whether each document is a source and a target, each with its <|endoftext|>."""
        return bool(self.index.get("pairs"))

    @property
    def conversations(self) -> str | None:
        """`chat` or `preference` where the documents are such, with a byte beside each token (`conversations.py`)."""
        told = self.index.get("conversations")
        return str(told["kind"]) if isinstance(told, dict) else None

    @property
    def task(self) -> str | None:
        """`labels` or `spans` where the documents are texts with labels, or questions (`labelled.py`)."""
        told = self.index.get("task")
        return str(told["kind"]) if isinstance(told, dict) else None

    def answers(self, split: str) -> Tokens:
        """The bytes beside the tokens of a split of conversations, or of questions."""
        if self.conversations is None and self.task is None:
            raise DataError(f"{self.path} holds texts, not conversations; prepare JSON lines of messages")
        kind = np.dtype(np.uint8)
        names = [s["answers"] for s in self._entry(split)["shards"]]
        return Tokens([np.memmap(self.path / name, kind, "r") for name in names], kind)

    def tokens(self, split: str) -> Tokens:
        """All tokens of a split, memory-mapped."""
        self._entry(split)
        return self._tokens[split]

    def document_ends(self, split: str) -> np.ndarray:
        """(documents,) int64: position after each document's <|endoftext|>."""
        return self._per_document(split, "ends")

    def document_bytes(self, split: str) -> np.ndarray:
        """(documents,) int64: UTF-8 bytes of each document."""
        return self._per_document(split, "bytes")

    def _per_document(self, split: str, what: str) -> np.ndarray:
        if not self._entry(split)["documents"]:
            return np.zeros(0, _END)
        return np.memmap(self.path / f"{split}.{what}", _END, "r")

    def _entry(self, split: str) -> dict[str, Any]:
        if split not in self.index["splits"]:
            raise DataError(f"{self.path}: no split `{split}`; there are {', '.join(self.index['splits'])}")
        return self.index["splits"][split]


def open_data(path: Path, *, check_digests: bool = False) -> Data:
    """Open a prepared folder. DataError names what is missing, damaged, or newer than this version reads."""
    path = Path(path)
    index = read_index(path)
    own = tokenizer.load(path)
    if own.digest != index["tokenizer"]["digest"]:
        raise DataError(f"{path}/tokenizer.json is not the tokenizer these shards were made with; prepare again")
    try:
        _check_files(path, index, check_digests)
    except (KeyError, TypeError, AttributeError) as e:
        raise DataError(f"{path}/index.json: not an index of prepared data: {type(e).__name__} {e}") from None
    return Data(path, index, own)


def _check_files(path: Path, index: dict[str, Any], check_digests: bool) -> None:
    item = np.dtype(index["dtype"]).itemsize
    for split, entry in index["splits"].items():
        sizes = {s["file"]: s["tokens"] * item for s in entry["shards"]}
        sizes |= {s["answers"]: s["tokens"] for s in entry["shards"] if "answers" in s}
        sizes |= {f"{split}.{what}": entry["documents"] * _END.itemsize for what in ("ends", "bytes")}
        for name, expected in sizes.items():
            if name != Path(name).name:
                raise DataError(f"{path}/index.json: `{name}` is not the name of a file in the folder")
            size = (path / name).stat().st_size if (path / name).is_file() else -1
            if size != expected:
                found = "is missing" if size < 0 else f"has {size:,} bytes"
                raise DataError(f"{path / name} {found}, expected {expected:,}; prepare again")
        for shard in entry["shards"] if check_digests else []:
            wrong = [
                shard[file]
                for file, digest in (("file", "sha256"), ("answers", "answers_sha256"))
                if file in shard and file_digest(path / shard[file]) != shard[digest]
            ]
            if wrong:
                raise DataError(f"{path / wrong[0]} is damaged: its SHA-256 differs from the index; prepare again")


def read_index(path: Path) -> dict[str, Any]:
    """index.json of a prepared folder, its version checked."""
    file = Path(path) / "index.json"
    try:
        index = json.loads(file.read_text(encoding="utf-8"))
        version = index["format_version"]
        if type(version) is not int or version < 1:
            raise ValueError(f"format_version {version!r}")
    except FileNotFoundError:
        raise DataError(f"{path}: not a prepared folder (no index.json); make one with foretell prepare") from None
    except (ValueError, KeyError, TypeError, RecursionError, NotADirectoryError) as e:
        raise DataError(f"{file}: not an index of prepared data: {e}") from None
    if version > FORMAT_VERSION:
        raise DataError(f"{file}: format_version {version} is newer than this Foretell reads ({FORMAT_VERSION})")
    if wrong := [key for key, kind in _INDEX.items() if not isinstance(index.get(key), kind)]:
        raise DataError(f"{file}: not an index of prepared data: `{wrong[0]}` is absent or of another type")
    return index


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _file_name(split: str, shard: int) -> str:
    return f"{split}-{shard:05d}.tokens"


class SplitWriter:
    """Appends documents to the files of one split in `folder`."""

    def __init__(self, folder: Path, split: str, dtype: np.dtype) -> None:
        self._folder, self._split, self._dtype = folder, split, dtype
        self.tokens, self.documents, self.bytes = 0, 0, 0
        self._ends = (folder / f"{split}.ends").open("wb")
        self._sizes = (folder / f"{split}.bytes").open("wb")
        self._shard: IO[bytes] | None = None
        self._answers: IO[bytes] | None = None

    def append(
        self, flat: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, answers: np.ndarray | None = None
    ) -> None:
        """Documents: their tokens, each document's <|endoftext|> included, their token counts, their UTF-8 sizes.

        answers: of conversations, the byte beside each token.
        """
        (self.tokens + np.cumsum(lengths)).astype(_END).tofile(self._ends)
        sizes.astype(_END).tofile(self._sizes)
        self.documents += len(sizes)
        self.bytes += int(sizes.sum())
        flat = flat.astype(self._dtype)
        while len(flat):
            within = self.tokens % SHARD_TOKENS
            if self._shard is None or within == 0:
                self._close_shard()
                path = self._folder / _file_name(self._split, self.tokens // SHARD_TOKENS)
                self._shard = path.open("wb")
                self._answers = None if answers is None else path.with_suffix(".answers").open("wb")
            part = flat[: SHARD_TOKENS - within]
            part.tofile(self._shard)
            if answers is not None and self._answers is not None:
                answers[: len(part)].astype(np.uint8).tofile(self._answers)
                answers = answers[len(part) :]
            self.tokens += len(part)
            flat = flat[len(part) :]

    def _close_shard(self) -> None:
        for file in (self._shard, self._answers):
            if file:
                _force(file)
                file.close()
        self._shard = self._answers = None

    def finish(self) -> dict[str, Any]:
        """Close all files, forced to disk; the split's entry of the index."""
        _force(self._ends)
        _force(self._sizes)
        self._ends.close()
        self._sizes.close()
        self._close_shard()
        ends = np.fromfile(self._folder / f"{self._split}.ends", _END)
        shards = []
        for n in range(-(-self.tokens // SHARD_TOKENS)):
            low, high = n * SHARD_TOKENS, min((n + 1) * SHARD_TOKENS, self.tokens)
            inside = int(np.searchsorted(ends, high, "right") - np.searchsorted(ends, low, "right"))
            path = self._folder / _file_name(self._split, n)
            shards.append({"file": path.name, "tokens": high - low, "documents": inside, "sha256": file_digest(path)})
            beside = path.with_suffix(".answers")
            if beside.exists():
                shards[-1] |= {"answers": beside.name, "answers_sha256": file_digest(beside)}
        return {"shards": shards, "tokens": self.tokens, "documents": self.documents, "bytes": self.bytes}


def _force(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
