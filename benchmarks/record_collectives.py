"""Record the collectives of one training step on each layout: kind, group, count and bytes, in order.

    python benchmarks/record_collectives.py [--out tests/data/collectives.json]

Each layout is a real `foretell train --nproc N` of three steps on a small decoder (or a small mixture of experts),
whose run folder keeps the collectives of step 2 of one rank of each pipeline stage. They are data for whoever predicts
them: a prediction must equal them one by one. Prints how many there are of each kind, and their bytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from foretell.distributed import record

MODEL = [
    *("model.hidden_size=64", "model.num_hidden_layers=4", "model.num_key_value_heads=2", "model.vocab_size=272"),
    *("train.context=32", "train.micro_batch_size=1", "train.global_batch_tokens=512", "train.steps=3"),
    *("train.dtype=float32", "train.dropout=0", "train.eval_tokens=64", "train.optimizer=adamw"),
    *("tokenizer.kind=bytes", "train.compile=off"),
]
EXPERTS = ["model.num_experts=4", "model.num_experts_per_tok=2", "model.moe_intermediate_size=32"]
LAYOUTS: dict[str, tuple[int, list[str]]] = {
    "dp_shard": (2, ["parallel.dp_shard=2"]),
    "dp_replicate": (2, ["parallel.dp_replicate=2"]),
    "hybrid": (4, ["parallel.dp_replicate=2", "parallel.dp_shard=2"]),
    "bfloat16 between copies": (2, ["parallel.dp_replicate=2", "parallel.reduce=bfloat16"]),
    "int8 between copies": (2, ["parallel.dp_replicate=2", "parallel.reduce=int8"]),
    "strict": (2, ["parallel.dp_replicate=2", "parallel.strict=true"]),
    "muon": (2, ["parallel.dp_shard=2", "train.optimizer=muon"]),
    "tp": (2, ["parallel.tp=2"]),
    "tp, tied": (2, ["parallel.tp=2", "model.tie_word_embeddings=true"]),
    "cp": (2, ["parallel.cp=2"]),
    "cp, gathered": (2, ["parallel.cp=2", "parallel.context_exchange=gather"]),
    "pp": (2, ["parallel.pp=2"]),
    "pp, interleaved": (2, ["parallel.pp=2", "parallel.schedule=interleaved"]),
    "pp, zero bubble": (2, ["parallel.pp=2", "parallel.schedule=zero-bubble"]),
    "pp, gpipe": (2, ["parallel.pp=2", "parallel.schedule=gpipe"]),
    "dp x tp": (4, ["parallel.dp_shard=2", "parallel.tp=2"]),
    "dp x cp": (4, ["parallel.dp_shard=2", "parallel.cp=2"]),
    "pp x dp x tp": (8, ["parallel.pp=2", "parallel.dp_shard=2", "parallel.tp=2"]),
    "full recomputation": (2, ["parallel.dp_shard=2", "parallel.recompute=full"]),
    "ep": (2, [*EXPERTS, "parallel.ep=2"]),
    "ep x dp": (4, [*EXPERTS, "parallel.ep=2", "parallel.dp_shard=4"]),
}
TEXT = "".join(f"line {i} of {i * i % 97} and {i * 7919 % 1000}\n" for i in range(500))


def recorded(folder: Path, processes: int, keys: list[str]) -> dict[str, list[record.Collective]]:
    """What the ranks that keep their collectives issued, by file name without its ending."""
    command = [sys.executable, "-m", "foretell.cli", "train", "--data", str(folder / "text.txt"), "--name", "run"]
    words = ["--out", str(folder), "--nproc", str(processes), "--quiet", *MODEL, *keys]
    subprocess.run(command + words, check=True, stdout=subprocess.DEVNULL)
    return {p.stem: record.read(p) for p in sorted((folder / "run" / "collectives").iterdir())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", help="layouts whose names hold this")
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for name, (processes, keys) in LAYOUTS.items():
        if options.only and options.only not in name:
            continue
        with tempfile.TemporaryDirectory() as where:
            (Path(where) / "text.txt").write_text(TEXT)
            of_rank = recorded(Path(where), processes, keys)
        found[name] = {"processes": processes, "keys": keys, "ranks": of_rank}
        for rank, collectives in of_rank.items():
            sums = ", ".join(
                f"{n} {kind} of {size} ({b:,} bytes)" for (kind, size), (n, b) in record.totals(collectives).items()
            )
            print(f"{name:24}  {rank}: {sums}", flush=True)
    if options.out:
        options.out.write_text(json.dumps({"model": MODEL, "layouts": found}, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
