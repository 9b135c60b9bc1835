"""The folder of a ladder: what stands where, and what is written when.

    LADDER/ladder.json            the design: the common config, the execution path, every rung; written before all
           rungs/NAME/            an ordinary run folder each, without checkpoints once nothing needs them
           rungs.csv              a line for each finished rung: what `foretell ladder fit` reads
           targets/NAME/forecast.json   dated, and written before the target starts; never written over
                        measured.json   the score; run/ is the target's run folder

Not handled: changing a design. Another design is another ladder.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretell import config as run_config
from foretell.checkpoint import files
from foretell.config import FORMAT_VERSION, RunConfig
from foretell.errors import ConfigError
from foretell.ladder.design import Rung

# parameters, tokens and loss are what a law is fitted to; the rest is for the reader.
COLUMNS = (
    *("rung", "parameters", "tokens", "loss", "unique_tokens", "seed", "bits_per_byte", "non_embedding", "flops"),
    *("hidden_size", "num_hidden_layers", "steps", "global_batch_tokens", "lr", "embedding_lr", "seconds"),
)


@dataclass(frozen=True)
class Ladder:
    """A ladder's design. `base`: the settled config of the target that it was made for.

    `given`: rates and batch that were set by hand, for all runs; the rest follow the rule.
    """

    folder: Path
    base: RunConfig
    given: dict[str, Any]
    rungs: list[Rung]
    fingerprint: str

    def run_folder(self, rung: str) -> Path:
        """Where a rung trains."""
        return self.folder / "rungs" / rung

    @property
    def table(self) -> Path:
        """rungs.csv."""
        return self.folder / "rungs.csv"


def write_design(ladder: Ladder, created: str) -> None:
    """ladder.json, by which the ladder is the same one when it goes on."""
    write_json(
        ladder.folder / "ladder.json",
        {
            "format_version": FORMAT_VERSION,
            "created": created,
            "fingerprint": ladder.fingerprint,
            "base": ladder.base.model_dump(exclude_none=True),
            "given": ladder.given,
            "rungs": [r.record() for r in ladder.rungs],
        },
    )


def read_design(folder: Path) -> Ladder | None:
    """The ladder of a folder; None where there is none yet. Raises ConfigError for a damaged or newer file."""
    stored = read_json(folder / "ladder.json")
    if stored is None:
        return None
    try:
        base = run_config.validate(stored["base"], str(folder / "ladder.json"))
        rungs = [Rung(**r) for r in stored["rungs"]]
        return Ladder(folder, base, stored.get("given", {}), rungs, stored["fingerprint"])
    except (KeyError, TypeError) as e:
        raise ConfigError(f"{folder / 'ladder.json'} is damaged: {e}") from None


def rows(ladder: Ladder) -> list[dict[str, Any]]:
    """What the finished rungs came out at, in the order of the design."""
    unique = None
    found = []
    for rung in ladder.rungs:
        run = ladder.run_folder(rung.name)
        measured = read_json(run / "measured.json")
        if measured is None:
            continue
        unique = unique or (read_json(run / "data.json") or {})["splits"]["train"]["tokens"]
        own = rung.train | rung.record()
        result = {k: measured[k] for k in ("loss", "bits_per_byte", "seconds")}
        found.append({"rung": rung.name, "unique_tokens": min(unique, rung.tokens), **own, **result})
    return found


def write_table(ladder: Ladder, found: list[dict[str, Any]]) -> None:
    """rungs.csv, all of it."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(found)
    files.write_atomic(ladder.table, text.getvalue().encode())


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def read_json(path: Path) -> dict[str, Any] | None:
    """The content of a file of ours; None where it is not there. Raises ConfigError where it cannot be used."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as e:
        raise ConfigError(f"{path} is damaged: {e}") from None
    version = content.get("format_version", FORMAT_VERSION) if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise ConfigError(f"{path}: format_version {version} is not {FORMAT_VERSION}, the one this Foretell reads")
    return dict(content)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a file of the folder, or replace it, at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomic(path, (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode())
