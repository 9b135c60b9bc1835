"""The two passes of a preparation, and what each leaves in the working folder so that the next start can go on.

survey.json, tokenizer.json and sample.txt appear when the first pass is done; journal.json says how far the splits'
files are on disk. The first and the last carry the fingerprint of inputs and configuration; with another fingerprint
the folder is started afresh.
"""

from __future__ import annotations

import json
import lzma
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foretell import tokenizer
from foretell.config import DataConfig, TokenizerConfig
from foretell.data import intake, splits, workers
from foretell.data.readers import Inputs
from foretell.data.sample import Chunk, Sample
from foretell.data.shards import FORMAT_VERSION, SPLITS, SplitWriter, holds, token_dtype
from foretell.errors import ConfigError, DataError
from foretell.tokenizer import Tokenizer

Progress = Callable[[dict[str, Any]], None]
_SMALL_BYTES = 1 << 22  # below it, starting processes costs more than it saves
_JOURNAL_BYTES = 1 << 25
_SAMPLE_BYTES = 1 << 25
_XZ_BYTES = 2_000_000
_REPORT_SECONDS = 0.2


@dataclass
class Job:
    """One preparation in its working folder. `began`: time.monotonic() at the start, for the progress."""

    work: Path
    inputs: Inputs
    fingerprint: str
    config: DataConfig
    progress: Progress
    began: float
    split_of: Callable[[str], str] | None = None
    _reported: float = field(default=0.0, init=False)

    def run(self, tokenizer_config: TokenizerConfig, processes: int) -> dict[str, Any]:
        """Survey, encode, index; returns the index, which stands in the working folder as index.json."""
        survey = self._saved("survey.json")
        if survey is None:
            self._clear()
            survey = self._survey(tokenizer_config)
            self._save("survey.json", survey)
        own = tokenizer.load(self.work)
        rule = splits.Rule(survey["rule"]["kind"], tuple(survey["rule"]["bounds"]))
        funnel = intake.Funnel()
        with ThreadPoolExecutor(1) as beside:  # xz takes most of a second, while the worker processes start
            bits = beside.submit(_xz_bits_per_byte, self.work / "sample.txt")
            entries = self._encode(own, rule, funnel, survey["bytes"], processes)
        index = self._index(own, survey, funnel, entries) | {"text_xz_bits_per_byte": bits.result()}
        self._write("index.json", index)
        shutil.rmtree(self.work / "digests")
        keep = {"index.json", "tokenizer.json", "lock"} | {f"{s}.{what}" for s in SPLITS for what in ("ends", "bytes")}
        keep |= {shard["file"] for entry in entries.values() for shard in entry["shards"]}
        for path in self.work.iterdir():
            if path.name not in keep and path.is_file():
                path.unlink()
        return index

    def _survey(self, tokenizer_config: TokenizerConfig) -> dict[str, Any]:
        tally = splits.Tally(self.config.test_fraction, self.config.valid_fraction)
        trained = tokenizer_config.path is None and tokenizer_config.kind == "bpe"
        sample = Sample(_SAMPLE_BYTES if trained else 3 * _XZ_BYTES)
        funnel = intake.Funnel()
        for block in intake.blocks(self.inputs, self.config.text_key, self.work / "digests", funnel):
            start = tally.bytes
            for text in block:
                sample.add(text, start)
                start += len(text.data)
            tally.add(block)
            self._report("survey", funnel, 0)
        if not tally.documents:
            raise DataError(_nothing(funnel))
        rule = splits.Rule("given", (0.0, 0.0)) if self.split_of else tally.rule(self.config.split)
        training = [c for c in sample.chunks() if self._trains(c, rule)]
        if not training:
            raise DataError("the train split is empty; lower data.valid_fraction and data.test_fraction, or add text")
        self._report("tokenizer", funnel, tally.bytes, force=True)
        own = _tokenizer(tokenizer_config, training, tally.bytes)
        if own.eot_id is None:
            raise ConfigError(f"{tokenizer_config.path}: the tokenizer has no end-of-text token such as <|endoftext|>")
        own.save(self.work)
        (self.work / "sample.txt").write_bytes(_in_order(training, _XZ_BYTES))
        return {"bytes": tally.bytes, "rule": rule.record()}

    def _trains(self, chunk: Chunk, rule: splits.Rule) -> bool:
        return bool((splits.divided([chunk.text], chunk.start, rule, self.split_of)[1] == SPLITS.index("train")).any())

    def _encode(
        self, own: Tokenizer, rule: splits.Rule, funnel: intake.Funnel, bytes_total: int, processes: int
    ) -> dict[str, dict[str, Any]]:
        dtype = token_dtype(own.vocab_size)
        journal = self._saved("journal.json") or {"blocks": 0, "splits": {}}
        if not all(holds(self.work, s, dtype, position) for s, position in journal["splits"].items()):
            journal = {"blocks": 0, "splits": {}}
        writers = {s: SplitWriter(self.work, s, dtype, journal["splits"].get(s)) for s in SPLITS}
        end = np.uint32(own.eot_id or 0)
        unsaved = 0

        def missing() -> Iterator[tuple[tuple[int, np.ndarray, np.ndarray], list[bytes]]]:
            start = 0
            blocks = intake.blocks(self.inputs, self.config.text_key, self.work / "digests", funnel)
            for number, block in enumerate(blocks):
                texts, of_split = splits.divided(block, start, rule, self.split_of)
                start += sum(map(len, texts))
                if number >= journal["blocks"]:
                    yield (number, of_split, np.array([len(t) for t in texts], np.int64)), texts

        if bytes_total < _SMALL_BYTES:
            processes = 1
        encoded = workers.encode(missing(), own, self.work / "tokenizer.json", processes)
        for (number, of_split, sizes), (flat, lengths) in encoded:
            flat, lengths = np.insert(flat, np.cumsum(lengths), end), lengths + 1
            of_token = np.repeat(of_split, lengths)
            for n, split in enumerate(SPLITS):
                here = of_split == n
                writers[split].append(flat[of_token == n], lengths[here], sizes[here])
            unsaved += int(sizes.sum())
            if unsaved >= _JOURNAL_BYTES:
                positions = {split: writer.position() for split, writer in writers.items()}
                self._save("journal.json", {"blocks": number + 1, "splits": positions})
                unsaved = 0
            self._report("encode", funnel, bytes_total, done=sum(w.bytes for w in writers.values()))
        done = sum(w.bytes for w in writers.values())
        self._report("encode", funnel, bytes_total, done=done, force=True)
        return {split: writer.finish() for split, writer in writers.items()}

    def _index(
        self, own: Tokenizer, survey: dict[str, Any], funnel: intake.Funnel, entries: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        wanted = [s for s in SPLITS if s != "test" or self.config.test_fraction]
        for split in wanted:
            if not entries[split]["tokens"]:
                raise DataError(f"the {split} split is empty; add text, or change data.split or its fractions")
        size = sum(e["bytes"] for e in entries.values())
        tokens = sum(e["tokens"] for e in entries.values())
        if size != funnel.bytes_out or size != survey["bytes"]:
            raise DataError("the input changed while it was being prepared; prepare again")
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
        }

    def _report(
        self, stage: str, funnel: intake.Funnel, bytes_total: int, *, done: int | None = None, force: bool = False
    ) -> None:
        now = time.monotonic()
        if not force and now - self._reported < _REPORT_SECONDS:
            return
        self._reported = now
        self.progress(
            {
                "stage": stage,
                "bytes": funnel.bytes_out if done is None else done,
                "bytes_total": bytes_total,
                "documents": funnel.documents_in,
                "seconds": now - self.began,
            }
        )

    def _saved(self, name: str) -> dict[str, Any] | None:
        """A file of an earlier start with the same fingerprint."""
        try:
            saved = json.loads((self.work / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return saved if saved.get("fingerprint") == self.fingerprint else None

    def _save(self, name: str, content: dict[str, Any]) -> None:
        self._write(name, {**content, "fingerprint": self.fingerprint})

    def _write(self, name: str, content: dict[str, Any]) -> None:
        temporary = self.work / f"{name}.new"
        with temporary.open("w", encoding="utf-8") as f:
            json.dump(content, f, ensure_ascii=False, indent=1)
            f.flush()
            os.fsync(f.fileno())
        temporary.rename(self.work / name)

    def _clear(self) -> None:
        for path in self.work.iterdir():
            if path.is_file() and path.name not in {"lock", "stdin.json"}:
                path.unlink()


def _tokenizer(config: TokenizerConfig, training: list[Chunk], text_bytes: int) -> Tokenizer:
    if config.path:
        return tokenizer.load(Path(config.path))
    if config.kind == "bytes":
        return tokenizer.byte_tokenizer()
    size = config.vocab_size or tokenizer.fitted_vocab_size(text_bytes)
    return tokenizer.train_bpe((c.text.data.decode() for c in training), size)


def _in_order(training: list[Chunk], limit: int) -> bytes:
    """The first chunks by priority, up to `limit` bytes, in the order of the text."""
    chosen: list[Chunk] = []
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


def _nothing(funnel: intake.Funnel) -> str:
    message = (
        f"no text in {funnel.files:,} files: {funnel.quarantined:,} records quarantined, "
        f"{sum(funnel.dropped.values()):,} dropped as empty or duplicate"
    )
    first = "; ".join(f"{q['source']}: {q['reason']}" for q in funnel.quarantine[:3])
    return f"{message}. First: {first}" if first else message
