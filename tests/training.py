"""Training sessions in processes of their own, forked from one server that has torch loaded already.

A session is `foretell.train.train` on a tiny model, which can be told to die at a given step. It leaves its result, or
the message and exit code that the command line would give, in a file.
"""

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from foretell import config as run_config
from foretell.errors import ForetellError

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *(
            "torch._dynamo",
            "torch.distributed.fsdp",
            "torch.distributed.pipelining",
            "torch.distributed.tensor.parallel",
        ),
        *("safetensors.torch", "foretell.train.loop", "training"),
    ]
)
TINY = [
    "model.hidden_size=64",
    "model.num_hidden_layers=2",
    "train.steps=40",
    "train.context=32",
    "train.micro_batch_size=4",
    "train.global_batch_tokens=256",
    "train.save_every=5",
    "train.eval_every=8",
    "train.eval_tokens=256",
    "train.dropout=0.1",
    "train.dtype=float32",
    "train.compile=off",
    "train.seed=3",
]
MACHINE = {"processor": "a", "threads": 1, "torch": "b"}


@dataclass(frozen=True)
class Ended:
    """How a session ended: its exit code (-9 when killed), its result, and what it wrote to stderr."""

    code: int
    result: dict[str, Any] | None
    stderr: str


def _session(
    run: Path, data: Path, overrides: Sequence[str], options: dict[str, Any], die: tuple[int, int] | None
) -> None:
    """The body of the process. die: (step, signal) to send to itself once that step is logged.

    The checkpoint that was due by then is let come to its end first: on a busy machine it may lag behind by steps.
    """
    import torch

    from foretell.data import open_data
    from foretell.train import train

    torch.set_num_threads(1)
    with run.with_suffix(".stderr").open("w") as stderr:
        os.dup2(stderr.fileno(), 2)

    def display(event: dict[str, Any]) -> None:
        for damaged in event.get("skipped_checkpoints", []):
            print(damaged, file=sys.stderr)
        if die and event["event"] == "step" and event["step"] == die[0]:
            every, until = config.train.save_every or die[0] + 1, time.monotonic() + 60
            due = run / "checkpoints" / f"step-{die[0] // every * every:06d}"
            while die[0] >= every and not due.exists() and time.monotonic() < until:
                time.sleep(0.02)
            os.kill(os.getpid(), die[1])

    try:
        config = run_config.updated(run_config.load(None, overrides), data={"source": str(data)})  # as the command does
        result = train(config, open_data(data), run, display=display, **{"machine": MACHINE, **options})
    except ForetellError as e:
        print(f"foretell: {e}", file=sys.stderr)
        sys.exit(e.exit_code)
    whole = run.with_suffix(".whole")  # the kill may come in the midst of this, too
    whole.write_text(json.dumps(result))
    whole.rename(run.with_suffix(".json"))


def started(
    run: Path, data: Path, overrides: Sequence[str] = TINY, die: tuple[int, int] | None = None, **options: Any
) -> ForkServerProcess:
    run.with_suffix(".json").unlink(missing_ok=True)
    process = CONTEXT.Process(target=_session, args=(run, data, overrides, options, die))
    process.start()
    return process


def ended(process: ForkServerProcess, run: Path) -> Ended:
    process.join(120)
    if process.exitcode is None:
        process.kill()
        raise TimeoutError(f"{run}: no end after 120 s")
    result = run.with_suffix(".json")
    stderr = run.with_suffix(".stderr")
    return Ended(
        process.exitcode,
        json.loads(result.read_text()) if result.exists() else None,
        stderr.read_text() if stderr.exists() else "",
    )


def session(
    run: Path, data: Path, overrides: Sequence[str] = TINY, die: tuple[int, int] | None = None, **options: Any
) -> Ended:
    return ended(started(run, data, overrides, die, **options), run)


def killed_after(seconds: float, run: Path, data: Path) -> Ended:
    """A resuming session that gets SIGKILL after `seconds`, unless it ends before."""
    process = started(run, data, resume=True)
    time.sleep(seconds)
    if process.is_alive():
        os.kill(process.pid or 0, signal.SIGKILL)
    return ended(process, run)
