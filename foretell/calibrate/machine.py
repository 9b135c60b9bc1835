"""The machine's figures, in seconds: product rates, bandwidth, cost of an operator, of a process, of a checkpoint.

Each measurement grows its problem until it takes long enough to be timed and stops after a second at the most: on some
processors a dtype runs hundreds of times slower than another.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretell import runtime
from foretell.calibrate import timing

if TYPE_CHECKING:
    import torch

DTYPES = ("float32", "bfloat16")
# Timing is taken over at least this long, and a dtype never gets more than that.
LEAST_SECONDS = 0.08
MOST_SECONDS = 1.0
LARGEST_SIDE = 1024
# Products like those of training: tokens x width x feed-forward width.
TRAINING_SHAPES = ((2048, 256, 704), (4096, 384, 1024), (4096, 256, 4096))
# A child interpreter, so that what this one holds does not count. It loads what training loads.
_TINY_TRAINING = """
import torch
from foretell import checkpoint, config, data, evaluate, runtime
from foretell.models.decoder import Decoder
from foretell.train import optim
torch.set_num_threads(runtime.threads())
model = Decoder(config.ModelConfig(hidden_size=64, num_hidden_layers=1).resolved(64, 16))
model.initialise(0)
optimizers = optim.build(model.named_parameters(), config.TrainConfig())
for _ in range(2):
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
runtime.reset_peak_memory()
print(runtime.resident_memory_bytes())
"""


def measure() -> dict[str, Any]:
    """The figures, in a few seconds; `speed` is the median over these seconds (`timing.py`)."""
    figures: dict[str, Any] = {}
    references = timing.References()
    speeds = [references.speed()]
    for name, measured in {
        "flops_per_second": lambda: {d: product_rates(d) for d in DTYPES},
        "memory_bytes_per_second": bandwidth,
        "op_seconds": op_seconds,
        "process_bytes": process_bytes,
        "checkpoint_bytes_per_second": checkpoint_bytes_per_second,
    }.items():
        figures[name] = measured()
        speeds.append(references.speed())
    return {**figures, "speed": timing.median(speeds)}


def timed(work: Callable[[], object], least: float = LEAST_SECONDS) -> float:
    """Median seconds of one call, over repeats that take `least` seconds together."""
    seconds: list[float] = []
    while sum(seconds) < least or len(seconds) < 3:
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
        if sum(seconds) > MOST_SECONDS / 2:
            break
    return statistics.median(seconds)


def product_rates(dtype: str) -> dict[str, float]:
    """FLOP/s of square products, grown until they are slow enough, as `peak`; and of shapes like those of training."""

    kind = runtime.dtype(dtype)
    rates: dict[str, float] = {}
    begin = time.perf_counter()
    side, best = 128, 0.0
    while side <= LARGEST_SIDE and time.perf_counter() - begin < MOST_SECONDS / 2:
        seconds = _product_seconds(side, side, side, kind)
        best = max(best, 2 * side**3 / seconds)
        if seconds > LEAST_SECONDS:
            break
        side *= 2
    for m, k, n in TRAINING_SHAPES:
        if 3 * 2 * m * k * n / best > MOST_SECONDS / 8:
            continue
        rates[f"{m}x{k}x{n}"] = 2 * m * k * n / _product_seconds(m, k, n, kind)
    return {"peak": max(best, *rates.values()) if rates else best, **rates}


def _product_seconds(m: int, k: int, n: int, dtype: torch.dtype) -> float:
    """Seconds of an (m, k) by (k, n) product into memory that is there already: page faults are not the product's."""
    import torch

    a, b, out = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), torch.empty(m, n, dtype=dtype)
    return timed(lambda: torch.mm(a, b, out=out))


def bandwidth() -> dict[str, float]:
    """Bytes per second: copying counts what is read and what is written; reading what is read."""
    import torch

    a, b = torch.ones(16 << 20), torch.empty(16 << 20)
    size = a.numel() * a.element_size()
    return {"copy": 2 * size / timed(lambda: b.copy_(a)), "read": size / timed(lambda: a.sum())}


def op_seconds() -> float:
    """Seconds that one small operator costs, forward and recorded for backward."""
    import torch

    x = torch.ones(64, requires_grad=True)

    def many() -> None:
        y = x
        for _ in range(200):
            y = y * 1.0
        y.sum().backward()

    return timed(many) / 400


def process_bytes() -> float:
    """Resident bytes of a process of its own that has trained a tiny model for two steps and given its memory back."""
    done = subprocess.run([sys.executable, "-c", _TINY_TRAINING], capture_output=True, text=True, check=False)
    words = done.stdout.split()
    return float(words[-1]) if done.returncode == 0 and words else float(runtime.resident_memory_bytes())


def checkpoint_bytes_per_second() -> float:
    """Bytes of a checkpoint saved a second: written, forced to the disk and read back."""
    import torch

    from foretell import checkpoint

    tensors = {"a": torch.ones(4 << 20), "b": torch.ones(2 << 20)}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        checkpoint.save(Path(folder), 1, tensors, {}, 1)
        return sum(t.numel() * t.element_size() for t in tensors.values()) / (time.perf_counter() - begin)
