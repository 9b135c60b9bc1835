"""How well a ladder's target will do a task: the rungs are asked, a curve from loss to score, a forecast on record.

    LADDER/tasks/NAME.json                what each finished rung got right, and each target that was trained
           targets/NAME/task-TASK.json    dated: what is foretold of that target's score; never written over
                        scored-TASK.json  what came of it, with the digest of the forecast

A rung's counts are written when it has been asked, so what was interrupted goes on. A target is asked only once the
forecast of it is on record; only rungs are in the fit. The loss in the forecast is the one on record in forecast.json.
Not handled: several processes at once, a task whose questions change (give it another name).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from foretell.config import FORMAT_VERSION
from foretell.errors import ConfigError, ModelError
from foretell.evaluate import questions
from foretell.evaluate.questions import Questions
from foretell.ladder import folder
from foretell.ladder.folder import Ladder
from foretell.models import source
from foretell.models.decoder import Decoder
from foretell.plan import downstream

Display = Callable[[dict[str, Any]], None]


def score(
    path: Path, data: Path, *, task: str | None = None, limit: int | None = None, display: Display | None = None
) -> dict[str, Any]:
    """Ask the finished rungs of the ladder in `path` the questions in `data`, forecast its targets, and ask those.

    task: its name, the file's when None. limit: the first so many questions. Returns ladder, task, kind, items, chance,
    rungs, fit, targets. Raises ConfigError where there is no ladder or the task of that name has other questions,
    DataError for a file that holds none, PlanError where fewer than five rungs are finished.
    """
    show = display or (lambda event: None)
    ladder = folder.read_design(Path(path))
    if ladder is None:
        raise ConfigError(f"{path} is no ladder: it has no ladder.json; `foretell ladder run` makes one")
    asked = questions.read(Path(data), limit)
    name = task or Path(data).name.removesuffix(".gz").removesuffix(".jsonl")
    if not name or name[0] == "." or any(c in name for c in "/\\"):
        raise ConfigError(f"--task {name}: it becomes a file's name; leave slashes and a leading dot out")
    record = _record(ladder, name, asked)
    rungs = folder.rows(ladder)
    for number, row in enumerate(rungs):
        if row["rung"] not in record["rungs"]:
            show({"event": "asked", "name": row["rung"], "done": number, "of": len(rungs)})
            record["rungs"][row["rung"]] = _graded(ladder.run_folder(row["rung"]), row["loss"], asked)
            _keep(ladder, name, record)
    models = [downstream.Graded(r["loss"], r["correct"], r["items"]) for r in record["rungs"].values()]
    record["fit"] = downstream.told(downstream.fit(models, asked.chance))
    _keep(ladder, name, record)
    targets = []
    for own in sorted(p.parent for p in (ladder.folder / "targets").glob("*/forecast.json")):
        foretold = _foretold(own, name, record, models)
        show({"event": "foretold", "name": own.name, **foretold})
        targets.append({"name": own.name, **foretold, **_scored(own, name, foretold, record, models, asked)})
        if targets[-1]["measured"] is not None:
            result = {k: targets[-1][k] for k in ("loss", "correct", "items")}
            record["targets"][own.name] = {**result, "accuracy": targets[-1]["measured"]}
            _keep(ladder, name, record)
    known = {k: record[k] for k in ("task", "kind", "items", "chance")}
    graded = [{"rung": rung, **r} for rung, r in record["rungs"].items()]
    return {"ladder": str(path), **known, "rungs": graded, "fit": record["fit"], "targets": targets}


def _record(ladder: Ladder, name: str, asked: Questions) -> dict[str, Any]:
    """tasks/NAME.json as it stands, or a new one."""
    stored = folder.read_json(ladder.folder / "tasks" / f"{name}.json")
    if stored is None:
        known = {"task": name, "kind": asked.kind, "items": len(asked), "chance": asked.chance}
        return {"format_version": FORMAT_VERSION, **known, "digest": asked.digest, "rungs": {}, "targets": {}}
    if stored["digest"] != asked.digest:
        raise ConfigError(
            f"{ladder.folder}: the task {name} was {stored['items']:,} other questions than the {len(asked):,} given "
            "now; give another name with --task, or the same file and --limit"
        )
    return stored


def _keep(ladder: Ladder, name: str, record: dict[str, Any]) -> None:
    folder.write_json(ladder.folder / "tasks" / f"{name}.json", record)


def _graded(run: Path, loss: float, asked: Questions) -> dict[str, Any]:
    """What the model of a run folder gets right."""
    model, tokenizer = source.load(run)
    if not isinstance(model, Decoder):
        raise ModelError(f"{run}: a task is asked of a model that goes on with a text, not of {type(model).__name__}")
    correct = sum(questions.right(model, tokenizer, asked))
    return {"loss": loss, "correct": correct, "items": len(asked), "accuracy": correct / len(asked)}


def _foretold(own: Path, name: str, record: dict[str, Any], models: list[downstream.Graded]) -> dict[str, Any]:
    """The forecast of a target's score: the one on record, else made now and put on record."""
    path = own / f"task-{name}.json"
    stored = folder.read_json(path)
    if stored is not None:
        return stored
    of_loss = folder.read_json(own / "forecast.json") or {}
    loss = {k: of_loss["forecast"][k] for k in ("value", "low", "high")}
    forecast, curve = downstream.forecast(models, record["chance"], loss, record["items"])
    made = {
        "format_version": FORMAT_VERSION,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        **{k: record[k] for k in ("task", "kind", "items", "chance", "digest")},
        "accuracy": forecast,
        "loss_forecast": loss,
        "loss_forecast_created": of_loss["created"],
        "forecast_sha256": folder.digest(own / "forecast.json"),
        "fit": downstream.told(curve),
    }
    folder.write_json(path, made)
    return made


def _scored(
    own: Path,
    name: str,
    foretold: dict[str, Any],
    record: dict[str, Any],
    models: list[downstream.Graded],
    asked: Questions,
) -> dict[str, Any]:
    """What came of it; measured and held are None before the target is trained.

    `at_measured_loss`: what the rungs say of a model with the loss that was measured. It tells an error of the curve
    from one of the loss, and is no forecast.
    """
    path, run = own / f"scored-{name}.json", own / "run"
    stored = folder.read_json(path)
    if stored is not None:
        return stored
    finished = folder.read_json(run / "measured.json")
    if finished is None:
        return {"measured": None, "held": None}
    graded = _graded(run, finished["loss"], asked)
    forecast, share = foretold["accuracy"], graded.pop("accuracy")
    known, _ = downstream.forecast(models, record["chance"], {"value": finished["loss"]}, record["items"])
    found = {
        "format_version": FORMAT_VERSION,
        "scored": datetime.now(UTC).isoformat(timespec="seconds"),
        "task_forecast_sha256": folder.digest(own / f"task-{name}.json"),
        "measured": share,
        "held": forecast["low"] <= share <= forecast["high"],
        "at_measured_loss": known,
        "held_at_measured_loss": known["low"] <= share <= known["high"],
        **graded,
    }
    folder.write_json(path, found)
    return found
