"""Puts the page together: a skeleton, a style sheet and a script from files beside this one, by plain replacement.

The content security policy names the digests of the one style sheet and the one script that the page has, so that even
text which escaped badly could neither run nor load anything. Hence no `style` attributes and no `on...` handlers
anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import shlex
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from foretell import __version__
from foretell.errors import DataError
from foretell.report import applications, curves, facts, graded, outlook, rungs, sections, wordmap
from foretell.report.checks import Check, checks
from foretell.report.run import Run, at, read
from foretell.report.sections import section
from foretell.report.words import escape, say, text

MOST_RUNS = 8


def write(runs: list[Path], out: Path | None = None) -> Path:
    """Write the report of one or several run folders, of one ladder's folder, or of vectors, and return its path.

    Default place: report.html in the folder of a single one, or beside the first of several runs. Raises DataError
    where a folder is none of them, where a ladder or vectors are not alone, and where the page cannot be written.
    """
    if not 0 < len(runs) <= MOST_RUNS:
        raise DataError(f"a report shows 1 to {MOST_RUNS} runs, not {len(runs)}; name fewer run folders")
    first = Path(runs[0])
    for what, is_one in (("a ladder", rungs.is_ladder), ("a folder of vectors", wordmap.is_vectors)):
        if len(runs) > 1 and (folder := next((f for f in runs if is_one(Path(f))), None)) is not None:
            raise DataError(f"{folder} is {what}, which has a page of its own: foretell report {folder}")
    if rungs.is_ladder(first):
        whole = ladder_page(rungs.read(first))
    elif wordmap.is_vectors(first):
        shown, meta = wordmap.read(first)
        whole = document(shown.name, wordmap.page_body(shown, meta))
    else:
        whole = page([read(Path(folder)) for folder in runs])
    out = Path(out) if out else (first if len(runs) == 1 else first.parent) / "report.html"
    return put(out, whole)


def write_map(found: dict[str, Any], out: Path) -> Path:
    """Write the page of a map of vectors, `foretell.vectors.chart`. Raises DataError where it cannot be written."""
    shown = wordmap.taken(found)
    if shown is None:
        raise DataError(f"{out}: the map is none; see docs/formats.md")
    return put(Path(out), document(shown.name, wordmap.page_body(shown, {})))


def put(out: Path, whole: str) -> Path:
    """Write a page, or replace it, at once. Raises DataError where that cannot be."""
    draft = out.with_name(f".{out.name}-{secrets.token_hex(8)}")  # the machines of a run may write it all at once
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            draft.write_text(whole, encoding="utf-8")
            draft.replace(out)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as e:
        raise DataError(f"{out}: the page cannot be written there: {e.strerror or e}") from None
    return out


def closing(folder: Path) -> str:
    """One line in English for the terminal: forecast and measurement. Raises DataError where there is no run."""
    key, values = sections.headline(checks(read(Path(folder))))
    return text(key, **values).en


def page(runs: list[Run]) -> str:
    """The whole document about runs."""
    checked = [checks(r) for r in runs]
    title = runs[0].name if len(runs) == 1 else " · ".join(r.name for r in runs)
    body = _one(runs[0], checked[0]) if len(runs) == 1 else _several(runs, checked)
    return document(title, body)


def ladder_page(found: rungs.Ladder) -> str:
    """The whole document about a ladder: a section for each target, then the rungs."""
    fitted = rungs.own_law(found)
    name = shlex.quote(str(found.folder))
    commands = ((f"foretell ladder fit {name}/rungs.csv", "ladder.fit"), (f"foretell report {name}", "repeat.report"))
    listed = "".join(f"<li><code>{escape(c)}</code><span class='small'>{say(k)}</span></li>" for c, k in commands)
    body = (
        f'<header class="top"><p class="over">{say("ladder.over")} <b>{escape(found.name)}</b></p>'
        f"<h1>{rungs.headline(found)}</h1>{rungs.status(found)}</header>"
        + "".join(section("ladder", rungs.target(found, t, i), i) for i, t in enumerate(found.targets))
        + section("graded", graded.section(found.tasks), 0)
        + section("rungs", rungs.listed(found, fitted), 0)
        + section("repeat", f'<ul class="commands">{listed}</ul>', 0)
    )
    return document(found.name, body)


def document(title: str, body: str) -> str:
    """A page of ours with this title and this markup in it: style, script and policy around it."""
    style, script = _part("style.css"), _part("script.js") + _part("map.js")
    parts = {
        "policy": f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'",
        "title": escape(f"{title} – {text('page.title').en}"),
        "titles": escape("\n".join(f"{title} – {t}" for t in text("page.title"))),
        "skip": say("page.skip"),
        "language": say("switch.language"),
        "style": style,
        "script": script,
        "body": body,
        "footer": say("page.footer", version=__version__),
    }
    # One pass, so that nothing a run says can stand for a part of the page.
    return re.sub(r"\{\{(\w+)\}\}", lambda m: parts[m[1]], _part("page.html"))


def _part(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()


def _one(run: Run, found: list[Check]) -> str:
    created = at(run.files, "plan.created")
    when = f" · <time>{escape(_moment(created))}</time>" if isinstance(created, str) else ""
    return (
        f'<header class="top"><p class="over">{say("page.over")} <b>{escape(run.name)}</b>{when}</p>'
        f"<h1>{sections.sentence(found)}</h1>{sections.status(run, found)}{sections.cards(found)}</header>"
        + section("curves", curves.figures([run]), 0)
        + _details(run, found, 0)
    )


def _moment(created: str) -> str:
    """2026-03-02 10:14, in the time zone it was written in."""
    try:
        return datetime.fromisoformat(created).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return created[:40]


def _details(run: Run, found: list[Check], i: int) -> str:
    return "".join(
        [
            section("against", sections.against(found), i),
            section("ladder", rungs.of_run(run.folder, i), i),
            section("outlook", outlook.parts(run), i),
            section("evaluation", sections.evaluation(run), i),
            section("applications", applications.scores(run), i),
            section("samples", sections.samples(run), i),
            section("map", wordmap.of_run(run.get("map"), i), i),
            section("funnel", facts.funnel(run), i),
            section("model", facts.model(run), i),
            section("machine", facts.machine(run), i),
            section("repeat", facts.repeat(run), i),
        ]
    )


def _several(runs: list[Run], checked: list[list[Check]]) -> str:
    lines = "".join(
        f'<li><i class="swatch hue{i}"></i><b>{escape(r.name)}</b><br>'
        f"{sections.sentence(found)}{sections.status(r, found)}</li>"
        for i, (r, found) in enumerate(zip(runs, checked, strict=True))
    )
    folded = "".join(
        f'<details class="run"><summary><i class="swatch hue{i}"></i>{escape(r.name)}</summary>'
        f"{_details(r, found, i)}</details>"
        for i, (r, found) in enumerate(zip(runs, checked, strict=True))
    )
    return (
        f'<header class="top"><p class="over">{say("page.over")}</p><h1>{say("headline.several", n=len(runs))}</h1>'
        f'<ul class="runs">{lines}</ul></header>'
        + section("comparison", sections.comparison(runs, checked), 0)
        + section("curves", curves.figures(runs), 0)
        + folded
    )
