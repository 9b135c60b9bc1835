"""`foretell evaluate --task ...`: what a task asks of a model, and the table of what it got."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from foretell import errors

if TYPE_CHECKING:
    from rich.table import Table

_HARNESS = "lm-eval:"


def task(model: Path, task: str, sources: list[str], limit: int | None, shots: int | None) -> dict[str, Any]:
    """The scores of MODEL: `tasks` by name, `model`. Those of a run go into its eval.json as well."""
    if not task.startswith(_HARNESS):
        raise errors.ConfigError(f"--task {task}: there is lm-eval:TASK[,TASK...]")
    names = [n for n in task.removeprefix(_HARNESS).split(",") if n]
    if len(sources) != 1 or not names:
        raise errors.ConfigError("--task lm-eval:TASK[,TASK...] wants one --data: a file, or a folder")
    from foretell import runtime
    from foretell.evaluate import lm_eval
    from foretell.models import source

    opened = source.open(model)
    scorer = lm_eval.Scorer(opened.model().to(runtime.device()), opened.tokenizer, opened.chat)  # type: ignore[arg-type]
    results = lm_eval.run(scorer, names, Path(sources[0]), limit=limit, shots=shots)
    if (model / "config.toml").exists():
        lm_eval.keep(model, results)
    return {"model": str(model), "tasks": {f"{_HARNESS}{name}": told for name, told in results.items()}}


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
