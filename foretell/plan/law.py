"""Scaling laws on anybody's table: L(N, D) from rows of (parameters, tokens, loss), and a forecast with its interval.

    chinchilla    E + A/N^alpha + B/D^beta                          (Hoffmann et al., 2022; Besiroglu et al., 2024)
    tied          the same with beta = alpha                        (Gadre et al., 2024)
    floorless     the same with E = 0
    coupled       E + ((A/N^alpha)^(1/p) + (B/D^beta)^(1/p))^p      (Kaplan et al., 2020, eq. 1.5, with a floor)
    compute       E + A/C^alpha with C = 6*N*D                      (where size and tokens only grow together)

Fitted by the sum of Huber's loss (delta 1e-3) on log L, by variable projection from a grid of exponents and a Newton
polish (descent.py). Where rows have `unique_tokens`, D counts as in Muennighoff et al. (2023): repeats are worth less
by a constant R_D*, fitted with the rest. `forecast` averages over laws (posterior.py) and does not depend on one form.
Losses may be nats per token or bits per byte, as long as all rows agree.

Not handled: rows of different recipes, a loss that rises with more epochs, and curves: a row is the end of a run whose
learning rate came down, not a point on the way (docs/scaling-laws.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from foretell.errors import PlanError
from foretell.plan import descent, posterior

# form: which of descent.NAMES it frees; the tied form frees alpha for both exponents.
FREE = {
    "chinchilla": (0, 1, 2, 3, 4),
    "tied": (0, 1, 2, 3),
    "floorless": (1, 2, 3, 4),
    "coupled": (0, 1, 2, 3, 4, 6),
    "compute": (0, 1, 3),
}
GRID = 9  # exponents a side of the grid of starts
COUPLINGS = (1.0, 0.5, 0.25)  # starts of p
REPEAT = 15.39  # R_D* of Muennighoff et al. (2023), where the rows do not tell
FEWEST = 5  # rows of a forecast
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
    (rows whose absence moves the law most), mean_error_percent. `power` is p of the coupled form, else 1.
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
    power: float = 1.0


def fit(rows: Sequence[Row], *, form: str = "chinchilla") -> Fit:
    """The law of one form on the rows. PlanError where they are too few, or too alike, to determine it."""
    check(rows, form)
    weights = np.ones(len(rows))
    problem, centre = posed(rows, form)
    starts = _starts(problem, form)
    ends, costs, used = descent.descend(problem, starts, weights)
    z, value, gradient, polished = descent.polish(problem, ends[int(np.argmin(costs))], weights)
    residual = problem.loss - descent.model(problem, z[None])[0][0]
    end = {
        "gradient_norm": _gradient_norm(problem, z, gradient),
        "iterations": used + polished,
        "starts": len(starts),
        "agreeing": int(np.sum(costs <= value * (1 + 1e-4) + 1e-14)),
        "at_bounds": _at_bounds(problem, z),
        "condition_number": _condition_number(problem, z),
        "mean_error_percent": 100 * float(np.mean(np.abs(np.expm1(-residual)))),
        "influential": _influential(problem, z, form, rows),
    }
    return _fit(problem, z, centre, form, value, end)


def loss(law: Fit, parameters: float, tokens: float, unique_tokens: float | None = None) -> float:
    """The law's value, in the unit of the rows it was fitted on."""
    if law.form == "compute":
        return law.E + law.A * (6 * parameters * tokens) ** -law.alpha
    fresh = worth(tokens, unique_tokens, law.repeat)
    one, two = law.A * parameters**-law.alpha, law.B * fresh**-law.beta
    if law.power == 1:
        return law.E + one + two
    return law.E + (one ** (1 / law.power) + two ** (1 / law.power)) ** law.power


def forecast(
    rows: Sequence[Row],
    parameters: float,
    tokens: float,
    unique_tokens: float | None = None,
    *,
    bit: float | None = None,
) -> dict[str, float]:
    """The loss of a run that was not made, with its central 90% interval: {value, low, high}.

    bit: one bit a byte in the unit of the losses (for nats a token ln 2 times the bytes of one), where it is known:
    what is believed of the floor beforehand is then said of the text, and not by the loss of the best row.
    PlanError where the rows are fewer than five or all of one size of run. See posterior.py for what the interval is.
    """
    _positive([*rows, Row(parameters, tokens, 1.0, unique_tokens)])
    if len(rows) < FEWEST:
        raise PlanError(f"{len(rows)} rows are too few for a forecast: it needs at least {FEWEST}")
    if len({r.parameters * r.tokens for r in rows}) < 3:
        raise PlanError("a forecast needs runs of at least 3 different amounts of compute")
    constant = None
    if repeats(rows) or (unique_tokens is not None and tokens > unique_tokens):
        constant = _repeat_constant(rows)
    table = np.array([[r.parameters, worth(r.tokens, r.unique_tokens, constant), r.loss] for r in rows])
    mixture = posterior.average(table, parameters, worth(tokens, unique_tokens, constant), seed_spread(rows), bit=bit)
    value, low, high = (math.exp(posterior.quantile(mixture, q)) for q in (0.5, 0.05, 0.95))
    return {"value": value, "low": low, "high": high}


def _repeat_constant(rows: Sequence[Row]) -> float:
    """R_D* as the tied law finds it, held near the published one: tables seldom determine it well, or at all."""
    apart = min(len({r.parameters for r in rows}), len({r.tokens for r in rows}))
    if not repeats(rows) or len(rows) < needed(rows, "tied") or apart < 2:
        return REPEAT
    found = fit(rows, form="tied").repeat or REPEAT
    return min(max(found, REPEAT / 4), REPEAT * 4)


def worth(tokens: float, unique: float | None, repeat: float | None) -> float:
    """Tokens of fresh text that `tokens` on `unique` ones are worth (Muennighoff et al., 2023, eq. 5)."""
    if unique is None or repeat is None or tokens <= unique:
        return tokens
    return unique * (1 + repeat * (1 - math.exp(-(tokens / unique - 1) / repeat)))


def seed_spread(rows: Sequence[Row]) -> float | None:
    """Standard deviation of log loss between runs that differ in their seed alone; None without such runs."""
    groups: dict[tuple[float, ...], list[float]] = {}
    for r in rows:
        groups.setdefault((r.parameters, r.tokens, r.unique_tokens or 0.0), []).append(math.log(r.loss))
    repeated = [g for g in groups.values() if len(g) > 1]
    if not repeated:
        return None
    squares = sum(float(np.sum((np.array(g) - np.mean(g)) ** 2)) for g in repeated)
    return math.sqrt(squares / sum(len(g) - 1 for g in repeated))


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
    _positive(rows)
    least = needed(rows, form)
    if len(rows) < least:
        raise PlanError(f"{len(rows)} rows are too few for the {form} law: it needs at least {least}")
    sizes, horizons = len({r.parameters for r in rows}), len({r.tokens for r in rows})
    enough = 2 if form == "tied" else 3
    if form == "compute":
        if len({r.parameters * r.tokens for r in rows}) < enough:
            raise PlanError(f"the compute law needs runs of at least {enough} different amounts of compute")
    elif min(sizes, horizons) < enough:
        raise PlanError(
            f"the {form} law needs at least {enough} different sizes and {enough} different numbers of tokens; "
            f"the table has {sizes} and {horizons}"
        )


def _positive(rows: Sequence[Row]) -> None:
    for i, r in enumerate(rows, 1):
        for name in ("parameters", "tokens", "loss", "unique_tokens"):
            value = getattr(r, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise PlanError(f"row {i}: {name} is {value}; it must be a positive number")


def posed(rows: Sequence[Row], form: str) -> tuple[descent.Problem, tuple[float, float]]:
    """The table and the form as a problem for the descent, with the centres of log size and log tokens."""
    size = np.log([6 * r.parameters * r.tokens if form == "compute" else r.parameters for r in rows])
    tokens = np.log([r.tokens for r in rows])
    centre = (float(size.mean()), float(tokens.mean()))
    repeated = repeats(rows) and form != "compute"
    unique = np.log([min(r.unique_tokens or r.tokens, r.tokens) for r in rows]) - centre[1] if repeated else None
    free = sorted([*FREE[form], *([5] if repeated else [])])
    basis = np.eye(len(descent.NAMES))[:, free]
    fixed = np.zeros(len(descent.NAMES))
    if form == "tied":
        basis[4, free.index(3)] = 1.0
    elif form == "compute":
        fixed[2], fixed[4] = descent.TINY, 1.0
    return (
        descent.Problem(
            n=size - centre[0],
            d=tokens - centre[1],
            loss=np.log([r.loss for r in rows]),
            unique=unique,
            basis=basis,
            fixed=fixed,
            low=descent.LOW[free],
            high=descent.HIGH[free],
        ),
        centre,
    )


def _starts(p: descent.Problem, form: str) -> np.ndarray:
    """The linear part solved at every point of a grid of exponents, (S, K)."""
    if form in ("tied", "compute"):
        alpha = beta = np.geomspace(0.02, 2.0, 60)
    else:
        exponents = np.geomspace(0.03, 1.5, GRID)
        alpha, beta = (g.ravel() for g in np.meshgrid(exponents, exponents))
    repeat = np.full(len(alpha), math.log(REPEAT))
    first = descent.linear(p, alpha, beta, repeat, [i for i in FREE[form] if i < 3])
    theta = np.column_stack([first, alpha, beta, repeat, np.zeros(len(alpha))])
    if form == "coupled":  # the same value where the two terms are equal
        theta = np.concatenate(
            [
                np.column_stack(
                    [first[:, 0], first[:, 1:] * 2 ** (1 - c), theta[:, 3:6], np.full(len(alpha), np.log(c))]
                )
                for c in COUPLINGS
            ]
        )
    return np.clip(theta[:, [int(np.argmax(column)) for column in p.basis.T]], p.low, p.high)


def _fit(
    p: descent.Problem, z: np.ndarray, centre: tuple[float, float], form: str, value: float, end: dict[str, Any]
) -> Fit:
    e, a, b, alpha, beta, repeat, power = (float(v) for v in p.fixed + p.basis @ z)
    gone = form == "compute"
    return Fit(
        E=e,
        A=a * math.exp(alpha * centre[0]),
        B=0.0 if gone else b * math.exp(beta * centre[1]),
        alpha=alpha,
        beta=0.0 if gone else beta,
        repeat=math.exp(repeat) if p.unique is not None else None,
        form=form,
        objective=value,
        end=end,
        rows=len(p.loss),
        power=math.exp(power),
    )


def _names(p: descent.Problem) -> list[str]:
    shown = {"a": "A", "b": "B"}
    names = [descent.NAMES[int(np.argmax(column))] for column in p.basis.T]
    return [shown.get(n, n) for n in names]


def _gradient_norm(p: descent.Problem, z: np.ndarray, gradient: np.ndarray) -> float:
    free = ~descent.held(p, z[None], gradient[None])[0]
    return float(np.linalg.norm(gradient * z * free))


def _at_bounds(p: descent.Problem, z: np.ndarray) -> list[str]:
    return [n for n, v, low, high in zip(_names(p), z, p.low, p.high, strict=True) if v <= low or v >= high]


def _condition_number(p: descent.Problem, z: np.ndarray) -> float:
    """Of the derivatives by the parameters, each column scaled to length one: 1 is ideal, 1e8 undetermined."""
    slopes = descent.model(p, z[None])[1][0]
    lengths = np.linalg.norm(slopes, axis=0)
    values = np.linalg.svd(slopes[:, lengths > 0] / lengths[lengths > 0], compute_uv=False)
    return float(values[0] / max(values[-1], 1e-300))


def _influential(p: descent.Problem, z: np.ndarray, form: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows without which the exponents would be the most different: each left out once, all at once."""
    count = len(rows)
    moved, _, _ = descent.descend(p, np.tile(z, (count, 1)), 1.0 - np.eye(count), 100)
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
            "beta_without": 0.0 if form == "compute" else float(theta[i, 4]),
        }
        for i in np.argsort(-shift, kind="stable")[:_INFLUENTIAL]
    ]
