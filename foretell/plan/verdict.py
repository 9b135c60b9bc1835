"""Forecast beside measurement: signed errors, and whether each interval held."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foretell.config import FORMAT_VERSION
from foretell.errors import ConfigError

HEADLINES = ("seconds", "memory_bytes.peak", "bits_per_byte")
QUANTITIES = (
    *HEADLINES,
    "loss",
    "step_seconds",
    "tokens_per_second",
    "mfu",
    "comm_step_bytes",
    "parameters.total",
    "flops_per_token",
    "flops_total",
    "tokens",
    "steps",
)


def stored(file: Path) -> dict[str, Any]:
    """plan.json or measured.json of a finished run. ConfigError where it is absent, damaged or of a newer Foretell."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; `foretell verify` needs a finished run folder") from None
    except ValueError as e:
        raise ConfigError(f"{file} is damaged: {e}") from None
    if not isinstance(content, dict) or not isinstance(content.get("steps"), int):
        raise ConfigError(f"{file} is damaged: it does not say how many steps the run has")
    version = content.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise ConfigError(f"{file}: format_version {version} is not {FORMAT_VERSION}, the one this Foretell reads")
    return content


def verify(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """Compare plan.json with measured.json.

    Returns `quantities`, each {name, predicted, low, high, measured, error_percent, held}; `held` is None where there
    was no interval. `held_share` is over those with one. `headline_held` is False only when a headline fell outside its
    interval, or the run was stopped for overrunning its time.
    """
    quantities = []
    for name in QUANTITIES:
        guess, got = _at(predicted, name), _at(measured, name)
        value = guess.get("value") if isinstance(guess, Mapping) else guess
        if isinstance(got, Mapping):
            got = got.get("value")
        if not _is_number(value) or not _is_number(got):
            continue
        low, high = (guess.get("low"), guess.get("high")) if isinstance(guess, Mapping) else (None, None)
        held = low <= got <= high if _is_number(low) and _is_number(high) else None
        if name == "seconds" and str(measured.get("stopped") or "finished") != "finished":
            held = False
        quantities.append(
            {
                "name": name,
                "predicted": value,
                "low": low,
                "high": high,
                "measured": got,
                "error_percent": 100 * (got / value - 1) if value else None,
                "held": held,
            }
        )
    judged = [q["held"] for q in quantities if q["held"] is not None]
    return {
        "quantities": quantities,
        "held_share": sum(judged) / len(judged) if judged else None,
        "headline_held": all(q["held"] is not False for q in quantities if q["name"] in HEADLINES),
    }


def _at(tree: Mapping[str, Any], path: str) -> Any:
    value: Any = tree
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
