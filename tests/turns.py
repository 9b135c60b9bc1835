"""Ranks as threads whose file operations happen one at a time, in an order that the test chooses.

A turn is given only when every living rank stands before its next operation, so a schedule gives the same course every
time. Pauses take no time.
"""

import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from disk import intercepted

from foretell.checkpoint import files
from foretell.checkpoint.commit import Save

LOOKING = ["names", "exists", "pause"]
Around = Callable[[str, Callable[..., Any], tuple[Any, ...]], Any]
Choose = Callable[[list[int], dict[int, str]], int]  # from who is ready, and what each did last


class Turns:
    """Who is next among `ranks` threads named checkpoint-RANK."""

    def __init__(self, ranks: int, choose: Choose) -> None:
        self.changed, self.choose = threading.Condition(), choose
        self.alive, self.ready = set(range(ranks)), set[int]()
        self.last: dict[int, str] = {}
        self.granted: int | None = None

    def take(self, rank: int, name: str) -> None:
        """Wait for the turn of `rank`, which is to do the operation `name`."""
        with self.changed:
            self.ready.add(rank)
            self._grant()
            assert self.changed.wait_for(lambda: self.granted == rank, timeout=60)
            self.granted = None
            self.ready.discard(rank)
            self.last[rank] = name

    def leave(self, rank: int) -> None:
        with self.changed:
            self.alive.discard(rank)
            self._grant()

    def _grant(self) -> None:
        if self.alive and self.ready == self.alive:
            self.granted = self.choose(sorted(self.ready), self.last)
            self.changed.notify_all()


def own_rank() -> int | None:
    """The rank whose thread this is."""
    kind, _, number = threading.current_thread().name.partition("-")
    return int(number) if kind == "checkpoint" else None


@contextmanager
def in_turn(ranks: int, choose: Choose, around: Around = lambda name, real, a: real(*a)) -> Iterator[None]:
    """While entered, operations of savers' threads come in the order of `choose`, each through `around`."""
    turns = Turns(ranks, choose)

    def ordered(name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        rank = own_rank()
        if rank is not None:
            turns.take(rank, name)
        if name == "pause":
            return None
        return around(name, real, arguments)

    run = Save.run

    def leaving(save: Save, failure: Exception | None = None) -> Any:
        try:
            return run(save, failure)
        finally:
            if own_rank() is not None:
                turns.leave(save.rank)

    with pytest.MonkeyPatch.context() as patch, intercepted(ordered, LOOKING):
        patch.setattr(Save, "run", leaving)
        yield


def first(preferred: int) -> Choose:
    """One rank goes on until it has to wait for another."""

    def choose(ready: list[int], last: dict[int, str]) -> int:
        busy = [r for r in ready if last.get(r) != "pause"] or ready
        if preferred in busy:
            return preferred
        last.pop(preferred, None)  # after another's operation it looks again
        return busy[0]

    return choose


def by_chance(seed: int) -> Choose:
    """Any order, though a rank that waits comes less often."""
    r = random.Random(seed)

    def choose(ready: list[int], last: dict[int, str]) -> int:
        return r.choices(ready, [0.2 if last.get(n) in LOOKING else 1.0 for n in ready])[0]

    return choose


def silent_pauses(patch: pytest.MonkeyPatch) -> None:
    """Waiting takes no time, for tests without turns."""
    patch.setattr(files, "pause", lambda seconds: threading.Event().wait(0.001))
