"""How well a ladder foretells: its error on targets of at least 30 times the largest rung, chosen beforehand.

    python benchmarks/ladder_targets.py TEXT --out FOLDER [--scale large] [--only rungs] [--lock FILE] [--record FOLDER]

TEXT: at least 200 MB, prepared (`foretell prepare`), such as the sources and documentation of a Python installation and
its packages. Trains the rungs once, forecasts every target (all are on record before the first is trained), then
climbs to each and prints the signed errors, their median and their worst. The peer is the guess that needs no law: the
lowest loss of a rung. Goes on where it was interrupted. --only rungs: trains no target. --only WIDTH: climbs to that
one. --lock: a file that is locked (shared) around each rung and target, so that others can have the machine to
themselves in between. --record: where rungs.csv and targets.json are put, from which docs/forecast-accuracy.md tells.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import shutil
import statistics
from pathlib import Path
from typing import Any

from foretell import calibrate
from foretell import config as run_config
from foretell.config import RunConfig
from foretell.data import open_data
from foretell.ladder.climb import run as climb_ladder

COMMON = ["evaluate.max_tokens=422000"]
# By scale: what the rungs have, and targets as (hidden size, layers, tokens), each at least 30 times the largest rung,
# at three ratios of tokens to parameters.
SCALES: dict[str, tuple[list[str], list[tuple[int, int, int]]]] = {
    "small": (
        [
            *("ladder.widths=[16, 24, 32, 48]", "ladder.repeats=1", "ladder.rung_flops=5e11"),
            *("train.dtype=float32", "train.attention=sdpa"),
        ],
        [(64, 2, 13_800_000), (48, 2, 20_900_000), (96, 3, 5_500_000)],
    ),
    "middle": (
        [
            *("ladder.widths=[24, 32, 48, 64]", "ladder.repeats=1", "ladder.rung_flops=8e11"),
            *("train.dtype=float32", "train.attention=sdpa"),
        ],
        [(64, 2, 21_300_000), (96, 3, 8_900_000), (128, 4, 4_700_000)],
    ),
    "seeds": (
        [
            *("ladder.widths=[16, 24, 32, 48, 64]", "ladder.seeds=3", "ladder.repeats=0", "ladder.rung_flops=1.2e12"),
            *("train.dtype=float32", "train.attention=sdpa"),
        ],
        [(64, 4, 19_600_000), (96, 4, 10_400_000), (128, 4, 6_100_000)],
    ),
    "large": (
        ["ladder.widths=[32, 48, 64, 80, 96]", "ladder.repeats=1", "ladder.rung_flops=3e12"],
        [(96, 3, 33_000_000), (128, 4, 16_200_000), (160, 5, 9_000_000)],
    ),
}


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


def target(rungs: list[str], width: int, layers: int, tokens: int) -> RunConfig:
    """The config of a target, with what all rungs have in common."""
    size = [f"model.hidden_size={width}", f"model.num_hidden_layers={layers}", f"train.tokens={tokens}"]
    return run_config.load(None, [*COMMON, *rungs, *size])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scale", choices=sorted(SCALES), default="large")
    parser.add_argument("--only")
    parser.add_argument("--lock", type=Path)
    parser.add_argument("--record", type=Path)
    args = parser.parse_args()
    data, machine, turns = open_data(args.text), calibrate.record(), Turns(args.lock)
    rungs, targets = SCALES[args.scale]

    def run(shape: tuple[int, int, int], climb: bool) -> dict[str, Any]:
        return climb_ladder(target(rungs, *shape), data, args.out, machine=machine, climb=climb, display=turns)

    results = [run(t, False) for t in targets]
    if args.only != "rungs":
        results = [run(t, args.only in (None, str(t[0]))) for t in targets]
    summary = summed_up(results)
    print(json.dumps(summary, indent=1))
    if args.record:
        args.record.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(args.out / "rungs.csv", args.record / "rungs.csv")
        (args.record / "targets.json").write_text(json.dumps(summary, indent=1) + "\n")


def summed_up(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The targets' forecasts and errors, and those of the peer."""
    best = min(row["loss"] for row in results[0]["rungs"])
    fields = ("target", "created", "forecast", "compute_ratio", "measured", "error_percent", "held")
    records = [{k: r[k] for k in fields} for r in results]
    for r in records:
        r["error_percent_of_best_rung"] = 100 * (r["measured"] / best - 1) if r["measured"] else None
    errors = [abs(r["error_percent"]) for r in records if r["error_percent"] is not None]
    return {
        "rungs": len(results[0]["rungs"]),
        "fit": {k: results[0]["fit"][k] for k in ("E", "A", "B", "alpha", "beta", "form")},
        "targets": records,
        "median_error_percent": statistics.median(errors) if errors else None,
        "worst_error_percent": max(errors, default=None),
    }


if __name__ == "__main__":
    main()
