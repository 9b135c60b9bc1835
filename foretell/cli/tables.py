"""The forecast and its verdict as tables for a terminal, in the words and units of the report."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from foretell.report import numbers
from foretell.report.words import label, pick


def forecast(plan: dict[str, Any]) -> Table:
    """A plan, one quantity a row, each with its interval."""
    table = Table(box=None, show_header=False, padding=(0, 2))
    m, own = plan["model"], plan["parameters"]["total"]
    shape = f"{m['num_hidden_layers']} layers, width {m['hidden_size']}, vocabulary {m['vocab_size']:,}"
    table.add_row("model", f"{own:,} parameters", shape)
    if "active" in plan["parameters"]:
        experts = f"{m['num_experts_per_tok']} of {m['num_experts']} experts of width {m['moe_intermediate_size']}"
        table.add_row("", f"{plan['parameters']['active']:,} active", experts)
    epochs = f", {plan['epochs']:.1f} times the text" if "epochs" in plan else ""
    table.add_row(
        "tokens", f"{plan['tokens']:,}", f"{plan['steps']:,} steps of {plan['global_batch_tokens']:,}{epochs}"
    )
    if plan.get("row_tokens"):
        full, asked = plan["row_tokens"] / plan["context"], plan["row_scored"] / plan["context"]
        empty = [f"{full:.0%} of them computed, the rest of their rows is empty"] if full < 0.995 else []
        table.add_row("", "", "; ".join([*empty, f"{asked:.0%} asked for"]))
    each = numbers.field("flops_per_token", plan["flops_per_token"])
    table.add_row("compute", _shown("flops_total", plan["flops_total"]), f"{pick(each).en} a token")
    for name in ("step_seconds", "seconds", "memory_bytes.peak", "bits_per_byte"):
        quantity = plan["memory_bytes"]["peak"] if name == "memory_bytes.peak" else plan.get(name)
        if quantity:
            table.add_row(label(name).en.lower(), _shown(name, quantity["value"]), _interval(name, quantity))
    if plan.get("loss_note"):
        table.add_row("loss", "", plan["loss_note"])
    if plan.get("step_seconds_from") == "rough parts":
        table.add_row(
            "", "", "the calibration timed Qwen3's layers in eager steps; this is put together from their parts"
        )
    if plan.get("text_used_up"):
        table.add_row(
            "", "", "no more steps: a text read more often is learned by heart; more text would use the budget"
        )
    if not plan["fits"]:
        table.add_row("[red]does not fit[/]", "", "the forecast peak is above this machine's memory")
    return table


def verdict(verified: dict[str, Any]) -> Table:
    """Forecast beside measurement, one quantity a row."""
    table = Table(box=None, padding=(0, 1))
    for column in ("quantity", "forecast", "90% interval", "measured", "error", ""):
        table.add_column(column, justify="left" if column in {"quantity", ""} else "right")
    for q in verified["quantities"]:
        name = q["name"]
        held = {True: "[green]held[/]", False: "[red]missed[/]", None: ""}[q["held"]]
        error = f"{q['error_percent']:+.1f}%" if q["error_percent"] is not None else ""
        span = _interval(name, q) if q["low"] is not None else ""
        table.add_row(label(name).en, _shown(name, q["predicted"]), span, _shown(name, q["measured"]), error, held)
    return table


def history(gathered: dict[str, Any]) -> Table:
    """Over several runs: how often the intervals held, and how far the forecasts were off, one quantity a row."""
    share = gathered["held_share"]
    held = f", {numbers.percent(share)} of all intervals held (90% is right)" if share is not None else ""
    table = Table(box=None, padding=(0, 1), title=f"{len(gathered['runs'])} runs{held}", title_justify="left")
    for column in ("quantity", "runs", "held", "median error", "worst error"):
        table.add_column(column, justify="left" if column == "quantity" else "right")
    for q in gathered["quantities"]:
        held = numbers.percent(q["held_share"]) if q["held_share"] is not None else ""
        errors = (q["median_error_percent"], q["worst_error_percent"])
        table.add_row(label(q["name"]).en, str(q["runs"]), held, *("" if e is None else f"{e:+.1f}%" for e in errors))
    for name, lesson in gathered.get("lessons", {}).items():
        change = f"forecasts times {lesson['factor']:.3f}, ±{numbers.percent(lesson['half_width'])}"
        table.add_row(f"[green]{name} learned[/]", str(lesson["runs"]), "", change, "")
    return table


def _shown(name: str, value: float) -> str:
    return pick(numbers.field(name, value)).en


def _interval(name: str, quantity: dict[str, float]) -> str:
    low, high = (_shown(name, quantity[k]) for k in ("low", "high"))
    return rf"\[{low}, {high}]"
