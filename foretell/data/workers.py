"""Processes that do tasks of a preparation beside the one that started them.

They are plain interpreters with the working folder and the configuration as arguments: nothing is pickled, nothing is
forked, a script needs no `__main__` guard. They find what to do in the folder, and end when it is gone, when all is
encoded, or when the process that started them is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import foretell
from foretell import errors, runtime
from foretell.config import DataConfig
from foretell.data.readers import Entry
from foretell.data.tasks import Tasks, write_json
from foretell.errors import DataError, ForetellError, MissingExtra

_START = "import sys; sys.path.insert(0, sys.argv[1]); from foretell.data import workers; workers.serve(sys.argv[2])"
_PAUSE_SECONDS = 0.05
_ERROR = "error.json"


class Worker(Protocol):
    """One that does tasks. `poll`: None while it is at work, else how it ended, 0 for well."""

    def poll(self) -> int | None:
        """See above."""
        ...


@contextmanager
def beside(tasks: Tasks, count: int) -> Iterator[list[Worker]]:
    """So many processes at work on the tasks while entered."""
    file = _planned(tasks)
    root = str(Path(foretell.__file__).parent.parent)
    processes = [
        # Its own session, so that Ctrl-C reaches the parent alone.
        subprocess.Popen([sys.executable, "-c", _START, root, str(file)], start_new_session=True)
        for _ in range(count)
    ]
    try:
        yield list[Worker](processes)
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        file.unlink(missing_ok=True)


@contextmanager
def on_ray(tasks: Tasks, count: int | None) -> Iterator[list[Worker]]:
    """The same on the Ray cluster that RAY_ADDRESS names, or on one of this machine. None: one worker a processor.

    The folder must be one that all of the cluster's machines see. Needs the extra `ray`.
    """
    try:
        import ray
    except ImportError:
        raise MissingExtra("engine=ray", "ray") from None

    class Remote:
        def __init__(self, reference: Any) -> None:
            self.reference = reference

        def poll(self) -> int | None:
            if not ray.wait([self.reference], timeout=0)[0]:
                return None
            try:
                ray.get(self.reference)
            except ray.exceptions.RayError:
                return 1
            return 0

    began = not ray.is_initialized()
    if began:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    file = _planned(tasks)
    start = ray.remote(num_cpus=1, max_retries=-1)(_serve_on_ray)
    remotes = [Remote(start.remote(str(file))) for _ in range(count or int(ray.cluster_resources()["CPU"]))]
    try:
        yield list[Worker](remotes)
    finally:
        for remote in remotes:
            ray.cancel(remote.reference, force=True)
        file.unlink(missing_ok=True)
        if began:
            ray.shutdown()


def _serve_on_ray(file: str) -> None:
    serve(file, parent=os.getppid())


def _planned(tasks: Tasks) -> Path:
    """A file from which another process knows the tasks."""
    entries = [asdict(e) | {"path": e.path and str(e.path)} for e in tasks.entries]
    sizes = {"group_bytes": tasks.group_bytes, "chunk_bytes": tasks.chunk_bytes}
    plan: dict[str, Any] = {"entries": entries, "config": tasks.config.model_dump(), "sizes": sizes}
    plan["parent"] = os.getpid()
    file = tasks.work / f"workers-{secrets.token_hex(8)}.json"  # machines may have the same process numbers
    write_json(file, plan)
    return file


def check(work: Path, processes: list[Worker]) -> None:
    """Raises what a process met, or DataError where one ended that should not have."""
    if (work / _ERROR).exists():
        met = json.loads((work / _ERROR).read_text(encoding="utf-8"))
        (work / _ERROR).unlink()
        raise getattr(errors, met["kind"])(met["message"])
    for process in processes:
        if code := process.poll():
            raise DataError(
                f"a process of the preparation ended with code {code} (out of memory?); what is done is "
                "kept: start it again, with fewer --workers where memory is short"
            )


def serve(file: str, parent: int | None = None) -> None:
    """What a process runs, until the process `parent` (that of the plan) is no longer its parent."""
    runtime.tokenize_in_one_thread()  # the library's threads would compete: one process, one core
    plan: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
    entries = [Entry(**{**e, "path": e["path"] and Path(e["path"])}) for e in plan["entries"]]
    tasks = Tasks(Path(file).parent, entries, DataConfig(**plan["config"]), **plan["sizes"])
    with contextlib.suppress(FileNotFoundError, KeyboardInterrupt):  # the folder is gone: another finished it
        while os.getppid() == (parent or plan["parent"]) and Path(file).exists():
            try:
                if not tasks.do_one():
                    time.sleep(_PAUSE_SECONDS)
            except ForetellError as e:
                kind = type(e).__name__ if type(e) is getattr(errors, type(e).__name__, None) else "DataError"
                write_json(tasks.work / _ERROR, {"kind": kind, "message": str(e)})
                return
