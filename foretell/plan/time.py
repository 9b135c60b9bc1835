"""Seconds of a step and of a run on one machine.

Before anything of this shape was timed, the sum of the step's parts, where the machine record has them measured (a full
calibration, `plan/parts.py`); else a roofline: matrix products at the measured rate, elementwise work at the measured
bandwidth, a fixed cost an operator. When a trial has timed real steps, its time replaces either. A run is its steps,
its validations and its checkpoints, counted as the loop's own clock counts them.

The interval says how far the mean step of a run strays from what was measured before it: machines are shared, warm up
and slow down. Not handled: more than one device.
"""

from __future__ import annotations

import math
from typing import Any

from foretell.config import ModelConfig, RunConfig, TrainConfig
from foretell.plan import elementwise, flops, history, memory, models
from foretell.plan.activations import FLOAT
from foretell.plan.parts import Parts, Speed, Step
from foretell.plan.scaling import PROBE_CONTEXT, spread

# Where the machine record lacks a figure: round figures of one slow core, not measurements.
GUESSED_FLOPS_PER_SECOND_AND_THREAD = 4e10
GUESSED_BANDWIDTH = 1e10
GUESSED_OP_SECONDS = 6e-6
GUESSED_CHECKPOINT_BYTES_PER_SECOND = 2e8

# The mean step of a run over the median of its trial, as measured on a shared machine (docs/plan.md).
RUN_OVER_TRIAL = 1.06
# Half-widths of the logarithm of seconds, meant as central 90%. After a trial: Student's for the errors of the runs in
# docs/plan.md; the others are judgement.
TRIAL_SPREAD, MOST_TRIAL_SPREAD = 0.17, 0.24
ROOFLINE_SPREAD = 0.6
# Of the sum of parts at a stated speed of the machine, as benchmarks/step_time.py measures it; of experts, compiled
# steps and other families than Qwen3, which were not calibrated, judgement.
PARTS_SPREAD, ROUGH_PARTS_SPREAD = 0.10, 0.40
UNMEASURED_SPREAD = 1.2
PROBED_SPREAD = 0.35

# Seconds of a validation token against those of a training token: a forward pass, and the scores. An estimate.
EVALUATION_SHARE = 0.40
# Share of the best square product's rate that the products of training reach. An estimate.
PRODUCT_EFFICIENCY = 0.85
# Operators of one layer and of the rest, forward and backward; and of the optimiser a parameter tensor.
OPERATORS_A_LAYER, OPERATORS_BESIDE = 110, 60
# More of them in a layer with experts, and for each expert: three products forward and six backward.
OPERATORS_OF_A_ROUTER, OPERATORS_AN_EXPERT = 60, 9
# What compiling leaves of the seconds of layers and head beside products and attention. An estimate.
COMPILED_SHARE = 0.5

# The parts of the record that was last asked for, which are fitted once.
_fitted: list[tuple[list[dict[str, Any]], Parts]] = []


def rate(machine: dict[str, Any], dtype: str = "float32") -> float:
    """The best measured matrix-product rate of a dtype, FLOP/s."""
    entry = machine.get("flops_per_second", {}).get(dtype)
    value = entry.get("peak") if isinstance(entry, dict) else entry
    return float(value) if value else GUESSED_FLOPS_PER_SECOND_AND_THREAD * int(machine.get("threads") or 1)


def peak_flops_per_second(machine: dict[str, Any]) -> float:
    """The best rate over all dtypes: the denominator of MFU."""
    return max([rate(machine, d) for d in machine.get("flops_per_second", {})], default=rate(machine))


def is_measured(machine: dict[str, Any]) -> bool:
    """Whether the machine's rates were measured, or are guesses."""
    return bool(machine.get("flops_per_second"))


def working_dtype(train: TrainConfig, machine: dict[str, Any]) -> str:
    """The dtype the products run in: the config's, or where that is `auto` the one the record favours."""
    if train.dtype != "auto":
        return train.dtype
    rates = machine.get("flops_per_second", {})
    return "bfloat16" if "bfloat16" in rates and rate(machine, "bfloat16") >= 1.2 * rate(machine) else "float32"


def roofline_step_seconds(m: ModelConfig, t: TrainConfig, machine: dict[str, Any]) -> float:
    """Seconds of one optimiser step from the machine record alone."""
    a, V = models.of_model(m), m.sizes.V
    tokens = t.global_batch_tokens or t.context
    speed = rate(machine, working_dtype(t, machine)) * PRODUCT_EFFICIENCY
    bandwidth = machine.get("memory_bytes_per_second", {}).get("copy") or GUESSED_BANDWIDTH
    per_op = machine.get("op_seconds") or GUESSED_OP_SECONDS
    products = tokens * flops.flops_per_token(m, t.context)["full"] + flops.optimizer_flops(m, t.optimizer)
    # Elementwise work passes over each saved tensor about three times, and over the states a few times a step.
    traffic = 3.0 * tokens * (memory.saved_bytes_per_token(m, "float32") + 3 * FLOAT * V)
    traffic += 4 * sum(memory.run_state_bytes(m, t).values())
    micro = math.ceil(tokens / t.context / (t.micro_batch_size or max(1, tokens // t.context)))
    layers = sum(n * OPERATORS_A_LAYER * elementwise.operators(y) / elementwise.OF_QWEN3 for n, y in a.kinds)
    if m.num_experts:
        layers += a.layers * (OPERATORS_OF_A_ROUTER + OPERATORS_AN_EXPERT * m.num_experts)
    operators = micro * (layers + OPERATORS_BESIDE) + OPERATORS_BESIDE
    return products / speed + traffic / bandwidth + operators * per_op


def parts(machine: dict[str, Any]) -> Parts | None:
    """The fitted parts of a full record; None where the record is a quick one, or older than parts."""
    entries = machine.get("parts")
    if not entries:
        return None
    if not _fitted or _fitted[0][0] is not entries:
        _fitted[:] = [(entries, Parts(entries, int(machine.get("threads") or 1)))]
    return _fitted[0][1]


def steps_by_parts(m: ModelConfig, t: TrainConfig, machine: dict[str, Any]) -> list[Step]:
    """The step of completed tables as its parts see it, for each attention kernel that the config allows."""
    dtype = working_dtype(t, machine)
    kernels = ("sdpa", "products") if t.attention == "auto" else (t.attention,)
    sequences = max(1, (t.global_batch_tokens or t.context) // t.context)
    micro = t.micro_batch_size or sequences
    experts, dense = None, m
    if m.num_experts:
        dense = m.model_copy(update={"num_experts": None, "balance": None})
        experts = (m.num_experts, m.needed("num_experts_per_tok"), m.needed("moe_intermediate_size"))
    pieces = math.ceil(sequences / micro)
    return [
        Step(
            *(models.of_model(dense), t.context, micro, pieces, dtype, kernel, t.optimizer),
            chunk=t.loss_chunk_tokens if m.head is None else None,
            dropout=bool(t.dropout),
            experts=experts,
        )
        for kernel in kernels
    ]


def untried_step_seconds(
    m: ModelConfig, t: TrainConfig, machine: dict[str, Any], speed: Speed | None = None
) -> tuple[float, float]:
    """Seconds of one optimiser step from the machine record alone, and the half-width of their logarithm.

    speed: of the machine; where not given, the record's of late. Nothing but parts can answer to it.
    """
    if t.trained_parameters is not None:  # with fewer products backward; all else is thought to shrink with them
        whole = t.model_copy(update={"trained_parameters": None, "added_parameters": None})
        value, width = untried_step_seconds(m, whole, machine, speed)
        each = (flops.run_flops_per_token(m, x)["causal"] for x in (t, whole))
        return value * next(each) / next(each), max(width, ROUGH_PARTS_SPREAD)
    known = parts(machine)
    steps = [s for s in steps_by_parts(m, t, machine) if known is not None and known.can(s)]
    if known is None or not steps:
        return roofline_step_seconds(m, t, machine), ROOFLINE_SPREAD if is_measured(machine) else UNMEASURED_SPREAD
    at = speed or (Speed(**machine["speed"]) if machine.get("speed") else known.speed)
    value = min(known.step(s, at, COMPILED_SHARE if t.compile == "on" else 1.0) for s in steps)
    return value, PARTS_SPREAD if is_calibrated(m, t) else ROUGH_PARTS_SPREAD


def is_calibrated(m: ModelConfig, t: TrainConfig) -> bool:
    """Whether steps of this kind are what a full calibration times; of others its parts are put together unseen."""
    return m.model_type == "qwen3" and not m.num_experts and t.compile != "on"


def standing(m: ModelConfig, t: TrainConfig, machine: dict[str, Any], trial: dict[str, Any] | None) -> str:
    """What a step's forecast stands on: `trial`, `parts`, `rough parts` (of steps not calibrated) or `roofline`."""
    known = parts(machine) if trial is None else None
    if trial is not None or known is None or not any(map(known.can, steps_by_parts(m, t, machine))):
        return "trial" if trial is not None else "roofline"
    return "parts" if is_calibrated(m, t) else "rough parts"


def step_seconds(
    m: ModelConfig,
    t: TrainConfig,
    machine: dict[str, Any],
    trial: dict[str, Any] | None,
    probe: dict[str, Any] | None = None,
) -> dict[str, float]:
    """Seconds of one optimiser step of a run, with its interval: from the trial, else the record and the probe.

    Earlier runs on this machine correct either (`history.py`).
    """
    return history.taught(_untaught_step_seconds(m, t, machine, trial, probe), machine, "step_seconds", bool(trial))


def _untaught_step_seconds(
    m: ModelConfig,
    t: TrainConfig,
    machine: dict[str, Any],
    trial: dict[str, Any] | None,
    probe: dict[str, Any] | None,
) -> dict[str, float]:
    if trial is not None:
        return spread(RUN_OVER_TRIAL * float(trial["step_seconds"]), _trial_spread(trial))
    value, width = untried_step_seconds(m, t, machine)
    if probe is not None and probe.get("step_seconds"):
        return spread(value * _correction(m, t, machine, probe), min(PROBED_SPREAD, math.hypot(width, TRIAL_SPREAD)))
    if width in (PARTS_SPREAD, ROUGH_PARTS_SPREAD):  # at the record's speed; a run strays from it as from a trial's
        return spread(RUN_OVER_TRIAL * value, math.hypot(width, TRIAL_SPREAD))
    return spread(value, width)


def _trial_spread(trial: dict[str, Any]) -> float:
    """Wider where the trial's own steps differed: others were at work, and may stop or go on. Below the guard."""
    within = math.log(trial["high"] / trial["low"]) / 2 if trial.get("low") and trial.get("high") else 0.0
    return min(math.hypot(TRIAL_SPREAD, within), MOST_TRIAL_SPREAD)


def _correction(m: ModelConfig, t: TrainConfig, machine: dict[str, Any], probe: dict[str, Any]) -> float:
    """The probe's measured step over the roofline's, within reason: it has another shape, and ran once."""
    shape = {"hidden_size": probe["hidden_size"], "num_hidden_layers": probe["num_hidden_layers"]}
    model = ModelConfig(vocab_size=m.vocab_size, **shape).resolved(m.vocab_size or 1, PROBE_CONTEXT)
    batch = int(probe["tokens"] / probe["steps"])
    small = {"context": PROBE_CONTEXT, "global_batch_tokens": batch, "micro_batch_size": None, "dtype": "float32"}
    expected, _ = untried_step_seconds(model, t.model_copy(update=small), machine)
    return min(max(float(probe["step_seconds"]) / expected, 0.4), 4.0)


def run_parts(
    config: RunConfig, machine: dict[str, Any], trial: dict[str, Any] | None, probe: dict[str, Any] | None = None
) -> dict[str, float]:
    """Seconds of a completed config's run by what they go into: `steps`, `validation`, `checkpoints`, `start`."""
    m, t = config.model, config.train
    step = step_seconds(m, t, machine, trial, probe)["value"]
    steps = t.steps or 1
    evaluations = math.ceil(steps / (t.eval_every or steps)) + (t.base is not None)  # a base's before the first step
    evaluated = (t.eval_tokens or 0) / (t.global_batch_tokens or t.context)
    saves = math.ceil(steps / (t.save_every or steps)) - 1  # the loop's clock stops before the last one
    return {
        "steps": step * steps,
        "validation": step * evaluations * evaluated * EVALUATION_SHARE,
        "checkpoints": saves * save_seconds(m, t, machine),
        "start": first_step_seconds(trial),
    }


def run_seconds(
    config: RunConfig, machine: dict[str, Any], trial: dict[str, Any] | None, probe: dict[str, Any] | None = None
) -> dict[str, float]:
    """Seconds of all steps, validations and checkpoints of a completed config, with an interval."""
    step = step_seconds(config.model, config.train, machine, trial, probe)
    parts = run_parts(config, machine, trial, probe)
    return spread(sum(parts.values()), math.log(step["high"] / step["value"]))


def first_step_seconds(trial: dict[str, Any] | None) -> float:
    """What the first step costs beyond a step: warm-up, and compilation where there is one."""
    if trial is None:
        return 0.0
    return max(0.0, float(trial.get("first_step_seconds") or 0.0) - float(trial["step_seconds"]))


def save_seconds(m: ModelConfig, t: TrainConfig, machine: dict[str, Any]) -> float:
    """Seconds of one checkpoint: what learns and the optimiser's tensors, written and read back."""
    speed = machine.get("checkpoint_bytes_per_second") or GUESSED_CHECKPOINT_BYTES_PER_SECOND
    return memory.saved_bytes(m, t) / speed
