"""The section of task scores: each metric with its interval, beside simple rules, and best and worst answers."""

from __future__ import annotations

from foretell.report import numbers
from foretell.report.run import Run, at, interval, number, rows, table
from foretell.report.words import escape, html, label, say, text

_MOST_CHARACTERS = 1200
_MOST_TASKS = 12


def scores(run: Run) -> str:
    """All tasks that the run's eval.json tells of; nothing where there is none."""
    found = table(at(run.get("eval"), "tasks"))
    return "".join(_task(str(name), table(told)) for name, told in list(found.items())[:_MOST_TASKS])


def _task(name: str, told: dict) -> str:
    how = table(told.get("how"))
    rules = {str(k): table(v) for k, v in table(told.get("rules")).items()}
    body = "".join(_row(str(metric), told, rules) for metric in how)
    if not body:
        return ""
    items, given = number(told.get("items")), number(told.get("items_given"))
    sizes = {"items": numbers.count(items or 0), "given": numbers.count(given or items or 0)}
    heads = "".join(f'<th scope="col" class="n">{escape(rule)}</th>' for rule in rules)
    named, called = text("section.applications").en, html(label(name, "task"))
    return (
        f"<h3>{called}</h3><p>{say('applications.text', **sizes)}</p>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(named)}: {escape(name)}">'
        "<table><thead><tr>"
        f'<th scope="col">{say("column.metric")}</th><th scope="col" class="n">{say("column.value")}</th>'
        f'<th scope="col">{say("column.interval95")}</th>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="small">{say("about.applications")}</p>' + _samples(rows(told.get("samples")), list(how)[:1])
    )


def _row(metric: str, told: dict, rules: dict[str, dict]) -> str:
    value = number(told.get(metric))
    if value is None:
        return ""
    pair = interval(at(told, f"ci.{metric}"))
    shown = "[{}, {}]".format(*(numbers.significant(v) for v in pair)) if pair else ""
    cells = [number(said.get(metric)) for said in rules.values()]
    others = "".join(f'<td class="n">{numbers.significant(v) if v is not None else ""}</td>' for v in cells)
    signature = escape(_shown(at(told, f"how.{metric}")))
    return (
        f'<tr><th scope="row" title="{signature}">{escape(metric.replace("_", " "))}</th>'
        f'<td class="n">{numbers.significant(value)}</td><td>{shown}</td>{others}</tr>'
    )


def _shown(text: object) -> str:
    return text if isinstance(text, str) and text else "–"


def _samples(found: list[dict], metric: list[str]) -> str:
    """What was given, what the model said, what was wanted."""
    figures = []
    for r in found:
        value = number(r.get(metric[0])) if metric else None
        wanted = r.get("wanted")
        wanted = " / ".join(map(_shown, wanted)) if isinstance(wanted, list) else _shown(wanted)
        lines = (("applications.given", r.get("source")), ("applications.said", r.get("answer")))
        body = "".join(
            f'<span class="small">{say(key)}</span> {escape(_shown(said)[:_MOST_CHARACTERS])}\n'
            for key, said in (*lines, ("applications.wanted", wanted))
        )
        worth = f"{escape(metric[0])} {numbers.significant(value)}" if value is not None and metric else ""
        figures.append(
            f'<figure class="sample"><pre class="prose" dir="auto">{body}</pre>'
            f'<figcaption class="small">{worth}</figcaption></figure>'
        )
    if not figures:
        return ""
    return f"<details><summary>{say('applications.samples', n=len(figures))}</summary>{''.join(figures)}</details>"
