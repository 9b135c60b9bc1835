"""The forecast against the measurement, one quantity at a time, and the small pictures and badges that show it."""

from __future__ import annotations

from dataclasses import dataclass

from foretell.errors import ForetellError
from foretell.report import numbers
from foretell.report.curve import scale
from foretell.report.run import Run, at, interval, number, rows, table
from foretell.report.words import Both, html, say, text

HEADLINES = ("seconds", "memory_bytes.peak", "bits_per_byte")


@dataclass(frozen=True)
class Check:
    """One quantity. `held` is None where there was no interval, or nothing to compare."""

    name: str
    predicted: float | None
    low: float | None
    high: float | None
    measured: float | None
    error_percent: float | None = None
    held: bool | None = None

    def show(self, value: float | None, digits: int | None = None) -> Both | str:
        if value is None:
            return "–"
        if digits is not None and self.name == "bits_per_byte":
            return f"{value:.{digits}f}"
        return numbers.field(self.name, value)

    @property
    def has_interval(self) -> bool:
        return self.low is not None and self.high is not None


def checks(run: Run) -> list[Check]:
    """What `foretell verify` says about the run, the headlines first; forecasts alone while there is no measurement."""
    forecast, measured = table(run.get("plan")), table(run.get("measured"))
    found = [_alone(name, forecast, measured) for name in HEADLINES]
    if forecast and measured:
        verified = {c.name: c for c in _verified(forecast, measured)}
        found = [verified.pop(c.name, c) for c in found] + list(verified.values())
    return [c for c in found if c.predicted is not None or c.measured is not None]


def _verified(forecast: dict, measured: dict) -> list[Check]:
    from foretell import plan

    try:
        quantities = rows(plan.verify(forecast, measured).get("quantities"))
    except ForetellError:
        return []
    return [
        Check(
            name=str(q.get("name")),
            predicted=number(q.get("predicted")),
            low=number(q.get("low")),
            high=number(q.get("high")),
            measured=number(q.get("measured")),
            error_percent=number(q.get("error_percent")),
            held=q["held"] if isinstance(q.get("held"), bool) else None,
        )
        for q in quantities
    ]


def _alone(name: str, forecast: dict, measured: dict) -> Check:
    low, high = interval(at(forecast, name)) or (None, None)
    return Check(name, number(at(forecast, name)), low, high, number(at(measured, name)))


def badge(check: Check) -> str:
    """Held or missed, in a sign, a word and a colour. What needed no interval is exact, or is not."""
    kind, sign = {True: ("held", "✓"), False: ("missed", "✕"), None: ("open", "·")}[check.held]
    if check.held is None and check.predicted is not None and check.predicted == check.measured:
        kind, sign = "exact", "="
    return f'<span class="badge {kind}"><span aria-hidden="true">{sign}</span> {say("verdict." + kind)}</span>'


def error(check: Check) -> str:
    """The signed error as a reader sees it; empty where nothing was measured."""
    if check.error_percent is None:
        return ""
    value = check.error_percent
    if abs(value) < 0.05:
        return "0.0%"
    return f"{value:+,.1f}%".replace("-", "−") if abs(value) < 1e6 else "> 10⁶%"


def gauge(check: Check) -> str:
    """The interval as a bar, the forecast as a line across it, the measurement as a point."""
    low, high = check.low, check.high
    if low is None or high is None:
        return ""
    s = scale([v for v in (low, high, check.predicted, check.measured) if v is not None], pad=0.12)

    def place(value: float) -> str:
        return f"{100 * s.at(value):.2f}%"

    parts = [
        '<line class="rail" x1="0" x2="100%" y1="9" y2="9"/>',
        f'<rect class="span" x="{place(low)}" y="4" width="{100 * (s.at(high) - s.at(low)):.2f}%" height="10" rx="2"/>',
    ]
    if check.predicted is not None:
        parts.append(
            f'<line class="guess" x1="{place(check.predicted)}" x2="{place(check.predicted)}" y1="1" y2="17"/>'
        )
    if check.measured is not None:
        verdict = "missed" if check.held is False else "held"
        parts.append(f'<circle class="got {verdict}" cx="{place(check.measured)}" cy="9" r="5"/>')
    return f'<svg class="gauge" width="100%" height="18" aria-hidden="true">{"".join(parts)}</svg>'


def span(check: Check) -> str:
    """[low, high], as markup."""
    if not check.has_interval:
        return ""
    low, high = Both(*_pair(check, check.low)), Both(*_pair(check, check.high))
    return html(Both(f"[{low.en}, {high.en}]", f"[{low.zh}, {high.zh}]"))


def _pair(check: Check, value: float | None) -> Both:
    shown = check.show(value)
    return shown if isinstance(shown, Both) else Both(shown, shown)


def summary(run: Run, found: list[Check]) -> Both:
    """Which headline quantities held, in one sentence."""
    judged = [c.held for c in found if c.name in HEADLINES and c.held is not None]
    if not judged:
        return text("summary.open")
    return text("summary.judged", held=sum(judged), of=len(judged))
