"""The fitted constants of the cluster forecast, by name: from `efficiency.json`, or from a user's file of its form.

`benchmarks/fit_cluster.py` writes such files: constants, what they were fitted on, and where the interval comes from.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any

from foretell.errors import PlanError
from foretell.plan.kernels import Constants

BUILT_IN = Path(__file__).with_name("efficiency.json")
FORMAT_VERSION = 1


@cache
def constants(name: str = "megatron", path: Path | None = None) -> Constants:
    """The set of that name. Raises PlanError where there is none, or where a figure is none."""
    file = path or BUILT_IN
    try:
        raw: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    except OSError as e:
        raise PlanError(f"{file}: cannot be read: {e.strerror}") from None
    except ValueError as e:
        raise PlanError(f"{file}: not valid JSON: {e}") from None
    if raw.get("format_version") != FORMAT_VERSION:
        raise PlanError(f"{file}: format_version {raw.get('format_version')!r}; this Foretell reads {FORMAT_VERSION}")
    sets = raw.get("sets", {})
    if name not in sets:
        near = difflib.get_close_matches(name, sets, n=1, cutoff=0.3)
        hint = f"; the nearest is {near[0]}" if near else ""
        raise PlanError(f"{file}: no set of constants is called {name!r}{hint}. There are: {', '.join(sorted(sets))}")
    return _constants(file, name, sets[name]["constants"])


def _constants(file: Path, name: str, values: dict[str, Any]) -> Constants:
    known = {field.name for field in dataclasses.fields(Constants)}
    if missing := known - {"corrections"} - values.keys():
        raise PlanError(f"{file}: set {name} lacks {', '.join(sorted(missing))}")
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise PlanError(f"{file}: set {name}: {key} is no constant{f'; did you mean {near[0]}?' if near else ''}")
        if key != "corrections" and not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
            raise PlanError(f"{file}: set {name}: {key} is {value!r}, and must be a number of at least 0")
    shapes = tuple((int(h), int(tp), int(b), float(f)) for h, tp, b, f in values.get("corrections", ()))
    return Constants(**{**values, "corrections": shapes})
