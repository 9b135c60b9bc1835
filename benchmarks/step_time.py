"""The forecast of an optimiser step that was never tried, against the step: twelve configs that calibrate nothing.

    foretell calibrate                                  # the full record, within two minutes
    python benchmarks/step_time.py [--repeats 3] [--only NAME ...] [--out docs/records/step-time.json]

Each repeat of a config is a process of its own, started with the allocator settings of the command line: the model and
optimisers of `foretell train`, three steps to warm up, then 20 timed steps (of seconds-long steps fewer, at least 5).
Repeats go round all configs, so that a config's three repeats lie minutes apart. Repeats already in the file that
`--out` names are kept, so that the whole may be measured in pieces.

A shared machine is not equally fast at all times. Beside the steps, at least twice a second, the calibration's three
references are timed (`calibrate/timing.py`), and each step is compared with the forecast for the speed beside it. A
config's error is the median over its repeats of the median over steps. The second column of errors knows only the
reference product: the forecast at the record's speed, times what the product took over what it took then.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foretell import calibrate, data, plan, runtime
from foretell import config as run_config
from foretell.calibrate import timing
from foretell.config import DataConfig, RunConfig, TokenizerConfig
from foretell.plan.parts import Speed
from foretell.plan.time import parts, untried_step_seconds
from foretell.train import optim, trial
from foretell.train.alone import Alone
from foretell.train.loop import Job, loss_function, take_step
from foretell.train.saved import State

WARM_STEPS, STEPS, FEWEST_STEPS, MOST_SECONDS = 3, 20, 5, 24.0
# The references are timed when so many seconds have gone into steps.
BESIDE_SECONDS = 0.4
# Name: width, layers, vocabulary, context, sequences, micro-batches, dtype, attention, optimiser, dropout. Chosen
# before any of them was measured.
CONFIGS = {
    "1.1M": (128, 4, 2048, 128, 16, 1, "float32", "sdpa", "muon", 0.0),
    "1.0M deep": (96, 8, 2048, 512, 4, 1, "bfloat16", "products", "muon", 0.0),
    "2.8M": (192, 5, 4096, 256, 16, 2, "float32", "products", "adamw", 0.1),
    "4.7M": (256, 5, 4096, 1024, 4, 1, "bfloat16", "sdpa", "muon", 0.0),
    "11M wide vocabulary": (256, 4, 32000, 128, 32, 1, "bfloat16", "products", "muon", 0.0),
    "11M long": (320, 8, 8192, 2048, 1, 2, "float32", "sdpa", "muon", 0.0),
    "16M": (448, 6, 8192, 256, 8, 1, "bfloat16", "products", "adamw", 0.0),
    "24M": (512, 6, 12000, 512, 8, 1, "float32", "products", "muon", 0.0),
    "38M": (512, 10, 16384, 1024, 2, 2, "bfloat16", "sdpa", "sgd", 0.2),
    "56M": (640, 10, 16384, 512, 4, 1, "float32", "sdpa", "muon", 0.0),
    "77M long": (768, 10, 16384, 2048, 1, 1, "bfloat16", "products", "muon", 0.0),
    "97M": (768, 12, 24576, 1024, 2, 1, "float32", "sdpa", "adamw", 0.0),
}


def completed(row: tuple[Any, ...]) -> RunConfig:
    """A row of the table as `foretell train` would complete it."""
    D, L, V, T, B, micro, dtype, attention, optimizer, dropout = row
    c = run_config.updated(
        RunConfig(),
        model={"hidden_size": D, "num_hidden_layers": L, "vocab_size": V},
        train={
            "context": T,
            "micro_batch_size": B,
            "global_batch_tokens": B * T * micro,
            "steps": 1000,
            "dtype": dtype,
            "attention": attention,
            "optimizer": optimizer,
            "dropout": dropout,
            "compile": "off",
            "eval_every": 1000,
            "save_every": 1000,
        },
    )
    return plan.completed(c, None, runtime.machine_facts())


def random_data(vocabulary: int, folder: Path) -> data.Data:
    """A prepared folder of bytes; the loader is real, the tokens are replaced by uniform ones of the vocabulary."""
    source, random = folder / "text.txt", np.random.default_rng(0)
    source.write_bytes(random.integers(97, 122, 400_000, np.uint8).tobytes())
    data.prepare([str(source)], folder / "data", TokenizerConfig(kind="bytes"), DataConfig(), workers=1)
    opened = data.open_data(folder / "data")
    kind = type(opened.tokens("train"))
    opened._tokens["train"] = kind([random.integers(0, vocabulary, 400_000).astype(np.uint16)], np.dtype(np.uint16))
    return opened


def measure(name: str) -> dict[str, Any]:
    """One repeat: seconds of each step, and for each the speed beside it."""
    torch.set_num_threads(runtime.threads())
    c = completed(CONFIGS[name])
    with tempfile.TemporaryDirectory() as folder:
        corpus = random_data(c.model.sizes.V, Path(folder))
        model = trial.built(c.model, c.train.dropout or 0.0, 0, c.train.attention).train()
        job = Job(c.train, corpus, Path(folder), "across", runtime.dtype(c.train.dtype), False, 0.0, 1.0)
        team, state = Alone(model), State()
        optimizers, loss_of = optim.build(team.named(), c.train, job.dtype), loss_function(job, team)

        def step() -> float:
            began = time.perf_counter()
            take_step(job, team, loss_of, optimizers, state)
            return time.perf_counter() - began

        warm, references = [step() for _ in range(WARM_STEPS)], timing.References()
        seconds, speeds = list[float](), list[Speed]()
        while len(seconds) < STEPS and (sum(seconds) < MOST_SECONDS or len(seconds) < FEWEST_STEPS):
            time.sleep(timing.PAUSE_SECONDS)
            before, block = references.speed(), list[float]()
            if warm[-1] < BESIDE_SECONDS / 4:
                step()  # the references emptied the caches
            while sum(block) < BESIDE_SECONDS:
                block.append(step())
            speeds += [timing.between(before, references.speed())] * len(block)
            seconds += block
    return {"seconds": seconds, "speeds": [asdict(s) for s in speeds], "at": _now()}


def judged(name: str, repeats: list[dict[str, Any]], machine: dict[str, Any]) -> dict[str, Any]:
    """Forecast and measurement of one config. Errors are forecast / measured - 1, in percent."""
    c, fitted = completed(CONFIGS[name]), parts(machine)
    if fitted is None:
        sys.exit("the machine record has no parts; run `foretell calibrate` first")
    value, width = untried_step_seconds(c.model, c.train, machine)
    over, over_product = list[float](), list[float]()
    for r in repeats:
        speeds = [Speed(**s) for s in r["speeds"]]
        forecasts = {s: untried_step_seconds(c.model, c.train, machine, s)[0] for s in set(speeds)}
        over.append(statistics.median(forecasts[s] / took for s, took in zip(speeds, r["seconds"], strict=True)))
        slow = statistics.median(s.product_seconds for s in speeds) / fitted.speed.product_seconds
        over_product.append(value * slow / statistics.median(r["seconds"]))
    error, by_product = (100 * (statistics.median(x) - 1) for x in (over, over_product))
    return {
        "parameters": plan.parameters(c.model)["total"],
        "train": {k: getattr(c.train, k) for k in ("context", "micro_batch_size", "global_batch_tokens", "dtype",
                                                   "attention", "optimizer", "dropout", "loss_chunk_tokens")},
        "model": c.model.sizes._asdict(),
        "steps": [len(r["seconds"]) for r in repeats],
        "measured_seconds": statistics.median(statistics.median(r["seconds"]) for r in repeats),
        "forecast_seconds": value,
        "spread": width,
        "error_percent": error,
        "repeats_percent": [100 * (x - 1) for x in over],
        "error_percent_by_product": by_product,
    }  # fmt: skip


def in_process(name: str) -> dict[str, Any]:
    """One repeat in a process with the command line's allocator settings."""
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(command, env=runtime.tuned_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def report(kept: dict[str, list[dict[str, Any]]], machine: dict[str, Any]) -> dict[str, Any]:
    """Print the table; returns what goes into the file."""
    rows = {name: judged(name, kept[name], machine) for name in CONFIGS if kept.get(name)}
    print(f"{'config':22}{'measured':>11}{'forecast':>11}{'error':>8}{'by product':>12}  repeats")
    for name, r in rows.items():
        spread = " ".join(f"{e:+.1f}" for e in r["repeats_percent"])
        print(f"{name:22}{1e3 * r['measured_seconds']:9.1f}ms{1e3 * r['forecast_seconds']:9.1f}ms"
              f"{r['error_percent']:+7.1f}%{r['error_percent_by_product']:+11.1f}%  {spread}")  # fmt: skip
    summary = {}
    for key in ("error_percent", "error_percent_by_product"):
        errors = sorted(abs(r[key]) for r in rows.values())
        summary[key] = {"median": statistics.median(errors), "worst": errors[-1]}
        print(f"{key}: median {summary[key]['median']:.1f}% (bar 5%), worst {errors[-1]:.1f}% (bar 10%)")
    facts = {k: machine.get(k) for k in ("key", "processor", "threads", "torch", "parts_created", "seconds")}
    return {"machine": facts, "created": _now(), "summary": summary, "configs": rows, "repeats": kept}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", choices=list(CONFIGS), metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("step-time.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.measure)))
        return
    kept = json.loads(a.out.read_text())["repeats"] if a.out.exists() else {}
    machine = calibrate.stored() or {}
    for repeat in range(a.repeats):
        for name in a.only or CONFIGS:
            if len(kept.get(name, [])) <= repeat:
                kept.setdefault(name, []).append(in_process(name))
                a.out.write_text(json.dumps({"repeats": kept}))
    a.out.write_text(json.dumps(report(kept, machine)))
    print(f"written to {a.out}")


if __name__ == "__main__":
    main()
