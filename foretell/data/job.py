"""The stages of a preparation, as tasks in its working folder that any number of processes share out among themselves.

    read     some inputs           -> chunks of documents, and the account of what could not be read
    clean    a chunk               -> what the cleaning steps keep of it, digests, signatures; what they dropped
    decide   all of it, in order   -> duplicates, splits, the sample, the tokenizer           (one process)
    encode   a chunk               -> tokens by split
    finish   all of it, in order   -> the prepared folder, published by a rename              (one process)

A task is done when the file of its account is there; a file appears by a rename, with what stands behind it on disk
already. So whoever comes, at once or after an interruption, sees what is left, and nothing is done again that is done.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foretell import tokenizer
from foretell.config import DataConfig, TokenizerConfig
from foretell.data import clean, dedup, intake, splits
from foretell.data.claims import Claims, Held
from foretell.data.intake import Chunk, Drops, Funnel
from foretell.data.readers import Entry
from foretell.data.sample import Chunk as SampleChunk
from foretell.data.sample import Sample
from foretell.data.shards import FORMAT_VERSION, SPLITS, SplitWriter, token_dtype
from foretell.errors import ConfigError, DataError
from foretell.tokenizer import Tokenizer

Progress = Callable[[dict[str, Any]], None]
GROUP_BYTES = 1 << 24  # inputs of one task of reading
CHUNK_BYTES = 1 << 25  # text of one task of cleaning and of encoding
_SAMPLE_BYTES = 1 << 25
_XZ_BYTES = 2_000_000
_REPORT_SECONDS = 0.2
_CUT = 3  # of a document that the rule `tail` divides
_DROPPED = -1
_ENCODED_AT_ONCE = 1024  # documents


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

    def groups(self) -> list[tuple[str, list[Entry]]]:
        """The tasks of reading: neighbouring inputs up to `group_bytes`, at least one."""
        found: list[list[Entry]] = []
        size = self.group_bytes
        for entry in self.entries:
            if size + entry.size > self.group_bytes:
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
        accounts = [self.account(name) for name, _ in self.groups()]
        if None in accounts:
            return None
        return [f"{n:06d}-{k:04d}" for n, a in enumerate(accounts) for k in range(a["chunks"])]  # type: ignore[index]

    def left(self) -> Iterator[tuple[str, Callable[[Held], None]]]:
        """The tasks that can be done now and are not, chunks of what is read before further reading."""
        for n, (name, group) in enumerate(self.groups()):
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
        for chunk in intake.chunks(group, self.config.text_key, self.chunk_bytes, funnel, held.note):
            chunk.save(self.work / f"{n:06d}-{count:04d}.npz")
            count += 1
        self._leave(name, {"chunks": count, "funnel": funnel.record()})

    def _clean(self, name: str, held: Held) -> None:
        if self._steps is None:
            self._steps = clean.steps(self.config)
        chunk, funnel = Chunk.load(self.work / f"{name}.npz"), Funnel()
        if self._steps:
            drops = Drops()
            chunk = intake.cleaned(chunk, self._steps, funnel, drops, held.note)
            drops.save(self.work / "dropped", name)
            chunk.save(_cleaned(self.work, name))
        arrays = {"digests": np.frombuffer(b"".join(map(dedup.digest, chunk.texts)), np.uint8)}
        if self.config.near_duplicates is not None:
            from foretell.data import near

            signatures = [near.signature(t.decode()) for t in chunk.texts]
            arrays["signatures"] = np.array(signatures, np.uint8).reshape(-1, near.BINS)
        intake.save_arrays(self.work / f"{name}.digests.npz", **arrays)
        sizes = {"documents": len(chunk.texts), "bytes": chunk.bytes}
        self._leave(f"clean-{name}", {**sizes, "funnel": funnel.record()})

    def _encode(self, n: int, name: str, held: Held) -> None:
        survey = self.survey()
        assert survey is not None
        if self._tokenizer is None:
            self._tokenizer = tokenizer.load(self.work)
        texts, of_split = _with_splits(self.work, name, survey["starts"][n], survey["rule"])
        end, dtype = np.uint32(self._tokenizer.eot_id or 0), token_dtype(self._tokenizer.vocab_size)
        flats, lengths, done = [np.zeros(0, dtype)], [np.zeros(0, np.int64)], 0
        for low in range(0, len(texts), _ENCODED_AT_ONCE):
            part = texts[low : low + _ENCODED_AT_ONCE]
            flat, length = self._tokenizer.encode_flat([t.decode() for t in part])
            flats.append(np.insert(flat, np.cumsum(length), end).astype(dtype))
            lengths.append(length + 1)
            done += sum(map(len, part))
            held.note(done)
        intake.save_arrays(
            self.work / f"{name}.tokens.npz",
            of_split=of_split,
            sizes=np.array([len(t) for t in texts], np.int64),
            tokens=np.concatenate(flats),
            lengths=np.concatenate(lengths),
        )
        self._leave(f"encode-{name}", {"bytes": sum(map(len, texts))})

    def _leave(self, name: str, account: dict[str, Any]) -> None:
        write_json(self.work / f"{name}.json", account)


@dataclass
class Job:
    """One preparation in its working folder, as one of the commands that take part in it does it.

    `began`: time.monotonic() at the start, for the progress.
    """

    tasks: Tasks
    hidden: int
    fingerprint: str
    tokenizer_config: TokenizerConfig
    progress: Progress
    began: float
    split_of: Callable[[str], str] | None = None
    _reported: float = field(default=0.0, init=False)

    @property
    def work(self) -> Path:
        return self.tasks.work

    def step(self, alone: bool) -> bool:
        """Do what there is to do for this process; False where there is nothing just now. alone: tasks too."""
        if alone and self.tasks.do_one():
            return True
        names = self.tasks.chunk_names()
        if names is None or any(self.tasks.account(f"clean-{n}") is None for n in names):
            return False
        with self.tasks.claims.held("decide") as held:
            if held is not None and self.tasks.survey() is None:
                self._decide(names)
                return True
        return False

    @property
    def is_encoded(self) -> bool:
        """Whether all that is left is to finish."""
        survey = self.tasks.survey()
        return survey is not None and all(self.tasks.account(f"encode-{c}") for c in survey["chunks"])

    def _decide(self, names: list[str]) -> None:
        """Which documents are kept, and where they go; the tokenizer; survey.json, which says that it is decided."""
        fates, tally, funnel = self._without_duplicates(names)
        rule = splits.Rule("given", (0.0, 0.0)) if self.split_of else tally.rule(self.tasks.config.split)
        trained = self.tokenizer_config.path is None and self.tokenizer_config.kind == "bpe"
        sample = Sample(_SAMPLE_BYTES if trained else 3 * _XZ_BYTES)
        starts, place = [], 0
        for name, kept in zip(names, fates, strict=True):
            starts.append(place)
            fate = np.full(len(kept), _DROPPED, np.int8)
            texts = self._texts(name, kept)
            fate[kept] = self._fates(texts, rule)
            intake.save_arrays(self.work / f"{name}.fates.npz", fates=fate)
            for text in texts:
                sample.add(text, place)
                place += len(text.data)
            self.report("survey", funnel, place)
        training = [c for c in sample.chunks() if self._trains(c, rule)]
        if not training:
            raise DataError("the train split is empty; lower data.valid_fraction and data.test_fraction, or add text")
        self.report("tokenizer", funnel, tally.bytes, force=True)
        own = _tokenizer(self.tokenizer_config, training, tally.bytes)
        if own.eot_id is None:
            path = self.tokenizer_config.path
            raise ConfigError(f"{path}: the tokenizer has no end-of-text token such as <|endoftext|>")
        own.save(self.work)
        (self.work / "sample.txt").write_bytes(_in_order(training, _XZ_BYTES))
        decided = {"chunks": names, "starts": starts, "bytes": tally.bytes, "rule": rule.record()}
        write_json(self.work / "survey.json", {**decided, "funnel": funnel.record()})

    def _without_duplicates(self, names: list[str]) -> tuple[list[np.ndarray], splits.Tally, Funnel]:
        """For each chunk which of its documents are kept (bool), and what is known of all that are."""
        config, funnel, seen = self.tasks.config, Funnel(hidden=self.hidden), dedup.Seen(self.work / "seen")
        for name, _ in self.tasks.groups():
            funnel.add((self.tasks.account(name) or {})["funnel"])
        kept: list[np.ndarray] = []
        for name in names:
            funnel.add((self.tasks.account(f"clean-{name}") or {})["funnel"])
            kept.append(seen.first_times(self._digests(name)))
            self._note_dropped(name, "duplicate", ~kept[-1], None)
            funnel.dropped["duplicate"] += int((~kept[-1]).sum())
            self.report("survey", funnel, funnel.bytes_in)
        if config.near_duplicates is not None:
            self._drop_near(names, kept, config.near_duplicates, funnel)
        tally = splits.Tally(config.test_fraction, config.valid_fraction)
        for name, mask in zip(names, kept, strict=True):
            tally.add(self._texts(name, mask))
        funnel.documents_out, funnel.bytes_out = tally.documents, tally.bytes
        if not tally.documents:
            raise DataError(_nothing(funnel))
        return kept, tally, funnel

    def _drop_near(self, names: list[str], kept: list[np.ndarray], threshold: float, funnel: Funnel) -> None:
        from foretell.data import near

        signatures = [
            intake.load_arrays(self.work / f"{n}.digests.npz")["signatures"][k]
            for n, k in zip(names, kept, strict=True)
        ]
        of = near.duplicates(np.concatenate(signatures), threshold)
        ends = np.cumsum([len(s) for s in signatures])
        for name, mask, end, own in zip(names, kept, ends.tolist(), signatures, strict=True):
            repeats = np.zeros(len(mask), bool)
            repeats[np.flatnonzero(mask)] = of[end - len(own) : end] >= 0
            self._note_dropped(name, "near-duplicate", repeats, threshold)
            mask &= ~repeats
            funnel.dropped["near-duplicate"] += int(repeats.sum())

    def _note_dropped(self, name: str, reason: str, which: np.ndarray, threshold: float | None) -> None:
        if not which.any():
            return
        drops, chunk = Drops(), Chunk.load(_kept_path(self.work, name))
        detail = (
            "the same text as an earlier one" if threshold is None else f"like an earlier one, {threshold:g} or more"
        )
        for n in np.flatnonzero(which).tolist():
            drops.add(reason, chunk.places[n], reason, detail, chunk.texts[n].decode())
        drops.save(self.work / "dropped", name)

    def _digests(self, name: str) -> list[bytes]:
        raw = intake.load_arrays(self.work / f"{name}.digests.npz")["digests"].tobytes()
        return [raw[i : i + dedup.DIGEST_BYTES] for i in range(0, len(raw), dedup.DIGEST_BYTES)]

    def _texts(self, name: str, kept: np.ndarray) -> list[intake.Text]:
        chunk, digests = Chunk.load(_kept_path(self.work, name)), self._digests(name)
        rows = zip(chunk.texts, digests, chunk.places, kept.tolist(), strict=True)
        return [intake.Text(text, digest, source) for text, digest, (source, _), keep in rows if keep]

    def _fates(self, texts: list[intake.Text], rule: splits.Rule) -> np.ndarray:
        """The split of each text, or that it is to be cut."""
        if rule.kind == "tail":
            return np.full(len(texts), _CUT)
        return splits.divided(texts, 0, rule, self.split_of)[1]

    def _trains(self, chunk: SampleChunk, rule: splits.Rule) -> bool:
        return bool((splits.divided([chunk.text], chunk.start, rule, self.split_of)[1] == SPLITS.index("train")).any())

    def finish(self, out: Path) -> dict[str, Any]:
        """Join what was encoded in the folder `out`; returns the index, which stands there as index.json."""
        survey = self.tasks.survey()
        assert survey is not None
        funnel = Funnel()
        funnel.add(survey["funnel"])
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        own = tokenizer.load(self.work)
        own.save(out)
        with ThreadPoolExecutor(1) as beside:
            bits = beside.submit(_xz_bits_per_byte, self.work / "sample.txt")
            entries = self._joined(out, survey["chunks"], token_dtype(own.vocab_size))
            dropped = _join_dropped(self.work / "dropped", out, survey["chunks"])
            index = self._index(own, survey, funnel, entries, bits, dropped)
        write_json(out / "index.json", index)
        return index

    def _joined(self, out: Path, names: list[str], dtype: np.dtype) -> dict[str, dict[str, Any]]:
        writers = {s: SplitWriter(out, s, dtype) for s in SPLITS}
        for name in names:
            arrays = intake.load_arrays(self.work / f"{name}.tokens.npz")
            of_split, sizes, tokens, lengths = (arrays[k] for k in ("of_split", "sizes", "tokens", "lengths"))
            of_token = np.repeat(of_split, lengths)
            for n, split in enumerate(SPLITS):
                here = of_split == n
                writers[split].append(tokens[of_token == n], lengths[here], sizes[here])
        return {split: writer.finish() for split, writer in writers.items()}

    def _index(
        self,
        own: Tokenizer,
        survey: dict[str, Any],
        funnel: Funnel,
        entries: dict[str, dict[str, Any]],
        bits: Future[float],
        dropped: list[str],
    ) -> dict[str, Any]:
        config = self.tasks.config
        for split in [s for s in SPLITS if s != "test" or config.test_fraction]:
            if not entries[split]["tokens"]:
                raise DataError(f"the {split} split is empty; add text, or change data.split or its fractions")
        size = sum(e["bytes"] for e in entries.values())
        tokens = sum(e["tokens"] for e in entries.values())
        return {
            "format_version": FORMAT_VERSION,
            "dtype": token_dtype(own.vocab_size).str,
            "fingerprint": self.fingerprint,
            "tokenizer": {
                "digest": own.digest,
                "kind": own.kind,
                "vocab_size": own.vocab_size,
                "eot_id": own.eot_id,
            },
            "split_rule": survey["rule"],
            "splits": entries,
            "funnel": {**funnel.summary(), "tokens": tokens},
            "bytes_per_token": size / max(1, tokens - sum(e["documents"] for e in entries.values())),
            "unique_tokens": entries["train"]["tokens"],
            "text_xz_bits_per_byte": bits.result(),
            **({"dropped": dropped} if dropped else {}),
        }

    def report_progress(self) -> None:
        """How far all processes together are."""
        now = time.monotonic()
        if now - self._reported < _REPORT_SECONDS:
            return
        at_work = {name: content.get("done", 0) for name, (_, content) in self.tasks.claims.all().items()}
        funnel, survey = Funnel(), self.tasks.survey()
        for name, _ in self.tasks.groups():
            if (account := self.tasks.account(name)) is not None:
                funnel.add(account["funnel"])
        if survey is None:
            done = funnel.bytes_in + sum(d for name, d in at_work.items() if name.startswith("read-"))
            self.report("survey", funnel, 0, done=done)
            return
        accounts = [self.tasks.account(f"encode-{c}") for c in survey["chunks"]]
        done = sum(a["bytes"] for a in accounts if a) + sum(d for n, d in at_work.items() if n.startswith("encode-"))
        self.report("encode", funnel, survey["bytes"], done=min(done, survey["bytes"]))

    def report(
        self, stage: str, funnel: Funnel, bytes_total: int, *, done: int | None = None, force: bool = False
    ) -> None:
        """Show progress, now and then."""
        now = time.monotonic()
        if not force and now - self._reported < _REPORT_SECONDS:
            return
        self._reported = now
        done = bytes_total if done is None else done
        counts = {"bytes": done, "bytes_total": bytes_total, "documents": funnel.documents_in}
        self.progress({"stage": stage, **counts, "seconds": now - self.began})


def _cleaned(work: Path, name: str) -> Path:
    return work / f"{name}.cleaned.npz"


def _kept_path(work: Path, name: str) -> Path:
    """Where the texts of a chunk are that the cleaning steps kept."""
    return _cleaned(work, name) if _cleaned(work, name).exists() else work / f"{name}.npz"


def _with_splits(work: Path, name: str, start: int, rule: dict[str, Any]) -> tuple[list[bytes], np.ndarray]:
    """The kept texts of a chunk whose first byte is `start` of all, those cut that `tail` cuts; the split of each."""
    chunk, fates = Chunk.load(_kept_path(work, name)), intake.load_arrays(work / f"{name}.fates.npz")["fates"]
    kept = np.flatnonzero(fates != _DROPPED)
    texts, of_split = [chunk.texts[n] for n in kept.tolist()], fates[kept].astype(np.int64)
    if rule["kind"] == "tail":
        whole = [intake.Text(t, b"", "") for t in texts]
        return splits.divided(whole, start, splits.Rule("tail", tuple(rule["bounds"])))
    return texts, of_split


def _join_dropped(folder: Path, out: Path, names: list[str]) -> list[str]:
    """One file for each step that dropped something, its chunks in order; their names."""
    made = []
    for step in sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []:
        made.append(f"dropped-{step}.jsonl.gz")
        with (out / made[-1]).open("wb") as f:
            for name in names:
                if (folder / step / name).exists():
                    f.write((folder / step / name).read_bytes())  # gzip members may follow each other
            f.flush()
            os.fsync(f.fileno())
    return made


def write_json(path: Path, content: dict[str, Any]) -> None:
    """A JSON file that appears by a rename, forced to disk."""
    partial = path.with_name(f".{path.name}-{os.getpid()}")
    with partial.open("w", encoding="utf-8") as f:
        json.dump(content, f, ensure_ascii=False, indent=1)
        f.flush()
        os.fsync(f.fileno())
    partial.rename(path)


def _tokenizer(config: TokenizerConfig, training: list[SampleChunk], text_bytes: int) -> Tokenizer:
    if config.path:
        return tokenizer.load(Path(config.path))
    if config.kind == "bytes":
        return tokenizer.byte_tokenizer()
    size = config.vocab_size or tokenizer.fitted_vocab_size(text_bytes)
    return tokenizer.train_bpe((c.text.data.decode() for c in training), size)


def _in_order(training: list[SampleChunk], limit: int) -> bytes:
    """The first chunks by priority, up to `limit` bytes, in the order of the text."""
    chosen: list[SampleChunk] = []
    size = 0
    for chunk in training:
        if size >= limit:
            break
        chosen.append(chunk)
        size += len(chunk.text.data)
    return b"".join(c.text.data for c in sorted(chosen, key=lambda c: c.start))[:limit]


def _xz_bits_per_byte(sample: Path) -> float:
    """Bits a byte of training text costs under xz -6: a measure of the text that needs no model."""
    data = sample.read_bytes()
    return 8 * len(lzma.compress(data, preset=6)) / len(data)


def _nothing(funnel: Funnel) -> str:
    message = (
        f"no text in {funnel.files:,} files: {funnel.quarantined:,} records quarantined, "
        f"{sum(funnel.dropped.values()):,} dropped ({', '.join(funnel.dropped) or 'none'})"
    )
    first = "; ".join(f"{q['source']}: {q['reason']}" for q in funnel.quarantine[:3])
    return f"{message}. First: {first}" if first else message
