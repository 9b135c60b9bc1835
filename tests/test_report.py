"""The report: whole, safe, bilingual and small, from run folders that are complete, still going, damaged or hostile."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell import report
from foretell.errors import DataError
from foretell.report import curve, numbers, run, words

PACKAGE = Path(report.__file__).parent


def make_run(folder: Path, *, steps: int = 1200, seed: int = 0, upto: int | None = None, miss: bool = False) -> Path:
    """A made-up but plausible run of a small model on source code. `upto`: the run died at that step."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    batch, ratio, speed = 4096, 1 / (math.log(2) * 3.42), 21_400 * (0.8 if miss else 1.0)
    seconds, bits = steps * batch / 22_000, 1.62 + 0.04 * seed

    def law(step: float) -> float:
        return bits / ratio - 0.05 + 26 / (step + 8) ** 0.72

    loss_curve = [
        {
            "step": s,
            "tokens": s * batch,
            "value": law(s) * ratio,
            "low": law(s) * ratio * 0.955,
            "high": law(s) * ratio * 1.045,
        }
        for s in sorted({max(1, round(steps ** (i / 40))) for i in range(41)})
    ]
    low_high = lambda v, r: {"value": v, "low": v * (1 - r), "high": v * (1 + r)}  # noqa: E731
    plan = {
        "created": "2026-03-02T10:14:07Z",
        "parameters": {"total": 6_821_120, "non_embedding": 4_723_968, "embedding": 2_097_152},
        "flops_per_token": 31_400_000.0,
        "flops_total": 31_400_000.0 * steps * batch,
        "tokens": steps * batch,
        "steps": steps,
        "step_seconds": low_high(batch / 22_000, 0.08),
        "seconds": low_high(seconds, 0.08),
        "tokens_per_second": low_high(22_000, 0.08),
        "mfu": low_high(0.61, 0.08),
        "memory_bytes": {"states": 109e6, "activations": 420e6, "logits": 67e6, "peak": low_high(1.12e9, 0.15)},
        "loss": low_high(law(steps), 0.045),
        "bits_per_byte": low_high(law(steps) * ratio, 0.045),
        "loss_curve": loss_curve,
        "fits": True,
    }
    lines, last = [], upto or steps
    clock, loss = 0.0, 0.0
    for s in range(1, last + 1):
        clock += batch / (speed * rng.uniform(0.95, 1.03))
        loss = law(s) * (1 + rng.gauss(0, 0.018)) + (0.9 if s == 400 else 0)
        warm, cool = min(1, s / 24), min(1.0, 2 * (1 - s / steps))
        event = {
            "event": "step",
            "step": s,
            "loss": loss,
            "lr": 0.02 * warm * cool,
            "tokens": s * batch,
            "seconds": clock,
        }
        event |= {"grad_norm": 0.3 + 5 / s + abs(rng.gauss(0, 0.05)) + (2.6 if s == 400 else 0)}
        event |= {"tokens_per_second": speed * rng.uniform(0.94, 1.03), "mfu": 0.6 * rng.uniform(0.95, 1.03)}
        lines.append(event)
        if s % (steps // 10) == 0:
            valid = law(s) * 1.006
            lines.append({"event": "eval", "step": s, "loss": valid, "bits_per_byte": valid * ratio, "tokens": 65_536})
    text = "".join(json.dumps(e) + "\n" for e in lines)
    (folder / "log.jsonl").write_text(text if upto is None else text[:-30], encoding="utf-8")
    (folder / "config.toml").write_text(CONFIG.format(steps=steps, seed=seed), encoding="utf-8")
    _put(folder, "plan", plan)
    _put(folder, "machine", MACHINE)
    _put(folder, "data", DATA)
    if upto is None:
        final = law(steps) * 1.006
        measured = {"seconds": clock + 3, "step_seconds": clock / steps, "tokens_per_second": steps * batch / clock}
        measured |= {"mfu": 0.594, "memory_bytes": {"peak": 1.07e9}, "parameters": plan["parameters"], "steps": steps}
        measured |= {"tokens": steps * batch, "flops_total": plan["flops_total"], "loss": final, "train_loss": loss}
        measured |= {"bits_per_byte": final * ratio, "flops_per_token": plan["flops_per_token"]}
        _put(folder, "measured", measured)
        _put(folder, "eval", EVAL)
        _put(folder, "samples", SAMPLES)
    return folder


def _put(folder: Path, name: str, content: object) -> None:
    (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


CONFIG = """format_version = 1

[model]
hidden_size = 256
num_hidden_layers = 6
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 64
intermediate_size = 704
vocab_size = 8192
max_position_embeddings = 256
rope_theta = 10000.0
tie_word_embeddings = true

[train]
steps = {steps}
global_batch_tokens = 4096
context = 256
optimizer = "muon"
seed = {seed}
"""
MACHINE = {
    "processor": "Example Processor 8 @ 2.6 GHz",
    "threads": 2,
    "memory_bytes": 8_250_000_000,
    "python": "3.11.9",
    "torch": "2.13.0",
    "created": "2026-03-01",
    "flops_per_second": {"float32": 1.31e11, "bfloat16": 7.94e11},
    "memory_bytes_per_second": 2.1e10,
}
DATA = {
    "funnel": {
        "files": 1184,
        "documents_in": 1184,
        "documents_out": 1102,
        "quarantined": 3,
        "quarantine": [
            {"source": f"lib/data_{i}.bin", "offset": 17 * i, "reason": "not UTF-8 at byte 17"} for i in range(3)
        ],
        "dropped": {"duplicate": 61, "empty": 18},
        "duplicates": 61,
        "bytes_in": 20_120_331,
        "bytes_out": 19_440_112,
        "tokens": 5_684_242,
    },
    "splits": {
        "train": {"tokens": 5_113_001, "documents": 990, "bytes": 17_486_463},
        "valid": {"tokens": 284_120, "documents": 56, "bytes": 971_690},
        "test": {"tokens": 287_121, "documents": 56, "bytes": 981_959},
    },
    "tokenizer": {"kind": "bpe", "vocab_size": 8192, "digest": "ab" * 32},
    "bytes_per_token": 3.42,
}
EVAL = {
    "loss": 3.911,
    "perplexity": 49.95,
    "word_perplexity": 1830.2,
    "bits_per_byte": 1.650,
    "accuracy": 0.371,
    "tokens": 287_121,
    "bytes": 981_959,
    "documents": 56,
    "ci": {
        "loss": [3.84, 3.98],
        "perplexity": [46.6, 53.6],
        "bits_per_byte": [1.618, 1.683],
        "accuracy": [0.362, 0.38],
    },
}
SAMPLES = {
    "samples": [
        {
            "prompt": "def read_lines(path):\n",
            "completion": '    """Return the lines of a file."""\n    with open(path) as f:\n        return [line for line in f]\n',
            "tokens_per_second": 412.0,
        },
        {
            "prompt": "class Queue:\n    def __init__(self, maxsize=0):\n",
            "completion": "        self.maxsize = maxsize\n        self._init(maxsize)\n        self.mutex = threading.Lock()\n",
            "tokens_per_second": 405.1,
        },
        {
            "prompt": "The module provides",
            "completion": " a simple interface to the parser, and",
            "tokens_per_second": 398.0,
        },
        {"prompt": "从前有一座山,", "completion": "山里有一座庙,庙里有个老和尚。", "tokens_per_second": 401.0},
    ],
    "python": {"parses": 37, "of": 50},
}
