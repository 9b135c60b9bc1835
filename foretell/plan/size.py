"""Every open size of a config closed: the model and the batch for a budget, then micro-batches, steps and intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from foretell import config as run_config
from foretell.config import ModelConfig, RunConfig, TrainConfig
from foretell.errors import ConfigError, PlanError
from foretell.plan import flops, memory, rungs, scaling, time
from foretell.plan.activations import FLOAT
from foretell.plan.budget import Budget

# A forecast aims a little under the budget, so that half the error of the forecast still ends inside it.
AIM = 0.95
SMALLEST_BATCH, LARGEST_BATCH = 2048, 1 << 19
WIDTHS = range(64, 1025, 64)
LAYERS = range(2, 25)
# Width a layer: trained models of every size lie between these (Kaplan et al., 2020, fig. 5: a flat optimum).
NARROWEST, WIDEST = 24, 128
# Forecasts this close in the logarithm are alike: then the larger model, better in both measured pairs (docs/log.md).
ALIKE = 0.01
LEAST_STEPS = 40
# Candidates have batches that are powers of two; with a ladder only those near its rule, in the logarithm to base two.
NEAR_THE_RULE = 0.75
SHARE_OF_MEMORY = 0.7
USUAL_MEMORY_BYTES = 4e9
MOST_LOGIT_BYTES = 1e9
CHUNK_BYTES = 3.2e7
SAVE_SECONDS = 60.0
EVALUATIONS = 10
# Validation while training costs about a thirtieth of it: a tenth of its tokens, forward only.
EVALUATED_SHARE, FEWEST_EVALUATED, MOST_EVALUATED = 0.01, 8_192, 65_536
# Of a base, whose runs are short and whose tokens are dear: a validation costs less than one small step, so with five
# steps between two of them at most a sixth of the run.
FEWEST_EVALUATED_OF_A_BASE, STEPS_BETWEEN_OF_A_BASE = 4_096, 5
USUAL_VOCABULARY = 4096
# A small model that reads a small text many times learns it by heart (docs/log.md): (epochs up to which, dropout).
DROPOUTS = ((3.0, 0.0), (6.0, 0.1), (math.inf, 0.2))
# More readings than that are not worth their time; a budget that would buy more goes to a larger model, or is left.
MOST_EPOCHS = 8.0
A_ROW_A_RECORD = ("seq2seq", "labels", "dpo")
BYTE_VOCABULARY = 257  # every byte, and the end of a text


def batch_tokens(tokens: float, context: int) -> int:
    """Tokens an optimiser step for a run of `tokens`: 0.58 D^0.571 (Step Law, Li et al., 2025), a power of two."""
    wanted = min(max(0.58 * tokens**0.571, SMALLEST_BATCH), LARGEST_BATCH)
    return max(1, round(2 ** round(math.log2(wanted)) / context)) * context


def _batch_for_steps(steps: int, context: int) -> int:
    """The same rule where the number of steps is given: B = 0.58 (B S)^0.571 solved for B, times S."""
    return batch_tokens((0.58 * steps) ** (1 / 0.429), context)


def vocabulary(config: RunConfig, corpus: dict[str, Any] | None) -> int:
    """The vocabulary's size: the corpus' own, what the config sets, or a usual one."""
    usual = BYTE_VOCABULARY if config.tokenizer.kind == "bytes" else config.tokenizer.vocab_size or USUAL_VOCABULARY
    return int((corpus or {}).get("vocab_size") or config.model.vocab_size or usual)


def completed(config: RunConfig, corpus: dict[str, Any] | None, machine: dict[str, Any] | None = None) -> RunConfig:
    """Sizes, batches, steps and intervals filled in; what is set stays. Raises ConfigError where they clash."""
    t = config.train
    model = config.model.resolved(vocabulary(config, corpus), t.context)
    if t.steps is None and t.tokens is None:
        raise ConfigError("how long to train is not set: give --budget 10m, train.steps or train.tokens")
    batch = t.global_batch_tokens or (
        batch_tokens(t.tokens, t.context) if t.tokens else _batch_for_steps(t.steps or 1, t.context)
    )
    if batch % t.context:
        near = max(1, round(batch / t.context)) * t.context
        raise ConfigError(
            f"train.global_batch_tokens ({batch:,}) must be a multiple of train.context ({t.context:,}); "
            f"nearest: {near:,}"
        )
    if t.global_batch_tokens is None and t.micro_batch_size:
        batch = max(1, round(batch / t.context / t.micro_batch_size)) * t.micro_batch_size * t.context
    steps = t.steps or max(1, round((t.tokens or 0) / batch))
    sequences, dp = batch // t.context, config.parallel.dp_replicate * (config.parallel.dp_shard or 1)
    # A pipeline wants at least as many as it has stages, a strict run whole micro-batches in every virtual shard.
    parts = config.parallel.virtual_shards if config.parallel.strict else dp * config.parallel.pp
    at_most = max(1, sequences // parts)
    micro = t.micro_batch_size or _micro_batch(model, t, at_most, machine or {})
    if sequences % (micro * dp):
        unit = micro * dp * t.context
        copies = f" x data parallel {dp}" if dp > 1 else ""
        raise ConfigError(
            f"train.global_batch_tokens ({batch:,}) must be a multiple of micro_batch_size {micro} x context "
            f"{t.context:,}{copies} = {unit:,}; nearest: {max(1, round(batch / unit)) * unit:,}"
        )
    fewest = FEWEST_EVALUATED if t.base is None else FEWEST_EVALUATED_OF_A_BASE
    evaluated = min(max(int(EVALUATED_SHARE * steps * batch), fewest), MOST_EVALUATED)
    train = t.model_copy(
        update={
            "global_batch_tokens": batch,
            "steps": steps,
            "micro_batch_size": micro,
            "loss_chunk_tokens": t.loss_chunk_tokens or _chunk(micro * t.context, model),
            "dropout": dropout(t, steps * batch, corpus) if t.dropout is None else t.dropout,
            "eval_every": t.eval_every or _eval_every(steps, t),
            "eval_tokens": t.eval_tokens or evaluated,
        }
    )
    every = t.save_every or save_every(model, train, machine or {}, None)
    return run_config.updated(config, model=model.model_dump(), train={**train.model_dump(), "save_every": every})


def epoch_tokens(t: TrainConfig, corpus: dict[str, Any] | None) -> float:
    """The tokens of `train.context` a row that one reading of this text takes; endless where there is no text.

    Where a row is one record, its padding counts: steps count it too.
    """
    if t.objective in A_ROW_A_RECORD:
        return ((corpus or {}).get("documents") or math.inf) * t.context
    return (corpus or {}).get("tokens") or math.inf


def dropout(t: TrainConfig, tokens: float, corpus: dict[str, Any] | None) -> float:
    """The dropout for a run of `tokens` on this text, by how often it reads the text."""
    epochs = tokens / epoch_tokens(t, corpus)
    return next(share for most, share in DROPOUTS if epochs <= most)


def _at_most(t: TrainConfig, steps: int, batch: int, corpus: dict[str, Any] | None) -> int:
    """So many steps, or fewer, but `LEAST_STEPS`, where they would read the text more than `MOST_EPOCHS` times.

    The limit is of next-token prediction: pairs and labels are worth more readings (docs/log.md).
    """
    tokens = epoch_tokens(t, corpus)
    if t.objective in A_ROW_A_RECORD or tokens == math.inf:
        return steps
    return min(steps, max(LEAST_STEPS, int(MOST_EPOCHS * tokens / batch)))


def save_every(model: ModelConfig, train: TrainConfig, machine: dict[str, Any], trial: dict[str, Any] | None) -> int:
    """Steps in about a minute, and no more than the run has."""
    seconds = time.step_seconds(model, train, machine, trial)["value"]
    return max(1, min(train.steps or 1, round(SAVE_SECONDS / seconds)))


def fits(config: RunConfig, changes: dict[str, Any], room_bytes: float) -> bool:
    """Whether the forecast peak of a completed config, with some train keys changed, is well within `room_bytes`."""
    peak = memory.memory_bytes(config.model, config.train.model_copy(update=changes))["peak"]
    return peak <= SHARE_OF_MEMORY * room_bytes


def _chunk(tokens: int, model: ModelConfig) -> int | None:
    """Tokens a chunk of the cross-entropy where the logits would be large, else None: all at once."""
    V = model.sizes.V
    if 3 * FLOAT * tokens * V <= MOST_LOGIT_BYTES:
        return None
    return max(64, int(CHUNK_BYTES / FLOAT / V))


def _micro_batch(model: ModelConfig, t: TrainConfig, sequences: int, machine: dict[str, Any]) -> int:
    """The largest divisor of the batch that fits in memory, or 1."""
    room = SHARE_OF_MEMORY * float(machine.get("memory_bytes") or USUAL_MEMORY_BYTES)
    for micro in (m for m in range(sequences, 0, -1) if sequences % m == 0):
        chunk = t.loss_chunk_tokens or _chunk(micro * t.context, model)
        shape = {"micro_batch_size": micro, "loss_chunk_tokens": chunk, "global_batch_tokens": sequences * t.context}
        if memory.memory_bytes(model, t.model_copy(update=shape), machine.get("process_bytes"))["peak"] <= room:
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

    By the law that ships the optimum is flat: of the forecasts that are `ALIKE` the largest model's is taken. Where
    `train.ladder` names a ladder its own law decides, among models of its shape with batches of its rule. A budget of
    time is not spent on reading a text more than `MOST_EPOCHS` times; one of FLOPs is kept. A config that says how long
    to train is left as it is, so that a finished run's config repeats the run. Of a base only the batch and the steps
    are open: small batches, since it learns from the first step on. Raises PlanError when nothing fits.
    """
    if config.train.steps or config.train.tokens:
        return config
    if config.train.base is not None:
        return _steps_of_base(budget, machine=machine, corpus=corpus, config=config)
    if config.model.num_experts and not (config.model.hidden_size and config.model.num_hidden_layers):
        raise ConfigError(
            "a budget chooses the size of dense models only; with model.num_experts give model.hidden_size and "
            "model.num_hidden_layers"
        )
    ladder = rungs.read(config.train.ladder) if config.train.ladder else None
    found: list[tuple[float, int, ModelConfig, TrainConfig]] = []
    for model, train in _candidates(config, corpus, machine, ladder):
        steps = _steps_within(budget, model, train, machine, probe)
        batch = train.global_batch_tokens or train.context
        if budget.seconds is not None:
            steps = _at_most(config.train, steps, batch, corpus)
        if steps < LEAST_STEPS:
            continue
        count = flops.parameters(model)
        n = count["non_embedding"]
        if ladder is None:
            loss = scaling.bits_per_byte(n, steps * batch, batch, corpus or {}, probe)["value"]
        elif config.train.global_batch_tokens or _is_near_the_rule(batch, steps * batch, config.train.context):
            loss = ladder.loss(count["total"], steps * batch, (corpus or {}).get("tokens") or math.inf)
        else:
            continue
        found.append((math.log(loss), -n, model, train.model_copy(update={"steps": steps})))
    if not found:
        told = f"{budget.seconds:g} s" if budget.seconds is not None else f"{budget.flops:g} FLOPs"
        raise PlanError(f"nothing that learns fits {told} on this machine; give a larger budget, or a smaller model")
    lowest = min(loss for loss, *_ in found)
    alike = (f for f in found if f[0] <= lowest + (ALIKE if ladder is None else 0.0))
    _, _, model, train = min(alike, key=lambda f: (f[1], f[0]))
    return run_config.updated(
        config,
        model={"hidden_size": model.hidden_size, "num_hidden_layers": model.num_hidden_layers},
        train={"global_batch_tokens": train.global_batch_tokens, "steps": train.steps},
    )


def _steps_of_base(
    budget: Budget, *, machine: dict[str, Any], corpus: dict[str, Any] | None, config: RunConfig
) -> RunConfig:
    """The config of a base with a batch, and with as many steps as the budget buys, at least one.

    The batch is halved where it leaves fewer than `LEAST_STEPS`: what AdamW can change grows with the steps.
    """
    t = config.train
    unit = (t.micro_batch_size or 1) * t.context
    usual = [
        max(1, round(tokens / unit)) * unit for tokens in (SMALLEST_BATCH, SMALLEST_BATCH // 2, SMALLEST_BATCH // 4)
    ]
    for batch in [t.global_batch_tokens] if t.global_batch_tokens else usual:
        one = completed(run_config.updated(config, train={"global_batch_tokens": batch, "steps": 1}), corpus, machine)
        steps = max(1, _steps_within(budget, one.model, one.train, machine, None))
        if steps >= LEAST_STEPS:
            break
    if budget.seconds is not None:
        steps = _at_most(t, steps, batch, corpus)
    return run_config.updated(config, train={"global_batch_tokens": batch, "steps": steps})


def _is_near_the_rule(batch: int, tokens: float, context: int) -> bool:
    """Whether a batch is about what the rule has for so many tokens; a ladder's law knows of no other."""
    return abs(math.log2(batch / batch_tokens(tokens, context))) <= NEAR_THE_RULE


def _candidates(
    config: RunConfig, corpus: dict[str, Any] | None, machine: dict[str, Any], ladder: rungs.Rungs | None
) -> Iterator[tuple[ModelConfig, TrainConfig]]:
    """Every shape worth a look that fits in memory: a resolved model, and a train table with its batches.

    With a ladder the shapes are the ladder's.
    """
    m, t = config.model, config.train
    widths = [m.hidden_size] if m.hidden_size else WIDTHS
    depths = [m.num_hidden_layers] if m.num_hidden_layers else LAYERS
    free = ladder is None and not (m.hidden_size or m.num_hidden_layers)
    batches = [t.global_batch_tokens] if t.global_batch_tokens else [SMALLEST_BATCH << i for i in range(6)]
    room = SHARE_OF_MEMORY * float(machine.get("memory_bytes") or USUAL_MEMORY_BYTES)
    for width in widths:
        of_ladder = [ladder.layers(width)] if ladder is not None and not m.num_hidden_layers else None
        for depth in of_ladder or depths:
            if free and not NARROWEST <= width / depth <= WIDEST:
                continue
            sizes = {"hidden_size": width, "num_hidden_layers": depth}
            model = m.model_copy(update=sizes).resolved(vocabulary(config, corpus), t.context)
            for batch in batches:
                sequences = max(1, round(batch / t.context))
                micro = t.micro_batch_size or _micro_batch(model, t, sequences, machine)
                if t.global_batch_tokens is None:
                    batch = max(1, round(sequences / micro)) * micro * t.context
                chunk = t.loss_chunk_tokens or _chunk(micro * t.context, model)
                shape = {"global_batch_tokens": batch, "micro_batch_size": micro, "loss_chunk_tokens": chunk}
                train = t.model_copy(update=shape)
                if memory.memory_bytes(model, train, machine.get("process_bytes"))["peak"] <= room:
                    yield model, train


def _steps_within(
    budget: Budget, model: ModelConfig, train: TrainConfig, machine: dict[str, Any], probe: dict[str, Any] | None
) -> int:
    batch = train.global_batch_tokens or train.context
    if budget.flops is not None:
        return int(budget.flops / flops.flops_per_token(model, train.context)["causal"] / batch)
    each = time.step_seconds(model, train, machine, None, probe)["value"]
    return int(AIM * (budget.seconds or 0.0) / (each * (1 + time.EVALUATION_SHARE * EVALUATED_SHARE * EVALUATIONS)))


def steps_for_budget(
    budget: Budget,
    *,
    machine: dict[str, Any],
    corpus: dict[str, Any] | None,
    probe: dict[str, Any] | None,
    trial: dict[str, Any] | None,
    config: RunConfig,
) -> RunConfig:
    """A completed config with the steps that the forecast puts at 0.95 of a time budget, now that a trial timed one.

    Intervals of validation and saving that the rules had set move along; others stay.
    """
    if budget.seconds is None:
        return config
    for _ in range(4):  # validations and checkpoints move with the steps
        forecast = time.run_seconds(config, machine, trial)["value"]
        steps = max(1, int((config.train.steps or 1) * AIM * budget.seconds / forecast))
        batch = config.train.global_batch_tokens or config.train.context
        steps = _at_most(config.train, steps, batch, corpus)
        config = _with_steps(config, steps, machine, trial)
    return config


def _eval_every(steps: int, t: TrainConfig) -> int:
    """Steps between two validations."""
    return max(math.ceil(steps / EVALUATIONS), 1 if t.base is None else STEPS_BETWEEN_OF_A_BASE)


def _with_steps(config: RunConfig, steps: int, machine: dict[str, Any], trial: dict[str, Any] | None) -> RunConfig:
    t = config.train
    changes: dict[str, Any] = {"steps": steps}
    if t.eval_every == _eval_every(t.steps or 1, t):
        changes["eval_every"] = _eval_every(steps, t)
    after = t.model_copy(update=changes)
    if t.save_every in {save_every(config.model, t, machine, tried) for tried in (None, trial)}:
        changes["save_every"] = save_every(config.model, after, machine, trial)
    return run_config.updated(config, train=changes)
