"""The sections that speak of results: headline, forecast against measured, evaluation, samples, comparison of runs."""

from __future__ import annotations

import re

from foretell.report import numbers
from foretell.report.checks import HEADLINES, Check, badge, error, gauge, span, summary
from foretell.report.run import FILES, Run, at, interval, number, rows, table
from foretell.report.words import Both, escape, html, label, say, stress, text

MOST_SAMPLES = 20
MOST_CHARACTERS = 3000
_CODE = re.compile(r"^\s*(def |class |import |from \w+ import|#include|fn |function |return |@\w+)|[;{}]\s*$|->", re.M)


def section(key: str, body: str, number_of_run: int) -> str:
    """A titled section; nothing at all where there is nothing to show."""
    if not body:
        return ""
    name = f"{key}-{number_of_run}"
    title = say("section." + key)
    return f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{title}</h2>{body}</section>'


def sentence(found: list[Check]) -> str:
    """The headline: forecast and measurement in one line."""
    key, values = headline(found)
    return stress(key, light=("low", "high"), **values)


def headline(found: list[Check]) -> tuple[str, dict[str, Both | str]]:
    """The key of the headline's words and the values that fill it: of time and bits per byte."""
    by_name = {c.name: c for c in found}
    time, bits = by_name.get("seconds"), by_name.get("bits_per_byte")

    def shown(check: Check | None, value: str) -> Both | str:
        return check.show(getattr(check, value), 2) if check else "–"

    forecast = any(c and c.predicted is not None for c in (time, bits))
    measured = any(c and c.measured is not None for c in (time, bits))
    key = {(True, True): "both", (True, False): "forecast", (False, True): "measured", (False, False): "neither"}
    values = {
        "time": shown(time, "predicted"),
        "bits": shown(bits, "predicted"),
        "low": shown(bits, "low"),
        "high": shown(bits, "high"),
        "got_time": shown(time, "measured"),
        "got_bits": shown(bits, "measured"),
    }
    of_time_alone = ".time" if forecast and (bits is None or bits.predicted is None) else ""
    if of_time_alone and measured and (bits is None or bits.measured is None):  # bytes say nothing of labels
        of_time_alone += ".alone"
    return "headline." + key[forecast, measured] + of_time_alone, values


def status(run: Run, found: list[Check]) -> str:
    """Finished, or how far; what held; what is missing or could not be read."""
    parts = []
    if "measured.json" in run.missing:
        if run.last_step:
            of = run.planned_steps
            where = text("status.step", step=f"{run.last_step:,.0f}", of=f"{of:,.0f}" if of else "?")
            parts.append(f'<p class="note">{html(where)}</p>')
        else:
            parts.append(f'<p class="note">{say("status.waiting")}</p>')
    else:
        parts.append(f'<p class="lead">{html(summary(run, found))}</p>')
    for name in run.damaged:
        parts.append(f'<p class="note bad">{say("status.damaged", file=name)}</p>')
    gone = [name for name in FILES if name in run.missing]
    if gone:
        parts.append(f'<p class="note small">{say("status.missing", files=", ".join(gone))}</p>')
    skipped = [e for e in run.steps if e.get("skipped")]
    if skipped:
        reason = str(skipped[0]["skipped"])[:200]
        first = f"{skipped[0]['step']:,.0f}"
        parts.append(f'<p class="note bad">{say("status.skipped", n=len(skipped), step=first, reason=reason)}</p>')
    again = [e for e in run.steps if e.get("recomputed")]
    if again:
        reason = str(again[0]["recomputed"])[:200]
        first = f"{again[0]['step']:,.0f}"
        parts.append(f'<p class="note">{say("status.recomputed", n=len(again), step=first, reason=reason)}</p>')
    return "".join(parts)


def cards(found: list[Check]) -> str:
    """The headlines in large figures: measured, or forecast where nothing was measured yet."""
    out = []
    for c in (c for c in found if c.name in HEADLINES):
        big = html(c.show(c.measured if c.measured is not None else c.predicted, 3))
        which = "measured" if c.measured is not None else "forecast"
        sub = (
            say("card.against", value=c.show(c.predicted)) if c.measured is not None and c.predicted is not None else ""
        )
        verdict = badge(c) if c.measured is not None else ""
        out.append(
            f'<div class="card"><p class="what">{html(label(c.name))} '
            f'<span class="which">{say("card." + which)}</span></p>'
            f'<p class="big">{big}</p><p class="sub">{sub} {span(c)}</p>{gauge(c)}'
            f'<p class="verdict">{verdict} <span class="error">{error(c)}</span></p></div>'
        )
    return f'<div class="cards">{"".join(out)}</div>' if out else ""


def against(found: list[Check], everything: bool = False) -> str:
    """The table of every quantity that was both forecast and measured; with `everything` also what is open still."""
    body = "".join(
        f'<tr><th scope="row">{html(label(c.name))}</th>'
        f'<td class="n">{_aside("forecast")}{html(c.show(c.predicted))}</td>'
        f'<td class="interval">{span(c)}{gauge(c)}</td>'
        f'<td class="n">{_aside("measured")}{html(c.show(c.measured))}</td>'
        f'<td class="n">{_aside("error")}{error(c)}</td>'
        f'<td class="v">{badge(c) if c.measured is not None else ""}</td></tr>'
        for c in found
        if c.predicted is not None and (c.measured is not None or everything)
    )
    return (
        columns("against", ("quantity", "forecast", "interval", "measured", "error", "verdict"), body) if body else ""
    )


def _aside(column: str) -> str:
    """The column's name inside the cell, for screens too narrow for columns."""
    return f'<small class="aside">{say("column." + column)}</small>'


def columns(key: str, names: tuple[str, ...], body: str) -> str:
    """A table of the section `key` with its head and the words about it. `body`: its rows as markup."""
    numeric = {"forecast", "measured", "error", "value", "parameters", "tokens", "loss", "law", "count"}
    numeric |= {"step", "mfu", "memory", "sent", "idle"}
    head = "".join(f'<th scope="col"{" class=n" if c in numeric else ""}>{say("column." + c)}</th>' for c in names)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(text("section." + key).en)}">'
        f'<table class="{key}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        f'<p class="small">{say("about." + key)}</p>'
    )


def evaluation(run: Run) -> str:
    """Scores on text that training never saw."""
    found = table(run.get("eval"))
    names = ("bits_per_byte", "loss", "perplexity", "word_perplexity", "char_perplexity", "accuracy")
    body = []
    for name in names:
        value = number(found.get(name))
        if value is None:
            continue
        pair = interval(at(found, f"ci.{name}"))
        shown = "[{}, {}]".format(*(html(numbers.field(name, v)) for v in pair)) if pair else ""
        body.append(
            f'<tr><th scope="row">{html(label(name))}</th><td class="n">{html(numbers.field(name, value))}</td>'
            f"<td>{shown}</td></tr>"
        )
    if not body:
        return ""
    sizes = {k: number(found.get(k)) for k in ("documents", "tokens", "bytes")}
    told = {
        k: numbers.field(k, v) if k == "bytes" else f"{v:,.0f}" if v is not None else "?" for k, v in sizes.items() if v
    }
    about = say("evaluation.text", **{k: told.get(k, "?") for k in sizes})
    return f"<p>{about}</p>" + columns("evaluation", ("metric", "value", "confidence"), "".join(body))


def samples(run: Run) -> str:
    """What the model wrote. The prompt is marked by weight and ground, and named for those who listen."""
    raw = run.get("samples")
    found = rows(raw) if isinstance(raw, list) else rows(at(raw, "samples"))
    python = at(raw, "python") or next((r["python"] for r in found if "python" in r), None)
    parses, of = number(at(python, "parses")), number(at(python, "of"))
    parts = []
    if parses is not None and of:
        share = numbers.percent(parses / of)
        parts.append(
            f'<p class="lead">{stress("samples.parse", parses=f"{parses:.0f}", of=f"{of:.0f}", share=share)}</p>'
        )
    written = [r for r in found if isinstance(r.get("completion"), str)]
    if written:
        parts.append(
            f'<p class="legend"><span class="key"><mark class="prompt">{say("samples.prompt")}</mark></span>'
            f'<span class="key">{say("samples.completion")}</span></p>'
        )
    parts += [_sample(r) for r in written[:MOST_SAMPLES]]
    if len(written) > MOST_SAMPLES:
        parts.append(f'<p class="small">{say("samples.more", n=len(written) - MOST_SAMPLES)}</p>')
    return "".join(parts)


def _sample(r: dict) -> str:
    prompt, completion = str(r.get("prompt", "")), str(r["completion"])
    looks = "code" if _CODE.search(prompt + completion) else "prose"
    speed = number(r.get("tokens_per_second"))
    told = f'<figcaption class="small">{html(numbers.field("tokens_per_second", speed))}</figcaption>' if speed else ""
    rest = len(completion) - MOST_CHARACTERS
    more = f'<span class="small">{say("samples.cut", n=f"{rest:,}")}</span>' if rest > 0 else ""
    return (
        f'<figure class="sample"><pre class="{looks}" dir="auto"><span class="unseen">{say("samples.prompt")}: </span>'
        f'<mark class="prompt">{escape(prompt[-MOST_CHARACTERS:])}</mark>'
        f'<span class="unseen"> {say("samples.completion")}: </span>{escape(completion[:MOST_CHARACTERS])}{more}</pre>'
        f"{told}</figure>"
    )


def comparison(runs: list[Run], found: list[list[Check]]) -> str:
    """Several runs beside each other: one column a run."""
    extra = ("plan.parameters.total", "plan.tokens", "measured.tokens_per_second", "measured.mfu", "eval.bits_per_byte")
    head = "".join(
        f'<th scope="col" class="n"><i class="swatch hue{i}"></i>{escape(r.name)}</th>' for i, r in enumerate(runs)
    )
    body = []
    for name in HEADLINES:
        cells = []
        for checked in found:
            c = next((c for c in checked if c.name == name), None)
            cells.append(_compared(c) if c else '<td class="n">–</td>')
        body.append(f'<tr><th scope="row">{html(label(name))}</th>{"".join(cells)}</tr>')
    for path in extra:
        name = path.partition(".")[2]
        values = [r.number(path) for r in runs]
        shown = ["–" if v is None else html(numbers.field(name, v)) for v in values]
        where = say("section.evaluation") + ": " if path.startswith("eval.") else ""
        if any(v is not None for v in values):
            cells = [f'<td class="n">{s}</td>' for s in shown]
            body.append(f'<tr><th scope="row">{where}{html(label(name))}</th>{"".join(cells)}</tr>')
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(text("section.comparison").en)}"><table>'
        f'<thead><tr><th scope="col">{say("column.quantity")}</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _compared(c: Check) -> str:
    measured = html(c.show(c.measured))
    forecast = say("card.against", value=c.show(c.predicted)) if c.predicted is not None else ""
    verdict = badge(c) if c.held is not None else ""
    return f'<td class="n"><b>{measured}</b><br><span class="small">{forecast} {span(c)}</span><br>{verdict}</td>'
