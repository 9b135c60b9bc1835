"""`foretell evaluate` of text, and of `--task lm-eval:...`: what a task asks of a model, the table of what it got."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretell import errors

if TYPE_CHECKING:
    from rich.table import Table

_HARNESS = "lm-eval:"


def task(model: Path, task: str, sources: list[str], limit: int | None, shots: int | None) -> dict[str, Any]:
    """The scores of MODEL: `tasks` by name, `model`. Those of a run go into eval.json and report, too."""
    if not task.startswith(_HARNESS):
        raise errors.ConfigError(f"--task {task}: there is lm-eval:TASK[,TASK...]")
    names = [n for n in task.removeprefix(_HARNESS).split(",") if n]
    if len(sources) != 1 or not names:
        raise errors.ConfigError("--task lm-eval:TASK[,TASK...] wants one --data: a file, or a folder")
    from foretell import report, runtime
    from foretell.evaluate import lm_eval
    from foretell.models import source

    opened = source.open(model)
    scorer = lm_eval.Scorer(opened.model().to(runtime.device()), opened.tokenizer, opened.chat)  # type: ignore[arg-type]
    results = lm_eval.run(scorer, names, Path(sources[0]), limit=limit, shots=shots)
    if (model / "config.toml").exists():
        lm_eval.keep(model, results)
    if (model / "measured.json").is_file():
        report.write([model])
    return {"model": str(model), "tasks": {f"{_HARNESS}{name}": told for name, told in results.items()}}


def text(
    model: Path, sources: list[str], context: int | None, stride: int | None, keys: tuple[str | None, str | None]
) -> dict[str, Any]:
    """The scores of MODEL on text, by its kind. keys: of pairs, of an encoder-decoder."""
    from foretell import config, data, evaluate
    from foretell.cli.steps import load_model
    from foretell.config.model import ENCODERS

    loaded, tokenizer = load_model(model)
    pair = data.pair_of(config.DataConfig.model_validate({"source_key": keys[0], "target_key": keys[1]}))
    if loaded.config.model_type in ENCODERS:
        refuse("no effect on what is asked of rows", stride=stride)
        texts = data.texts(sources, pair)
        return evaluate.evaluate_texts(loaded, tokenizer, texts, has_pairs=pair is not None, context=context)
    if pair is not None:
        raise errors.ConfigError("--source-key and --target-key want an encoder-decoder; this model has no source")
    return evaluate.evaluate(loaded, tokenizer, data.texts(sources), context=context, stride=stride)


def refuse(why: str, **options: Any) -> None:
    """ConfigError for the first option that is given."""
    for name, value in options.items():
        if value is not None:
            raise errors.ConfigError(f"--{name.replace('_', '-')} has {why}; leave it out")


def render(result: dict[str, Any]) -> Table:
    """A row for each metric of each task."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("task", "metric", caption_justify="left")
    for column in ("value", "standard error", "95% interval", "documents", "shots"):
        table.add_column(column, justify="right")
    for name, told in result["tasks"].items():
        apart = ("stderr", "ci", "documents", "shots", "version", "seconds")
        for metric, value in told.items():
            if metric in apart:
                continue
            low_high = told.get("ci", {}).get(metric)
            error = told["stderr"].get(metric)
            table.add_row(
                escape(name),
                escape(metric),
                f"{value:.4f}",
                f"{error:.4f}" if error is not None else "",
                f"{low_high[0]:.4f} to {low_high[1]:.4f}" if low_high else "",
                f"{told['documents']:,}" if "documents" in told else "",
                str(told.get("shots", "")),
            )
    return table
