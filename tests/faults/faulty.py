"""A worker of `foretell train --nproc N` in which one fault after another comes true, each once.

    python worker.py RUN PREPARED FAULTS

FAULTS is a folder with faults.json, a list of {"fault", "phase", "rank", "step"}; where one has come true a file with
its number says so. The faults are those of NVIDIA's resiliency extension that need no accelerator.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch.distributed as dist

from foretell import runtime
from foretell.checkpoint import files
from foretell.cli import steps
from foretell.train import loop, saved


class Injected(Exception):
    """What a fault raises."""


def _raise(*_: object) -> None:
    raise Injected("on purpose")


def _raise_from_a_handler() -> None:
    signal.signal(signal.SIGUSR1, _raise)
    os.kill(os.getpid(), signal.SIGUSR1)
    time.sleep(0.1)


def _raise_from_another_thread() -> None:
    main = ctypes.c_ulong(threading.main_thread().ident or 0)
    thread = threading.Thread(
        target=lambda: ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(Injected))
    )
    thread.start()
    thread.join()


def _signal(number: signal.Signals) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


FAULTS: dict[str, Callable[[], object]] = {
    "exception": _raise,
    "exception in a signal handler": _raise_from_a_handler,
    "asynchronous exception": _raise_from_another_thread,
    "abort": os.abort,
    "segmentation fault": lambda: ctypes.string_at(0),
    "interpreter held": lambda: ctypes.PyDLL(None).sleep(1000),
    "SIGINT": _signal(signal.SIGINT),
    "SIGTERM": _signal(signal.SIGTERM),
    "SIGKILL": _signal(signal.SIGKILL),
    "SIGSTOP": _signal(signal.SIGSTOP),
}
_RAISING = {"exception", "exception in a signal handler", "asynchronous exception"}


class Injector:
    def __init__(self, folder: Path) -> None:
        self.folder, self.step = folder, -1
        planned = json.loads((folder / "faults.json").read_text())
        self.mine = [(n, f) for n, f in enumerate(planned) if f["rank"] == runtime.rank()]

    def at(self, phase: str) -> None:
        """Let come true what is planned for here and now."""
        for number, fault in self.mine:
            due = self.step >= fault["step"] if phase == "writing" else self.step == fault["step"]
            if fault["phase"] == phase and due and not (self.folder / str(number)).exists():
                (self.folder / str(number)).touch()
                FAULTS[fault["fault"]]()

    def install(self) -> None:
        micro_batches, all_reduce = loop.micro_batches, dist.all_reduce
        tensors, rename = saved.tensors, files.rename

        def forward(job: loop.Job, step: int, rows: list[int], **alike: bool) -> Iterator[Any]:
            for part in micro_batches(job, step, rows, **alike):
                self.step = step + 1
                self.at("forward")
                yield part

        def reduce(*args: Any, **kwargs: Any) -> Any:
            self.at("all-reduce")
            return all_reduce(*args, **kwargs)

        def snapshot(*args: Any) -> Any:  # by the thread that trains: what is raised there is raised in training
            self.at("snapshot")
            return tensors(*args)

        def publish(*args: Any) -> Any:  # by the thread that writes
            if threading.current_thread() is not threading.main_thread():
                self.at("writing")
            return rename(*args)

        loop.micro_batches, dist.all_reduce = forward, reduce
        saved.tensors, files.rename = snapshot, publish


if __name__ == "__main__":
    injector = Injector(Path(sys.argv[3]))
    injector.install()
    steps.work(Path(sys.argv[1]), Path(sys.argv[2]), lambda event: None)
