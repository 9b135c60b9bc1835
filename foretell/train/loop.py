"""THE training loop: one for every model, objective and machine.

An optimiser step takes a batch that is a pure function of (seed, step), forms the gradient in micro-batches, checks it,
and applies it. Everything that a step depends on - weights, optimiser state, random state, the guard's memory - is in
the checkpoint, so a run that was killed and resumed is bit-identical to one that was not.

What changes the loss, the model or the gradient is passed in; nothing copies this loop. It knows nothing of sizes,
budgets or forecasts (see `train/run.py`), and nothing of more than one process.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretell import checkpoint, evaluate, runtime
from foretell.config import TrainConfig
from foretell.data import Data, batch
from foretell.errors import CheckpointError, ForetellError, Interrupted
from foretell.models.decoder import Decoder
from foretell.train import log as run_log
from foretell.train import optim
from foretell.train.guard import MOST_IN_A_ROW, Guard
from foretell.train.loss import next_token_loss
from foretell.train.schedule import lr_factor

Display = Callable[[dict[str, Any]], None]
_OBJECTIVES = {"next_token": next_token_loss}


@dataclass
class State:
    """Where a run stands. Saved as JSON beside the tensors of every checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    guard: Guard = field(default_factory=Guard)


@dataclass(frozen=True)
class Job:
    """What the loop needs besides the model: all decided before the first step."""

    config: TrainConfig
    data: Data
    folder: Path
    packing: str
    dtype: torch.dtype
    compiled: bool
    flops_per_token: float
    peak_flops_per_second: float
    limit_seconds: float | None = None

    @property
    def steps(self) -> int:
        return self.config.needed("steps")

    @property
    def batch_tokens(self) -> int:
        """Tokens an optimiser step."""
        return self.config.needed("global_batch_tokens")

    @property
    def sequences(self) -> int:
        """Sequences an optimiser step."""
        return self.batch_tokens // self.config.context

    @property
    def micro_batch_size(self) -> int:
        """Sequences at once."""
        return self.config.needed("micro_batch_size")


def autocast(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Products in `dtype`, weights and everything delicate in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(runtime.device().type, dtype)


def micro_batches(job: Job, step: int) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """The global batch of `step`, cut into micro-batches of (inputs, targets, segments)."""
    c = job.config
    arrays = batch(job.data, "train", seed=c.seed, step=step, batch_size=job.sequences, context=c.context)
    inputs, targets, segments = (torch.from_numpy(a).to(runtime.device()) for a in arrays)
    for i in range(0, job.sequences, job.micro_batch_size):
        part = slice(i, i + job.micro_batch_size)
        yield inputs[part], targets[part], segments[part] if job.packing == "within" else None


def loss_function(job: Job, model: Decoder) -> Callable[[Tensor, Tensor, Tensor | None], Tensor]:
    """Mean loss of a micro-batch, compiled where the run's execution path says so."""
    chunk = job.config.loss_chunk_tokens
    objective = _OBJECTIVES[job.config.objective]

    def loss(inputs: Tensor, targets: Tensor, segments: Tensor | None) -> Tensor:
        return objective(model, inputs, targets, segments, chunk)

    return torch.compile(loss, dynamic=False) if job.compiled else loss


def take_step(
    job: Job,
    model: Decoder,
    loss_of: Callable[[Tensor, Tensor, Tensor | None], Tensor],
    optimizers: list[torch.optim.Optimizer],
    state: State,
) -> dict[str, Any]:
    """One optimiser step. Returns its log event; a bad step is logged with its reason and not applied."""
    c = job.config
    lr = optim.set_lr(optimizers, lr_factor(state.step, job.steps, c))
    loss = 0.0
    for inputs, targets, segments in micro_batches(job, state.step):
        share = inputs.shape[0] / job.sequences
        with autocast(job.dtype):
            micro_loss = loss_of(inputs, targets, segments) * share
        micro_loss.backward()
        loss += micro_loss.item()
    limit = c.grad_clip or float("inf")
    grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), limit, foreach=True).item()
    reason = state.guard.check(loss, grad_norm)
    if reason is None:
        for optimizer in optimizers:
            optimizer.step()
    for optimizer in optimizers:
        optimizer.zero_grad(set_to_none=True)
    state.step += 1
    state.tokens += job.batch_tokens
    event = {"event": "step", "step": state.step, "loss": loss, "lr": lr, "grad_norm": grad_norm}
    if reason is None:
        return event
    # JSON has no NaN; the reason says what the numbers were.
    finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in event.items()}
    return {**finite, "skipped": reason}


@dataclass
class _Session:
    """A run in this process: what it works with, its log, and its clock."""

    model: Decoder
    job: Job
    optimizers: list[torch.optim.Optimizer]
    state: State
    log: run_log.Log
    show: Display
    started: float

    @property
    def checkpoints(self) -> Path:
        return self.job.folder / "checkpoints"

    def tick(self) -> None:
        """Bring the run's seconds up to date; those of earlier sessions are in `started`."""
        self.state.seconds = time.perf_counter() - self.started

    def record(self, event: dict[str, Any]) -> None:
        self.log.write(**event)
        self.show(event)

    def save(self) -> None:
        self.log.sync()
        tensors = _tensors(self.model, self.optimizers)
        checkpoint.save(self.checkpoints, self.state.step, tensors, asdict(self.state), self.job.config.keep)
        self.show({"event": "save", "step": self.state.step})
        self.tick()

    def timed(self, event: dict[str, Any], seconds: float) -> dict[str, Any]:
        """A step's event with what its time says."""
        self.tick()
        rate = self.job.batch_tokens / seconds
        mfu = rate * self.job.flops_per_token / self.job.peak_flops_per_second
        clock = {"tokens": self.state.tokens, "seconds": self.state.seconds, "tokens_per_second": rate, "mfu": mfu}
        return {**event, **clock}

    def is_due(self, every: int) -> bool:
        return self.state.step % every == 0 and self.state.step < self.job.steps


def run(model: Decoder, job: Job, *, resume: bool = False, display: Display | None = None) -> dict[str, Any]:
    """Train `model` in place to `job.steps`. Returns steps, tokens, seconds, stopped, resumed_from.

    Raises Interrupted after saving when Ctrl-C or SIGTERM came, and ForetellError when too many steps in a row were
    bad.
    """
    session, resumed_from = _begun(model, job, resume, display or (lambda event: None))
    state, loss_of = session.state, loss_function(job, model)
    eval_every, save_every = job.config.needed("eval_every"), job.config.needed("save_every")
    stopped = "finished"
    model.train()
    with runtime.StopRequest() as stop:
        while state.step < job.steps:
            before = time.perf_counter()
            event = take_step(job, model, loss_of, session.optimizers, state)
            session.record(session.timed(event, time.perf_counter() - before))
            if state.guard.bad_in_a_row >= MOST_IN_A_ROW:
                raise ForetellError(_hopeless(state, event, session.checkpoints))
            if session.is_due(eval_every) or state.step == job.steps:
                session.record(_validate(model, job, state))
                session.tick()
            if stop.signum:
                session.save()
                raise Interrupted(_how_to_go_on(job, state), stop.signum)
            if job.limit_seconds is not None and state.seconds > job.limit_seconds and state.step < job.steps:
                stopped = f"stopped at step {state.step} of {job.steps}: {state.seconds:.0f} s is over the guard"
                break
            if session.is_due(save_every):
                session.save()
    session.save()
    session.log.close()
    ended = {"steps": state.step, "tokens": state.tokens, "seconds": state.seconds}
    return {**ended, "stopped": stopped, "resumed_from": resumed_from}


def _begun(model: Decoder, job: Job, resume: bool, show: Display) -> tuple[_Session, int | None]:
    """The session from the newest good checkpoint, or from the start; and the step it resumed from."""
    optimizers = optim.build(model.named_parameters(), job.config, job.dtype)
    state, resumed_from, damaged = State(), None, list[str]()
    if resume:
        state, resumed_from, damaged = _restore(job.folder / "checkpoints", model, optimizers)
    run_log.rewind(job.folder / "log.jsonl", state.step)
    log = run_log.Log(job.folder / "log.jsonl")
    started = {"event": "start", "step": state.step, "steps": job.steps, "seconds": state.seconds}
    show({**started, "resumed_from": resumed_from, "skipped_checkpoints": damaged})
    return _Session(model, job, optimizers, state, log, show, time.perf_counter() - state.seconds), resumed_from


def _validate(model: Decoder, job: Job, state: State) -> dict[str, Any]:
    """The validation event of this step. Random state and training mode are left as they were."""
    c = job.config
    scores = evaluate.evaluate_split(
        model, job.data, "valid", max_tokens=c.eval_tokens, context=c.context, batch_size=job.micro_batch_size
    )
    model.train()
    return {
        "event": "eval",
        "step": state.step,
        "loss": scores["loss"],
        "bits_per_byte": scores["bits_per_byte"],
        "tokens": state.tokens,
        "seconds": state.seconds,
    }


def _tensors(model: Decoder, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    tensors = {f"model.{n}": p.detach() for n, p in model.named_parameters()}
    tensors |= optim.state_tensors(model.named_parameters(), optimizers)
    tensors["random.cpu"] = torch.get_rng_state()
    if runtime.device().type == "cuda":
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    return tensors


@torch.no_grad()
def _restore(
    checkpoints: Path, model: Decoder, optimizers: list[torch.optim.Optimizer]
) -> tuple[State, int | None, list[str]]:
    """Load the newest good checkpoint: its state, its step, and why newer ones were passed over; fresh if none is."""
    saved = checkpoint.load_latest(checkpoints)
    if saved is None:
        return State(), None, []
    for name, p in model.named_parameters():
        value = saved.tensors.get(f"model.{name}")
        if value is None or value.shape != p.shape:
            found = "absent" if value is None else tuple(value.shape)
            raise CheckpointError(f"{saved.path}: {name} is {found}, the model wants {tuple(p.shape)}")
        p.copy_(value)
    optim.load_state_tensors(model.named_parameters(), optimizers, saved.tensors)
    torch.set_rng_state(saved.tensors["random.cpu"])
    if "random.cuda" in saved.tensors and runtime.device().type == "cuda":
        torch.cuda.set_rng_state(saved.tensors["random.cuda"])
    state = State(**{**saved.state, "guard": Guard(**saved.state["guard"])})
    return state, state.step, [str(s) for s in saved.skipped]


def _how_to_go_on(job: Job, state: State) -> str:
    return (
        f"interrupted at step {state.step} of {job.steps}; everything is saved. Go on with: "
        f"foretell train --name {job.folder.name} --out {job.folder.parent} --resume"
    )


def _hopeless(state: State, event: dict[str, Any], checkpoints: Path) -> str:
    return (
        f"{MOST_IN_A_ROW} steps in a row could not be applied, the last at step {state.step}: {event['skipped']}. "
        f"Earlier checkpoints in {checkpoints} are whole. Lower train.lr (now {event['lr']:.2g}) or look at the data."
    )
