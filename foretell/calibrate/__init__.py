"""Measures the machine; forecasts read the record, so a wrong figure here is a wrong forecast.

Two levels. `quick` takes a few seconds (`machine.py`) and is made where there is no record yet. `full` times the parts
of a training step too (`parts.py`), within two minutes, and is what `foretell calibrate` makes. The record is keyed by
processor, threads and torch version (`runtime.machine_key`), and dated.
"""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from foretell import runtime
from foretell.calibrate import machine
from foretell.checkpoint import files
from foretell.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

FORMAT_VERSION = 2
Level = Literal["quick", "full"]
# A dtype whose products are slower than this share of float32's has no parts: a layer would take seconds.
WORTH_TRAINING = 0.5


def path() -> Path:
    """Where this machine's record is kept."""
    return runtime.cache_dir() / f"machine-{runtime.machine_key()}.json"


def stored() -> dict[str, Any] | None:
    """The record of this machine, or None where there is none or it cannot be read."""
    try:
        record = json.loads(path().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(record, dict):
        return None
    version = record.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ConfigError(f"{path()}: format_version {version} is newer than this Foretell reads ({FORMAT_VERSION})")
    return record


def record(renew: bool = False, level: Level = "quick") -> dict[str, Any]:
    """The stored record; measured, and stored, where there is none or `renew` is on.

    A renewed quick record keeps the parts of a full one: they are dated by `parts_created`.
    """
    known = stored()
    if known is not None and not renew:
        return known
    measured = measure(level)
    if level == "quick" and known is not None:
        measured = {**measured, **{k: known[k] for k in ("level", "parts", "parts_created") if "parts" in known}}
    try:
        path().parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(path(), (json.dumps(measured) + "\n").encode())
    except OSError:
        pass  # a home that cannot be written to costs a few seconds each time, not the run
    return measured


def measure(level: Level = "quick") -> dict[str, Any]:
    """Measure now. A dtype that is not worth training in on this machine has no parts."""
    import torch

    torch.set_num_threads(runtime.threads())
    started, created = time.perf_counter(), datetime.now(UTC).isoformat(timespec="seconds")
    figures = machine.measure()
    if level == "full":
        from foretell.calibrate import parts

        rates = {d: r["peak"] for d, r in figures["flops_per_second"].items()}
        entries = parts.measure([d for d in rates if rates[d] >= WORTH_TRAINING * rates["float32"]])
        figures |= {"speed": parts.median_speed(entries), "parts": entries, "parts_created": created}
    return {
        "format_version": FORMAT_VERSION,
        "level": level,
        **runtime.machine_facts(),
        "key": runtime.machine_key(),
        **figures,
        "created": created,
        "seconds": time.perf_counter() - started,
    }


def render(measured: dict[str, Any]) -> Table:
    """The record as a table for the terminal."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_row("processor", f"{measured['processor']}, {measured['threads']} threads")
    for dtype, rates in measured["flops_per_second"].items():
        table.add_row(f"{dtype} products", f"{rates['peak'] / 1e9:,.1f} GFLOP/s")
    speeds = measured["memory_bytes_per_second"]
    table.add_row("memory", f"copy {speeds['copy'] / 1e9:.1f} GB/s, read {speeds['read'] / 1e9:.1f} GB/s")
    table.add_row("an operator", f"{1e6 * measured['op_seconds']:.1f} µs")
    if measured.get("parts"):
        visits = sum(len(e["seconds"]) for e in measured["parts"])
        table.add_row(
            "parts of a step", f"{visits} timings of {len(measured['parts'])} shapes, {measured['parts_created']}"
        )
    else:
        table.add_row("parts of a step", "not measured: `foretell calibrate`, two minutes, narrows forecasts of time")
    return table
