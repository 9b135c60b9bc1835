"""A run that goes on from a checkpoint of another: under `wsd` a longer run is the shorter one until that decays.

So one trunk at a constant rate serves several lengths, each with its own short decay (Haegele et al., 2024). Nothing of
it is special to training: the checkpoint and the log are copied, and the run is resumed. Where the other's checkpoint
is gone, the run starts at its beginning and comes out the same, bit for bit, only later. Not handled: a checkpoint
that lies on the disks of several machines; they must share one.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from foretell import checkpoint
from foretell.checkpoint import files
from foretell.train import log as run_log


def branch(run: Path, origin: Path, step: int) -> bool:
    """Let the begun run `run` go on from checkpoint `step` of `origin`; whether there was one.

    Does nothing where `run` has a checkpoint of its own already.
    """
    own = run / "checkpoints"
    if checkpoint.published(own):
        return False
    theirs = [p for p in checkpoint.published(origin / "checkpoints") if p.name.split("-")[1] == f"{step:06d}"]
    if not theirs:
        return False
    own.mkdir(parents=True, exist_ok=True)
    events = [e for e in run_log.read(origin / "log.jsonl") if e.get("step", 0) <= step and e["event"] == "step"]
    lines = (json.dumps(e, ensure_ascii=False) + "\n" for e in events)
    files.write_atomic(run / "log.jsonl", "".join(lines).encode())
    unfinished = own / f".{theirs[0].name}{files.PARTIAL}"
    shutil.rmtree(unfinished, ignore_errors=True)
    shutil.copytree(theirs[0], unfinished, copy_function=_copied)
    files.rename(unfinished, own / f"step-{step:06d}")  # this name says that it is whole
    files.sync_folder(own)
    return True


def _copied(source: str, copy: str) -> str:
    """A copy of a file that is on the disk when this returns."""
    files.write_file(Path(copy), [Path(source).read_bytes()])
    return copy
