"""What less communication between replicas saves, and what it costs in loss, on real text, over gloo.

    python benchmarks/communication.py FOLDER [--ranks 2] [--steps 320] [--seeds 2] [--out communication.json]

FOLDER: text, prepared here as bytes. A small decoder (4 layers, width 128) is trained by AdamW on the same number of
tokens in every row, 2,048 an inner step over all ranks, with warm-up and decay; the ranks are processes of one thread.
The peer is the float32 all-reduce of every step. Bytes are per rank and inner step: `payload` as forecasts count it,
`wire` what is sent (foretell/distributed/collectives.py); the factor is of `wire`. The loss is that of the whole
validation split after the last step, its difference is the mean over seeds of the difference to the peer with the same
seed and data; `between seeds` is how far the peer's own losses lie apart. A row's step time is its mean over the run of
the seed in which it was least.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from foretell import data, evaluate
from foretell.config import DataConfig, ModelConfig, TokenizerConfig, TrainConfig
from foretell.data import Data
from foretell.distributed.collectives import Collectives
from foretell.distributed.replicate import OuterOptimizer, Reducer
from foretell.distributed.strict import StrictReducer
from foretell.models.decoder import Decoder
from foretell.train import optim
from foretell.train.alone import Alone
from foretell.train.loss import next_token_loss
from foretell.train.schedule import lr_factor

CONTEXT, SEQUENCES, LR = 128, 16, 2e-3


@dataclass(frozen=True)
class Row:
    """A way to train: how gradients or progress are summed, and how often."""

    name: str
    method: str = "float32"
    accumulate: int = 1  # inner steps' data an optimiser step
    every: int = 0  # inner steps between outer steps; 0: gradients are summed at every optimiser step
    lr: float = 1.0
    momentum: float = 0.0
    virtual_shards: int = 0


ROWS = [
    Row("float32 all-reduce"),
    Row("strict tree, 4 virtual shards", virtual_shards=4),
    Row("bfloat16", "bfloat16"),
    Row("int8 with error feedback", "int8"),
    Row("accumulation of 8", accumulate=8),
    Row("local SGD, 8 steps", every=8),
    Row("local SGD, 32 steps", every=32),
    Row("DiLoCo, 8 steps", every=8, lr=0.7, momentum=0.9),
    Row("DiLoCo, 32 steps", every=32, lr=0.7, momentum=0.9),
    Row("DiLoCo, 32 steps, int8", "int8", every=32, lr=0.7, momentum=0.9),
]


def summed(model: Decoder, sum_: Callable[[Tensor, str], None]) -> None:
    """Sum the gradients over replicas, one flat tensor for each layer and one for the rest, as FSDP2 groups them."""
    layers = [(f"layers.{i}", list(layer.parameters())) for i, layer in enumerate(model.model.layers)]
    inside = {id(p) for _, group in layers for p in group}
    rest = ("", [p for p in model.parameters() if id(p) not in inside])
    for key, group in [*layers, rest]:
        gradients = [p.grad for p in group if p.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        sum_(flat, key)
        for g, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            g.copy_(part.view_as(g))


def trained(row: Row, corpus: Data, seed: int, steps: int) -> dict[str, Any]:
    """Train one model on this rank's share; its loss, and the bytes and seconds of an inner step."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    shape = ModelConfig(hidden_size=128, num_hidden_layers=4).resolved(corpus.tokenizer.vocab_size, CONTEXT)
    model = Decoder(shape)
    model.initialise(seed)
    updates = steps // row.accumulate
    c = TrainConfig(optimizer="adamw", lr=LR * math.sqrt(row.accumulate), steps=updates, seed=seed, context=CONTEXT)
    optimizers = optim.build(model.named_parameters(), c)
    reducer = Reducer(method=row.method)
    sum_, counts, pieces = reducer.sum_, reducer.collectives, row.accumulate
    if row.virtual_shards:
        strict = StrictReducer(Collectives(), row.virtual_shards)
        sum_, counts, pieces = strict.sum_, strict.collectives, strict.shards_here
    outer = OuterOptimizer(model.named_parameters(), reducer, row.lr, row.momentum) if row.every else None
    global_batch = SEQUENCES * row.accumulate
    mine = slice(rank * global_batch // ranks, (rank + 1) * global_batch // ranks)
    seconds = []
    for step in range(updates):
        began = time.perf_counter()
        optim.set_lr(optimizers, lr_factor(step, updates, c))
        arrays = data.batch(corpus, "train", seed=seed, step=step, batch_size=global_batch, context=CONTEXT)
        inputs, targets = (torch.from_numpy(a[mine]) for a in arrays[:2])
        share = 1 / pieces if outer else 1 / (pieces * ranks)
        for x, y in zip(inputs.chunk(pieces), targets.chunk(pieces), strict=True):
            (next_token_loss(Alone(model), x, y, None, None) * share).backward()
            if row.virtual_shards:
                summed(model, sum_)  # zeroes them, but for the last shard: then they are the sum over all
        if not outer and not row.virtual_shards:
            summed(model, sum_)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if outer and (step + 1) % row.every == 0:
            outer.step()
        seconds.append((time.perf_counter() - began) / row.accumulate)
    return {
        "loss": evaluate.evaluate_split(model, corpus, "valid", context=CONTEXT, batch_size=16)["loss"],
        "parameters": sum(p.numel() for p in model.parameters()),
        "payload_bytes": sum(counts.comm_bytes.values()) / steps,
        "wire_bytes": sum(counts.wire_bytes.values()) / steps,
        # The mean, because outer steps are few and dear; without the first steps, which warm caches up.
        "step_seconds": statistics.fmean(seconds[len(seconds) // 10 :]),
    }


def worker(rank: int, ranks: int, folder: str, steps: int, seeds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=ranks)
    corpus = data.open_data(Path(folder) / "data")
    results: list[dict[str, Any]] = []
    for seed in range(seeds):
        for row in ROWS:
            found = {"row": row.name, "seed": seed, **trained(row, corpus, seed, steps)}
            results.append(found)
            if rank == 0:
                print(f"  seed {seed}, {row.name:30} loss {found['loss']:.4f}", flush=True)
    if rank == 0:
        (Path(folder) / "results.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def table(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One line a row: means over seeds, differences paired by seed, step times of the seed that was disturbed least."""
    peer = {r["seed"]: r for r in results if r["row"] == ROWS[0].name}
    least = {row.name: min(r["step_seconds"] for r in results if r["row"] == row.name) for row in ROWS}
    lines = []
    for row in ROWS:
        mine = [r for r in results if r["row"] == row.name]
        differences = [r["loss"] - peer[r["seed"]]["loss"] for r in mine]
        lines.append({
            "row": row.name,
            "payload_bytes": mine[0]["payload_bytes"],
            "wire_bytes": mine[0]["wire_bytes"],
            "factor": peer[0]["wire_bytes"] / mine[0]["wire_bytes"],
            "loss": statistics.fmean(r["loss"] for r in mine),
            "difference": statistics.fmean(differences),
            "differences": differences,
            "step_seconds": least[row.name],
            "time_ratio": least[row.name] / least[ROWS[0].name],
        })  # fmt: skip
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--ranks", type=int, default=2, choices=(2, 4))
    parser.add_argument("--steps", type=int, default=320)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("communication.json"))
    a = parser.parse_args()
    if a.steps % 32:
        parser.error(f"--steps ({a.steps}) must be a multiple of 32")
    with tempfile.TemporaryDirectory() as folder:
        data.prepare([a.folder], Path(folder) / "data", TokenizerConfig(kind="bytes"), DataConfig())
        mp.start_processes(worker, (a.ranks, folder, a.steps, a.seeds), a.ranks, start_method="spawn")
        results = json.loads((Path(folder) / "results.json").read_text())
    lines = table(results)
    losses = [r["loss"] for r in results if r["row"] == ROWS[0].name]
    spread = max(losses) - min(losses)
    print(f"\n{results[0]['parameters']:,} parameters, {a.ranks} ranks, {a.steps} inner steps of "
          f"{SEQUENCES * CONTEXT:,} tokens, {a.seeds} seeds; between seeds {spread:.4f}\n")  # fmt: skip
    print("| replicas | payload, kB | wire, kB | factor | loss | difference | step time |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for r in lines:
        kilobytes = f"{r['payload_bytes'] / 1e3:,.0f} | {r['wire_bytes'] / 1e3:,.0f}"
        print(f"| {r['row']} | {kilobytes} | {r['factor']:.1f} | {r['loss']:.4f} | {r['difference']:+.4f} | "
              f"{r['time_ratio']:.2f} |")  # fmt: skip
    facts = {"ranks": a.ranks, "steps": a.steps, "seeds": a.seeds, "torch": torch.__version__}
    a.out.write_text(json.dumps({**facts, "rows": lines, "runs": results}, indent=1))
    print(f"\nwritten to {a.out}")


if __name__ == "__main__":
    main()
