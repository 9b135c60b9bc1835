"""Foretold and recorded collectives in one form, so that they can be compared one by one."""

from collections import Counter
from collections.abc import Iterable

from foretell import config as run_config
from foretell.config import RunConfig
from foretell.plan.collective import Collective

# kind, ranks of the group (of a send or a receive the other one alone), numbers, bytes
Counted = Counter[tuple[str, int, int, int]]


def resolved(keys: Iterable[str]) -> RunConfig:
    """The config of overrides, its model complete."""
    c = run_config.load(None, list(keys))
    return c.model_copy(update={"model": c.model.resolved(c.model.needed("vocab_size"), c.train.context)})


def foretold(rows: Iterable[Collective], routed: bool = False) -> Counted:
    """Those whose size is known, or those that depend on what tokens choose."""
    found: Counted = Counter()
    for r in rows:
        if r.routed == routed:
            found[r.kind, 1 if r.kind in ("send", "recv") else r.ranks, r.numbers, r.bytes] += r.calls
    return found


def seen(collectives: Iterable[tuple[str, tuple[int, ...], int, int]]) -> Counted:
    """Recorded ones: (kind, group, count, bytes)."""
    return Counter((kind, len(group), count, size) for kind, group, count, size in collectives)
