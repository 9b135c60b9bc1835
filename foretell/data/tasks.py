"""The tasks of a preparation that any process may do: reading, cleaning and encoding, by files in a working folder.

    read     some inputs           -> chunks of documents, and the account of what could not be read
    clean    a chunk               -> what the cleaning steps keep of it, digests, signatures; what they dropped
    encode   a chunk               -> tokens by split, once `data/job.py` has decided what goes where

A task is done when the file of its account is there; a file appears by a rename, with what stands behind it on disk
already. So whoever comes, at once or after an interruption, sees what is left, and nothing is done again that is done.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foretell import tokenizer
from foretell.config import DataConfig
from foretell.data import clean, conversations, dedup, intake, labelled, splits
from foretell.data.claims import Claims, Held, appearing
from foretell.data.intake import Chunk, Drops, Funnel
from foretell.data.labelled import Encoded
from foretell.data.readers import Entry
from foretell.data.records import BETWEEN, Pair
from foretell.data.shards import token_dtype
from foretell.errors import ConfigError
from foretell.tokenizer import Tokenizer

GROUP_BYTES = 1 << 24  # inputs of one task of reading
CHUNK_BYTES = 1 << 25  # text of one task of cleaning and of encoding
DROPPED = -1  # the fate of a document that is not kept; else the number of its split, or
CUT = 3  # it is divided where the rule `tail` says
PLACED_BY_PART = ("preference", *labelled.KINDS)  # to their split: by a prompt, a text, a context
_ENCODED_AT_ONCE = 1 << 21  # bytes: the tokenizer's own objects take many times their text


@dataclass
class Tasks:
    """The tasks that any process may do: read, clean, encode. `work`: the working folder."""

    work: Path
    entries: list[Entry]
    config: DataConfig
    group_bytes: int = field(default_factory=lambda: GROUP_BYTES)
    chunk_bytes: int = field(default_factory=lambda: CHUNK_BYTES)
    _steps: list[tuple[str, Any]] | None = field(default=None, init=False)
    _tokenizer: Tokenizer | None = field(default=None, init=False)
    _survey: dict[str, Any] | None = field(default=None, init=False)
    _done: dict[str, dict[str, Any]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.claims = Claims(self.work / "claims")

    @functools.cached_property
    def groups(self) -> list[tuple[str, list[Entry]]]:
        """The tasks of reading: neighbouring inputs up to `group_bytes`, at least one."""
        found: list[list[Entry]] = []
        size = 0
        for entry in self.entries:
            if not found or size + entry.size > self.group_bytes:
                found.append([])
                size = 0
            found[-1].append(entry)
            size += entry.size
        return [(f"read-{n:06d}", group) for n, group in enumerate(found)]

    def account(self, name: str) -> dict[str, Any] | None:
        """What a done task left, or None."""
        if name not in self._done:
            try:
                self._done[name] = json.loads((self.work / f"{name}.json").read_text(encoding="utf-8"))
            except FileNotFoundError:
                return None
        return self._done[name]

    def chunk_names(self) -> list[str] | None:
        """The names of all chunks in order; None while some inputs are not read yet."""
        accounts = [self.account(name) for name, _ in self.groups]
        if None in accounts:
            return None
        return [f"{n:06d}-{k:04d}" for n, a in enumerate(accounts) for k in range(a["chunks"])]  # type: ignore[index]

    def left(self) -> Iterator[tuple[str, Callable[[Held], None]]]:
        """The tasks that can be done now and are not, chunks of what is read before further reading."""
        for n, (name, group) in enumerate(self.groups):
            account = self.account(name)
            if account is None:
                yield name, lambda held, name=name, group=group, n=n: self._read(name, n, group, held)  # type: ignore
                continue
            for k in range(account["chunks"]):
                chunk = f"{n:06d}-{k:04d}"
                if self.account(f"clean-{chunk}") is None:
                    yield f"clean-{chunk}", lambda held, chunk=chunk: self._clean(chunk, held)  # type: ignore[misc]
        survey = self.survey()
        for n, chunk in enumerate(survey["chunks"] if survey else []):
            if self.account(f"encode-{chunk}") is None:
                yield f"encode-{chunk}", lambda held, n=n, chunk=chunk: self._encode(n, chunk, held)  # type: ignore

    def do_one(self) -> bool:
        """Claim one of the tasks that are left and do it; False where there is none that is free."""
        for name, task in self.left():
            with self.claims.held(name) as held:
                if held is not None and self.account(name) is None:
                    task(held)
                    return True
        return False

    def survey(self) -> dict[str, Any] | None:
        """What was decided, once it is."""
        if self._survey is None:
            self._survey = self.account("survey")
        return self._survey

    def _read(self, name: str, n: int, group: list[Entry], held: Held) -> None:
        funnel, count = Funnel(), 0
        key = pair_of(self.config) or conversations.turns_of(self.config) or self.config.text_key
        for chunk in intake.chunks(group, key, self.chunk_bytes, funnel, held.note):
            chunk.save(self.work / f"{n:06d}-{count:04d}.npz")
            count += 1
        self._leave(name, {"chunks": count, "funnel": funnel.record()})

    def _clean(self, name: str, held: Held) -> None:
        if self._steps is None:
            self._steps = clean.steps(self.config)
        chunk, funnel = Chunk.load(self.work / f"{name}.npz"), Funnel()
        if self._steps:
            drops = Drops(clean.hiding(self.config))
            chunk = intake.cleaned(chunk, self._steps, funnel, drops, held.note)
            drops.save(self.work / "dropped", name)
            chunk.save(_cleaned(self.work, name))
        arrays: dict[str, np.ndarray] = {
            "digests": np.frombuffer(b"".join(map(dedup.digest, chunk.texts)), np.uint8),
            "sizes": np.array([len(t) for t in chunk.texts], np.int64),
        }
        if pair_of(self.config):  # by its source a pair goes to its split, or one source would stand in two of them
            sources = [t.partition(BETWEEN.encode())[0] for t in chunk.texts]
            arrays["sources"] = np.frombuffer(b"".join(map(dedup.digest, sources)), np.uint8)
        if self.config.format in PLACED_BY_PART:  # by a part of it, for the same reason
            sources = [_placing(t, self.config.format) for t in chunk.texts]
            arrays["sources"] = np.frombuffer(b"".join(map(dedup.digest, sources)), np.uint8)
        if self.config.near_duplicates is not None:
            from foretell.data import near

            signatures = [near.signature(t.decode()) for t in chunk.texts]
            arrays["signatures"] = np.array(signatures, np.uint8).reshape(-1, near.BINS)
        intake.save_arrays(self.work / f"{name}.digests.npz", **arrays)
        self._leave(f"clean-{name}", {"funnel": funnel.record()})

    def _encode(self, n: int, name: str, held: Held) -> None:
        survey = self.survey()
        assert survey is not None
        if self._tokenizer is None:
            self._tokenizer = tokenizer.load(self.work)
        texts, of_split = _with_splits(self.work, name, survey["starts"][n], survey["rule"])
        end, dtype = np.uint32(self._tokenizer.eot_id or 0), token_dtype(self._tokenizer.vocab_size)
        flats, lengths, done = [np.zeros(0, dtype)], [np.zeros(0, np.int64)], 0
        answers: list[np.ndarray] = []
        told = {"inexact": 0, "lost": 0}
        for part in _in_parts(texts):
            decoded = [t.decode() for t in part]
            if conversations.turns_of(self.config):
                made = self._with_marks(decoded)
                flats.append(made.tokens.astype(dtype))
                lengths.append(made.lengths)
                answers.append(made.beside)
                told = {k: told[k] + getattr(made, k) for k in told}
                done += sum(map(len, part))
                held.note(done)
                continue
            sides = 2 if pair_of(self.config) else 1
            if sides == 2:
                decoded = [side for text in decoded for side in text.split(BETWEEN)]
            flat, length = self._tokenizer.encode_flat(decoded)
            flats.append(np.insert(flat, np.cumsum(length), end).astype(dtype))
            lengths.append((length + 1).reshape(-1, sides).sum(1))
            done += sum(map(len, part))
            held.note(done)
        intake.save_arrays(
            self.work / f"{name}.tokens.npz",
            of_split=of_split,
            sizes=np.array([len(t) for t in texts], np.int64),
            tokens=np.concatenate(flats),
            lengths=np.concatenate(lengths),
            **({"answers": np.concatenate(answers)} if answers else {}),
        )
        self._leave(f"encode-{name}", {"bytes": sum(map(len, texts)), **told})

    def _with_marks(self, texts: list[str]) -> Encoded:
        """Tokens of conversations, each with its end, or of what is labelled, and the byte beside each token."""
        own, survey = self._tokenizer, self.survey()
        assert own is not None
        assert survey is not None
        if self.config.format == "labels":
            return labelled.encoded_labels(own, texts, survey["labels"])
        if self.config.format == "spans":
            return labelled.encoded_spans(own, texts)
        template = conversations.template(self.config, conversations.end_mark(own))
        tokens, marks, lengths = [np.zeros(0, np.uint32)], [np.zeros(0, np.uint8)], []
        for text in texts:
            ids, beside = conversations.encoded(own, template, text)
            tokens.append(np.append(ids, np.uint32(own.eot_id or 0)))
            marks.append(np.append(beside, np.uint8(0)))
            lengths.append(len(ids) + 1)
        return Encoded(np.concatenate(tokens), np.array(lengths, np.int64), np.concatenate(marks))

    def _leave(self, name: str, account: dict[str, Any]) -> None:
        write_json(self.work / f"{name}.json", account)


def pair_of(config: DataConfig) -> Pair | None:
    """The keys of pairs, where the records are pairs. ConfigError for what goes with none."""
    if config.source_key is None and config.target_key is None:
        return None
    if config.source_key is None or config.target_key is None:
        raise ConfigError("data.source_key and data.target_key go together; set both, or leave both out")
    if config.text_key is not None or config.split == "tail":
        what = "data.text_key" if config.text_key is not None else "data.split=tail"
        raise ConfigError(f"{what} does not go with pairs (data.source_key, data.target_key); leave it out")
    return Pair(config.source_key, config.target_key)


def _placing(text: bytes, kind: str | None) -> bytes:
    if kind == "preference":
        return json.dumps(json.loads(text)["prompt"]).encode()
    return labelled.splitting(text.decode(), str(kind)).encode()


def _in_parts(texts: list[bytes]) -> Iterator[list[bytes]]:
    part: list[bytes] = []
    size = 0
    for text in texts:
        part.append(text)
        size += len(text)
        if size >= _ENCODED_AT_ONCE:
            yield part
            part, size = [], 0
    if part:
        yield part


def _cleaned(work: Path, name: str) -> Path:
    return work / f"{name}.cleaned.npz"


def kept_path(work: Path, name: str) -> Path:
    """Where the texts of a chunk are that the cleaning steps kept."""
    return _cleaned(work, name) if _cleaned(work, name).exists() else work / f"{name}.npz"


def _with_splits(work: Path, name: str, start: int, rule: dict[str, Any]) -> tuple[list[bytes], np.ndarray]:
    """The kept texts of a chunk whose first byte is `start` of all, those cut that `tail` cuts; the split of each."""
    chunk, fates = Chunk.load(kept_path(work, name)), intake.load_arrays(work / f"{name}.fates.npz")["fates"]
    kept = np.flatnonzero(fates != DROPPED)
    texts, of_split = [chunk.texts[n] for n in kept.tolist()], fates[kept].astype(np.int64)
    if rule["kind"] == "tail":
        whole = [intake.Text(t, b"", "") for t in texts]
        return splits.divided(whole, start, splits.Rule("tail", tuple(rule["bounds"])))
    return texts, of_split


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON file that appears by a rename, forced to disk."""
    with appearing(path) as f:
        f.write(json.dumps(content, ensure_ascii=False, indent=1).encode())
