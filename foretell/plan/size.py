"""Every open size of a config closed: the model and the batch for a budget, then micro-batches, steps and intervals."""

from __future__ import annotations

import math
from typing import Any

from foretell import config as run_config
from foretell.config import ModelConfig, RunConfig
from foretell.errors import ConfigError, PlanError
from foretell.plan import flops, memory, scaling, time
from foretell.plan.budget import Budget

# A forecast aims a little under the budget, so that half the error of the forecast still ends inside it.
AIM = 0.95
SMALLEST_BATCH, LARGEST_BATCH = 2048, 1 << 19
WIDTHS = range(64, 1025, 64)
LAYERS = range(2, 25)
SHARE_OF_MEMORY = 0.7
MOST_LOGIT_BYTES = 1e9
CHUNK_BYTES = 64e6
SAVE_SECONDS = 60.0
EVALUATIONS = 10


def batch_tokens(tokens: float, context: int) -> int:
    """Tokens an optimiser step for a run of `tokens`: 0.58 D^0.571 (Step Law, Li et al., 2025), a power of two."""
    wanted = min(max(0.58 * tokens**0.571, SMALLEST_BATCH), LARGEST_BATCH)
    return max(1, round(2 ** round(math.log2(wanted)) / context)) * context


def _batch_for_steps(steps: int, context: int) -> int:
    """The same rule where the number of steps is given: B = 0.58 (B S)^0.571 solved for B."""
    return batch_tokens((0.58 * steps) ** (1 / 0.429), context)


def completed(config: RunConfig, corpus: dict[str, Any] | None, machine: dict[str, Any] | None = None) -> RunConfig:
    """Sizes of model and batches, steps and intervals filled in; what is set stays. Raises ConfigError where they clash."""
    t = config.train
    vocab = int((corpus or {}).get("vocab_size") or config.model.vocab_size or config.tokenizer.vocab_size or 4096)
    model = config.model.resolved(vocab, t.context)
    if t.steps is None and t.tokens is None:
        raise ConfigError("how long to train is not set: give --budget 10m, train.steps or train.tokens")
    batch = t.global_batch_tokens or (
        batch_tokens(t.tokens, t.context) if t.tokens else _batch_for_steps(t.steps or 1, t.context)
    )
    if batch % t.context:
        near = max(1, round(batch / t.context)) * t.context
        raise ConfigError(
            f"train.global_batch_tokens ({batch:,}) must be a multiple of train.context ({t.context:,}); nearest: {near:,}"
        )
    if t.global_batch_tokens is None and t.micro_batch_size:
        batch = max(1, round(batch / t.context / t.micro_batch_size)) * t.micro_batch_size * t.context
    steps = t.steps or max(1, round((t.tokens or 0) / batch))
    sequences = batch // t.context
    micro = t.micro_batch_size or _micro_batch(config, model, sequences, machine)
    if sequences % micro:
        raise ConfigError(
            f"train.global_batch_tokens ({batch:,}) must be a multiple of micro_batch_size {micro} x context "
            f"{t.context:,} = {micro * t.context:,}; nearest: {max(1, round(sequences / micro)) * micro * t.context:,}"
        )
    changes: dict[str, Any] = {"global_batch_tokens": batch, "steps": steps, "micro_batch_size": micro}
    changes["loss_chunk_tokens"] = t.loss_chunk_tokens or _chunk(micro * t.context, model)
    changes["eval_every"] = t.eval_every or math.ceil(steps / EVALUATIONS)
    filled = run_config.updated(config, model=model.model_dump(), train=changes)
    return run_config.updated(filled, train={"save_every": t.save_every or save_every(filled, machine or {}, None)})


def save_every(config: RunConfig, machine: dict[str, Any], trial: dict[str, Any] | None) -> int:
    """Steps in about a minute, and no more than the run has."""
    seconds = time.step_seconds(config, machine, trial)["value"]
    return max(1, min(config.train.steps or 1, round(SAVE_SECONDS / seconds)))


def _chunk(tokens: int, model: ModelConfig) -> int | None:
    V = flops.sizes(model)[-1]
    if 3 * memory.FLOAT * tokens * V <= MOST_LOGIT_BYTES:
        return None
    return max(64, int(CHUNK_BYTES / memory.FLOAT / V))


def _micro_batch(config: RunConfig, model: ModelConfig, sequences: int, machine: dict[str, Any] | None) -> int:
    """The largest divisor of the batch whose activations fit in memory."""
    room = SHARE_OF_MEMORY * float((machine or {}).get("memory_bytes") or 4e9)
    for micro in range(sequences, 0, -1):
        if sequences % micro == 0:
            chunk = config.train.loss_chunk_tokens or _chunk(micro * config.train.context, model)
            changes = {"micro_batch_size": micro, "loss_chunk_tokens": chunk}
            trial = run_config.updated(config, model=model.model_dump(), train=changes)
            if memory.memory_bytes(trial)["peak"] <= room or micro == 1:
                return micro
    return 1


def size_for_budget(
    budget: Budget,
    *,
    machine: dict[str, Any],
    corpus: dict[str, Any] | None,
    probe: dict[str, Any] | None,
    config: RunConfig,
) -> RunConfig:
    """The width, depth, batch and steps of lowest forecast loss for a budget. What the config sets is kept.

    Raises PlanError when nothing fits.
    """
    best: tuple[float, RunConfig] | None = None
    for candidate in _candidates(config):
        sized = _within(budget, candidate, machine, corpus)
        if sized is None:
            continue
        n = flops.parameters(sized.model)["non_embedding"]
        tokens = (sized.train.steps or 0) * (sized.train.global_batch_tokens or 0)
        loss = scaling.bits_per_byte(n, tokens, corpus or {}, probe)["value"]
        if best is None or loss < best[0]:
            best = loss, sized
    if best is None:
        told = f"{budget.seconds:g} s" if budget.seconds is not None else f"{budget.flops:g} FLOPs"
        raise PlanError(f"nothing that learns fits {told} on this machine; give a larger budget")
    m, t = best[1].model, best[1].train
    return run_config.updated(
        config,
        model={"hidden_size": m.hidden_size, "num_hidden_layers": m.num_hidden_layers},
        train={"global_batch_tokens": t.global_batch_tokens, "steps": t.steps},
    )


def _candidates(config: RunConfig) -> list[RunConfig]:
    m = config.model
    widths = [m.hidden_size] if m.hidden_size else list(WIDTHS)
    depths = [m.num_hidden_layers] if m.num_hidden_layers else list(LAYERS)
    free = not (m.hidden_size or m.num_hidden_layers)
    return [
        run_config.updated(config, model={"hidden_size": w, "num_hidden_layers": n})
        for w in widths
        for n in depths
        # Between flat and deep: a width of 32 to 128 a layer, as trained models of every size have.
        if not free or 32 <= w / n <= 128
    ]


def _within(
    budget: Budget, candidate: RunConfig, machine: dict[str, Any], corpus: dict[str, Any] | None
) -> RunConfig | None:
    """The candidate with as many steps as the budget holds, or None where fewer than 20 fit."""
    t = candidate.train
    guess = run_config.updated(candidate, train={"steps": 1000, "tokens": None})
    for _ in range(2 if t.global_batch_tokens is None else 1):
        full = completed(guess, corpus, machine)
        batch = full.train.global_batch_tokens or t.context
        if budget.flops is not None:
            steps = budget.flops / flops.flops_per_token(full.model, t.context)["causal"] / batch
        else:
            seconds = time.run_seconds(full, machine, None)["value"] / (full.train.steps or 1)
            steps = AIM * (budget.seconds or 0.0) / seconds
        if steps < 20:
            return None
        wanted = t.global_batch_tokens or batch_tokens(steps * batch, t.context)
        fixed = {"global_batch_tokens": wanted, "steps": max(1, int(steps * batch / wanted)), "tokens": None}
        guess = run_config.updated(candidate, train=fixed)
    final = completed(guess, corpus, machine)
    room = SHARE_OF_MEMORY * float(machine.get("memory_bytes") or 4e9)
    return final if memory.memory_bytes(final)["peak"] <= room else None


def steps_for_budget(
    budget: Budget,
    *,
    machine: dict[str, Any],
    corpus: dict[str, Any] | None,
    probe: dict[str, Any] | None,
    trial: dict[str, Any] | None,
    config: RunConfig,
) -> RunConfig:
    """The steps that the forecast puts at 0.95 of a time budget, now that a trial has timed a step."""
    if budget.seconds is None:
        return config
    t = config.train
    steps = t.steps or 1
    for _ in range(4):  # validations and checkpoints move with the steps
        config = _with_steps(config, steps, machine, trial)
        steps = max(1, int(steps * AIM * budget.seconds / time.run_seconds(config, machine, trial)["value"]))
    return _with_steps(config, steps, machine, trial)


def _with_steps(config: RunConfig, steps: int, machine: dict[str, Any], trial: dict[str, Any] | None) -> RunConfig:
    changes: dict[str, Any] = {"steps": steps, "eval_every": math.ceil(steps / EVALUATIONS)}
    config = run_config.updated(config, train=changes)
    return run_config.updated(config, train={"save_every": save_every(config, machine, trial)})
