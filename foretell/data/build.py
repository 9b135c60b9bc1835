"""`prepare`: sources in, a folder of token shards out, with the account of every record.

What is to be done stands as tasks in a working folder (.NAME.partial, beside the output), and `data/job.py` says which.
The processes of one command do them, and so does the same command started on other machines that see the folder; an
interrupted preparation goes on with what is left. The output is a function of the inputs and the configuration alone:
not of the number of processes or machines, nor of interruptions. It appears by one rename. The same inputs (paths,
sizes, modification times) and configuration again are a no-op.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from foretell import runtime
from foretell.config import DataConfig, TokenizerConfig
from foretell.data import clean, conversations, readers, splits
from foretell.data.claims import Claims
from foretell.data.job import Job, Progress
from foretell.data.shards import FORMAT_VERSION, SPLITS, open_data, read_index
from foretell.data.tasks import Tasks, pair_of, write_json
from foretell.data.workers import Worker, beside, check, on_ray
from foretell.errors import ConfigError, DataError, ForetellError

_SMALL_BYTES = 1 << 22  # below it, starting processes costs more than it saves
_PATIENCE_SECONDS = 30.0
_PAUSE_SECONDS = 0.02
_LOOK_SECONDS = 1.0
_MEMBER = "member-"
# Settings that came later: left out of the fingerprint where they are off, so that older folders keep theirs.
_LATER = (
    *("languages", "quality", "near_duplicates", "decontaminate", "personal_data", "source_key", "target_key"),
    *("format", "chat_template", "chat_system", "chat_bos", "chat_eos", "labels", "stride"),
)
# What stands in a prepared folder, and what a file manager leaves in any.
_OURS = re.compile(
    r"index\.json|tokenizer\.json|(train|valid|test)(-[0-9]{5,}\.(tokens|answers)|\.ends|\.bytes)|"
    r"dropped-[a-z-]+\.jsonl\.gz|\.DS_Store"
)


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
    engine: Literal["processes", "ray"] = "processes",
) -> dict[str, Any]:
    """Prepare `sources` into the folder `out`; the fields of `foretell prepare --json`.

    `progress` is called with {"stage", "bytes", "bytes_total", "documents", "seconds"}. `split_of` maps a document's
    source to train, valid or test, instead of data.split. `without`: a folder that is not read where a source holds it.
    engine: where workers run, on this machine or on a Ray cluster whose machines see the folders.
    Raises DataError when nothing usable is found, when a split would be empty, or when `out` holds something that is
    not of a prepared folder.
    """
    began = time.monotonic()
    _check(tokenizer_config)
    pair_of(data_config)
    if data_config.split == "name":
        split_of = splits.by_name
    out = Path(out)
    out.absolute().parent.mkdir(parents=True, exist_ok=True)
    work = out.absolute().parent / f".{out.name}.partial"
    with ExitStack() as stack:
        with _entering(work, out):
            try:
                inputs = readers.expand(sources, work / "stdin.json", [out, work, *([without] if without else [])])
                data_config = conversations.settled(data_config, inputs.entries)
                fingerprint = _fingerprint(inputs, tokenizer_config, data_config, split_of)
                index = _existing(out, fingerprint)
                if index is None:
                    _take_up(work, out, fingerprint)
            except ForetellError:
                if not (work / "plan.json").exists():
                    shutil.rmtree(work)
                raise
            if index is not None:
                shutil.rmtree(work)
                return _result(out, index, began, unchanged=True)
            tasks = Tasks(work, inputs.entries, data_config)
            stack.enter_context(tasks.claims.held(f"{_MEMBER}{socket.gethostname()}-{os.getpid()}"))
        show = progress or (lambda _: None)
        job = Job(tasks, inputs.hidden, fingerprint, tokenizer_config, show, began, split_of)
        count = workers or runtime.cores()
        if sum(e.size for e in inputs.entries) < _SMALL_BYTES:
            count = 1
        try:
            at_work = on_ray(tasks, workers) if engine == "ray" else beside(tasks, count if count > 1 else 0)
            index = _through(job, out, stack.enter_context(at_work))
        except ForetellError:
            if not (work / "survey.json").exists() and _members(tasks.claims) <= 1:  # nothing to go on from
                stack.close()
                shutil.rmtree(work)
            raise
    return _result(out, index, began, unchanged=False)


@contextmanager
def _entering(work: Path, out: Path) -> Iterator[None]:
    """Alone among the commands that begin to prepare `out`, for the moment that it takes to take part."""
    ends = time.monotonic() + _PATIENCE_SECONDS
    while (lock := _locked(work)) is None:
        if time.monotonic() > ends:
            raise DataError(f"{out}: another process is beginning to prepare it, and does not end")
        time.sleep(_PAUSE_SECONDS)
    with lock:
        yield


def _locked(work: Path) -> IO[str] | None:
    """The lock of the working folder, or None where another holds it or has just finished, and the folder is gone."""
    work.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):
        lock = (work / "lock").open("w")
        with suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock.fileno()), os.stat(work / "lock")):
                return lock
        lock.close()
    return None


def _take_up(work: Path, out: Path, fingerprint: str) -> None:
    """Go on with what is in the working folder, or clear it where it was for something else."""
    planned = _planned(work)
    if planned == fingerprint:
        return
    if planned is not None and _members(Claims(work / "claims")):
        raise DataError(f"{out}: another process is preparing it from other text or with other settings")
    for path in work.iterdir():
        if path.name not in {"lock", "stdin.json"}:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(work / "plan.json", {"fingerprint": fingerprint})


def _planned(work: Path) -> str | None:
    """The fingerprint of what the working folder is for."""
    try:
        return str(json.loads((work / "plan.json").read_text(encoding="utf-8"))["fingerprint"])
    except (OSError, ValueError, KeyError):
        return None


def _members(claims: Claims) -> int:
    """How many commands take part."""
    claims.free_the_lost()
    return sum(name.startswith(_MEMBER) for name in claims.all())


def _through(job: Job, out: Path, processes: list[Worker]) -> dict[str, Any]:
    """Take part until the output is there; its index."""
    looked = 0.0
    while True:
        try:
            if _planned(job.work) != job.fingerprint:  # another command has finished it
                return _of_another(job, out)
            check(job.work, processes)
            if job.is_encoded:
                with job.tasks.claims.held("finish") as held:
                    if held is not None:
                        index = job.finish(job.work / "out")
                        _publish(job.work, out)
                        return index
            if time.monotonic() - looked > _LOOK_SECONDS:
                looked = time.monotonic()
                job.tasks.claims.free_the_lost()
            if not job.step(alone=not processes):
                job.report_progress()
                time.sleep(_PAUSE_SECONDS)
            elif not processes:
                job.report_progress()
        except (FileNotFoundError, ForetellError):
            if job.work.exists():
                raise
            return _of_another(job, out)  # which has finished it in the midst of that


def _of_another(job: Job, out: Path) -> dict[str, Any]:
    index = _existing(out, job.fingerprint)
    if index is None:
        raise DataError(f"{out}: the working folder {job.work} is gone, and the output is not there; start again")
    return index


def _check(c: TokenizerConfig) -> None:
    """Refuse what would be ignored in silence."""
    if c.path and c.kind != "bpe":
        raise ConfigError(f"tokenizer.kind={c.kind} and tokenizer.path={c.path} are two tokenizers; leave one out")
    if c.vocab_size and (c.path or c.kind == "bytes"):
        given = f"tokenizer.path={c.path}" if c.path else "tokenizer.kind=bytes"
        raise ConfigError(f"tokenizer.vocab_size={c.vocab_size} has no effect with {given}; leave it out")


def render_funnel(result: dict[str, Any]) -> str:
    """What came in and what became of it, in a few lines for a terminal."""
    lines = [
        f"  {result['documents_in']:,} documents in {result['files']:,} files, {result['bytes_in'] / 1e6:,.1f} MB",
        *(f"  - {count:,} dropped: {reason}" for reason, count in result["dropped"].items() if count),
        *(f"  - {count:,} changed: {kind}" for kind, count in result.get("changed", {}).items()),
    ]
    if result["quarantined"]:
        lines.append(f"  - {result['quarantined']:,} quarantined (reasons in {result['out']}/index.json)")
    if result["hidden"]:
        lines.append(f"  {result['hidden']:,} hidden files not read")
    for what, reason in (("inexact", "cut where no token ends"), ("lost", "left out: no token is theirs")):
        if count := (result.get("task") or {}).get(what):
            lines.append(f"  - {count:,} answers {reason}")
    tokens = ", ".join(f"{split} {count:,}" for split, count in result["tokens"].items())
    lines.append(f"  {result['documents_out']:,} kept, {result['bytes_out'] / 1e6:,.1f} MB; tokens: {tokens}")
    lines.append(f"  vocabulary {result['vocab_size']:,}, {result['bytes_per_token']:.2f} bytes a token")
    return "\n".join(lines)


def _fingerprint(
    inputs: readers.Inputs, tokenizer_config: TokenizerConfig, data_config: DataConfig, split_of: object
) -> str:
    files = [[e.name, e.size, e.mtime_ns if e.name != "-" else _content(e.path), e.problem] for e in inputs.entries]
    own = _content(Path(tokenizer_config.path)) if tokenizer_config.path else ""
    settings = data_config.model_dump(exclude={"source", "packing", *_LATER})
    defaults = DataConfig()
    later = {k: v for k in _LATER if (v := getattr(data_config, k)) != getattr(defaults, k)}
    hook = getattr(split_of, "__qualname__", "") if split_of else ""
    objective = {"objective"} if tokenizer_config.objective is None else set[str]()  # this one came later, too
    facts = [FORMAT_VERSION, files, tokenizer_config.model_dump(exclude=objective), own, settings, hook]
    facts += [later, clean.fingerprint(data_config)] if later else []
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
    """Let the folder `out` of the working folder take the place of the output, and delete the rest."""
    old = work.with_name(f".{out.name}.old")
    if old.exists():
        shutil.rmtree(old)
    if out.exists():
        out.rename(old)
    _sync_names(work / "out")
    (work / "out").rename(out)
    _sync_names(out.absolute().parent)
    over = work.with_name(f".{out.name}.over-{secrets.token_hex(4)}")
    work.rename(over)  # at once, so that no other command finds a half of it
    shutil.rmtree(over)
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
        **({"task": index["task"]} if "task" in index else {}),
        "unchanged": unchanged,
        "seconds": time.monotonic() - began,
    }
