"""THE training loop: one for every model, objective and machine.

An optimiser step takes a batch that is a pure function of (seed, step), forms the gradient in micro-batches, checks it,
and applies it. Everything that a step depends on - weights, optimiser state, random state, the guard's memory - is in
the checkpoint, so a run that was killed and resumed is bit-identical to one that was not.

What changes the loss, the model or the gradient is passed in; nothing copies this loop. It knows nothing of sizes,
budgets or forecasts (see `train/run.py`). Whether one process trains or many, it asks its `Team` (`train/alone.py`).
"""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foretell import evaluate, runtime
from foretell.checkpoint import Saver
from foretell.config import TrainConfig
from foretell.data import Data, objectives, place
from foretell.data.objectives import UNSCORED
from foretell.errors import ForetellError, Interrupted
from foretell.models.decoder import Decoder
from foretell.models.model import Given
from foretell.train import log as run_log
from foretell.train import optim, preference, saved
from foretell.train.alone import Team, random_state, set_random_state
from foretell.train.cause import cause
from foretell.train.guard import MOST_IN_A_ROW
from foretell.train.loss import head_loss, next_token_loss, span_loss
from foretell.train.objectives import Batch, tensors
from foretell.train.saved import State
from foretell.train.schedule import lr_factor

Display = Callable[[dict[str, Any]], None]
LossOf = Callable[[Batch], Tensor]
# A wish to stop is the number of the signal, or this: less than any.
_OVER = 1


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
    session: str = ""  # the same on all processes, and new for each start of several
    reference: preference.Reference | None = None  # of preferences, what the base says of them
    multiple: int = 1  # of which the width of a micro-batch is one: what a sequence is divided into
    start: int | None = None  # what a target of an encoder-decoder begins with; None: the end of a text

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
    def partly(self) -> bool:
        """Whether not all targets of a row count."""
        return self.config.objective in objectives.PARTLY

    @property
    def micro_batch_size(self) -> int:
        """Sequences at once."""
        return self.config.needed("micro_batch_size")


def autocast(dtype: torch.dtype) -> AbstractContextManager[Any]:
    """Products in `dtype`, weights and everything delicate in float32."""
    return nullcontext() if dtype == torch.float32 else torch.autocast(runtime.device().type, dtype)


def micro_batches(job: Job, step: int, rows: list[int], alike: bool = False) -> Iterator[Batch]:
    """Some rows of the global batch of `step`, cut into micro-batches. alike: all of one shape, as a pipeline wants."""
    c = job.config
    where = {"seed": c.seed, "step": step, "batch_size": job.sequences, "context": c.context, "rows": rows}
    found = objectives.rows(c.objective, job.data, "train", start=job.start, **where)  # type: ignore[arg-type]
    found = found.by_length()
    for i in range(0, len(rows), job.micro_batch_size):
        part = found.part(slice(i, i + job.micro_batch_size))
        part = part if job.compiled or alike else part.trimmed(job.multiple)  # a compiler wants one shape
        made = tensors(part, runtime.device(), job.packing == "within", job.partly)
        whole = c.objective in ("dpo", "spans")  # pairs and questions count alike
        yield made._replace(scored=len(part.inputs)) if whole else made


def loss_function(job: Job, team: Team) -> LossOf:
    """Mean loss of this process's part of a micro-batch, compiled where the run's execution path says so."""
    chunk, partly, smoothing = job.config.loss_chunk_tokens, job.partly, job.config.label_smoothing
    if job.config.objective == "dpo":
        base = job.reference["train"] if job.reference is not None else None
        return preference.Loss(team, job.config.dpo_beta, chunk, base)
    if job.config.objective == "spans":
        return partial(span_loss, team)

    def loss(inputs: Tensor, targets: Tensor, segments: Tensor | None, given: Given | None) -> Tensor:
        return next_token_loss(team, inputs, targets, segments, chunk, given, partly, smoothing)

    made = torch.compile(loss, dynamic=False) if job.compiled else loss
    return lambda batch: made(*batch[:4])


def gradient(job: Job, team: Team, loss_of: LossOf, step: int) -> tuple[float, float]:
    """Loss and gradient norm of the batch of `step`. The gradients are where the optimiser looks for them, clipped."""
    c = job.config
    rows = team.rows(job.sequences, job.micro_batch_size)
    batches: Iterable[Batch] = micro_batches(job, step, rows, alike=team.pipeline is not None)
    total = job.batch_tokens
    if job.partly:
        batches = list(batches)
        total = int(team.totals(torch.tensor(sum(_scored(team, job, b) for b in batches))))
    losses: list[float] = []
    if team.pipeline is None:
        for n, batch in enumerate(batches):
            team.before_micro_batch(step, n, len(rows) // job.micro_batch_size)
            with autocast(job.dtype):
                micro_loss = loss_of(batch) * team.share(_scored(team, job, batch), total)
            micro_loss.backward()
            losses.append(micro_loss.item())
    else:
        with autocast(job.dtype):
            chunk, smoothing = c.loss_chunk_tokens, c.label_smoothing
            loss_of_hidden = partial(head_loss, team, chunk_tokens=chunk, partly=job.partly, smoothing=smoothing)
            batches = list(batches)
            shares = [team.share(_scored(team, job, b), total) for b in batches]
            losses = [team.pipeline.step([b[:4] for b in batches], loss_of_hidden, shares)]
    return team.finish(losses, c.grad_clip or math.inf)


def _scored(team: Team, job: Job, batch: Batch) -> int:
    """How many of this process's positions of a micro-batch count."""
    own = team.own(batch.targets)
    if own is batch.targets:
        return batch.scored
    return int((own != UNSCORED).sum()) if job.partly else own.numel()


def take_step(
    job: Job, team: Team, loss_of: LossOf, optimizers: list[torch.optim.Optimizer], state: State
) -> dict[str, Any]:
    """One optimiser step. Returns its log event.

    A step that comes out bad is computed again: it was the machine's fault if it is good then. If it is not, it is
    logged with its cause and not applied.
    """
    lr = optim.set_lr(optimizers, lr_factor(state.step, job.steps, job.config))
    random = random_state()
    loss, grad_norm = gradient(job, team, loss_of, state.step)
    reason, note = state.guard.reason(loss, grad_norm), {}
    if reason is not None:
        first = reason
        team.forget_gradients()
        set_random_state(random)
        loss, grad_norm = gradient(job, team, loss_of, state.step)
        reason = state.guard.reason(loss, grad_norm)
        if reason is None:
            note = {"recomputed": f"{first}; computed again all is well: a fault of the machine, not of the data"}
        else:
            note = {"skipped": f"{reason}; {_cause(job, team, state.step)}"}
    if reason is None:
        for optimizer in optimizers:
            optimizer.step()
    team.forget_gradients()
    state.guard.record(loss, grad_norm, good=reason is None)
    state.step += 1
    team.after_step(state.step)
    state.tokens += job.batch_tokens
    event = {"event": "step", "step": state.step, "loss": loss, "lr": lr, "grad_norm": grad_norm}
    if isinstance(loss_of, preference.Loss):
        event |= loss_of.told()
    # JSON has no NaN; the reason says what the numbers were.
    finite = {k: v if not isinstance(v, float) or math.isfinite(v) else None for k, v in event.items()}
    return {**finite, **note}


def _cause(job: Job, team: Team, step: int) -> str:
    c, rows = job.config, team.rows(job.sequences, job.micro_batch_size)
    one_by_one = list(micro_batches(replace(job, config=c.model_copy(update={"micro_batch_size": 1})), step, rows))

    def loss(n: int) -> Tensor:
        inputs, targets, segments, given = one_by_one[n][:4]
        with autocast(job.dtype):
            if c.objective == "spans":
                return span_loss(team, one_by_one[n])
            return next_token_loss(team, inputs, targets, segments, c.loss_chunk_tokens, given, job.partly)

    def where(row: int) -> str:
        drawn: dict[str, Any] = {"seed": c.seed, "step": step, "batch_size": job.sequences, "context": c.context}
        if c.objective in objectives.OF_CONVERSATIONS.values() or c.objective in objectives.WITH_HEAD:
            own = objectives.rows(c.objective, job.data, "train", rows=[row], **drawn).inputs[0]
            return f"row {row} of the batch ({' '.join(job.data.tokenizer.decode(own.tolist()).split())[:60]!r})"
        if c.objective == "seq2seq":
            pair = objectives.rows(c.objective, job.data, "train", rows=[row], **drawn)
            text = "" if pair.source is None else job.data.tokenizer.decode(pair.source[0].tolist())
            return f"pair {row} of the batch (its source: {' '.join(text.split())[:60]!r})"
        start, text = place(job.data, "train", row=row, **drawn)
        return f"sequence {row} of the batch (training tokens from {start:,} on: {' '.join(text.split())[:60]!r})"

    return cause(team, rows, job.sequences, loss, where)


@dataclass
class _Session:
    """A run in this process: what it works with, its log, and its clock."""

    team: Team
    job: Job
    optimizers: list[torch.optim.Optimizer]
    state: State
    saver: Saver
    log: run_log.Log | None  # the first process's
    show: Display
    started: float

    @property
    def checkpoints(self) -> Path:
        return self.job.folder / "checkpoints"

    def tick(self) -> None:
        """Bring the run's seconds up to date; those of earlier sessions are in `started`."""
        self.state.seconds = time.perf_counter() - self.started

    def record(self, event: dict[str, Any]) -> None:
        if self.log is not None:
            self.log.write(**event)
        self.show(event)
        self.tell_saved()

    def tell_saved(self) -> None:
        """Raises CheckpointError where a save that went on beside the training has failed."""
        while (step := self.saver.poll()) is not None:
            self.show({"event": "save", "step": step})

    def save(self) -> None:
        """Take a snapshot; it is written while training goes on."""
        if self.log is not None:
            self.log.sync()
        self.saver.save(self.state.step, saved.tensors(self.team, self.optimizers), self.state.record())
        self.tick()

    def finish_saving(self) -> None:
        self.saver.wait()
        self.tell_saved()

    def timed(self, event: dict[str, Any], seconds: float) -> dict[str, Any]:
        """A step's event with what its time says."""
        self.tick()
        rate = self.job.batch_tokens / seconds
        mfu = rate * self.job.flops_per_token / self.job.peak_flops_per_second
        clock = {"tokens": self.state.tokens, "seconds": self.state.seconds, "tokens_per_second": rate, "mfu": mfu}
        return {**event, **clock}

    def is_due(self, every: int) -> bool:
        return self.state.step % every == 0 and self.state.step < self.job.steps


def run(team: Team, job: Job, *, resume: bool = False, display: Display | None = None) -> dict[str, Any]:
    """Train the team's model in place to `job.steps`. Returns steps, tokens, seconds, stopped, resumed_from.

    Raises Interrupted after saving when Ctrl-C or SIGTERM came to any process of the team, and ForetellError when too
    many steps in a row were bad.
    """
    session, resumed_from = _begun(team, job, resume, display or (lambda event: None))
    state, loss_of = session.state, loss_function(job, team)
    eval_every, save_every = job.config.needed("eval_every"), job.config.needed("save_every")
    stopped = "finished"
    team.chunks.train()
    if job.config.base is not None and state.step == 0:
        session.record(_validate(team, job, state))  # what the base can do already
    with runtime.StopRequest() as stop:
        while state.step < job.steps:
            before = time.perf_counter()
            with team.stepping(state.step + 1, job.folder):
                event = take_step(job, team, loss_of, session.optimizers, state)
            session.record(session.timed(event, time.perf_counter() - before))
            if state.guard.bad_in_a_row >= MOST_IN_A_ROW:
                session.finish_saving()
                raise ForetellError(_hopeless(state, event, session.checkpoints))
            if session.is_due(eval_every) or state.step == job.steps:
                session.record(_validate(team, job, state))
                session.tick()
            over = job.limit_seconds is not None and state.seconds > job.limit_seconds and state.step < job.steps
            wish = team.agreed(stop.signum or _OVER * over)
            if wish in (signal.SIGINT, signal.SIGTERM):
                session.save()
                session.finish_saving()
                raise Interrupted(_how_to_go_on(job, state), wish)
            if wish == _OVER:
                stopped = f"stopped at step {state.step} of {job.steps}: {state.seconds:.0f} s is over the guard"
                break
            if session.is_due(save_every) and not state.guard.bad_in_a_row:  # what went bad may be the weights
                session.save()
    session.save()
    session.finish_saving()
    session.tick()
    if session.log is not None:
        session.log.close()
    ended = {"steps": state.step, "tokens": state.tokens, "seconds": state.seconds}
    return {**ended, "stopped": stopped, "resumed_from": resumed_from}


def _begun(team: Team, job: Job, resume: bool, show: Display) -> tuple[_Session, int | None]:
    """The session from the newest good checkpoint, or from the start; and the step it resumed from."""
    optimizers = optim.build(team.named(), job.config, job.dtype, team.matrices)
    state, resumed_from, damaged = State(layout=team.layout), None, list[str]()
    checkpoints = job.folder / "checkpoints"
    if resume:
        state, resumed_from, damaged = saved.restore(checkpoints, team, optimizers)
    saver = Saver(checkpoints, job.config.keep, rank=team.rank, ranks=team.ranks, session=job.session)
    log = None
    if team.rank == 0:
        run_log.rewind(job.folder / "log.jsonl", state.step)
        log = run_log.Log(job.folder / "log.jsonl")
    started = {"event": "start", "step": state.step, "steps": job.steps, "seconds": state.seconds}
    show({**started, "resumed_from": resumed_from, "skipped_checkpoints": damaged})
    begun = time.perf_counter() - state.seconds
    return _Session(team, job, optimizers, state, saver, log, show, begun), resumed_from


def _validate(team: Team, job: Job, state: State) -> dict[str, Any]:
    """The validation event of this step. Random state and training mode are left as they were.

    Of a base it is computed as the training is, in bfloat16 several times as fast; the run's score is in float32.
    """
    like_steps = job.config.base is not None and job.reference is None
    with autocast(job.dtype if like_steps else torch.float32):
        scores = scored(team, job, "valid", job.config.eval_tokens)
    team.chunks.train()
    return {
        "event": "eval",
        "step": state.step,
        "loss": scores["loss"],
        "bits_per_byte": scores.get("bits_per_byte"),
        "tokens": state.tokens,
        "seconds": state.seconds,
        **{k: v for k, v in scores.items() if k.startswith("reward_")},
        **({"accuracy": scores["accuracy"]} if job.config.objective in objectives.WITH_HEAD else {}),
    }


def scored(team: Team, job: Job, split: str, max_tokens: int | None, **window: Any) -> dict[str, Any]:
    """Scores on a split at what is learned; of objectives that ask for each next token, the likelihood of the text.

    window: `context` and `stride`, the training's context by default.
    """
    c, model = job.config, team.model
    known: dict[str, Any] = {"max_tokens": max_tokens, "batch_size": job.micro_batch_size, "crew": team.crew}
    if job.reference is not None:
        how = {"beta": c.dpo_beta, "context": c.context, "micro": job.micro_batch_size, "most": max_tokens}
        return preference.scores(team, job.data, split, job.reference, **how)  # type: ignore[arg-type]
    if not job.partly:
        assert isinstance(model, Decoder)
        return evaluate.evaluate_split(model, job.data, split, **{"context": c.context, **window}, **known)
    within = job.packing == "within"
    return evaluate.evaluate_objective(model, job.data, split, c.objective, context=c.context, within=within, **known)


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
