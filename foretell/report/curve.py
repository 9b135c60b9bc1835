"""What lies between a log and a line on paper: thinning, smoothing, scales, ticks. Plain lists in, plain lists out."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass

Point = tuple[float, float]
MOST_POINTS = 800


def thin(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points, in order, that keep the first, the last, and the lowest and highest of every stretch.

    A spike of one step therefore survives, which averaging or taking every n-th point would hide.
    """
    if len(points) <= most:
        return points
    stretches = (most - 2) // 2
    inner = range(1, len(points) - 1)
    kept = {0, len(points) - 1}
    for i in range(stretches):
        part = inner[i * len(inner) // stretches : (i + 1) * len(inner) // stretches]
        kept.add(min(part, key=lambda j: points[j][1]))
        kept.add(max(part, key=lambda j: points[j][1]))
    return [points[j] for j in sorted(kept)]


def smooth(points: list[Point], share: float = 0.02) -> list[Point]:
    """Mean over a window centred on each point: `share` of the points to each side, fewer towards the start.

    Centred, because a trailing average lags where the loss falls fast, and would draw a run outside a band it is
    inside of. Taken twice over half the window, so that a spike leaves a hill and not a box.
    """
    return _mean(_mean(points, share / 2), share / 2)


def _mean(points: list[Point], share: float) -> list[Point]:
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    widest = share * len(points)
    out = []
    for i, (x, _) in enumerate(points):
        half = int(min(widest, i / 10))
        low, high = i - half, min(len(points), i + half + 1)
        out.append((x, (sums[high] - sums[low]) / (high - low)))
    return out


@dataclass(frozen=True)
class Scale:
    """Maps [low, high] to [0, 1], linearly or by logarithm; what lies far outside is held just outside."""

    low: float
    high: float
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            share = math.log(max(value, 1e-60) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(2.0, max(-1.0, share))


def scale(values: Iterable[float], *, log: bool = False, zero: bool = False, pad: float = 0.05) -> Scale:
    """A scale that holds all values with a little air; by logarithm only where all are positive."""
    seen = [v for v in values if math.isfinite(v)]
    positive = [v for v in seen if v > 0]
    if log and positive:
        low, high = min(positive), max(positive)
        air = (high / low) ** pad if high > low else 1.1
        return Scale(low / air, high * air, log=True)
    low, high = (min(seen), max(seen)) if seen else (0.0, 1.0)
    low = min(0.0, low) if zero else low
    air = pad * (high - low) or abs(high) * pad or 1.0
    return Scale(low if zero and low == 0 else low - air, high + air)


def ticks(s: Scale, most: int = 6) -> list[float]:
    """Round values inside the scale: steps of 1, 2 or 5; on a logarithmic scale 1, 2, 5 before the digits between."""
    if s.log and s.high / s.low > 1.8:
        return _log_ticks(s, most)
    rough = (s.high - s.low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(s.low / step - 1e-9), math.floor(s.high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _log_ticks(s: Scale, most: int) -> list[float]:
    """Greedy: the roundest values first, each only where it has room."""
    found: list[float] = []
    powers = range(math.floor(math.log10(s.low)), math.floor(math.log10(s.high)) + 1)
    for mantissa in (1, 2, 5, 3, 1.5, 4, 7):
        for power in powers:
            value = mantissa * 10.0**power
            room = all(abs(s.at(value) - s.at(other)) >= 0.7 / most for other in found)
            if s.low <= value <= s.high and room:
                found.append(value)
    return sorted(found)
