"""The loss law: bits per byte of a run of N parameters on D tokens of a text.

    L(N, D) = E + s * (a * N^-alpha + D'^-beta),     D' = D repeated at its worth

Chinchilla's form (Hoffmann et al., 2022) per text. What belongs to the text, E and s, comes from two covariates measured
on it: what xz makes of it, and what a small fixed probe model reaches on it after a fixed number of tokens. What does not,
the shape, is fitted on runs recorded on other texts (`prior.json`; `benchmarks/record_prior.py` makes it). Repeated
tokens count as in Muennighoff et al. (2023). The interval is that of errors on texts left out of the fit.
"""

from __future__ import annotations

import functools
import json
import math
from importlib import resources
from typing import Any

# The probe (train/trial.py): non-embedding parameters and tokens.
PROBE_PARAMETERS = 393_728
PROBE_TOKENS = 163_840
PROVISIONAL = {
    "alpha": 0.34,
    "beta": 0.37,
    "a": 0.9,
    "floor_xz": 0.18,
    "repeat": 15.0,
    "probe_over_xz": 1.35,
    "spread": 0.10,
    "spread_without_probe": 0.18,
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


def bits_per_byte(
    parameters: float, tokens: float, corpus: dict[str, Any], probe: dict[str, Any] | None
) -> dict[str, float]:
    """The forecast of validation bits per byte at the end of a run, with its 90% interval.

    parameters: without the embedding. tokens: seen in training, repeats included.
    """
    law = prior()
    xz = corpus.get("xz_bits_per_byte") or 2.2
    reached = probe["bits_per_byte"] if probe else law["probe_over_xz"] * xz
    floor = min(law["floor_xz"] * xz, 0.9 * reached)

    def excess(n: float, d: float) -> float:
        return law["a"] * (n / PROBE_PARAMETERS) ** -law["alpha"] + (d / PROBE_TOKENS) ** -law["beta"]

    scale = (reached - floor) / excess(PROBE_PARAMETERS, PROBE_TOKENS)
    fresh = worth(tokens, corpus.get("tokens") or tokens, law["repeat"])
    value = floor + scale * excess(max(parameters, 1.0), max(fresh, 1.0))
    half = law["spread"] if probe else law["spread_without_probe"]
    return {"value": value, "low": value * math.exp(-half), "high": value * math.exp(half)}
