"""A small made-up checkpoint, and what it takes to be the same to the last bit."""

from pathlib import Path
from typing import Any

import torch

from foretell import checkpoint
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
