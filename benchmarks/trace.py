"""Communication of a step of Llama 3 sizes: the closed form beside the same step executed on a fake cluster.

    python benchmarks/trace.py [--only 8b] [--memory] [--out trace.json]

Prints, of each size and layout, whether every collective agrees, the bytes by axis and kind, the seconds of both, and
the resident memory of this process. The tracing is the peer: it executes the training loop itself, on tensors without
data. 8B takes seconds, 405B on 16,384 ranks a few minutes.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

from foretell import config as run_config
from foretell.config import RunConfig
from foretell.distributed.trace import Trace
from foretell.plan.communication import collectives, comm_bytes
from foretell.train.rehearsal import rehearse

SHAPES = {
    "8b": {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336},
    "405b": {"hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128, "intermediate_size": 53248},
}
# Name, shape, ranks, context, sequences a step, [parallel]
CASES: list[tuple[str, str, int, int, int, dict[str, Any]]] = [
    ("8b, 64 ranks", "8b", 64, 4096, 64, {"dp_shard": 64}),
    ("8b, 64 ranks, tp 8", "8b", 64, 4096, 8, {"dp_shard": 8, "tp": 8}),
    ("405b, 16,384 ranks, tp 8", "405b", 16384, 8192, 2048, {"dp_shard": 2048, "tp": 8}),
]


def config(shape: str, context: int, sequences: int, parallel: dict[str, Any]) -> RunConfig:
    """A complete config: one sequence a micro-batch, bfloat16, AdamW."""
    model = {**SHAPES[shape], "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": False}
    train = {"context": context, "micro_batch_size": 1, "global_batch_tokens": context * sequences, "steps": 3}
    more = {"dtype": "bfloat16", "optimizer": "adamw", "dropout": 0.0, "attention": "sdpa", "loss_chunk_tokens": 4096}
    c = run_config.updated(RunConfig(), model=model, train={**train, **more}, parallel=parallel)
    return c.model_copy(update={"model": c.model.resolved(128256, context)})


def compared(c: RunConfig, ranks: int, memory: bool) -> tuple[dict[str, Any], Trace]:
    """What both say, and how long they took."""
    started = time.process_time()
    rows = collectives(c.model, c.train, c.parallel, ranks)
    closed = time.process_time() - started
    started = time.process_time()
    traced = rehearse(c, ranks, steps=1, memory=memory)
    foretold = Counter[tuple[str, int, int, int]]()
    for r in rows:
        foretold[r.kind, 1 if r.kind in ("send", "recv") else r.ranks, r.numbers, r.bytes] += r.calls
    seen = Counter((t.kind, len(t.group), t.count, t.bytes) for t in traced.collectives)
    return {
        "agree": foretold == seen,
        "collectives": len(traced.collectives),
        "comm_bytes": comm_bytes(rows),
        "closed_cpu_seconds": closed,
        "traced_cpu_seconds": time.process_time() - started,
        "traced_seconds": traced.seconds,
        "memory_bytes": traced.memory,
        "resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }, traced


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="cases whose names hold this")
    parser.add_argument("--memory", action="store_true", help="the peak of live tensors and its parts, too")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = {}
    for name, shape, ranks, context, sequences, parallel in CASES:
        if options.only and options.only not in name:
            continue
        found, _ = compared(config(shape, context, sequences, parallel), ranks, options.memory)
        results[name] = found
        print(f"{name}: {'agree' if found['agree'] else 'DO NOT AGREE'}, {found['collectives']} collectives")
        for axis, kinds in found["comm_bytes"].items():
            print(f"  {axis:6}", ", ".join(f"{kind} {size / 1e9:,.4f} GB" for kind, size in kinds.items()))
        ratio = found["traced_cpu_seconds"] / found["closed_cpu_seconds"]
        print(
            f"  closed form {1e3 * found['closed_cpu_seconds']:.1f} ms, traced {found['traced_cpu_seconds']:.0f} s of "
            f"processor ({ratio:,.0f} times), {found['resident_bytes'] / 1e9:.2f} GB resident"
        )
        if found["memory_bytes"]:
            print(
                "  live at the peak:", ", ".join(f"{k} {v / 2**30:.2f} GiB" for k, v in found["memory_bytes"].items())
            )
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
