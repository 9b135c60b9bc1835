"""Numbers with their units, short enough to read at a glance. Durations are words, so they come in both languages."""

from __future__ import annotations

import math

from foretell.report.words import Both

Text = Both | str


def significant(x: float, digits: int = 3) -> str:
    """1234.5 -> 1,230; 0.012345 -> 0.0123; very large or small ones as 1.21e14."""
    if x == 0:
        return "0"
    if not 1e-4 <= abs(x) < 1e7:
        return scientific(x, digits)
    places = max(0, digits - 1 - math.floor(math.log10(abs(x))))
    return f"{round(x, digits - 1 - math.floor(math.log10(abs(x)))):,.{places}f}"


def scientific(x: float, digits: int = 3) -> str:
    """1.23e18: `digits` significant ones."""
    mantissa, exponent = f"{x:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def count(x: float) -> str:
    """Whole numbers up to 99,999 as they are, then 3.20 M."""
    if abs(x) < 99_999.5:
        return f"{x:,.0f}" if float(x).is_integer() or abs(x) >= 1000 else significant(x)
    return _scaled(x, 1000, ("", "k", "M", "B", "T"))


def size(x: float) -> str:
    """Bytes in powers of ten, as disks and networks are sold."""
    return _scaled(x, 1000, ("bytes", "kB", "MB", "GB", "TB", "PB")) if abs(x) >= 1000 else f"{x:.0f} bytes"


def _scaled(x: float, base: int, units: tuple[str, ...]) -> str:
    if x == 0:
        return f"0 {units[0]}".strip()
    power = min(len(units) - 1, max(0, math.floor(math.log(abs(x), base))))
    if abs(x) / base**power >= base - 0.5 and power < len(units) - 1:
        power += 1
    return f"{significant(x / base**power)} {units[power]}".strip()


def flops(x: float) -> str:
    """A number of floating-point operations with its unit."""
    return f"{scientific(x)} FLOPs" if x >= 1e6 else f"{count(x)} FLOPs"


def percent(share: float, signed: bool = False) -> str:
    """A share as a percentage: one decimal below 100%."""
    value = 100 * share
    places = 0 if abs(value) >= 100 else 1
    return f"{value:+.{places}f}%" if signed else f"{value:.{places}f}%"


def duration(seconds: float) -> Both:
    """4m 02s. Below a minute with a decimal, below a second in milliseconds."""
    s = abs(seconds)
    sign = "−" if seconds < 0 else ""
    if s < 1:
        ms = significant(1000 * s)
        return Both(f"{sign}{ms} ms", f"{sign}{ms} 毫秒")
    if s < 59.95:
        return Both(f"{sign}{s:.1f} s", f"{sign}{s:.1f} 秒")
    if s < 3599.5:
        m, r = divmod(round(s), 60)
        return Both(f"{sign}{m}m {r:02}s", f"{sign}{m}分{r:02}秒")
    if s < 86_370:
        h, m = divmod(round(s / 60), 60)
        return Both(f"{sign}{h}h {m:02}m", f"{sign}{h}小时{m:02}分")
    d, h = divmod(round(s / 3600), 24)
    return Both(f"{sign}{d:,}d {h:02}h", f"{sign}{d:,}天{h:02}小时")


def field(name: str, value: float) -> Text:
    """A value with the unit that its field name states (`memory_bytes.peak`, `step_seconds`, `mfu`, ...)."""
    parts = name.split(".")
    if any(p == "seconds" or p.endswith("_seconds") for p in parts):
        return duration(value)
    if any(p == "tokens_per_second" for p in parts):
        return Both(f"{count(value)} tokens/s", f"{count(value)} 词元/秒")
    if any(p.endswith("flops_per_second") for p in parts):
        return f"{_scaled(value, 1000, ('', 'kFLOP/s', 'MFLOP/s', 'GFLOP/s', 'TFLOP/s', 'PFLOP/s'))}"
    if any(p.endswith("bytes_per_second") for p in parts):
        return f"{size(value)}/s"
    if any(p == "bytes" or p.endswith("_bytes") for p in parts):
        return size(value)
    if any(p.startswith("flops") for p in parts):
        return flops(value)
    last = parts[-1]
    if last in {"mfu", "accuracy", "held_share"}:
        return percent(value)
    if last in {"bits_per_byte", "loss", "train_loss", "probe_loss"}:
        return f"{value:.3f}"
    if last == "energy_kwh":
        return f"{significant(value)} kWh"
    if last == "cost":
        return f"{value:,.2f} USD"
    if last in {"parameters", "tokens", "steps", "documents"} or parts[0] in {"parameters", "tokens"}:
        return count(value)
    return significant(value, 4)
