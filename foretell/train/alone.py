"""The whole model on this process: what the training loop asks of a `Team`, answered without any other process.

`distributed.placed.Placed` gives the same answers for many. The loop knows neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from foretell import runtime
from foretell.checkpoint import Piece
from foretell.distributed.copies import Summing
from foretell.distributed.pipeline import Pipeline
from foretell.evaluate.scoring import Crew
from foretell.models.model import Given, Model, features
from foretell.train.optim import Matrices


class Team(Protocol):
    """The processes that train one model, as seen from one of them."""

    model: Model
    rank: int
    ranks: int

    @property
    def chunks(self) -> nn.Module:
        """All that this process holds of the model: of a pipeline several stages, one of which is `model`."""
        ...

    @property
    def pipeline(self) -> Pipeline | None:
        """What runs a step where the layers are on several processes."""
        ...

    @property
    def matrices(self) -> Matrices | None:
        """What Muon works on, where this process does not hold its matrices whole."""
        ...

    @property
    def crew(self) -> Crew | None:
        """Who evaluates, where it is not the model alone."""
        ...

    def hidden(self, inputs: Tensor, segments: Tensor | None, given: Given | None = None) -> Tensor:
        """What the head takes, of this process's positions of inputs (B, T); segments: (B, T), to keep documents apart.

        given: what the rows have besides.
        """
        ...

    def own(self, x: Tensor) -> Tensor:
        """This process's positions of x (B, T)."""
        ...

    def split_cross_entropy(self, hidden: Tensor, targets: Tensor, chunk: int | None) -> Tensor | None:
        """The mean loss of hidden (N, D) at targets (N,) where no process has the whole vocabulary, else None."""
        ...

    def named(self) -> list[tuple[str, nn.Parameter]]:
        """What the optimiser works on, by its name in the whole model."""
        ...

    def rows(self, sequences: int, micro_batch_size: int) -> list[int]:
        """Which sequences of a global batch are this process's, micro-batch after micro-batch."""
        ...

    def share(self, part: int, of: int) -> float:
        """What the mean loss of so many of this process's positions counts in the mean of `of`."""
        ...

    def totals(self, numbers: Tensor) -> Tensor:
        """Of each number the sum over the processes that have different sequences."""
        ...

    def before_micro_batch(self, step: int, n: int, of: int) -> None:
        """Told before micro-batch `n` of `of`: gradients need be complete only after a step's last."""
        ...

    def finish(self, losses: Sequence[float], limit: float) -> tuple[float, float]:
        """The global loss and gradient norm, once all backward passes are done; gradients are clipped to `limit`."""
        ...

    def stepping(self, step: int, folder: Path) -> AbstractContextManager[None]:
        """Entered around step number `step`, from 1 on, of the run in `folder`."""
        ...

    def after_step(self, steps: int) -> None:
        """Told when the optimiser has taken so many steps in all."""
        ...

    def forget_gradients(self) -> None:
        """After a step."""
        ...

    def agreed(self, number: int) -> int:
        """The largest of the numbers that the processes give."""
        ...

    def told(self, text: str, by: int = 0) -> str:
        """The text that one of the processes gives."""
        ...

    def maxima(self, numbers: Tensor) -> Tensor:
        """Of each number the largest that any process gives."""
        ...

    @property
    def layout(self) -> str:
        """Names how the model is divided: what is one process's own has a place only in the same layout."""
        ...

    @property
    def copies(self) -> Summing | None:
        """How copies of the model stay one, where there may be several; it has state of its own."""
        ...

    def named_once(self, name: str) -> str:
        """A name that no other process uses, from rank 1 on."""
        ...

    def name_here(self, name: str) -> str:
        """The name of what all copies of the model have in common, or of this one's where they go their own ways."""
        ...

    def piece(self, name: str, value: Tensor) -> Tensor | Piece | None:
        """What of a tensor shaped like this process's part of parameter `name` it has to save; None: another does."""
        ...

    def box(self, name: str) -> Any:
        """The box of parameter `name` that is here; None for all of it."""
        ...


class Alone:
    """A team of one."""

    rank, ranks = 0, 1
    matrices: Matrices | None = None
    crew: Crew | None = None
    pipeline: Pipeline | None = None
    copies: Summing | None = None
    layout = ""

    def __init__(self, model: Model) -> None:
        self.model = self.chunks = model

    def hidden(self, inputs: Tensor, segments: Tensor | None, given: Given | None = None) -> Tensor:
        return features(self.model, inputs, segments, given)

    def own(self, x: Tensor) -> Tensor:
        return x

    def split_cross_entropy(self, hidden: Tensor, targets: Tensor, chunk: int | None) -> Tensor | None:
        return None

    def named(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]

    def rows(self, sequences: int, micro_batch_size: int) -> list[int]:
        return list(range(sequences))

    def share(self, part: int, of: int) -> float:
        return part / of

    def totals(self, numbers: Tensor) -> Tensor:
        return numbers

    def before_micro_batch(self, step: int, n: int, of: int) -> None:
        pass

    def stepping(self, step: int, folder: Path) -> AbstractContextManager[None]:
        return nullcontext()

    def after_step(self, steps: int) -> None:
        pass

    def finish(self, losses: Sequence[float], limit: float) -> tuple[float, float]:
        return sum(losses), torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit, foreach=True).item()

    def forget_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def agreed(self, number: int) -> int:
        return number

    def told(self, text: str, by: int = 0) -> str:
        return text

    def maxima(self, numbers: Tensor) -> Tensor:
        return numbers

    def named_once(self, name: str) -> str:
        return name

    def name_here(self, name: str) -> str:
        return name

    def piece(self, name: str, value: Tensor) -> Tensor | Piece | None:
        return value

    def box(self, name: str) -> Any:
        return None


def random_state() -> dict[str, Tensor]:
    """This process's random state, by the generator's name."""
    states = {"random.cpu": torch.get_rng_state()}
    if runtime.device().type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_state(states: dict[str, Tensor]) -> None:
    """The inverse of `random_state`; what is absent is left as it is."""
    if "random.cpu" in states:
        torch.set_rng_state(states["random.cpu"])
    if "random.cuda" in states and runtime.device().type == "cuda":
        torch.cuda.set_rng_state(states["random.cuda"])
