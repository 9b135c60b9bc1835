"""A model of what a disk may hold after a power cut, and a way to stand between the code and its file layer.

The model knows files and folders, not checkpoints. What was not forced to disk may be lost: the data of a file until
`sync`, and each change of a name in a folder until `sync_folder`, in any combination.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from foretell.checkpoint import files

CHANGING = ["create", "write", "sync", "close", "rename", "make_folder", "unlink", "remove_folder", "sync_folder"]
READING = ["open_existing", "size_bytes", "read_into", "seek", "forget_cached", "free_bytes"]
Tree = dict[str, Any]  # name -> bytes or Tree


@contextmanager
def intercepted(
    around: Callable[[str, Callable[..., Any], tuple[Any, ...]], Any], also: Sequence[str] = ()
) -> Iterator[None]:
    """While entered, each call of the file layer, those `also` named too, goes to `around(name, real, arguments)`."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [*CHANGING, *READING, *also]:
            real = getattr(files, name)
            patch.setattr(files, name, lambda *a, name=name, real=real: around(name, real, a))
        yield


@dataclass(eq=False)
class File:
    now: bytes = b""
    durable: bytes = b""

    def variants(self) -> list[bytes]:
        """What may be read back: all, nothing, a part, or zeros where the data never arrived."""
        kept = self.durable if self.now.startswith(self.durable) else b""
        zeros = kept + bytes(len(self.now) - len(kept))
        half = self.now[: (len(kept) + len(self.now)) // 2]
        return [self.now] if self.now == self.durable else [self.now, self.durable, half, zeros]


@dataclass(eq=False)
class Folder:
    now: dict[str, Any] = field(default_factory=dict)
    durable: dict[str, Any] = field(default_factory=dict)
    pending: list[tuple[Any, ...]] = field(default_factory=list)

    def change(self, *op: Any) -> None:
        self.pending.append(op)
        _apply(self.now, op)

    def sync(self) -> None:
        self.durable, self.pending = dict(self.now), []

    def variants(self) -> Iterator[dict[str, Any]]:
        for chosen in itertools.product([True, False], repeat=len(self.pending)):
            names = dict(self.durable)
            for op, happened in zip(self.pending, chosen, strict=True):
                if happened:
                    _apply(names, op)
            yield names


def _apply(names: dict[str, Any], op: tuple[Any, ...]) -> None:
    if op[0] == "add":
        names[op[1]] = op[2]
    elif op[0] == "remove":
        names.pop(op[1], None)
    else:
        names.pop(op[1], None)
        names[op[2]] = op[3]


class Disk:
    """Replays recorded operations below `root`, which starts empty."""

    def __init__(self, root: Path) -> None:
        self.root, self.top = root, Folder()
        self.open: dict[int, File] = {}

    def _at(self, path: Path) -> tuple[Folder, str]:
        here = self.top
        *parents, name = path.relative_to(self.root).parts
        for part in parents:
            here = here.now[part]
        return here, name

    def replay(self, name: str, arguments: tuple[Any, ...], result: Any) -> None:
        if name == "close":  # also of files that were open for reading
            self.open.pop(arguments[0], None)
        elif name == "write":
            self.open[arguments[0]].now += arguments[1][:result]
        elif name == "sync":
            self.open[arguments[0]].durable = self.open[arguments[0]].now
        elif name == "sync_folder":
            here = self.top
            for part in Path(arguments[0]).relative_to(self.root).parts:
                here = here.now[part]
            here.sync()
        else:
            here, last = self._at(Path(arguments[0]))
            if name == "create":
                file = here.now.get(last) or File()
                file.now = b""
                self.open[result] = file
                if last not in here.now:
                    here.change("add", last, file)
            elif name == "make_folder":
                here.change("add", last, Folder())
            elif name == "rename":
                assert Path(arguments[1]).parent == Path(arguments[0]).parent
                here.change("rename", last, Path(arguments[1]).name, here.now[last])
            else:
                here.change("remove", last)

    def after_power_cut(self) -> Iterator[Tree]:
        """Every tree that may be found after a stop here."""
        yield from _trees(self.top)


def _trees(here: Folder | File) -> Iterator[Any]:
    if isinstance(here, File):
        yield from here.variants()
        return
    for names in here.variants():
        for parts in itertools.product(*(list(_trees(child)) for child in names.values())):
            yield dict(zip(names, parts, strict=True))


@dataclass
class Recording:
    """The changing operations of a piece of work, with `marks`: how many had happened when `mark` was called."""

    operations: list[tuple[str, tuple[Any, ...], Any]] = field(default_factory=list)

    def around(self, name: str, real: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        result = real(*arguments)
        if name in CHANGING:
            copied = tuple(bytes(a) if isinstance(a, memoryview) else a for a in arguments)
            self.operations.append((name, copied, result))
        return result


def write_tree(tree: Tree, where: Path) -> None:
    where.mkdir(parents=True, exist_ok=True)
    for name, inside in tree.items():
        if isinstance(inside, bytes):
            (where / name).write_bytes(inside)
        else:
            write_tree(inside, where / name)
