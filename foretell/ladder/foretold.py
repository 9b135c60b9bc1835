"""The target of a ladder: forecast by the law of the rungs, written down before it starts, then trained and scored.

forecast.json is written once and never written over; measured.json names its digest, and the target's own plan.json,
dated later, carries the forecast as its loss, so that `foretell verify` and the report judge by it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foretell.config import FORMAT_VERSION, RunConfig
from foretell.data import Data
from foretell.ladder import design, folder
from foretell.ladder.folder import Ladder
from foretell.plan import flops, law
from foretell.train import begin, go_on

Display = Callable[[dict[str, Any]], None]
# By then models of two layers or more have learned to copy from their context, which lowers the loss in a step of its
# own (Olsson et al., 2022); here between 2.5 and 6 million tokens (docs/log.md). A law through shorter runs misses it.
COPYING_TOKENS = 10_000_000


def name_of(target: RunConfig) -> str:
    """A folder name that tells targets of a ladder apart."""
    sizes, t = target.model.sizes, target.train
    tokens = design.tokens_of(target)
    return f"w{sizes.D}-l{sizes.L}-{tokens}-s{t.seed}"


def law_rows(table: Sequence[dict[str, Any]]) -> list[law.Row]:
    """The rows of a table as `plan/law.py` takes them: parameters are all of the model's."""
    keys = ("parameters", "tokens", "loss", "unique_tokens", "seed")
    return [law.Row(**{k: row[k] for k in keys}) for row in table]


def foretold(
    ladder: Ladder, target: RunConfig, corpus: dict[str, Any], table: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """The forecast of a settled target: the one on record, else made from the table now and put on record."""
    path = ladder.folder / "targets" / name_of(target) / "forecast.json"
    stored = folder.read_json(path)
    if stored is not None:
        return stored
    t, count = target.train, flops.parameters(target.model)
    tokens, cost = design.tokens_of(target), design.cost(target)
    rows = law_rows(table)
    unique = min(tokens, corpus["tokens"])
    largest = max(row["flops"] for row in table)
    bits_per_nat = table[0]["bits_per_byte"] / table[0]["loss"]  # of the text that all are scored on
    longest = max(row["tokens"] for row in table)
    forecast = law.forecast(rows, count["total"], tokens, unique, bit=1 / bits_per_nat)
    record = {
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "target": {
            "name": name_of(target),
            "hidden_size": target.model.sizes.D,
            "num_hidden_layers": target.model.sizes.L,
            "parameters": count["total"],
            "non_embedding": count["non_embedding"],
            "tokens": tokens,
            "unique_tokens": unique,
            "flops": cost,
            **{k: getattr(t, k) for k in ("steps", "global_batch_tokens", "lr", "embedding_lr", "seed")},
        },
        "forecast": forecast,
        "bits_per_byte": {k: forecast[k] * bits_per_nat for k in ("value", "low", "high")},
        "fit": asdict(law.fit(rows)),
        "largest_rung_flops": largest,
        "compute_ratio": cost / largest,
        "rungs": len(rows),
        "caution": caution(longest, tokens),
        "rungs_sha256": folder.digest(ladder.table),
    }
    folder.write_json(path, record)
    return record


def caution(longest: float, tokens: float) -> str | None:
    """What to think of a forecast for so many tokens from rungs of which the longest has so many; None: nothing."""
    if longest >= COPYING_TOKENS or tokens <= longest:
        return None
    return (
        f"the longest rung ends at {longest:,.0f} tokens, the target at {tokens:,.0f}: models learn to copy from their "
        f"context within about {COPYING_TOKENS:,} tokens, and where rungs end before it the target may come out well "
        "below what they say (by 4 to 18% where it was measured); give ladder.rung_flops so that rungs are longer"
    )


def climbed(
    ladder: Ladder,
    target: RunConfig,
    data: Data,
    foretelling: dict[str, Any],
    *,
    machine: dict[str, Any],
    display: Display,
) -> None:
    """Train the target, from where it stands, and score the forecast on record."""
    own = ladder.folder / "targets" / name_of(target)
    if (own / "measured.json").exists():
        return
    begin(target, data, own / "run", 1, machine=machine, resume=True, display=display)
    _promise(own / "run", foretelling)
    result = go_on(own / "run", data, resume=True, display=display)
    forecast, loss = foretelling["forecast"], result["loss"]
    folder.write_json(
        own / "measured.json",
        {
            "format_version": FORMAT_VERSION,
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            "started": (folder.read_json(own / "run" / "plan.json") or {})["created"],
            "forecast_created": foretelling["created"],
            "forecast_sha256": folder.digest(own / "forecast.json"),
            "measured": loss,
            "error_percent": 100 * (loss / forecast["value"] - 1),
            "held": forecast["low"] <= loss <= forecast["high"],
            **{k: result[k] for k in ("bits_per_byte", "steps", "tokens", "seconds", "stopped")},
        },
    )


def _promise(run: Path, foretelling: dict[str, Any]) -> None:
    """Let the run's own forecast say what the ladder says of its loss."""
    plan = folder.read_json(run / "plan.json") or {}
    if plan.get("loss_from") != "ladder":
        loss = {k: foretelling["forecast"][k] for k in ("value", "low", "high")}
        changed = {**plan, "loss": loss, "bits_per_byte": foretelling["bits_per_byte"], "loss_from": "ladder"}
        changed.pop("loss_curve", None)  # of the shipped law, which says another end
        folder.write_json(run / "plan.json", changed)


def scored(ladder: Ladder, foretelling: dict[str, Any], table: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The fields of `foretell ladder run --json`; measured, error_percent and held are None before the climb."""
    own = ladder.folder / "targets" / foretelling["target"]["name"]
    measured = folder.read_json(own / "measured.json") or {}
    return {
        "ladder": str(ladder.folder),
        "target": foretelling["target"],
        "created": foretelling["created"],
        **{k: foretelling[k] for k in ("fit", "forecast", "compute_ratio")},
        "caution": foretelling.get("caution"),
        **{k: measured.get(k) for k in ("measured", "error_percent", "held")},
        "rungs": [dict(row) for row in table],
    }
