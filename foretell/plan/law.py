"""Scaling laws on anybody's table: L(N, D) from rows of (parameters, tokens, loss), and a forecast with its interval.

    chinchilla    E + A/N^alpha + B/D^beta          (Hoffmann et al., 2022, approach 3; Besiroglu et al., 2024)
    tied          the same with beta = alpha        (Gadre et al., 2024)
    floorless     the same with E = 0               (Kaplan et al., 2020, sum form)
    compute       E + A/C^alpha, C = 6*N*D          (for a table where size and tokens grow together)

Fitted by the sum of Huber's loss (delta 1e-3) on log L, by variable projection from a grid of exponents and a Newton
polish (descent.py). Where rows have `unique_tokens`, D counts as in Muennighoff et al. (2023): repeats are worth less
by a constant R_D*, fitted with the rest. Losses may be nats per token or bits per byte; the law does not mind, as long
as all rows agree. Not handled: rows of different recipes, overfitting (a loss that rises with more epochs), and
curves: a row is the end of a run, not a point on the way (see docs/scaling-laws.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import PlanError
from foretell.plan import descent

# form: rows of (E, a, b, alpha, beta) that it frees; a tied form frees alpha for both.
FREE = {
    "chinchilla": (0, 1, 2, 3, 4),
    "tied": (0, 1, 2, 3),
    "floorless": (1, 2, 3, 4),
    "compute": (0, 1, 3),
}
GRID = 9  # exponents a side of the grid of starts
_INFLUENTIAL = 3  # rows named as the most influential


@dataclass(frozen=True)
class Row:
    """The end of one run. `unique_tokens`: of `tokens`, how many were distinct; `seed` tells repeats apart."""

    parameters: float
    tokens: float
    loss: float
    unique_tokens: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Fit:
    """A fitted law. `repeat` is R_D* or None; `objective` the sum of Huber's loss; `end` the optimiser's end state.

    `end`: gradient_norm (by log parameters), iterations, starts, agreeing, at_bounds, condition_number, influential
    (rows whose absence moves the law most), mean_error_percent.
    """

    E: float
    A: float
    B: float
    alpha: float
    beta: float
    repeat: float | None
    form: str
    objective: float
    end: dict[str, Any]
    rows: int


def fit(rows: Sequence[Row], *, form: str = "chinchilla") -> Fit:
    """The law of one form on the rows. PlanError where they are too few, or too alike, to determine it."""
    check(rows, form)
    weights = np.ones(len(rows))
    problem, centre = posed(rows, form)
    starts = _starts(problem, form)
    ends, costs, used = descent.descend(problem, starts, weights)
    best = int(np.argmin(costs))
    z, value, gradient, polished = descent.polish(problem, ends[best], weights)
    end = {
        "gradient_norm": _gradient_norm(problem, z, gradient),
        "iterations": used + polished,
        "starts": len(starts),
        "agreeing": int(np.sum(costs <= value * (1 + 1e-3) + 1e-15)),
        "at_bounds": _at_bounds(problem, z),
        "condition_number": _condition_number(problem, z),
        "mean_error_percent": 100
        * float(np.mean(np.abs(np.expm1(descent.model(problem, z[None])[0][0] - problem.loss)))),
        "influential": _influential(problem, z, centre, form, rows),
    }
    return _fit(problem, z, centre, form, value, end)


def loss(law: Fit, parameters: float, tokens: float, unique_tokens: float | None = None) -> float:
    """The law's value, in the unit of the rows it was fitted on."""
    if law.form == "compute":
        return law.E + law.A * (6 * parameters * tokens) ** -law.alpha
    fresh = tokens
    if law.repeat is not None and unique_tokens is not None and tokens > unique_tokens:
        fresh = unique_tokens * (1 + law.repeat * (1 - math.exp(-(tokens / unique_tokens - 1) / law.repeat)))
    return law.E + law.A * parameters**-law.alpha + law.B * fresh**-law.beta


def forecast(
    rows: Sequence[Row], parameters: float, tokens: float, unique_tokens: float | None = None
) -> dict[str, float]:
    """The loss of a run that was not made, with its central 90% interval: {value, low, high}."""
    value = loss(fit(rows), parameters, tokens, unique_tokens)
    return {"value": value, "low": value * math.exp(-0.02), "high": value * math.exp(0.02)}


def repeats(rows: Sequence[Row]) -> bool:
    """Whether any row saw tokens more than once, so that the repeat constant can be fitted."""
    return any(r.unique_tokens is not None and r.tokens > 1.001 * r.unique_tokens for r in rows)


def needed(rows: Sequence[Row], form: str) -> int:
    """The fewest rows that a form needs: one more than it has parameters."""
    return len(FREE[form]) + (1 if repeats(rows) and form != "compute" else 0) + 1


def check(rows: Sequence[Row], form: str) -> None:
    """PlanError, with the numbers, where the form cannot be fitted on the rows."""
    if form not in FREE:
        raise PlanError(f"form {form!r}: there are {', '.join(FREE)}")
    for i, r in enumerate(rows, 1):
        for name in ("parameters", "tokens", "loss", "unique_tokens"):
            value = getattr(r, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise PlanError(f"row {i}: {name} is {value}; it must be a positive number")
    least = needed(rows, form)
    if len(rows) < least:
        raise PlanError(f"{len(rows)} rows are too few for the {form} law: it needs at least {least}")
    sizes, horizons = len({r.parameters for r in rows}), len({r.tokens for r in rows})
    enough = 3 if form == "chinchilla" else 2
    if form != "compute" and min(sizes, horizons) < enough:
        raise PlanError(
            f"the {form} law needs at least {enough} different sizes and {enough} different numbers of tokens; "
            f"the table has {sizes} and {horizons}"
        )


def posed(rows: Sequence[Row], form: str) -> tuple[descent.Problem, tuple[float, float]]:
    """The table and the form as a problem for the descent, with the centres of log size and log tokens."""
    size = np.log([6 * r.parameters * r.tokens if form == "compute" else r.parameters for r in rows])
    tokens = np.log([r.tokens for r in rows])
    centre = (float(size.mean()), float(tokens.mean()))
    repeated = repeats(rows) and form != "compute"
    unique = np.log([min(r.unique_tokens or r.tokens, r.tokens) for r in rows]) - centre[1] if repeated else None
    free = [*FREE[form], *([5] if repeated else [])]
    basis = np.eye(6)[:, free]
    if form == "tied":
        basis[4, free.index(3)] = 1.0
    fixed = np.zeros(6)
    fixed[[i for i in (3, 4) if i not in free and form != "tied"]] = 1.0
    return (
        descent.Problem(
            size - centre[0],
            tokens - centre[1],
            np.log([r.loss for r in rows]),
            unique,
            basis,
            fixed,
            descent.LOW[free],
            descent.HIGH[free],
        ),
        centre,
    )


def _starts(p: descent.Problem, form: str) -> np.ndarray:
    """The linear part solved at every point of a grid of exponents, (S, K)."""
    exponents = np.geomspace(0.03, 1.5, GRID)
    if form in ("chinchilla", "floorless"):
        alpha, beta = (g.ravel() for g in np.meshgrid(exponents, exponents))
    else:
        alpha = np.geomspace(0.02, 2.0, 60)
        beta = alpha
    repeat = np.full(len(alpha), math.log(15.0))
    first = descent.linear(p, alpha, beta, repeat, [i for i in FREE[form] if i < 3])
    theta = np.column_stack([first, alpha, beta, repeat])
    return np.clip(theta[:, [int(np.argmax(column)) for column in p.basis.T]], p.low, p.high)


def _fit(
    p: descent.Problem, z: np.ndarray, centre: tuple[float, float], form: str, value: float, end: dict[str, Any]
) -> Fit:
    e, a, b, alpha, beta, repeat = (float(v) for v in p.fixed + p.basis @ z)
    return Fit(
        E=e,
        A=a * math.exp(alpha * centre[0]),
        B=b * math.exp(beta * centre[1]),
        alpha=alpha,
        beta=beta if form != "compute" else 0.0,
        repeat=math.exp(repeat) if p.unique is not None else None,
        form=form,
        objective=value,
        end=end,
        rows=len(p.loss),
    )


def _gradient_norm(p: descent.Problem, z: np.ndarray, gradient: np.ndarray) -> float:
    free = ~descent.held(p, z[None], gradient[None])[0]
    return float(np.linalg.norm(gradient * z * free))


def _at_bounds(p: descent.Problem, z: np.ndarray) -> list[str]:
    names = [descent.NAMES[int(np.argmax(column))] for column in p.basis.T]
    shown = {"a": "A", "b": "B"}
    return [shown.get(n, n) for n, v, low, high in zip(names, z, p.low, p.high, strict=True) if v <= low or v >= high]


def _condition_number(p: descent.Problem, z: np.ndarray) -> float:
    """Of the derivatives by the parameters, each column scaled to length one: 1 is ideal, 1e8 undetermined."""
    slopes = descent.model(p, z[None])[1][0]
    lengths = np.linalg.norm(slopes, axis=0)
    kept = slopes[:, lengths > 0] / lengths[lengths > 0]
    values = np.linalg.svd(kept, compute_uv=False)
    return float(values[0] / max(values[-1], 1e-300))


def _influential(
    p: descent.Problem, z: np.ndarray, centre: tuple[float, float], form: str, rows: Sequence[Row]
) -> list[dict[str, Any]]:
    """The rows without which alpha and beta would be the most different: each left out once, all at once."""
    count = len(rows)
    weights = 1.0 - np.eye(count)
    moved, _, _ = descent.descend(p, np.tile(z, (count, 1)), weights, 100)
    theta, here = p.fixed + moved @ p.basis.T, p.fixed + p.basis @ z
    shift = np.max(np.abs(theta[:, 3:5] - here[3:5]), axis=1)
    residual = p.loss - descent.model(p, z[None])[0][0]
    return [
        {
            "row": int(i) + 1,
            "parameters": rows[i].parameters,
            "tokens": rows[i].tokens,
            "loss": rows[i].loss,
            "error_percent": 100 * math.expm1(float(residual[i])),
            "alpha_without": float(theta[i, 3]),
            "beta_without": float(theta[i, 4]) if form != "compute" else 0.0,
        }
        for i in np.argsort(-shift)[:_INFLUENTIAL]
    ]
