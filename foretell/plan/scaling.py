"""The loss law: bits per byte of a run of N parameters on D tokens of a text, in batches of B.

    L = E + s * (a * (N / Np)^-alpha + (D' / Dp)^-beta)         with  E = e_xz * xz + e_probe * P
    D' = worth(D) / (1 + B / Bc(D)),   Bc(D) = b * (D / Dp)^(1/2)

Chinchilla's form (Hoffmann et al., 2022), counted from a probe: Np and Dp are the size and tokens of a small fixed
model that reads a little of the text first, P is what it reaches, and s is set so that the law passes through it. So a
new text enters by two measured covariates, the probe's P and what xz makes of it. The rest, the shape, is fitted on
runs recorded on other texts (`prior.json`; made by benchmarks/record_prior.py through `fit.py`). Repeated tokens count
as in Muennighoff et al. (2023), batches as in McCandlish et al. (2018), with a critical batch that grows with the
tokens as Zhang et al. (2024) found. N is counted without the embedding.

The interval is that of errors on texts left out of the fit; it widens with the way from the probe to the forecast. Not
handled: other recipes than the default one, overfitting beyond what repeats are worth less, contexts far from 256.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping
from importlib import resources
from typing import Any

# The probe (train/trial.py): parameters without the embedding, tokens, batch.
PROBE_PARAMETERS = 393_984
PROBE_TOKENS = 163_840
PROBE_BATCH, PROBE_CONTEXT = 2048, 128
# Where a text came without its xz figure.
USUAL_XZ = 2.2
# Before anything was recorded: exponents of Besiroglu et al. (2024), and their ratio of the two terms at the probe; the
# repeat constant of Muennighoff et al. (2023).
PROVISIONAL: dict[str, Any] = {
    "a": 0.21,
    "alpha": 0.35,
    "beta": 0.37,
    "floor_xz": 0.15,
    "floor_probe": 0.1,
    "repeat": 15.4,
    "critical_batch": 8000.0,
    "guess": {"scale": 1.4, "power": 0.63},
    "noise": 0.02,
    "drift": 0.15,
    "without_probe": 0.12,
    "quantile": 1.8,
    "course": [],
}


@functools.cache
def prior() -> dict[str, Any]:
    """The fitted law that ships with the package."""
    file = resources.files("foretell.plan") / "prior.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else PROVISIONAL


def worth(tokens: float, unique: float, repeat: float) -> float:
    """Tokens of fresh text that `tokens` on `unique` ones are worth (Muennighoff et al., 2023, eq. 5)."""
    if tokens <= unique or unique <= 0:
        return tokens
    return unique + unique * repeat * (1 - math.exp(-(tokens / unique - 1) / repeat))


def excess(law: Mapping[str, float], parameters: float, tokens: float, batch: float, unique: float) -> float:
    """The law's bracket: what size and data leave above the text's floor, in units of `s`."""
    relative = max(worth(tokens, unique, law["repeat"]), 1.0) / PROBE_TOKENS
    relative /= 1 + batch / (law["critical_batch"] * math.sqrt(max(tokens, 1.0) / PROBE_TOKENS))
    sized: float = law["a"] * (max(parameters, 1.0) / PROBE_PARAMETERS) ** -law["alpha"]
    return sized + relative ** -law["beta"]


def predicted(
    law: Mapping[str, float], parameters: float, tokens: float, batch: float, unique: float, reached: float, xz: float
) -> float:
    """The law's value for a text on which the probe reached `reached` bits per byte."""
    floor = min(max(law["floor_xz"] * xz + law["floor_probe"] * reached, 0.0), 0.9 * reached)
    at_probe = excess(law, PROBE_PARAMETERS, PROBE_TOKENS, PROBE_BATCH, math.inf)
    return floor + (reached - floor) * excess(law, parameters, tokens, batch, unique) / at_probe


def guessed_probe(law: Mapping[str, Any], xz: float) -> float:
    """What the probe would reach on a text, by its xz bits per byte alone: a text that nobody has probed."""
    guess = law["guess"]
    return float(guess["scale"] * xz ** guess["power"])


def half_width(law: Mapping[str, float], value: float, reached: float, probed: bool) -> float:
    """Half of the 90% interval of the logarithm: noise, the way from the probe, and the probe where it is guessed."""
    variance = law["noise"] ** 2 + (law["drift"] * math.log(value / reached)) ** 2
    return law["quantile"] * math.sqrt(variance + (0.0 if probed else law["without_probe"] ** 2))


def bits_per_byte(
    parameters: float,
    tokens: float,
    batch: float,
    corpus: Mapping[str, Any],
    probe: Mapping[str, Any] | None,
    unsure: float = 0.0,
) -> dict[str, float]:
    """The forecast of validation bits per byte at the end of a run, with its 90% interval.

    parameters: without the embedding. tokens: seen in training, repeats included; batch: tokens an optimiser step.
    unsure: a further half-width of the logarithm, in quadrature.
    """
    law = prior()
    xz = corpus.get("xz_bits_per_byte") or USUAL_XZ
    reached = probe["bits_per_byte"] if probe else guessed_probe(law, xz)
    value = predicted(law, parameters, tokens, batch, corpus.get("tokens") or math.inf, reached, xz)
    return spread(value, math.hypot(half_width(law, value, reached, probe is not None), unsure))


def course(
    parameters: float,
    steps: int,
    batch: float,
    corpus: Mapping[str, Any],
    probe: Mapping[str, Any] | None,
    unsure: float = 0.0,
) -> list[dict[str, float]]:
    """The forecast along the run: rows of {step, tokens, value, low, high} in bits per byte.

    A run that has not cooled down stands above the law's value for its tokens; how far, at each share of a run, is the
    mean of the recorded runs, and its spread widens the band.
    """
    law = prior()
    rows = []
    end = bits_per_byte(parameters, steps * batch, batch, corpus, probe, unsure)
    for point in law["course"]:
        step = max(1, round(point["share"] * steps))
        here = bits_per_byte(parameters, step * batch, batch, corpus, probe)["value"] * math.exp(point["above"])
        width = math.hypot(math.log(end["high"] / end["value"]), law["quantile"] * point["spread"])
        rows.append({"step": step, "tokens": step * batch, **spread(here, width)})
    return rows


def spread(value: float, log_half_width: float) -> dict[str, float]:
    """An interval that is symmetric in the logarithm."""
    return {"value": value, "low": value * math.exp(-log_half_width), "high": value * math.exp(log_half_width)}
