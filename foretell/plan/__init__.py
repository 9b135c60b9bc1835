"""Forecasts without torch: what a run costs and how good it gets, before it is made; and the verdict afterwards."""

from foretell.plan.abroad import forecast as forecast_abroad
from foretell.plan.budget import Budget, parse_budget
from foretell.plan.flops import parameters
from foretell.plan.history import FEWEST_RUNS, gathered, lessons
from foretell.plan.memory import COMPILER_BYTES
from foretell.plan.outlook import forecast, plan
from foretell.plan.rungs import with_recipe
from foretell.plan.search import search as search_layouts
from foretell.plan.size import completed, fits, size_for_budget, steps_for_budget
from foretell.plan.time import peak_flops_per_second
from foretell.plan.verdict import stored, verify

__all__ = [
    "COMPILER_BYTES",
    "FEWEST_RUNS",
    "Budget",
    "completed",
    "fits",
    "forecast",
    "forecast_abroad",
    "gathered",
    "lessons",
    "parameters",
    "parse_budget",
    "peak_flops_per_second",
    "plan",
    "search_layouts",
    "size_for_budget",
    "steps_for_budget",
    "stored",
    "verify",
    "with_recipe",
]
