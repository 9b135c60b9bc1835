"""Several processes for one run: torch elastic starts them, starts all again when one dies, and ends them together.

A worker that ends for a reason a user can mend, or because it was asked to, leaves that reason in the report folder and
counts as done, so that only what died is started again. `run` hands the first such reason on.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError
from torch.distributed.launcher import api as launcher
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from foretell import runtime
from foretell.checkpoint import published
from foretell.distributed.watch import Watch
from foretell.errors import ForetellError, Interrupted

_ENDED = "ended.json"
_LAST_SECONDS = 5.0
_SAVING_SECONDS = 600  # until processes that were told to stop are killed


@dataclass(frozen=True)
class Nodes:
    """The machines of a run. rendezvous: HOST:PORT on one of them. run_id: what they have in common."""

    count: int = 1
    rendezvous: str = "localhost:0"
    run_id: str = ""


def run(
    command: list[str],
    processes: int,
    max_restarts: int,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
    nodes: Nodes = Nodes(),
) -> None:
    """Run `command` in so many processes on this machine until all are done; one that hangs is ended (`watch.py`).

    folder: the run's, for what is found of a hang, and for its checkpoints: after a new one, on a single machine, the
    restarts are counted anew. say: shows a line while it goes on.
    Raises what one of them left with `leave_reason`, and ForetellError when they died more than `max_restarts` times.
    """
    while True:
        newest = _newest(folder)
        try:
            _run_once(command, processes, max_restarts, folder, say, nodes)
            return
        except _Died as e:
            if nodes.count > 1 or not max_restarts or _newest(folder) == newest:
                raise ForetellError(str(e)) from None
            say(f"{e}; there are new checkpoints since, so the count begins anew")


class _Died(Exception):
    """Processes died too often."""


def _newest(folder: Path | None) -> str | None:
    found = published(folder / "checkpoints") if folder is not None else []
    return found[0].name if found else None


def _run_once(
    command: list[str],
    processes: int,
    max_restarts: int,
    folder: Path | None,
    say: Callable[[str], None],
    nodes: Nodes,
) -> None:
    with tempfile.TemporaryDirectory(prefix="foretell-") as report:
        runtime.prepare_workers(processes, Path(report))
        config = LaunchConfig(
            min_nodes=nodes.count,
            max_nodes=nodes.count,
            nproc_per_node=processes,
            rdzv_backend="c10d",
            rdzv_endpoint=nodes.rendezvous,
            run_id=nodes.run_id or Path(report).name,
            max_restarts=max_restarts,
            monitor_interval=0.1,
            logs_specs=DefaultLogsSpecs(log_dir=report),
            shutdown_timeout=_SAVING_SECONDS,
        )
        # A machine that was told to stop does not come to the barrier at which the others would wait for it.
        launcher.LocalElasticAgent = partial(LocalElasticAgent, exit_barrier_timeout=_LAST_SECONDS)  # type: ignore
        for name in logging.root.manager.loggerDict:
            if name.startswith("torch.distributed.elastic"):  # each has a level of its own
                logging.getLogger(name).setLevel(logging.CRITICAL)
        signum, died = 0, ""
        try:
            with Watch(Path(report), folder, say).going_on():
                elastic_launch(config, command[0])(*command[1:])
        except SignalException as e:
            signum = int(e.sigval)
        except ChildFailedError as e:
            rank, failure = e.get_first_failure()
            died = f"rank {rank} ended with {failure.signal_name() if failure.exitcode < 0 else failure.exitcode}"
        except RendezvousError as e:
            raise ForetellError(f"{nodes.rendezvous}: {nodes.count} machines did not meet there: {e}") from None
        _hand_on(Path(report) / _ENDED, processes, signum, died, max_restarts)


def _hand_on(ended: Path, processes: int, signum: int, died: str, max_restarts: int) -> None:
    if ended.exists():
        left = json.loads(ended.read_text(encoding="utf-8"))
        if left["signum"]:
            raise Interrupted(left["message"], left["signum"])
        raise ForetellError(left["message"])
    if signum:
        raise Interrupted("the processes were ended before all had saved; go on with --resume", signum)
    if died:
        raise _Died(f"{died}, and so did one of {processes} processes each of {max_restarts + 1} times; see above")


def ended_before() -> bool:
    """Whether another worker of this launch has left its reason: then a restart has nothing to do."""
    folder = runtime.worker_report()
    return folder is not None and (folder / _ENDED).exists()


def leave_reason(e: ForetellError) -> None:
    """For a worker: leave why it ends. The first one counts."""
    folder = runtime.worker_report()
    if folder is None:
        raise e
    signum = e.exit_code - 128 if isinstance(e, Interrupted) else 0
    partial = folder / f"ended-{runtime.rank()}.json"
    partial.write_text(json.dumps({"message": str(e), "signum": signum}), encoding="utf-8")
    if not (folder / _ENDED).exists():
        partial.rename(folder / _ENDED)


def command(*arguments: str) -> list[str]:
    """The command line of a worker: this program with other arguments."""
    return [sys.executable, "-m", "foretell.cli", *arguments]
