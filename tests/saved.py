"""A small made-up checkpoint, and what it takes to be the same to the last bit."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretell import checkpoint
from foretell.checkpoint import Piece, Saver
from foretell.checkpoint import tensors as tensor_files


def content(step: int) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and state of step `step`: 806 bytes of tensors."""
    g = torch.Generator().manual_seed(step)
    tensors = {
        "model.w": torch.randn(8, 9, generator=g),
        "model.b": torch.randn(7, generator=g).bfloat16(),
        "optimizer.step": torch.tensor(float(step)),
        "random.cpu": torch.randint(0, 256, (500,), generator=g).to(torch.uint8),
    }
    return tensors, {"step": step, "loss": 1 / (step + 3), "losses": [step / 7, -0.0], "note": "é"}


def save(where: Path, step: int, keep: int = 2) -> Path:
    tensors, state = content(step)
    return checkpoint.save(where, step, tensors, state, keep)


def part(step: int, rank: int, ranks: int) -> dict[str, Tensor | Piece]:
    """What a rank holds of step `step`: rows of a tensor, from four ranks on columns too; whole ones."""
    tensors, _ = content(step)
    w, b = tensors["model.w"], tensors["model.b"]
    rows = 8 // min(ranks, 2)
    row = rank % 2 * rows
    columns = slice(0, 9) if ranks < 4 else slice(0, 4) if rank < 2 else slice(4, 9)
    held: dict[str, Tensor | Piece] = {}
    if ranks != 3 or rank < 2:
        held["model.w"] = Piece(w[row : row + rows, columns], (row, columns.start), (8, 9))
    size = -(-7 // ranks)  # the last may get nothing
    held["model.b"] = Piece(b[rank * size : (rank + 1) * size], (min(rank * size, 7),), (7,))
    if rank == 0:
        held["optimizer.step"] = tensors["optimizer.step"]
    if rank == ranks - 1:
        held["random.cpu"] = tensors["random.cpu"]
    return held


def save_on(
    where: Path, step: int, ranks: int, session: str, keep: int = 2, patience_seconds: float = 60.0
) -> list[BaseException | None]:
    """A save of several ranks, each a thread of this process; what each raised."""
    savers = [
        Saver(where, keep, rank=r, ranks=ranks, session=session, patience_seconds=patience_seconds)
        for r in range(ranks)
    ]
    for rank, saver in enumerate(savers):
        saver.save(step, part(step, rank, ranks), content(step)[1] if rank == 0 else {})
    ends: list[BaseException | None] = []
    for saver in savers:
        try:
            saver.wait()
            ends.append(None)
        except BaseException as e:
            ends.append(e)
    return ends


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """Equal to the last bit, NaN and the sign of zero included."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype
        and a[k].shape == b[k].shape
        and bytes(tensor_files.raw(a[k].contiguous())) == bytes(tensor_files.raw(b[k].contiguous()))
        for k in a
    )


def check_is(loaded: checkpoint.Checkpoint | None, step: int) -> None:
    """`loaded` is the made-up checkpoint of `step`, exactly."""
    assert loaded is not None
    tensors, state = content(step)
    assert loaded.step == step
    assert repr(sorted(loaded.state.items())) == repr(sorted(state.items()))
    assert same(loaded.tensors, tensors)
