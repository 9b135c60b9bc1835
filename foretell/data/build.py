"""`prepare`: sources in, a folder of token shards out, with the account of every record.

1. Survey: one pass counts documents and bytes, draws a bounded sample, decides the splits, trains the tokenizer.
2. Encode: a second pass tokenises block by block in several processes and appends to the splits' files. A journal says
   after about every 32 MiB how far everything is on disk; an interrupted preparation reads its input again but encodes
   only what is missing.
3. The index is written, and the working folder (.NAME.partial, beside the output) is renamed to the output.

The output is a function of the inputs and the configuration alone: not of the number of workers, nor of interruptions.
The same inputs (paths, sizes, modification times) and configuration again are a no-op. Input is read twice instead of
being kept, because reading runs 20 times as fast as tokenising and needs no memory.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foretell import runtime
from foretell.config import DataConfig, TokenizerConfig
from foretell.data import readers
from foretell.data.job import Job, Progress
from foretell.data.shards import FORMAT_VERSION, SPLITS, open_data, read_index
from foretell.errors import ConfigError, DataError, ForetellError

# What stands in a prepared folder, and what a file manager leaves in any.
_OURS = re.compile(r"index\.json|tokenizer\.json|(train|valid|test)(-[0-9]{5,}\.tokens|\.ends|\.bytes)|\.DS_Store")


def prepare(
    sources: list[str],
    out: Path,
    tokenizer_config: TokenizerConfig,
    data_config: DataConfig,
    *,
    workers: int | None = None,
    progress: Progress | None = None,
    split_of: Callable[[str], str] | None = None,
    without: Path | None = None,
) -> dict[str, Any]:
    """Prepare `sources` into the folder `out`; the fields of `foretell prepare --json`.

    `progress` is called with {"stage", "bytes", "bytes_total", "documents", "seconds"}. `split_of` maps a document's
    source to train, valid or test, instead of data.split. `without`: a folder that is not read where a source holds it.
    Raises DataError when nothing usable is found, when a split would be empty, or when `out` holds something that is
    not of a prepared folder.
    """
    began = time.monotonic()
    _check(tokenizer_config)
    out = Path(out)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    work = out.absolute().parent / f".{out.name}.partial"
    work.mkdir(exist_ok=True)
    with (work / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"{out}: another process is preparing it") from None
        try:
            inputs = readers.expand(sources, work / "stdin.json", [out, work, *([without] if without else [])])
            fingerprint = _fingerprint(inputs, tokenizer_config, data_config, split_of)
            index = _existing(out, fingerprint)
            if index is not None:
                shutil.rmtree(work)
                return _result(out, index, began, unchanged=True)
            job = Job(work, inputs, fingerprint, data_config, progress or (lambda _: None), began, split_of)
            index = job.run(tokenizer_config, workers or runtime.cores())
        except ForetellError:
            if not (work / "survey.json").exists():  # nothing to go on from
                shutil.rmtree(work)
            raise
        _publish(work, out)
    return _result(out, index, began, unchanged=False)


def _check(c: TokenizerConfig) -> None:
    """Refuse what would be ignored in silence."""
    if c.path and c.kind == "bytes":
        raise ConfigError(f"tokenizer.kind=bytes and tokenizer.path={c.path} are two tokenizers; leave one out")
    if c.vocab_size and (c.path or c.kind == "bytes"):
        given = f"tokenizer.path={c.path}" if c.path else "tokenizer.kind=bytes"
        raise ConfigError(f"tokenizer.vocab_size={c.vocab_size} has no effect with {given}; leave it out")


def render_funnel(result: dict[str, Any]) -> str:
    """What came in and what became of it, in a few lines for a terminal."""
    lines = [
        f"  {result['documents_in']:,} documents in {result['files']:,} files, {result['bytes_in'] / 1e6:,.1f} MB",
        *(f"  - {count:,} dropped: {reason}" for reason, count in result["dropped"].items() if count),
    ]
    if result["quarantined"]:
        lines.append(f"  - {result['quarantined']:,} quarantined (reasons in {result['out']}/index.json)")
    if result["hidden"]:
        lines.append(f"  {result['hidden']:,} hidden files not read")
    tokens = ", ".join(f"{split} {count:,}" for split, count in result["tokens"].items())
    lines.append(f"  {result['documents_out']:,} kept, {result['bytes_out'] / 1e6:,.1f} MB; tokens: {tokens}")
    lines.append(f"  vocabulary {result['vocab_size']:,}, {result['bytes_per_token']:.2f} bytes a token")
    return "\n".join(lines)


def _fingerprint(
    inputs: readers.Inputs, tokenizer_config: TokenizerConfig, data_config: DataConfig, split_of: object
) -> str:
    files = [[e.name, e.size, e.mtime_ns if e.name != "-" else _content(e.path), e.problem] for e in inputs.entries]
    own = _content(Path(tokenizer_config.path)) if tokenizer_config.path else ""
    settings = data_config.model_dump(exclude={"source", "packing"})
    hook = getattr(split_of, "__qualname__", "") if split_of else ""
    facts = [FORMAT_VERSION, files, tokenizer_config.model_dump(), own, settings, hook]
    return hashlib.sha256(json.dumps(facts).encode("utf-8", "surrogateescape")).hexdigest()


def _content(path: Path | None) -> str:
    if path is None:
        return ""
    if path.is_dir():
        path = path / "tokenizer.json"
    if not path.is_file():
        return "missing"
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _existing(out: Path, fingerprint: str) -> dict[str, Any] | None:
    """The index of `out` if it is what these inputs give. Refuses to replace what is not ours."""
    if not out.exists():
        return None
    if not out.is_dir() or (any(out.iterdir()) and not (out / "index.json").is_file()):
        raise DataError(f"{out} exists and is not a prepared folder; choose another --out")
    if not any(out.iterdir()):
        return None
    index = read_index(out)
    if index["fingerprint"] == fingerprint:
        try:
            open_data(out)
            return index
        except ForetellError:  # damaged: make it again
            pass
    if foreign := sorted(p.name for p in out.iterdir() if not _OURS.fullmatch(p.name)):
        raise DataError(f"{out} would be replaced, and holds {foreign[0]}; move that away, or choose another --out")
    return None


def _publish(work: Path, out: Path) -> None:
    old = work.with_name(f".{out.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        out.rename(old)
    (work / "lock").unlink()
    _sync_names(work)
    work.rename(out)
    _sync_names(out.absolute().parent)
    shutil.rmtree(old, ignore_errors=True)


def _sync_names(folder: Path) -> None:
    directory = os.open(folder, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def _result(out: Path, index: dict[str, Any], began: float, *, unchanged: bool) -> dict[str, Any]:
    funnel = {k: v for k, v in index["funnel"].items() if k != "quarantine"}
    return {
        "out": str(out),
        **funnel,
        "tokens": {split: index["splits"].get(split, {"tokens": 0})["tokens"] for split in SPLITS},
        "vocab_size": index["tokenizer"]["vocab_size"],
        "bytes_per_token": index["bytes_per_token"],
        "text_xz_bits_per_byte": index["text_xz_bits_per_byte"],
        "unchanged": unchanged,
        "seconds": time.monotonic() - began,
    }
