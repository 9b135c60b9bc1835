"""What `foretell ladder fit` answers: the law through a table, where its search ended, and forecasts of targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from foretell.errors import ConfigError
from foretell.ladder import table as tables
from foretell.plan import accuracy, law

Target = tuple[float, float, float | None]


def target(text: str) -> Target:
    """`N,D` or `N,D,UNIQUE`, such as 7B,4T: parameters, tokens, unique tokens."""
    parts = text.split(",")
    values = [tables.number(p) for p in parts]
    if len(parts) not in (2, 3) or any(v is None or v <= 0 for v in values):
        raise ConfigError(f"--target {text}: it must be PARAMETERS,TOKENS such as 7B,4T or 6.9e9,1.4e11")
    return values[0] or 0.0, values[1] or 0.0, (values[2] if len(values) == 3 else None)


def pairs(option: str, texts: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE words as a dictionary. The last `=` divides, for columns may hold one."""
    found = {}
    for text in texts:
        key, equals, value = text.partition("=") if option == "--columns" else text.rpartition("=")
        if not (key and equals and value):
            raise ConfigError(f"{option} {text}: it must be KEY=VALUE")
        found[key.strip()] = value.strip()
    return found


def fit_table(
    path: Path,
    targets: Sequence[Target] = (),
    *,
    form: str = "chinchilla",
    columns: Mapping[str, str] | None = None,
    where: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Fit the law to the runs in a file and forecast the targets: the object that --json prints.

    DataError or PlanError where the table cannot be read or determines no law. A target's `law` is the value of the
    fitted form alone, beside the forecast, which averages over laws.
    """
    read = tables.read(path, columns, where)
    fitted = law.fit(read.rows, form=form)
    result: dict[str, Any] = {
        "table": str(path),
        "columns": read.columns,
        "rows": len(read.rows),
        "left_out": read.left_out,
        "passed_over": read.passed_over,
        "fit": asdict(fitted),
    }
    graded = [(r.loss, a) for r, a in zip(read.rows, read.accuracies, strict=True) if a is not None]
    curve = accuracy.fit([g[0] for g in graded], [g[1] for g in graded]) if graded else None
    if curve is not None:
        result["accuracy"] = asdict(curve)
    largest = max(6 * r.parameters * r.tokens for r in read.rows)
    forecasts = []
    for parameters, tokens, unique in targets:
        found: dict[str, Any] = {"parameters": parameters, "tokens": tokens, "unique_tokens": unique}
        found.update(law.forecast(read.rows, parameters, tokens, unique, bit=read.bit))
        found["law"] = law.loss(fitted, parameters, tokens, unique)
        found["compute_ratio"] = 6 * parameters * tokens / largest
        if curve is not None:
            found["accuracy"] = accuracy.forecast(curve, found)
        forecasts.append(found)
    if forecasts:
        result["forecast"] = forecasts[0]
        result["forecasts"] = forecasts
    return result
