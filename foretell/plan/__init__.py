"""Forecasts without torch: what a run costs and how good it gets, before it is made; and the verdict afterwards."""

from foretell.plan.budget import Budget, parse_budget
from foretell.plan.flops import parameters
from foretell.plan.memory import COMPILER_BYTES
from foretell.plan.outlook import forecast, plan
from foretell.plan.size import completed, fits, size_for_budget, steps_for_budget
from foretell.plan.time import peak_flops_per_second
from foretell.plan.verdict import stored, verify

__all__ = [
    "COMPILER_BYTES",
    "Budget",
    "completed",
    "fits",
    "forecast",
    "parameters",
    "parse_budget",
    "peak_flops_per_second",
    "plan",
    "size_for_budget",
    "steps_for_budget",
    "stored",
    "verify",
]
