"""Bad numbers: caught before the optimiser applies them, on all ranks alike, with the cause said."""

import math
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import on
from runs import KEYS, layout, losses
from torch import Tensor
from training import MACHINE

from foretell import config as run_config
from foretell.data import open_data
from foretell.distributed.placed import Placed
from foretell.errors import ForetellError
from foretell.train import begin, go_on, guard, loop
from foretell.train.guard import MOST_IN_A_ROW, Guard

AT = 40
NOISE = r"the loss .* deviations above .*; sequence \d of the batch \(training tokens from .*\) stands out: its loss is"
Event = dict[str, Any]
Injection = Callable[["Injected"], None]


def test_a_loss_far_above_the_recent_ones_is_bad_and_one_within_them_is_not() -> None:
    r = random.Random(0)
    g = Guard()
    for _ in range(2 * guard.HISTORY):
        loss, norm = r.gauss(3.0, 0.05), r.uniform(0.1, 2.0)
        assert g.reason(loss, norm) is None
        g.record(loss, norm, good=True)
    assert g.reason(3.0 + 0.05 * 5, 1.0) is None
    assert "over 6 deviations above the last 128" in (g.reason(3.0 + 0.05 * 8, 1.0) or "")
    assert g.reason(math.nan, 1.0) == "the loss is nan"
    assert g.reason(3.0, math.inf) == "the gradient norm is inf"
    assert g.reason(3.0, 190.0) is None
    assert "the gradient norm 210 is 100 times the last 128 or more" in (g.reason(3.0, 210.0) or "")
    g.record(9.0, 1.0, good=False)
    assert g.bad_in_a_row == 1
    assert 9.0 not in g.losses


# ------------------------------------------------------------------------------------------------------- injections


class Injected:
    """The training of this process, into which something is put at one step. `lasting`: each time it is computed."""

    def __init__(self, team: Any, at: int, lasting: bool, here: bool) -> None:
        self.team, self.at, self.lasting, self.here = team, at, lasting, here
        self.step, self.times = -1, 0

    @property
    def is_due(self) -> bool:
        return self.here and self.step == self.at and (self.lasting or self.times == 1)

    def gradients(self) -> list[Tensor]:
        """Of this rank's part, before they are added up."""
        if isinstance(self.team, Placed):
            return [g for p in self.team.parts if (g := p.gradient()) is not None and g.numel()]
        return [p.grad for p in self.team.model.parameters() if p.grad is not None]


def _before_finish(injected: Injected, change: Callable[[Tensor], None]) -> None:
    finish = injected.team.finish

    def changed(losses: Any, limit: float) -> Any:
        if injected.is_due:
            change(injected.gradients()[3])
        return finish(losses, limit)

    injected.team.finish = changed


def flipped_bit(injected: Injected) -> None:
    """The highest bit of the exponent of a number between 2^-126 and 1: it becomes 1e30 or so."""

    def flip(gradient: Tensor) -> None:
        largest = gradient.view(-1)[gradient.abs().argmax()]
        largest.copy_((largest.view(torch.int32) ^ 0x40000000).view(torch.float32))

    _before_finish(injected, flip)


def infinite_gradient(injected: Injected) -> None:
    _before_finish(injected, lambda gradient: gradient.view(-1)[0].fill_(math.inf))


def not_a_number(injected: Injected) -> None:
    """In the loss of a micro-batch."""
    made = loop.loss_function

    def loss_function(job: loop.Job, team: Any) -> loop.LossOf:
        loss_of = made(job, team)
        return lambda *batch: loss_of(*batch) * (math.nan if injected.is_due else 1.0)

    loop.loss_function = loss_function


def bad_weight(injected: Injected) -> None:
    original = injected.team.before_micro_batch

    def spoilt(step: int, n: int, of: int) -> None:
        if injected.is_due:
            with torch.no_grad():
                next(p for _, p in injected.team.named() if p.numel()).view(-1)[0] = math.nan
        original(step, n, of)

    injected.team.before_micro_batch = spoilt


def poisoned_rows(injected: Injected) -> None:
    """The first three of this rank's sequences are noise."""
    made = loop.micro_batches

    def micro_batches(job: loop.Job, step: int, rows: list[int], **alike: bool) -> Iterator[Any]:
        done = 0
        for batch in made(job, step, rows, **alike):
            if step == injected.at and injected.here:
                noise = torch.Generator().manual_seed(step)
                for n in range(max(0, min(3 - done, len(batch.inputs)))):
                    batch.targets[n] = torch.randint(256, batch.targets[n].shape, generator=noise)
            done += len(batch.inputs)
            yield batch

    loop.micro_batches = micro_batches


INJECTIONS: dict[str, Injection] = {
    f.__name__: f for f in (flipped_bit, infinite_gradient, not_a_number, bad_weight, poisoned_rows)
}


def injected_training(run: Path, data: Path, what: str, at: int, lasting: bool, rank: int) -> list[Event]:
    """One rank's part of a run into which rank `rank` gets something bad; the events it saw."""
    guard.HISTORY, guard.LEAST_HISTORY = 12, 8  # so that a short run has recent losses that are alike
    saved = (loop.run, loop.gradient, loop.loss_function, loop.micro_batches)
    events: list[Event] = []

    def run_with(team: Any, job: Any, **options: Any) -> Any:
        injected = Injected(team, at, lasting, team.rank == rank)
        INJECTIONS[what](injected)

        def gradient(job: Any, team: Any, loss_of: Any, step: int) -> tuple[float, float]:
            injected.times = injected.times + 1 if step == injected.step else 1
            injected.step = step
            return saved[1](job, team, loss_of, step)

        loop.gradient = gradient
        return saved[0](team, job, **options)

    loop.run = run_with
    try:
        go_on(run, open_data(data), resume=True, display=events.append)
    except ForetellError as e:
        events.append({"event": "error", "message": str(e)})
    finally:
        guard.HISTORY, guard.LEAST_HISTORY = 128, 32
        loop.run, loop.gradient, loop.loss_function, loop.micro_batches = saved
    return [e for e in events if e["event"] in ("step", "error")]


def events_of(
    folder: Path,
    data: Path,
    what: str,
    *,
    ranks: int = 2,
    lasting: bool = True,
    at: int = AT,
    keys: tuple[str, ...] = (),
) -> list[list[Event]]:
    shape = layout(dp_shard=ranks) if ranks > 1 and not keys else []
    c = run_config.load(None, [*KEYS, "train.steps=48", "train.optimizer=adamw", "train.save_every=20", *shape, *keys])
    begin(run_config.updated(c, data={"source": str(data)}), open_data(data), folder, ranks, machine=MACHINE)
    if ranks == 1:
        return [injected_training(folder, data, what, at, lasting, 0)]
    return on(ranks, injected_training, folder, data, what, at, lasting, ranks - 1)


@pytest.fixture(scope="module")
def undisturbed(lines: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    events_of(run, lines, "not_a_number", at=1000)
    return losses(run)


@pytest.mark.parametrize("what", ["flipped_bit", "not_a_number"])
def test_a_fault_of_one_machine_is_computed_again_and_leaves_no_trace(
    lines: Path, tmp_path: Path, undisturbed: list[float], what: str
) -> None:
    events = events_of(tmp_path / "run", lines, what, lasting=False)
    assert losses(tmp_path / "run") == undisturbed
    for of_rank in events:
        (again,) = [e for e in of_rank if "recomputed" in e]
        assert again["step"] == AT + 1
        assert again["recomputed"].endswith("a fault of the machine, not of the data")
        assert not [e for e in of_rank if "skipped" in e]


@pytest.mark.parametrize(
    ("what", "keys", "said"),
    [
        ("poisoned_rows", (), NOISE),
        ("poisoned_rows", ("parallel.tp=2",), NOISE),
        ("poisoned_rows", ("parallel.cp=2",), NOISE),
        ("infinite_gradient", (), r"the gradient norm is inf; every loss is finite, but not the gradient of model\."),
        ("flipped_bit", (), r"the gradient norm \S+ is 100 times the last 12 or more; no sequence and no parameter"),
    ],
)
def test_what_comes_out_bad_again_is_not_applied_and_its_cause_is_said_on_all_ranks(
    lines: Path, tmp_path: Path, what: str, keys: tuple[str, ...], said: str
) -> None:
    events = events_of(tmp_path / "run", lines, what, keys=keys)
    reasons = {next(e["skipped"] for e in of_rank if "skipped" in e) for of_rank in events}
    assert len(reasons) == 1
    assert re.match(said, reasons.pop())
    assert all([e["step"] for e in of_rank if "skipped" in e] == [AT + 1] for of_rank in events)


def test_a_bad_weight_ends_the_run_after_some_steps_and_earlier_checkpoints_are_whole(
    lines: Path, tmp_path: Path
) -> None:
    events = events_of(tmp_path / "run", lines, "bad_weight", at=34)
    for of_rank in events:
        skipped = [e for e in of_rank if "skipped" in e]
        assert len(skipped) == MOST_IN_A_ROW
        assert "the weights themselves are not finite, first model." in skipped[0]["skipped"]
        assert f"{MOST_IN_A_ROW} steps in a row could not be applied" in of_rank[-1]["message"]
    assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-000020"]


@pytest.mark.parametrize("what", ["poisoned_rows", "infinite_gradient", "flipped_bit"])
def test_one_process_says_the_cause_too(lines: Path, tmp_path: Path, what: str) -> None:
    (events,) = events_of(tmp_path / "run", lines, what, ranks=1)
    assert [e["step"] for e in events if "skipped" in e] == [AT + 1]
