"""A run folder as the report sees it: whatever is there, read tolerantly.

A run may still be going or may have died at any moment, so every file may be missing, cut short or damaged. What
cannot be read becomes a note on the page; nothing here raises because of a file's content. Numbers go through
`number`, which turns everything that is not a finite number into None.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretell.errors import DataError

JSON_FILES = ("plan.json", "machine.json", "data.json", "measured.json", "eval.json", "samples.json", "map.json")
FILES = ("config.toml", "log.jsonl", *JSON_FILES)
NOT_OF_EVERY_RUN = ("samples.json", "map.json")


@dataclass(frozen=True)
class Run:
    """One run. `files` holds what each JSON file said, by stem: an object, a list, or nothing."""

    name: str
    folder: Path
    config_text: str
    config: dict[str, Any]
    files: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    missing: tuple[str, ...] = ()
    damaged: tuple[str, ...] = ()

    def get(self, path: str) -> Any:
        """`plan.memory_bytes.peak`: a value from the files, or None."""
        return at(self.files, path)

    def number(self, path: str) -> float | None:
        """The number there; of a forecast `{"value", "low", "high"}` its value."""
        return number(self.get(path))

    @property
    def last_step(self) -> float:
        return max((e["step"] for e in (*self.steps[-1:], *self.evals[-1:])), default=0)

    @property
    def planned_steps(self) -> float | None:
        for value in (at(self.config, "train.steps"), self.get("plan.steps"), self.get("measured.steps")):
            if positive(value):
                return positive(value)
        tokens, batch = positive(self.get("plan.tokens")), positive(at(self.config, "train.global_batch_tokens"))
        return tokens / batch if tokens and batch else None

    @property
    def tokens_per_step(self) -> float | None:
        for event in reversed(self.steps):
            tokens = positive(event.get("tokens"))
            if tokens:
                return tokens / event["step"]
        return positive(at(self.config, "train.global_batch_tokens"))

    @property
    def bytes_per_token(self) -> float | None:
        for path in ("data.bytes_per_token", "data.corpus.bytes_per_token", "plan.corpus.bytes_per_token"):
            if positive(self.get(path)):
                return positive(self.get(path))
        size, tokens = (positive(self.get(f"data.splits.train.{k}")) for k in ("bytes", "tokens"))
        return size / tokens if size and tokens else None

    @property
    def bits_per_nat_token(self) -> float | None:
        """What turns this run's nats per token into bits per byte: measured together where possible."""
        pairs = [(e.get("bits_per_byte"), e.get("loss")) for e in reversed(self.evals)]
        pairs += [(self.number(f"{f}.bits_per_byte"), self.number(f"{f}.loss")) for f in ("measured", "plan")]
        for pair in pairs:
            bits, nats = positive(pair[0]), positive(pair[1])
            if bits and nats:
                return bits / nats
        size = self.bytes_per_token
        return 1 / (math.log(2) * size) if size else None


def number(value: Any) -> float | None:
    """A finite float, or None. Takes the value out of a forecast `{"value", "low", "high"}`."""
    if isinstance(value, Mapping):
        value = value.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        size = abs(float(value))
    except OverflowError:
        return None
    if not size <= 1e60:  # beyond any quantity here, and products of two still have a logarithm
        return None
    return float(value) if size >= 1e-60 else 0.0


def positive(value: Any) -> float | None:
    """As `number`, but None unless above zero."""
    found = number(value)
    return found if found is not None and found > 0 else None


def interval(value: Any) -> tuple[float, float] | None:
    """(low, high) of a forecast, or of a two-element list."""
    pair = (value.get("low"), value.get("high")) if isinstance(value, Mapping) else value
    if not isinstance(pair, list | tuple) or len(pair) != 2:
        return None
    low, high = number(pair[0]), number(pair[1])
    return (low, high) if low is not None and high is not None else None


def at(tree: Any, path: str) -> Any:
    """Follow a dotted path through nested objects; None where it ends early."""
    for key in path.split("."):
        if not isinstance(tree, Mapping) or key not in tree:
            return None
        tree = tree[key]
    return tree


def table(tree: Any) -> dict[str, Any]:
    """The object itself, or an empty one."""
    return dict(tree) if isinstance(tree, Mapping) else {}


def rows(tree: Any) -> list[dict[str, Any]]:
    """The objects of a list, passing over anything else."""
    return [dict(r) for r in tree if isinstance(r, Mapping)] if isinstance(tree, list) else []


def read(folder: Path) -> Run:
    """Read a run folder. Raises DataError when it is not one."""
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such run folder")
    present = [name for name in FILES if (folder / name).is_file()]
    if not present:
        raise DataError(f"{folder}: not a run folder; it has none of {', '.join(FILES)}")
    damaged: list[str] = []
    files = {}
    for name in JSON_FILES:
        if name in present:
            try:
                files[name.removesuffix(".json")] = json.loads(_text(folder / name))
            except (ValueError, RecursionError, OSError):
                damaged.append(name)
    config_text, config = _config(folder / "config.toml", damaged) if "config.toml" in present else ("", {})
    steps, evals = _log(folder / "log.jsonl") if "log.jsonl" in present else ([], [])
    return Run(
        name=folder.resolve().name,
        folder=folder,
        config_text=config_text,
        config=config,
        files=files,
        steps=steps,
        evals=evals,
        missing=tuple(name for name in FILES if name not in present and name not in NOT_OF_EVERY_RUN),
        damaged=tuple(damaged),
    )


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8-sig", errors="replace")


def _config(path: Path, damaged: list[str]) -> tuple[str, dict[str, Any]]:
    try:
        text = _text(path)
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        damaged.append(path.name)
        return text, {}
    except (OSError, RecursionError):
        damaged.append(path.name)
        return "", {}


def _log(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Step and eval events in order of step. Where a resume wrote a step again, the later line counts."""
    steps: dict[float, dict[str, Any]] = {}
    evals: dict[float, dict[str, Any]] = {}
    try:
        with path.open(encoding="utf-8", errors="replace") as f:
            for line in f:
                _take(line, steps, evals)
    except OSError:
        pass
    return [steps[s] for s in sorted(steps)], [evals[s] for s in sorted(evals)]


def _take(line: str, steps: dict[float, dict[str, Any]], evals: dict[float, dict[str, Any]]) -> None:
    """File one log line under its step, if it is an event with a step; a half-written line is passed over."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return
    step = number(event.get("step")) if isinstance(event, dict) else None
    if step is None or step < 0:
        return
    if event.get("event") == "step" and step > 0:
        steps[step] = {**event, "step": step}
    elif event.get("event") == "eval":
        evals[step] = {**event, "step": step}
