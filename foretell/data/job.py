"""A preparation from tasks to the finished folder, as one of the commands that take part in it does it.

read, clean                    (data/tasks.py; any process)
decide   all of it, in order   -> duplicates, splits, the sample, the tokenizer           (one process)
encode                         (data/tasks.py; any process)
finish   all of it, in order   -> the prepared folder                                     (one process)
"""

from __future__ import annotations

import lzma
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foretell import tokenizer
from foretell.config import TokenizerConfig
from foretell.data import clean, conversations, dedup, intake, labelled, objectives, splits
from foretell.data.intake import Chunk, Drops, Funnel
from foretell.data.records import BETWEEN
from foretell.data.sample import Chunk as SampleChunk
from foretell.data.sample import Sample
from foretell.data.shards import FORMAT_VERSION, SPLITS, SplitWriter, token_dtype
from foretell.data.tasks import CUT, DROPPED, PLACED_BY_PART, Tasks, kept_path, pair_of, write_json
from foretell.errors import ConfigError, DataError
from foretell.tokenizer import Tokenizer

Progress = Callable[[dict[str, Any]], None]
_SAMPLE_BYTES = 1 << 25
_XZ_BYTES = 2_000_000
_REPORT_SECONDS = 0.2


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
        if self.tasks.survey() is not None:
            return False
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
        config = self.tasks.config
        kind = "hash" if pair_of(config) or conversations.turns_of(config) else config.split
        rule = splits.Rule("given", (0.0, 0.0)) if self.split_of else tally.rule(kind)
        trained = self.tokenizer_config.path is None and self.tokenizer_config.kind != "bytes"
        sample = Sample(_SAMPLE_BYTES if trained else 3 * _XZ_BYTES)
        starts, place, labels = [], 0, set(config.labels or ())
        for name, kept in zip(names, fates, strict=True):
            starts.append(place)
            fate = np.full(len(kept), DROPPED, np.int8)
            texts = self._texts(name, kept)
            fate[kept] = self._fates(texts, rule)
            intake.save_arrays(self.work / f"{name}.fates.npz", fates=fate)
            for text in texts:
                if config.format == "labels" and config.labels is None:
                    labels.add(labelled.label_of(text.data.decode()))
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
        if config.format == "labels":
            decided["labels"] = _named(config.labels or sorted(labels), own)
        write_json(self.work / "survey.json", {**decided, "funnel": funnel.record()})

    def _without_duplicates(self, names: list[str]) -> tuple[list[np.ndarray], splits.Tally, Funnel]:
        """For each chunk which of its documents are kept (bool), and what is known of all that are."""
        config, funnel, seen = self.tasks.config, Funnel(hidden=self.hidden), dedup.Seen(self.work / "seen")
        for name, _ in self.tasks.groups:
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
            digests = [d for d, keep in zip(self._placing(name), mask.tolist(), strict=True) if keep]
            tally.add(digests, int(self._stored(name)["sizes"][mask].sum()))
        funnel.documents_out, funnel.bytes_out = tally.documents, tally.bytes
        if not tally.documents:
            raise DataError(_nothing(funnel))
        return kept, tally, funnel

    def _drop_near(self, names: list[str], kept: list[np.ndarray], threshold: float, funnel: Funnel) -> None:
        from foretell.data import near

        signatures = [self._stored(n)["signatures"][mask] for n, mask in zip(names, kept, strict=True)]
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
        drops, chunk = Drops(clean.hiding(self.tasks.config)), Chunk.load(kept_path(self.work, name))
        detail = (
            "the same text as an earlier one" if threshold is None else f"like an earlier one, {threshold:g} or more"
        )
        for n in np.flatnonzero(which).tolist():
            drops.add(reason, chunk.places[n], reason, detail, chunk.texts[n].decode())
        drops.save(self.work / "dropped", name)

    def _stored(self, name: str) -> dict[str, np.ndarray]:
        """What is known of a chunk's documents beside their texts."""
        return intake.load_arrays(self.work / f"{name}.digests.npz")

    def _digests(self, name: str, what: str = "digests") -> list[bytes]:
        raw = self._stored(name)[what].tobytes()
        return [raw[i : i + dedup.DIGEST_BYTES] for i in range(0, len(raw), dedup.DIGEST_BYTES)]

    def _placing(self, name: str) -> list[bytes]:
        """The digests by which texts go to their splits: of a pair its source's."""
        by_source = pair_of(self.tasks.config) or self.tasks.config.format in PLACED_BY_PART
        return self._digests(name, "sources" if by_source else "digests")

    def _texts(self, name: str, kept: np.ndarray) -> list[intake.Text]:
        chunk, digests = Chunk.load(kept_path(self.work, name)), self._placing(name)
        rows = zip(chunk.texts, digests, chunk.places, kept.tolist(), strict=True)
        return [intake.Text(text, digest, source) for text, digest, (source, _), keep in rows if keep]

    def _fates(self, texts: list[intake.Text], rule: splits.Rule) -> np.ndarray:
        """The split of each text, or that it is to be cut."""
        if rule.kind == "tail":
            return np.full(len(texts), CUT)
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
                answers = arrays["answers"][of_token == n] if "answers" in arrays else None
                writers[split].append(tokens[of_token == n], lengths[here], sizes[here], answers)
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
            **({"pairs": True} if pair_of(config) else {}),
            **self._kind(own, survey),
        }

    def _kind(self, own: Tokenizer, survey: dict[str, Any]) -> dict[str, Any]:
        """What the records of the folder are, where they are no texts, and how they were written."""
        config = self.tasks.config
        if not conversations.turns_of(config):
            return {}
        if config.format == "labels":
            return {"task": {"kind": "labels", "labels": survey["labels"]}}
        if config.format == "spans":
            accounts = [self.tasks.account(f"encode-{c}") or {} for c in survey["chunks"]]
            counted = {k: sum(a[k] for a in accounts) for k in ("inexact", "lost")}
            return {"task": {"kind": "spans", "stride": config.stride, **counted}}
        template = conversations.template(config, conversations.end_mark(own))
        return {"conversations": {"kind": config.format, **asdict(template)}}

    def report_progress(self) -> None:
        """How far all processes together are."""
        now = time.monotonic()
        if now - self._reported < _REPORT_SECONDS:
            return
        at_work = {name: content.get("done", 0) for name, (_, content) in self.tasks.claims.all().items()}
        funnel, survey = Funnel(), self.tasks.survey()
        for name, _ in self.tasks.groups:
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


def _named(labels: list[str], own: Tokenizer) -> list[str]:
    """The labels, of which there must be two, and no more than tokens can name."""
    most = min(own.vocab_size, 1 << 16)
    if not 2 <= len(labels) <= most:
        raise DataError(f"{len(labels):,} labels; there must be at least 2, and at most {most:,} with this tokenizer")
    return labels


def _tokenizer(config: TokenizerConfig, training: list[SampleChunk], text_bytes: int) -> Tokenizer:
    own = _plain_tokenizer(config, training, text_bytes)
    return tokenizer.added(own, objectives.with_special(own, config.objective)) if config.objective else own


def _plain_tokenizer(config: TokenizerConfig, training: list[SampleChunk], text_bytes: int) -> Tokenizer:
    if config.path:
        return tokenizer.load(Path(config.path))
    if config.kind == "bytes":
        return tokenizer.byte_tokenizer()
    size = config.vocab_size or tokenizer.fitted_vocab_size(text_bytes)
    texts = (c.text.data.decode().replace(BETWEEN, "\n") for c in training)
    return tokenizer.train(texts, config.kind, size)


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
