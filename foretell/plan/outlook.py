"""The forecast itself: one dict, the content of plan.json, with the field names that measured.json will carry."""

from __future__ import annotations

import math
from typing import Any

from foretell.config import ModelConfig, RunConfig, TrainConfig
from foretell.plan import flops, history, memory, rungs, scaling, size, time, together
from foretell.plan.budget import parse_budget

MEMORY_SPREAD = 0.22
OTHER_FAMILY_SPREAD = 0.05
NO_LAW = "the law of loss is of models that begin from nothing: of a run with a base no loss is forecast"
OTHER_LOSS = "the law of loss is of predicting each next token: of {} no loss is forecast"
CONVENTION = "all matrix products with the head, attention causal-exact, backward twice forward"


def plan(
    config: RunConfig,
    *,
    machine: dict[str, Any],
    corpus: dict[str, Any] | None,
    probe: dict[str, Any] | None = None,
    trial: dict[str, Any] | None = None,
    processes: int = 1,
) -> dict[str, Any]:
    """Forecast a completed config on a machine and a text. Each quantity with an interval is {value, low, high}.

    processes: among which the run is divided as [parallel] says; on `machine["machines"]` machines, one if not told.
    """
    m, t = config.model, config.train
    batch, steps = t.global_batch_tokens or t.context, t.steps or 1
    tokens = batch * steps
    per_token = flops.run_flops_per_token(m, t)
    count = flops.parameters(m)
    peak_rate = time.peak_flops_per_second(machine)
    machines, divided = int(machine.get("machines", 1)), together.is_together(config, processes)
    step = together.step_seconds(time.step_seconds(m, t, machine, trial, probe), processes, machines)
    seconds = together.step_seconds(time.run_seconds(config, machine, trial, probe), processes, machines)
    held = machine.get("process_bytes")
    used = together.memory_bytes(config, processes, held) if divided else memory.memory_bytes(m, t, held)
    peak = history.taught(scaling.spread(used["peak"], MEMORY_SPREAD), machine, "memory_bytes.peak")
    room = float(machine.get("memory_bytes") or math.inf)
    result: dict[str, Any] = {
        "model": m.model_dump(),
        "parameters": count,
        "flops_per_token": per_token["causal"],
        "flops_convention": CONVENTION,
        "flops_per_token_by_convention": per_token,
        "flops_total": per_token["causal"] * tokens,
        "steps": steps,
        "tokens": tokens,
        "global_batch_tokens": batch,
        "micro_batch_size": t.micro_batch_size,
        "context": t.context,
        **({"row_tokens": t.row_tokens, "row_scored": t.row_scored} if t.row_tokens else {}),
        "dtype": t.dtype if t.dtype != "auto" else time.working_dtype(t, machine),
        "compile": t.compile,
        "attention": t.attention,
        "peak_flops_per_second": peak_rate,
        "step_seconds": step,
        "step_seconds_from": time.standing(m, t, machine, trial),
        "seconds": seconds,
        "seconds_parts": time.run_parts(config, machine, trial, probe),
        "tokens_per_second": _inverse(seconds, tokens),
        "mfu": _inverse(step, batch * per_token["causal"] / peak_rate),
        "memory_bytes": {**used, "peak": peak},
        "fits": peak["value"] <= room,
        "corpus": corpus,
        "probe": probe,
        "trial": trial,
        "lessons": history.factors(machine, trial is not None),
        **(together.shared(config, processes) if divided else {}),
    }
    return result | (_quality(m, t, tokens, corpus, probe) if corpus else {})


def _quality(
    m: ModelConfig, t: TrainConfig, tokens: int, corpus: dict[str, Any], probe: dict[str, Any] | None
) -> dict[str, Any]:
    """How good the model gets on its text, and how often it reads it."""
    count, batch = flops.parameters(m), t.global_batch_tokens or t.context
    once = size.epoch_tokens(t, corpus)
    common = {
        "epochs": tokens / max(1.0, once),
        "text_used_up": bool(t.budget) and tokens + batch > size.MOST_EPOCHS * once,
    }
    if t.base is not None:
        return {**common, "loss_note": NO_LAW}
    if t.objective != "next_token":
        return {**common, "loss_note": OTHER_LOSS.format(t.objective)}
    if t.ladder:
        return (
            rungs.read(t.ladder).forecast(count["total"], tokens, corpus["tokens"]) | {"loss_from": "ladder"} | common
        )
    # The law was fitted to dense models; of a mixture it is given what a token passes through, which is cautious.
    N = count.get("active_non_embedding", count["non_embedding"])
    # It was fitted to Qwen3, too; others ended up to 3% from where Qwen3 did (docs/log.md).
    unsure = 0.0 if m.model_type == "qwen3" else OTHER_FAMILY_SPREAD
    bits = scaling.bits_per_byte(N, tokens, batch, corpus, probe, unsure)
    # The validation text's bytes a token differ from the training text's; the probe has read both units there.
    nats = probe["loss"] / probe["bits_per_byte"] if probe else math.log(2) * corpus["bytes_per_token"]
    return {
        "bits_per_byte": bits,
        "loss": {k: v * nats for k, v in bits.items()},
        "loss_curve": scaling.course(N, t.steps or 1, batch, corpus, probe, unsure),
        **common,
    }


def forecast(
    config: RunConfig,
    *,
    machine: dict[str, Any],
    corpus: dict[str, Any] | None = None,
    fingerprint: str | None = None,
) -> dict[str, Any]:
    """`foretell plan`: size and complete the config, then forecast it. Trains nothing."""
    config = rungs.with_recipe(config, fingerprint)
    if config.train.budget is not None:
        budget = parse_budget(config.train.budget)
        config = size.size_for_budget(budget, machine=machine, corpus=corpus, probe=None, config=config)
    config = size.completed(config, corpus, machine)
    return plan(config, machine=machine, corpus=corpus)


def _inverse(time_: dict[str, float], amount: float) -> dict[str, float]:
    return {"value": amount / time_["value"], "low": amount / time_["high"], "high": amount / time_["low"]}
