"""Time lost to failures, and how often to save.

Failures come at random with a mean time M between them (a Poisson process), a checkpoint costs C seconds, a restart R,
and work since the last checkpoint is lost. Then the time to finish W seconds of work, saving after every t of them, is
E = M exp(R/M) (exp((t+C)/M) - 1) W/t (Daly, 2006, equation 13, every segment ended by a save). Its minimum over t is
exact in Lambert's function; Young's (1974) and Daly's formulas approximate it.

M here is of the whole cluster: the figures of devices add up. Failures during a restart count; failures that come in
crowds, and checkpoints that are damaged, do not.
"""

from __future__ import annotations

import math
from typing import Any

DAY_SECONDS = 86_400.0
# Grattafiori et al. (2024), table 5: 419 unexpected interruptions in 54 days of 16,384 H100.
FAILURES_PER_1000_DEVICE_DAYS = 0.4736


def mean_time_between_failures(devices: int, per_1000_device_days: float = FAILURES_PER_1000_DEVICE_DAYS) -> float:
    """Seconds between failures anywhere in a cluster of so many devices; infinite where none ever fails."""
    rate = devices * per_1000_device_days / 1000
    return DAY_SECONDS / rate if rate > 0 else math.inf


def young_interval(checkpoint_seconds: float, mtbf_seconds: float) -> float:
    """Seconds of work between checkpoints: sqrt(2 C M), right where C is small beside M (Young, 1974)."""
    return math.sqrt(2 * checkpoint_seconds * mtbf_seconds)


def daly_interval(checkpoint_seconds: float, mtbf_seconds: float) -> float:
    """Young's interval with two more terms; M where C is 2 M or more (Daly, 2006, equation 37)."""
    if checkpoint_seconds >= 2 * mtbf_seconds:
        return mtbf_seconds
    x = checkpoint_seconds / (2 * mtbf_seconds)
    return young_interval(checkpoint_seconds, mtbf_seconds) * (1 + math.sqrt(x) / 3 + x / 9) - checkpoint_seconds


def best_interval(checkpoint_seconds: float, mtbf_seconds: float) -> float:
    """The exact minimum of `expected_seconds` over the interval: t = M (1 + W0(-exp(-1 - C/M))), by Newton's method."""
    if checkpoint_seconds <= 0 or math.isinf(mtbf_seconds):
        return math.inf if math.isinf(mtbf_seconds) else 0.0
    a = checkpoint_seconds / mtbf_seconds
    x = min(1.0, math.sqrt(2 * a))  # t/M, which solves (1 - x) exp(x) = exp(-a), or x + log(1 - x) + a = 0
    low, high = 0.0, 1.0
    for _ in range(200):
        value = x + math.log1p(-x) + a if x < 1 else -math.inf
        low, high = (x, high) if value > 0 else (low, x)
        slope = -x / (1 - x) if x < 1 else -math.inf
        step = x - value / slope if x < 1 else high
        nearer = step if low < step < high else (low + high) / 2
        if abs(nearer - x) <= 1e-15 * x:
            break
        x = nearer
    return x * mtbf_seconds


def expected_seconds(
    work_seconds: float, interval: float, checkpoint_seconds: float, restart_seconds: float, mtbf_seconds: float
) -> float:
    """Mean seconds from start to end of so much work, saving after every `interval` seconds of it."""
    if math.isinf(mtbf_seconds):
        return work_seconds * (1 + (checkpoint_seconds / interval if interval and math.isfinite(interval) else 0.0))
    M = mtbf_seconds
    return M * math.exp(restart_seconds / M) * math.expm1((interval + checkpoint_seconds) / M) * work_seconds / interval


def goodput(
    devices: int,
    checkpoint_seconds: float,
    restart_seconds: float,
    per_1000_device_days: float = FAILURES_PER_1000_DEVICE_DAYS,
    interval: float | None = None,
) -> dict[str, Any]:
    """Share of time that is work kept (`share`), with the interval that makes it largest where none is given.

    `low` and `high`: at twice and half the rate of failures, which differ so much between clusters.
    """
    M = mean_time_between_failures(devices, per_1000_device_days)
    chosen = interval or best_interval(checkpoint_seconds, M)

    def share(mtbf: float) -> float:
        return 1.0 / expected_seconds(1.0, chosen, checkpoint_seconds, restart_seconds, mtbf)

    return {
        "mtbf_seconds": M,
        "interval_seconds": chosen,
        "share": {"value": share(M), "low": share(M / 2), "high": share(2 * M)},
    }
