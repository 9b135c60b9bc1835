"""The forecast and its verdict as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def render(plan: dict[str, Any]) -> Table:
    """A plan, one quantity a row."""
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 2))
    m = plan["model"]
    shape = f"{m['num_hidden_layers']} layers, width {m['hidden_size']}, vocabulary {m['vocab_size']:,}"
    table.add_row("model", f"{plan['parameters']['total']:,} parameters", shape)
    table.add_row("tokens", f"{plan['tokens']:,}", f"{plan['steps']:,} steps of {plan['global_batch_tokens']:,}")
    table.add_row("compute", f"{plan['flops_total']:.3g} FLOPs", f"{plan['flops_per_token']:.3g} a token")
    table.add_row("step", *_shown(plan["step_seconds"], 1000.0, " ms", 0))
    table.add_row("time", *_shown(plan["seconds"], 1.0, " s", 0))
    table.add_row("memory", *_shown(plan["memory_bytes"]["peak"], 1e-6, " MB", 0))
    if "bits_per_byte" in plan:
        table.add_row("bits per byte", *_shown(plan["bits_per_byte"], 1.0, "", 3))
    return table


def render_verify(verdict: dict[str, Any]) -> Table:
    """The verdict as a table for the terminal."""
    from rich.table import Table

    table = Table(box=None, padding=(0, 2))
    for column in ("quantity", "forecast", "90% interval", "measured", "error", ""):
        table.add_column(column, justify="left" if column in {"quantity", ""} else "right")
    for q in verdict["quantities"]:
        span = f"[{_short(q['low'])}, {_short(q['high'])}]" if q["low"] is not None else ""
        held = {True: "held", False: "missed", None: ""}[q["held"]]
        error = f"{q['error_percent']:+.1f}%" if q["error_percent"] is not None else ""
        table.add_row(q["name"], _short(q["predicted"]), span.replace("[", r"\["), _short(q["measured"]), error, held)
    return table


def _shown(quantity: dict[str, float], scale: float, unit: str, digits: int) -> tuple[str, str]:
    low, high = (f"{scale * quantity[k]:,.{digits}f}" for k in ("low", "high"))
    return f"{scale * quantity['value']:,.{digits}f}{unit}", rf"\[{low}, {high}]"


def _short(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e6 else f"{value:.4g}"
