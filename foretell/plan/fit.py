"""Fits the loss law to recorded runs, and measures its errors on texts left out.

Least squares of log bits per byte with Huber's loss (delta 0.02), each text weighted alike, and a weak pull of every
parameter towards its published or provisional value, so that what the runs do not determine stays where it was. Gauss-
Newton with Levenberg's damping on numeric derivatives; seven parameters and some forty runs need no more. Errors are
measured leaving out one text at a time: the left-out text enters by its own probe, as a new text would.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from foretell.plan import scaling

Rows = list[dict[str, Any]]

# Fitted in the logarithm, except the floors. The last number: how firmly the value is held, as a standard deviation.
_HELD = {
    "a": 0.5,
    "alpha": 0.3,
    "beta": 0.3,
    "floor_xz": 0.15,
    "floor_probe": 0.15,
    "repeat": 0.7,
    "critical_batch": 1.0,
}
_LINEAR = {"floor_xz", "floor_probe"}
_NOISE = 0.02
_HUBER = 0.02


def fit(rows: Rows) -> dict[str, Any]:
    """The law's shape on all rows, with `guess`; the spreads are not in it (see `spreads`)."""
    start = _packed(scaling.PROVISIONAL)
    pull = np.array([1 / s for s in _HELD.values()])
    weights = _weights(rows)

    def residuals(x: np.ndarray) -> np.ndarray:
        return np.concatenate([weights * _errors(_unpacked(x), rows) / _NOISE, pull * (x - start)])

    found = _least_squares(residuals, start, len(rows))
    texts = {r["corpus"]: r for r in rows}
    return {
        **_unpacked(found),
        "guess": _guess(list(texts.values())),
        "runs": len(rows),
        "texts": len(texts),
        "recipe": rows[0].get("recipe"),
    }


def _guess(texts: Rows) -> dict[str, float]:
    """What the probe reaches on a text by its xz figure alone: probe = scale * xz^power."""
    x = np.log([t["text"]["xz_bits_per_byte"] for t in texts])
    y = np.log([t["probe"]["bits_per_byte"] for t in texts])
    power = float(np.polyfit(x, y, 1)[0]) if np.ptp(x) > 0.1 else 1.0
    return {"scale": math.exp(float(np.mean(y) - power * np.mean(x))), "power": power}


def leave_one_out(rows: Rows) -> dict[str, dict[str, Any]]:
    """For each text, the errors log(measured / forecast) of its runs under the law fitted on the other texts."""
    result = {}
    for name in dict.fromkeys(r["corpus"] for r in rows):
        law = fit([r for r in rows if r["corpus"] != name])
        mine = [r for r in rows if r["corpus"] == name]
        text, reached = mine[0]["text"], mine[0]["probe"]["bits_per_byte"]
        guessed = scaling.guessed_probe(law, text["xz_bits_per_byte"])
        result[name] = {
            "text": text,
            "probe": reached,
            "with_probe": [math.log(r["bits_per_byte"] / _value(law, r, reached)) for r in mine],
            "without_probe": [math.log(r["bits_per_byte"] / _value(law, r, guessed)) for r in mine],
            "moved": [math.log(r["bits_per_byte"] / reached) for r in mine],
        }
    return result


def spreads(rows: Rows, out: Mapping[str, Mapping[str, Any]], law: Mapping[str, Any]) -> dict[str, Any]:
    """`noise`, `drift`, `without_probe`, `quantile` and `course` of the law, from the errors on texts left out.

    The error's variance is noise^2 + (drift * way)^2, where the way is log(measured / probe): found by maximum
    likelihood on a grid, each text weighted alike. The quantile is Student's, for a text that was not in the fit.
    """
    texts = [(np.array(o["with_probe"]), np.array(o["moved"])) for o in out.values()]
    best = (math.inf, 0.0, 0.0)
    for noise in np.geomspace(0.004, 0.08, 40):
        for drift in np.linspace(0.0, 0.5, 51):
            cost = 0.0
            for errors, moved in texts:
                variance = noise**2 + (drift * moved) ** 2
                cost += float(np.mean(errors**2 / variance + np.log(variance)))
            best = min(best, (cost, float(noise), float(drift)))
    n = len(texts)
    guessed = [np.mean(np.array(o["without_probe"])) - np.mean(np.array(o["with_probe"])) for o in out.values()]
    return {
        "noise": best[1],
        "drift": best[2],
        "without_probe": math.sqrt(float(np.mean(np.square(guessed)))),
        "quantile": student_95(max(1, n - 1)) * math.sqrt(1 + 1 / n),
        "course": _course(rows, law),
    }


def student_95(degrees: int) -> float:
    """The 95% point of Student's t (Cornish-Fisher from the normal; 0.3% off at 5 degrees)."""
    z = 1.6448536269514722
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def _course(rows: Rows, law: Mapping[str, Any]) -> list[dict[str, float]]:
    """How far above the law's value for the tokens so far a run stands at each tenth of it."""
    above = defaultdict(list)
    for r in rows:
        if len(r["curve"]) < 8:
            continue
        reached, end = r["probe"]["bits_per_byte"], r["curve"][-1][1]
        for share, bits in r["curve"]:
            here = _value(law, {**r, "tokens": share * r["tokens"]}, reached) / _value(law, r, reached)
            above[round(10 * share) / 10].append(math.log(bits / end / here))
    return [
        {"share": share, "above": float(np.mean(v)), "spread": float(np.std(v))}
        for share, v in sorted(above.items())
        if share > 0
    ]


def _value(law: Mapping[str, Any], row: Mapping[str, Any], reached: float) -> float:
    text = row["text"]
    return scaling.predicted(
        law, row["non_embedding"], row["tokens"], row["batch_tokens"], text["tokens"], reached, text["xz_bits_per_byte"]
    )


def _errors(law: Mapping[str, float], rows: Rows) -> np.ndarray:
    return np.array([math.log(_value(law, r, r["probe"]["bits_per_byte"]) / r["bits_per_byte"]) for r in rows])


def _weights(rows: Rows) -> np.ndarray:
    """Square roots of weights that sum to the number of rows, the same sum for each text."""
    names = [r["corpus"] for r in rows]
    share = len(rows) / len(set(names))
    return np.array([math.sqrt(share / names.count(n)) for n in names])


def _packed(law: Mapping[str, float]) -> np.ndarray:
    return np.array([law[k] if k in _LINEAR else math.log(law[k]) for k in _HELD])


def _unpacked(x: np.ndarray) -> dict[str, float]:
    return {k: float(v if k in _LINEAR else np.exp(np.clip(v, -20, 20))) for k, v in zip(_HELD, x, strict=True)}


def _least_squares(residuals: Callable[[np.ndarray], np.ndarray], start: np.ndarray, robust: int) -> np.ndarray:
    """Minimise the sum of Huber's loss of the first `robust` residuals and squares of the rest."""

    def reweighted(x: np.ndarray) -> np.ndarray:
        r = residuals(x)
        limit = _HUBER / _NOISE
        big = np.abs(r[:robust]) > limit
        # A Huber residual as a square: sign * sqrt(2 * limit * |r| - limit^2).
        part = np.sign(r[:robust]) * np.sqrt(np.maximum(2 * limit * np.abs(r[:robust]) - limit**2, 0.0))
        return np.concatenate([np.where(big, part, r[:robust]), r[robust:]])

    x, damping = start.copy(), 1e-2
    r = reweighted(x)
    for _ in range(200):
        slope = np.stack([(reweighted(x + h) - r) / 1e-5 for h in 1e-5 * np.eye(len(x))], axis=1)
        normal = slope.T @ slope
        move = np.linalg.solve(normal + damping * np.diag(np.diag(normal) + 1e-9), -slope.T @ r)
        trial = reweighted(x + np.clip(move, -1.0, 1.0))
        if trial @ trial < r @ r:
            gain = float(r @ r - trial @ trial)
            x, r, damping = x + np.clip(move, -1.0, 1.0), trial, max(damping / 4, 1e-9)
            if gain < 1e-10:
                break
        else:
            damping *= 5
            if damping > 1e12:
                break
    return x
