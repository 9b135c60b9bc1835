"""Seconds of a step and of a run on one machine.

Before anything of this shape was timed, a roofline over the machine record: matrix products at the measured rate, memory
traffic at the measured bandwidth, a fixed cost an operator. When a trial has timed real steps, its time replaces that.
A run is its steps, its validations and its checkpoints.

The interval says how far the mean step of a run strays from what was measured before it: machines are shared, warm up and
slow down. Not handled: more than one device.
"""

from __future__ import annotations

import math
from typing import Any

from foretell.config import RunConfig
from foretell.plan import flops
from foretell.plan.flops import sizes

# Where the machine record lacks a figure (docs/plan.md says where these come from).
GUESSED_FLOPS_PER_SECOND_AND_THREAD = 4e10
GUESSED_BANDWIDTH = 1e10
GUESSED_OP_SECONDS = 6e-6
GUESSED_CHECKPOINT_BYTES_PER_SECOND = 2e8

# Half-widths of the logarithm of seconds, central 90%: measured (docs/plan.md).
TRIAL_SPREAD = 0.10
ROOFLINE_SPREAD = 0.45
UNMEASURED_SPREAD = 1.2

# Shares of a training step: a validation token costs its forward pass and a little more for the scores.
EVALUATION_SHARE = 0.40


def rate(machine: dict[str, Any], dtype: str = "float32") -> float:
    """The best measured matrix-product rate of a dtype, FLOP/s."""
    entry = machine.get("flops_per_second", {}).get(dtype)
    value = entry.get("peak") if isinstance(entry, dict) else entry
    return float(value) if value else GUESSED_FLOPS_PER_SECOND_AND_THREAD * int(machine.get("threads") or 1)


def peak_flops_per_second(machine: dict[str, Any]) -> float:
    """The best rate over all dtypes: the denominator of MFU."""
    return max([rate(machine, d) for d in machine.get("flops_per_second", {})], default=rate(machine))


def is_measured(machine: dict[str, Any]) -> bool:
    return bool(machine.get("flops_per_second"))


def working_dtype(config: RunConfig, machine: dict[str, Any]) -> str:
    """The dtype the products run in: the config's, or where that is `auto` the one the record favours."""
    wanted = config.train.dtype
    if wanted != "auto":
        return wanted
    rates = machine.get("flops_per_second", {})
    return "bfloat16" if "bfloat16" in rates and rate(machine, "bfloat16") >= 1.2 * rate(machine) else "float32"


def roofline_step_seconds(config: RunConfig, machine: dict[str, Any]) -> float:
    """Seconds of one optimiser step from the machine record alone."""
    t, m = config.train, config.model
    D, L, H, K, E, F, V = sizes(m)
    tokens = t.global_batch_tokens or t.context
    speed = rate(machine, working_dtype(config, machine))
    efficiency = float(machine.get("product_efficiency") or 0.8)
    bandwidth = machine.get("memory_bytes_per_second", {}).get("copy") or GUESSED_BANDWIDTH
    per_op = machine.get("op_seconds") or GUESSED_OP_SECONDS
    products = tokens * flops.flops_per_token(m, t.context)["full"] + flops.optimizer_flops(m, t.optimizer)
    # Elementwise work reads and writes each activation a few times forward and about twice as often backward.
    traffic = 4 * tokens * (L * (24 * D + 12 * F + 10 * (H + 2 * K) * E) + 8 * V)
    traffic += 4 * 12 * flops.parameters(m)["total"]
    micro = math.ceil(tokens / t.context / (t.micro_batch_size or max(1, tokens // t.context)))
    operators = micro * (L * 110 + 60) + 60
    return products / (speed * efficiency) + traffic / bandwidth + operators * per_op


def step_seconds(config: RunConfig, machine: dict[str, Any], trial: dict[str, Any] | None) -> dict[str, float]:
    """Seconds of one optimiser step, with its interval."""
    if trial is not None:
        return spread(float(trial["step_seconds"]), TRIAL_SPREAD)
    value = roofline_step_seconds(config, machine)
    return spread(value, ROOFLINE_SPREAD if is_measured(machine) else UNMEASURED_SPREAD)


def run_seconds(config: RunConfig, machine: dict[str, Any], trial: dict[str, Any] | None) -> dict[str, float]:
    """Seconds of all steps, validations and checkpoints, with an interval; `step` has the seconds of one step."""
    t = config.train
    step = step_seconds(config, machine, trial)
    steps = t.steps or 0
    overhead = once_seconds(config, machine, trial)
    evaluations = math.ceil(steps / (t.eval_every or steps or 1))
    evaluation = min(t.eval_tokens, _valid_tokens(t.eval_tokens)) / (t.global_batch_tokens or t.context)
    saves = max(0, math.ceil(steps / (t.save_every or steps or 1)) - 1)
    each = step["value"]
    value = steps * each + evaluations * evaluation * EVALUATION_SHARE * each + saves * save_seconds(config, machine)
    value += overhead
    share = math.log(step["high"] / step["value"])
    return spread(value, share)


def _valid_tokens(limit: int) -> int:
    return limit


def once_seconds(config: RunConfig, machine: dict[str, Any], trial: dict[str, Any] | None) -> float:
    """What the first step costs beyond a step: warm-up, and compilation where there is one."""
    if trial is None:
        return 0.0
    return max(0.0, float(trial.get("first_step_seconds") or 0.0) - float(trial["step_seconds"]))


def save_seconds(config: RunConfig, machine: dict[str, Any]) -> float:
    """Seconds of one checkpoint: weights and optimiser tensors, written and read back."""
    from foretell.plan.memory import state_bytes

    sizes_ = state_bytes(config.model, config.train.optimizer)
    written = sizes_["weights"] + sizes_["optimizer"]
    return written / (machine.get("checkpoint_bytes_per_second") or GUESSED_CHECKPOINT_BYTES_PER_SECOND)


def spread(value: float, log_half_width: float) -> dict[str, float]:
    """An interval that is symmetric in the logarithm."""
    return {"value": value, "low": value * math.exp(-log_half_width), "high": value * math.exp(log_half_width)}
