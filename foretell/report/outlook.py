"""What a forecast is made of: where the time of a run goes, the memory of a process, the bytes of a step.

From plan.json alone, so it is there before the first step. Parts that are missing or no numbers are left out.
"""

from __future__ import annotations

from collections.abc import Callable

from foretell.report import numbers
from foretell.report.facts import bar
from foretell.report.run import Run, number, table
from foretell.report.words import Both, html, label, say, text

TIME = ("steps", "validation", "checkpoints", "start")
# `states` is the sum of weights, gradients and optimiser; `live` and `peak` are sums of others.
MEMORY = ("process", "states", "gathered", "activations", "logits", "workspace", "snapshot", "allocator")


def parts(run: Run) -> str:
    """Bars of time, memory and bytes, each where the plan has them."""
    seconds, memory = table(run.get("plan.seconds_parts")), table(run.get("plan.memory_bytes"))
    sent = [
        (Both(f"{axis}, {kind}".replace("_", "-"), f"{axis}，{kind}".replace("_", "-")), number(size))
        for axis, kinds in table(run.get("plan.comm_bytes")).items()
        for kind, size in table(kinds).items()
    ]
    shown = [
        _bars("time", [(label(k, "part"), number(seconds.get(k))) for k in TIME], numbers.duration),
        _bars("memory", [(label(k, "part"), number(memory.get(k))) for k in MEMORY], numbers.size),
        _bars("bytes", [s for s in sent if (s[1] or 0) >= 1000], numbers.size),
    ]
    return "".join(shown)


def _bars(key: str, values: list[tuple[Both, float | None]], show: Callable[[float], Both | str]) -> str:
    """Bars of what is there, in its order, with each one's share of the sum."""
    known = [(name, value) for name, value in values if value is not None and value > 0]
    if not known:
        return ""
    total, largest = sum(v for _, v in known), max(v for _, v in known)
    body = "".join(bar(n, show(v), numbers.percent(v / total), 0, v, largest, "kept") for n, v in known)
    return f'<h3>{say("outlook." + key)}</h3><p class="small">{html(text("about.outlook." + key))}</p>' + (
        f'<dl class="bars">{body}</dl>'
    )
