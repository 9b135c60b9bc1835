"""Functions on several ranks: processes forked from the server that has torch loaded, joined in one gloo group.

    results = on(4, body, "argument")        # body("argument") on each of four ranks; their results, by rank

The body is a function of a module, so that it can be found again in the other process. A rank that raises fails the
call with its traceback; one that is not done by the deadline is killed and named.
"""

import os
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from tempfile import TemporaryDirectory
from typing import Any

from training import CONTEXT

TIMEOUT_SECONDS = 60.0


def _rank(
    function: Callable[..., Any], arguments: tuple[Any, ...], rank: int, ranks: int, folder: str, pipe: Connection
) -> None:
    from datetime import timedelta

    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"}
    try:
        limit = timedelta(seconds=TIMEOUT_SECONDS)
        dist.init_process_group(
            "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks, timeout=limit
        )
        result = function(*arguments)
        dist.barrier()  # without it a rank may still be spoken to when it leaves
        dist.destroy_process_group()
        pipe.send((True, result))
    except BaseException:
        pipe.send((False, traceback.format_exc()))
        raise


def on(ranks: int, function: Callable[..., Any], *arguments: Any, deadline: float = TIMEOUT_SECONDS) -> list[Any]:
    """The results of `function(*arguments)` on ranks 0 to `ranks` - 1. Raises AssertionError with what went wrong."""
    with TemporaryDirectory() as folder:
        processes, pipes = [], []
        for rank in range(ranks):
            here, there = CONTEXT.Pipe(duplex=False)
            process = CONTEXT.Process(target=_rank, args=(function, arguments, rank, ranks, folder, there))
            process.start()
            there.close()
            processes.append(process)
            pipes.append(here)
        try:
            return _results(pipes, time.monotonic() + deadline)
        finally:
            for process in processes:
                process.join(1)
                if process.is_alive():
                    process.kill()
                    process.join()


def _results(pipes: list[Connection], ends: float) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(pipes):
        left = [p for n, p in enumerate(pipes) if n not in results]
        ready = wait(left, max(0.0, ends - time.monotonic()))
        assert ready, f"ranks {[n for n in range(len(pipes)) if n not in results]} were not done in time"
        for pipe in ready:
            rank = pipes.index(pipe)  # type: ignore[arg-type]
            try:
                good, value = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                good, value = False, "the process died"
            assert good, f"rank {rank}: {value}"
            results[rank] = value
    return [results[n] for n in range(len(pipes))]
