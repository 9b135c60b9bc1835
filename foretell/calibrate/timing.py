"""Timing on a machine that is not always equally fast: every figure with the speed that was measured beside it.

A processor that is shared changes its speed from minute to minute, and not in one way. Its clock moves products. Where
the host has put two virtual processors moves the rest: on neighbouring cores small operators start and end sooner, on
distant ones there are two caches and two ways to memory (docs/calibrate.md has both). So three things of fixed size
are timed beside each figure: a product bound by arithmetic, a small operator bound by starting and ending it on all
threads, and a large one bound by memory. A forecast is made for a stated speed (`plan/time.py`).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import astuple, fields

from foretell.plan.parts import OPERATOR_NUMBERS, PRODUCT_SIDE, STREAM_NUMBERS, Speed

REFERENCE_ROUNDS = 4
# The speed is measured anew when the last measurement is older than this.
SPEED_SECONDS = 0.25
# A pause of this length after so long at work: what others have to do is done between two timings, not within one.
WORK_SECONDS, PAUSE_SECONDS = 0.35, 0.05
# A call that takes longer than this is timed fewer times. One that takes this share of the call before has not settled.
LONG_SECONDS, SETTLED = 0.06, 0.9
# Small operators that are timed together.
OPERATORS_AT_ONCE = 12


class References:
    """The three things of fixed size, with the 55 MB that they work on."""

    def __init__(self) -> None:
        import torch

        sizes = ((PRODUCT_SIDE, PRODUCT_SIDE), (OPERATOR_NUMBERS,), (STREAM_NUMBERS,))
        self._operands = [[torch.ones(size) for _ in range(3)] for size in sizes]

    def speed(self, rounds: int = REFERENCE_ROUNDS) -> Speed:
        """The machine's speed now, in some 30 ms: medians."""
        import torch

        (a, b, product), (x, y, small), (c, d, large) = self._operands

        def operators() -> None:
            for _ in range(OPERATORS_AT_ONCE):
                torch.mul(x, y, out=small)

        streaming = _typical(lambda: torch.mul(c, d, out=large), rounds)
        arithmetic = _typical(lambda: torch.mm(a, b, out=product), rounds)
        return Speed(arithmetic, _typical(operators, rounds) / OPERATORS_AT_ONCE, streaming)


def _typical(work: Callable[[], object], rounds: int) -> float:
    work()
    return statistics.median(_seconds(work) for _ in range(rounds))


def between(a: Speed, b: Speed) -> Speed:
    """The mean of two."""
    return Speed(*((x + y) / 2 for x, y in zip(astuple(a), astuple(b), strict=True)))


def _seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def median(speeds: Iterable[Speed]) -> dict[str, float]:
    """Of each reference the median, as a record keeps it."""
    columns = zip(*(astuple(s) for s in speeds), strict=True)
    return {f.name: statistics.median(c) for f, c in zip(fields(Speed), columns, strict=True)}


class Stopwatch:
    """Times one thing after another, and the machine's speed in between."""

    def __init__(self) -> None:
        self._references = References()
        self._speed, self._at = self._references.speed(), time.perf_counter()
        self._paused = self._at

    def beside(self, work: Callable[[], object], least_seconds: float) -> tuple[float, Speed]:
        """Median seconds of a call, of several that take so long together, and the speed around them.

        The first call does not count, nor another two as long as each is quicker than the one before: they meet cold
        caches and memory that the allocator has not got yet.
        """
        before, last = self._now(), _seconds(work)
        for _ in range(2 if last < 8 * LONG_SECONDS else 0):
            previous, last = last, _seconds(work)
            if last > SETTLED * previous:
                break
        least, seconds = 3 if last < LONG_SECONDS else 2 if last < 8 * LONG_SECONDS else 1, list[float]()
        while sum(seconds) < least_seconds or len(seconds) < least:
            if self._pause() and last < LONG_SECONDS:
                work()
            seconds.append(_seconds(work))
        return statistics.median(seconds), between(before, self._now())

    def _now(self) -> Speed:
        if time.perf_counter() - self._at > SPEED_SECONDS:
            self._pause()
            self._speed, self._at = self._references.speed(), time.perf_counter()
        return self._speed

    def _pause(self) -> bool:
        if time.perf_counter() - self._paused < WORK_SECONDS:
            return False
        time.sleep(PAUSE_SECONDS)
        self._paused = time.perf_counter()
        return True
