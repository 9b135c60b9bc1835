"""Processes that do tasks of a preparation beside the one that started them.

They are plain interpreters with the working folder and the configuration as arguments: nothing is pickled, nothing is
forked, a script needs no `__main__` guard. They find what to do in the folder, and end when it is gone, when all is
encoded, or when the process that started them is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import foretell
from foretell import errors, runtime
from foretell.config import DataConfig
from foretell.data.readers import Entry
from foretell.data.tasks import Tasks, write_json
from foretell.errors import DataError, ForetellError

_START = "import sys; sys.path.insert(0, sys.argv[1]); from foretell.data import workers; workers.serve(sys.argv[2])"
_PAUSE_SECONDS = 0.05
_ERROR = "error.json"


@contextmanager
def beside(tasks: Tasks, count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """So many processes at work on the tasks while entered."""
    entries = [asdict(e) | {"path": e.path and str(e.path)} for e in tasks.entries]
    sizes = {"group_bytes": tasks.group_bytes, "chunk_bytes": tasks.chunk_bytes}
    plan: dict[str, Any] = {"entries": entries, "config": tasks.config.model_dump(), "sizes": sizes}
    plan["parent"] = os.getpid()
    file = tasks.work / f"workers-{os.getpid()}.json"
    write_json(file, plan)
    root = str(Path(foretell.__file__).parent.parent)
    processes = [
        # Its own session, so that Ctrl-C reaches the parent alone.
        subprocess.Popen([sys.executable, "-c", _START, root, str(file)], start_new_session=True)
        for _ in range(count)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        file.unlink(missing_ok=True)


def check(work: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    """Raises what a process met, or DataError where one ended that should not have."""
    if (work / _ERROR).exists():
        met = json.loads((work / _ERROR).read_text(encoding="utf-8"))
        (work / _ERROR).unlink()
        raise getattr(errors, met["kind"])(met["message"])
    for process in processes:
        if process.poll() not in (None, 0):
            raise DataError(
                f"a process of the preparation ended with code {process.returncode} (out of memory?); what is done is "
                "kept: start it again, with fewer --workers where memory is short"
            )


def serve(file: str) -> None:
    """What a process runs."""
    runtime.tokenize_in_one_thread()  # the library's threads would compete: one process, one core
    plan: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    entries = [Entry(**{**e, "path": e["path"] and Path(e["path"])}) for e in plan["entries"]]
    tasks = Tasks(Path(file).parent, entries, DataConfig(**plan["config"]), **plan["sizes"])
    with contextlib.suppress(FileNotFoundError, KeyboardInterrupt):  # the folder is gone: another finished it
        while os.getppid() == plan["parent"] and tasks.work.exists():
            try:
                if not tasks.do_one():
                    time.sleep(_PAUSE_SECONDS)
            except ForetellError as e:
                kind = type(e).__name__ if type(e) is getattr(errors, type(e).__name__, None) else "DataError"
                write_json(tasks.work / _ERROR, {"kind": kind, "message": str(e)})
                return
