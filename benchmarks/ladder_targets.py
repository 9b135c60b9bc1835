"""How well a ladder foretells: its error on targets of at least 30 times the largest rung, chosen beforehand.

    python benchmarks/ladder_targets.py TEXT --out FOLDER [--only forecast] [--lock FILE] [--json RESULT.json]

TEXT: at least 200 MB, prepared (`foretell prepare`), such as the sources and documentation of a Python installation and
its packages. Trains the rungs of `RUNGS` once, forecasts every target of `TARGETS` (all are on record before the first
is trained), then climbs to each and prints the signed errors, their median and their worst. The peer is the best
constant guess that needs no law: the loss of the largest rung's best run. Goes on where it was interrupted. --lock: a
file that is locked (shared) around each rung and target, so that others can have the machine to themselves in between.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import statistics
from pathlib import Path
from typing import Any

from foretell import calibrate
from foretell import config as run_config
from foretell.config import RunConfig
from foretell.data import open_data
from foretell.ladder.climb import run as climb_ladder

RUNGS = [
    *("ladder.widths=[16, 24, 32, 40, 48]", "ladder.rung_flops=1.5e11", "ladder.repeats=1"),
    *("train.dtype=float32", "train.attention=sdpa", "evaluate.max_tokens=422000"),
]
# (hidden size, layers, tokens): 30 times the largest rung, at three ratios of tokens to parameters.
TARGETS = [(48, 2, 6_250_000), (64, 2, 4_100_000), (80, 2, 2_990_000)]


class Turns:
    """A shared lock that is let go and taken anew at each event that begins a run."""

    def __init__(self, path: Path | None) -> None:
        self.file = os.open(path, os.O_RDWR | os.O_CREAT) if path else None

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] in ("rung", "forecast", "plan") and self.file is not None:
            fcntl.flock(self.file, fcntl.LOCK_UN)
            fcntl.flock(self.file, fcntl.LOCK_SH)
        if event["event"] not in ("step", "start", "eval"):
            print({k: v for k, v in event.items() if isinstance(v, str | int | float)}, flush=True)


def target(width: int, layers: int, tokens: int) -> RunConfig:
    """The config of a target, with what all rungs have in common."""
    size = [f"model.hidden_size={width}", f"model.num_hidden_layers={layers}", f"train.tokens={tokens}"]
    return run_config.load(None, [*RUNGS, *size])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=["forecast"])
    parser.add_argument("--lock", type=Path)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    data, machine, turns = open_data(args.text), calibrate.record(), Turns(args.lock)
    results = []
    for climb in [False] if args.only else [False, True]:
        results = [
            climb_ladder(target(*t), data, args.out, machine=machine, climb=climb, display=turns) for t in TARGETS
        ]
    rungs = results[0]["rungs"]
    best = min(row["loss"] for row in rungs)
    records = [
        {k: r[k] for k in ("target", "created", "forecast", "compute_ratio", "measured", "error_percent", "held")}
        | {"error_percent_of_best_rung": 100 * (r["measured"] / best - 1) if r["measured"] else None}
        for r in results
    ]
    errors = [abs(r["error_percent"]) for r in records if r["error_percent"] is not None]
    summary = {
        "rungs": len(rungs),
        "fit": {k: results[0]["fit"][k] for k in ("E", "A", "B", "alpha", "beta", "form")},
        "targets": records,
        "median_error_percent": statistics.median(errors) if errors else None,
        "worst_error_percent": max(errors, default=None),
    }
    print(json.dumps(summary, indent=1))
    if args.json:
        args.json.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
