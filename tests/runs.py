"""Runs of several ranks on a small text: the same `begin` and `go_on` that the command line calls."""

import json
import os
import signal
from pathlib import Path
from typing import Any

from ranks import on
from training import MACHINE, TINY

from foretell import config as run_config
from foretell.data import open_data
from foretell.errors import Interrupted
from foretell.train import begin, go_on

STEPS = 24
KEYS = [k for k in TINY if not k.startswith(("train.steps", "train.dropout", "train.micro"))]
KEYS += [
    f"train.steps={STEPS}",
    "train.dropout=0",
    "train.micro_batch_size=1",
    "model.num_key_value_heads=2",
    "model.vocab_size=272",
]


def trained(run: Path, data: Path, stop_at: int | None) -> dict[str, Any] | str:
    """One rank's part of a run, which the last rank asks to stop behind a step."""
    import torch.distributed as dist

    last = dist.get_rank() == dist.get_world_size() - 1

    def display(event: dict[str, Any]) -> None:
        if last and event["event"] == "step" and event["step"] == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        return go_on(run, open_data(data), resume=True, display=display)
    except Interrupted as e:
        return str(e)


def session(run: Path, data: Path, ranks: int, layout: list[str], stop_at: int | None = None) -> list[Any]:
    """Begin or go on with a run on so many ranks in that layout, which may be another than before."""
    c = run_config.updated(run_config.load(None, [*KEYS, *layout]), data={"source": str(data)})
    begin(c, open_data(data), run, ranks, machine=MACHINE, resume=True, allow_drift=True)
    return on(ranks, trained, run, data, stop_at)


def losses(run: Path) -> list[float]:
    events = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [e["loss"] for e in events if e["event"] in ("step", "eval")]


def layout(**degrees: int) -> list[str]:
    return [f"parallel.{k}={degrees.get(k, 1)}" for k in ("dp_replicate", "dp_shard", "tp", "pp", "cp", "ep")]
