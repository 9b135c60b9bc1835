"""Which collectives a piece of work issues: kind, group, count and bytes, in order.

Recorded where every one of them passes, torch's dispatcher, so that those of FSDP2 and of torch's pipelines are seen
like our own. It costs some microseconds an operation of any kind: for one step, not for a run (a hang is told from
torch's own ring buffer, `watch.py`). A run keeps those of its second step, the first that is like all others, from the
ranks of one copy of the model that differ in what they issue: one of each pipeline stage.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from foretell.checkpoint import files

STEP = 2
# What counts as the size of each: the argument that holds it. Of an all-gather the whole that comes out, of a
# reduce-scatter and an all-to-all the whole that goes in.
_KINDS = {
    "allreduce_": ("all_reduce", 0),
    "_allgather_base_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "alltoall_base_": ("all_to_all", 1),
    "broadcast_": ("broadcast", 0),
    "send": ("send", 0),
    "recv_": ("recv", 0),
}
_WITHOUT_DATA = {"barrier", "monitored_barrier_"}


@dataclass(frozen=True, slots=True)
class Collective:
    """One collective of this rank. group: the ranks that take part, for send and recv the other one alone."""

    kind: str
    group: tuple[int, ...]
    count: int
    bytes: int


class Recording(TorchDispatchMode):
    """While entered, `collectives` grows by each one that this rank issues. Raises TypeError for a kind not known."""

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[Collective] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self._note(func._schema.name.removeprefix("c10d::"), args)
        return func(*args, **(kwargs or {}))

    def _note(self, name: str, args: tuple[Any, ...]) -> None:
        if name in _WITHOUT_DATA:
            return
        if name not in _KINDS:
            raise TypeError(f"collective {name} is not one of {', '.join(_KINDS)}: record.py must learn how it counts")
        kind, sized = _KINDS[name]
        tensors: list[Tensor] = args[sized] if isinstance(args[sized], (list, tuple)) else [args[sized]]
        boxed = next(a for a in args if isinstance(a, torch.ScriptObject))
        group = dist.ProcessGroup.unbox(boxed)
        ranks = tuple(dist.get_process_group_ranks(group))
        if kind in ("send", "recv"):
            peer = next(a for a in args if isinstance(a, int))
            ranks = (ranks[peer],)
        count = sum(t.numel() for t in tensors)
        self.collectives.append(Collective(kind, ranks, count, sum(t.numel() * t.element_size() for t in tensors)))


def totals(collectives: Iterable[Collective]) -> dict[tuple[str, int], tuple[int, int]]:
    """How many of a kind in groups of a size, and their bytes."""
    numbers, sizes = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for c in collectives:
        numbers[c.kind, len(c.group)] += 1
        sizes[c.kind, len(c.group)] += c.bytes
    return {key: (numbers[key], sizes[key]) for key in numbers}


@contextmanager
def kept(folder: Path, step: int, layout: str) -> Iterator[None]:
    """Keep the collectives of what is entered in `folder`/collectives, as this rank's, unless they stand there."""
    path = folder / "collectives" / f"rank-{dist.get_rank():05d}.json"
    if path.exists():
        yield
        return
    with Recording() as recording:
        yield
    path.parent.mkdir(exist_ok=True)
    head = json.dumps({"step": step, "rank": dist.get_rank(), "layout": layout})
    lines = ",\n".join(json.dumps(astuple(c)) for c in recording.collectives)
    files.write_atomic(path, f'{head[:-1]}, "collectives": [\n{lines}\n]}}\n'.encode())


def read(path: Path) -> list[Collective]:
    """What `kept` wrote."""
    rows = json.loads(path.read_text(encoding="utf-8"))["collectives"]
    return [Collective(kind, tuple(group), count, size) for kind, group, count, size in rows]
