"""A finished ladder as a budget needs it: the law through its rungs, and the recipe and text that the law holds for.

`foretell train --budget 2h --ladder runs/code-ladder` chooses the size by this law instead of the one that ships, and
trains with the ladder's recipe, for a law of one recipe says nothing of another. Repeats of the text count at their
worth (law.py): by the rungs' own constant where rungs repeated theirs, else by the published one.

Reads ladder.json and rungs.csv (docs/ladder.md). Not handled: shapes other than the ladder's, which is that of its
first target made larger or smaller.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foretell import config as run_config
from foretell.config import RunConfig
from foretell.errors import ConfigError
from foretell.plan import law

# Of [train], what is a run's own, or changes no number but its speed; all else is the recipe.
_OWN = {"steps", "tokens", "budget", "ladder", "seed", "micro_batch_size", "loss_chunk_tokens", "save_every", "keep"}
_OWN |= {
    "eval_every",
    "eval_tokens",
    "global_batch_tokens",
    "lr",
    "embedding_lr",
    "warmup_steps",
    "compile",
    "attention",
}
# Of [model], what follows from a size.
_SIZES = {"hidden_size", "num_hidden_layers", "intermediate_size", "head_dim", "num_attention_heads"}
_SIZES |= {"num_key_value_heads", "moe_intermediate_size", "vocab_size", "max_position_embeddings"}


@dataclass(frozen=True)
class Rungs:
    """`rows`: the finished runs; `fit`: the law through them, whose losses are nats per token.

    bits_per_nat: of the text they were scored on. given: rates and batch that were set by hand for all runs.
    fingerprint: of the text.
    """

    folder: Path
    rows: list[law.Row]
    fit: law.Fit
    bits_per_nat: float
    base: RunConfig
    given: dict[str, Any]
    fingerprint: str

    def loss(self, parameters: float, tokens: float, unique: float) -> float:
        """The law's value in nats per token; `unique` of the tokens are there in all."""
        return law.loss(self.fit, parameters, tokens, min(tokens, unique))

    def forecast(self, parameters: float, tokens: float, unique: float) -> dict[str, dict[str, float]]:
        """`loss` and `bits_per_byte` with their 90% intervals, averaged over laws as the ladder's own forecasts are."""
        nats = law.forecast(self.rows, parameters, tokens, min(tokens, unique))
        return {"loss": nats, "bits_per_byte": {k: v * self.bits_per_nat for k, v in nats.items()}}

    def layers(self, width: int) -> int:
        """Layers of a model of that width in the ladder's shape."""
        sizes = self.base.model.sizes
        return max(2, round(sizes.L * width / sizes.D))


def read(folder: str) -> Rungs:
    """The ladder in a folder. Raises ConfigError where there is none, it is damaged, or its rungs are not finished."""
    own = Path(folder)
    path = own / "ladder.json"
    if not path.is_file():
        raise ConfigError(
            f"train.ladder: {own} is no ladder's folder: it has no ladder.json; see `foretell ladder run`"
        )
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        version = stored.get("format_version")
        if version != run_config.FORMAT_VERSION:
            raise ConfigError(f"{path}: format_version {version} is not {run_config.FORMAT_VERSION}, which this reads")
        base, planned = run_config.validate(stored["base"], str(path)), len(stored["rungs"])
        fingerprint, given = str(stored["fingerprint"]), dict(stored.get("given", {}))
        lines = _lines(own / "rungs.csv")
        rows = [_row(line) for line in lines]
        bits = float(lines[0]["bits_per_byte"]) / rows[0].loss if lines else 0.0
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        raise ConfigError(f"{own} is damaged: {e!r}") from None
    if len(rows) < planned:
        raise ConfigError(
            f"train.ladder: {own} has finished {len(rows)} of its {planned} rungs; go on with it first: "
            f"foretell ladder run --name {own.name} --out {own.parent}"
        )
    return Rungs(own, rows, _fit(rows), bits, base, given, fingerprint)


def _row(line: dict[str, str]) -> law.Row:
    size, tokens, loss, unique = (float(line[k]) for k in ("parameters", "tokens", "loss", "unique_tokens"))
    return law.Row(size, tokens, loss, unique, int(line["seed"]))


def _fit(rows: list[law.Row]) -> law.Fit:
    """The law; R_D* as it was published where the rungs saw their text once and so say nothing of repeats."""
    fitted = law.fit(rows)
    return fitted if fitted.repeat is not None else replace(fitted, repeat=law.REPEAT)


def _lines(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def with_recipe(config: RunConfig, fingerprint: str | None) -> RunConfig:
    """The config with the recipe of the ladder that [train] names; as it is where it names none.

    fingerprint: of the text that it would train on. Raises ConfigError where the text, or what was set, is another
    than the ladder's.
    """
    if config.train.ladder is None:
        return config
    ladder = read(config.train.ladder)
    if fingerprint is not None and fingerprint != ladder.fingerprint:
        raise ConfigError(
            f"the ladder in {ladder.folder} was trained on other data (fingerprint {ladder.fingerprint[:12]}) than is "
            f"given now ({fingerprint[:12]}); give the same data, or leave the ladder out"
        )
    wanted = {"train": _recipe(ladder.base.train, _OWN) | ladder.given, "model": _recipe(ladder.base.model, _SIZES)}
    wanted["evaluate"] = {"max_tokens": ladder.base.evaluate.max_tokens}  # the loss is that of the same text
    clashes = [
        f"{name}.{key}: {value} there, {getattr(getattr(config, name), key)} now"
        for name, table in wanted.items()
        for key, value in table.items()
        if key in getattr(config, name).model_fields_set and getattr(getattr(config, name), key) not in (value, "auto")
    ]
    if clashes:
        raise ConfigError(
            f"the ladder in {ladder.folder} was trained with another recipe: {'; '.join(clashes)}. Its law "
            "says nothing of that: leave it out, or leave the ladder out"
        )
    return run_config.updated(config, **wanted)


def _recipe(table: Any, own: set[str]) -> dict[str, Any]:
    return {k: v for k, v in table.model_dump(exclude_none=True).items() if k not in own}
