"""Strong and weak scaling of `foretell train` over processes, and what of a step is communication.

    python benchmarks/scaling.py [--processes 1 2 4] [--threads 1] [--steps 12] [--axis dp_shard] [--out scaling.json]

A decoder of 4 layers, width 256, context 128, on numbered lines as bytes, AdamW, float32. Strong: 32 sequences a step
whatever the number of processes. Weak: 8 for each of them. Every row is a real run of `foretell train --nproc N`, all
in this program's time, each of them twice in turns; a row's step time is the median over the steps of its better run.
The peer is the row of one process: speed is our tokens a second over its, efficiency that by the number of processes.
Every process has --threads threads, so up to as many processes as cores this is what more processors give.

Communication is measured in a run of its own, by torch's profiler over three steps of rank 0: the share of a step in
which a collective is under way (gloo's own spans, overlaps counted once), and the share in which nothing else is: what
remains when the time of operators that run meanwhile is taken off. Bytes are those that the run kept (`collectives/`).

Beyond as many processes as there are cores this measures what they cost, not what they gain: the last line says so.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from foretell import runtime
from foretell.distributed import record

MODEL = [
    *("model.hidden_size=256", "model.num_hidden_layers=4", "model.num_key_value_heads=4", "model.vocab_size=264"),
    *("train.context=128", "train.micro_batch_size=4", "train.optimizer=adamw", "train.dtype=float32"),
    *("train.dropout=0", "train.eval_tokens=128", "tokenizer.kind=bytes", "train.compile=off"),
]
SEQUENCES_STRONG, SEQUENCES_WEAK, CONTEXT = 32, 8, 128
PROFILED = """
import json, sys
from pathlib import Path
import torch
from torch.profiler import ProfilerActivity, profile
from foretell import data, runtime
from foretell.distributed import mesh
from foretell.train import go_on, loop, prepared
run = Path(sys.argv[1])
mesh.join()
taken, spans = loop.take_step, []
def take_step(job, team, loss_of, optimizers, state):
    if not 4 <= state.step < 7 or runtime.rank():
        return taken(job, team, loss_of, optimizers, state)
    with profile(activities=[ProfilerActivity.CPU]) as p:
        event = taken(job, team, loss_of, optimizers, state)
    events = [(e.name, e.time_range.start, e.time_range.end) for e in p.events()]
    spans.append(events)
    return event
loop.take_step = take_step
go_on(run, data.open_data(prepared(run)), resume=True)
if not runtime.rank():
    Path(sys.argv[2]).write_text(json.dumps(spans))
mesh.leave()
"""
# What waits for a collective instead of computing.
_WAITING = ("c10d::", "gloo:", "record_param_comms", "FSDP::", "Optimizer.", "autograd::engine", "## ", "nccl:")


def text_file(folder: Path) -> Path:
    path = folder / "text.txt"
    path.write_text("".join(f"line {i} of {i * i % 97} and {i * 7919 % 1000}\n" for i in range(60_000)))
    return path


def train(folder: Path, name: str, processes: int, axis: str, sequences: int, steps: int, *more: str) -> Path:
    words = ["train", "--data", str(folder / "text.txt"), "--out", str(folder), "--name", name, "--quiet"]
    words += ["--nproc", str(processes), *MODEL, f"train.steps={steps}", *more]
    words += [f"train.global_batch_tokens={sequences * CONTEXT}"]
    words += [f"parallel.{axis}={processes}"] if processes > 1 else []
    subprocess.run([sys.executable, "-m", "foretell.cli", *words], check=True, stdout=subprocess.DEVNULL)
    return folder / name


def rate(run: Path) -> float:
    """Tokens a second of the median step, without the first three."""
    events = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return statistics.median(e["tokens_per_second"] for e in events if e["event"] == "step" and e["step"] > 3)


def united(spans: list[tuple[float, float]]) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    for low, high in sorted(spans):
        if found and low <= found[-1][1]:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return found


def length(spans: list[tuple[float, float]]) -> float:
    return sum(high - low for low, high in spans)


def communication(folder: Path, processes: int, axis: str, sequences: int) -> dict[str, float]:
    """Of a step: the share with a collective under way, the share with nothing else, bytes a rank."""
    run = train(folder, f"profiled-{processes}", processes, axis, sequences, 8, "--begin-only")
    (folder / "profiled.py").write_text(PROFILED)
    program = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
    spans = folder / f"spans-{processes}.json"
    subprocess.run([*program, str(folder / "profiled.py"), str(run), str(spans)], check=True, capture_output=True)
    under_way, alone = [], []
    for events in json.loads(spans.read_text()):
        whole = max(e for _, _, e in events) - min(s for _, s, _ in events)
        gloo = united([(s, e) for n, s, e in events if n.startswith("gloo:")])
        computing = united([(s, e) for n, s, e in events if n.startswith("aten::") and not n.startswith(_WAITING)])
        both = length(gloo) + length(computing) - length(united(gloo + computing))
        under_way.append(length(gloo) / whole)
        alone.append((length(gloo) - both) / whole)
    kept = record.read(run / "collectives" / "rank-00000.json")
    return {
        "under_way": statistics.median(under_way),
        "alone": statistics.median(alone),
        "collectives": len(kept),
        "bytes": sum(c.bytes for c in kept),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--threads", type=int, default=1, help="of each process")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--axis", default="dp_shard", choices=["dp_shard", "dp_replicate", "tp", "cp", "pp"])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as where:
        folder = Path(where)
        text_file(folder)
        best: dict[tuple[str, int], float] = {}
        for turn in range(2):
            for n in options.processes:
                for kind, sequences in (("strong", SEQUENCES_STRONG), ("weak", SEQUENCES_WEAK * n)):
                    run = train(folder, f"{kind}-{n}-{turn}", n, options.axis, sequences, options.steps)
                    best[kind, n] = max(best.get((kind, n), 0.0), rate(run))
        for kind in ("strong", "weak"):
            for n in options.processes:
                speed = best[kind, n] / best[kind, options.processes[0]]
                row = {"scaling": kind, "processes": n, "speed": speed, "efficiency": speed / n}
                if n > 1:
                    row |= communication(folder, n, options.axis, 32) if kind == "strong" else {}
                rows.append(row)
                shares = (
                    f"  a collective under way {row['under_way']:.0%} of a step, nothing else {row['alone']:.0%}; "
                    f"{row['collectives']} of {row['bytes'] / 1e6:.1f} MB"
                    if "alone" in row
                    else ""
                )
                print(f"{kind:6}  {n} processes  speed {speed:.2f}  efficiency {speed / n:.2f}{shares}", flush=True)
    cores = runtime.cores()
    if max(options.processes) > cores:
        print(f"{cores} cores: rows of more processes measure what these cost, not what they gain")
    if options.out:
        options.out.write_text(json.dumps({"axis": options.axis, "cores": cores, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
