"""What went in: the data funnel, the model, the machine, and how to do it all again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from foretell.report import numbers
from foretell.report.run import Run, at, number, rows, table
from foretell.report.words import Both, escape, html, label, say, text

MOST_QUARANTINED = 100
MOST_REASONS = 12
MOST_TEXT = 20_000


def funnel(run: Run) -> str:
    """Documents in, what left on the way and why, documents out; tokens per split; the quarantine, folded."""
    f = table(run.get("data.funnel"))
    total, out = number(f.get("documents_in")), number(f.get("documents_out"))
    parts = []
    if total and total > 0 and out is not None:
        lost = {str(k): number(v) or 0 for k, v in table(f.get("dropped")).items()}
        lost = dict(sorted(lost.items(), key=lambda kv: -kv[1]))
        if len(lost) > MOST_REASONS:
            rest = list(lost)[MOST_REASONS:]
            lost["other"] = lost.get("other", 0) + sum(lost.pop(k) for k in rest if k != "other")
        steps = [(text("funnel.quarantined"), number(f.get("quarantined")) or 0)]
        steps += [(label(k, "reason"), n) for k, n in lost.items()]
        parts.append(_waterfall(total, out, [s for s in steps if s[1] > 0]))
        sizes = [number(f.get(k)) for k in ("bytes_in", "bytes_out")]
        if sizes[0] is not None and sizes[1] is not None:
            told = {"before": numbers.size(sizes[0]), "after": numbers.size(sizes[1])}
            parts.append(f'<p class="small">{say("funnel.bytes", **told)}</p>')
    splits = {k: number(at(v, "tokens")) for k, v in table(run.get("data.splits")).items()}
    shares = [(label(k, "split"), n) for k, n in splits.items() if n]
    if shares:
        parts.append(f"<h3>{say('funnel.splits')}</h3>{_shares(shares)}")
    parts.append(_quarantine(f))
    return "".join(parts)


def _waterfall(total: float, out: float, steps: list[tuple[Both, float]]) -> str:
    bars = [_bar(text("funnel.in"), total, 0, total, total, "whole")]
    left = total
    for name, n in steps:
        left -= n
        bars.append(_bar(name, -n, max(0.0, left), n, total, "lost"))
    bars.append(_bar(text("funnel.out"), out, 0, out, total, "kept"))
    return f'<dl class="bars">{"".join(bars)}</dl>'


def _bar(name: Both, shown: float, start: float, length: float, total: float, kind: str) -> str:
    value = f"{shown:,.0f}".replace("-", "−")
    return bar(name, value, numbers.percent(abs(shown) / total) if kind != "whole" else "", start, length, total, kind)


def bar(name: Both, value: Both | str, share: str, start: float, length: float, total: float, kind: str) -> str:
    """A named bar from `start`, `length` long, of `total`, with its value and its share beside it."""
    return (
        f"<dt>{html(name)}</dt><dd><svg width='100%' height='20' aria-hidden='true'>"
        f'<rect class="rest" width="100%" height="20" rx="3"/>'
        f'<rect class="{kind}" x="{100 * start / total:.2f}%" width="{100 * length / total:.2f}%" height="20" rx="3"/>'
        "</svg>"
        f'<span class="n">{html(value)}</span> <span class="small n">{share}</span></dd>'
    )


def _shares(parts: Sequence[tuple[Both | str, float]]) -> str:
    """One bar cut into named shares."""
    total = sum(n for _, n in parts) or 1.0
    at_, rects, names = 0.0, [], []
    for i, (name, n) in enumerate(parts):
        width = 100 * n / total
        rects.append(f'<rect class="share{i % 6}" x="{at_:.2f}%" width="{width:.2f}%" height="22"/>')
        at_ += width
        names.append(
            f'<li><i class="swatch share{i % 6}"></i>{html(name)} <b class="n">{numbers.count(n)}</b> '
            f'<span class="small n">{numbers.percent(n / total)}</span></li>'
        )
    return (
        f'<svg class="shares" width="100%" height="22" aria-hidden="true">{"".join(rects)}</svg>'
        f'<ul class="names">{"".join(names)}</ul>'
    )


def _quarantine(f: Mapping[str, Any]) -> str:
    listed = rows(f.get("quarantine")) or rows(f.get("quarantined_documents")) or rows(f.get("quarantined_list"))
    if not listed:
        return ""
    total = int(number(f.get("quarantined")) or len(listed))
    body = "".join(
        f"<tr><td>{escape(str(r.get('source', ''))[-200:])}</td><td class='n'>{escape(r.get('offset', ''))}</td>"
        f"<td>{escape(str(r.get('reason', ''))[:300])}</td></tr>"
        for r in listed[:MOST_QUARANTINED]
    )
    rest = total - min(len(listed), MOST_QUARANTINED)
    more = f'<p class="small">{say("funnel.more", n=f"{rest:,}")}</p>' if rest > 0 else ""
    head = "".join(f'<th scope="col">{say("column." + c)}</th>' for c in ("source", "offset", "reason"))
    return (
        f"<details><summary>{say('funnel.list', n=f'{total:,}')}</summary><div class='scroll' tabindex='0'><table>"
        f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{more}</details>"
    )


def model(run: Run) -> str:
    """The configuration as it was resolved, and where the parameters sit."""
    p = table(run.get("plan.parameters")) or table(run.get("measured.parameters"))
    sizes = {k: number(v) for k, v in p.items()}
    total = sizes.get("total")
    parts = []
    if total:
        parts.append(f"<h3>{say('model.parameters', n=numbers.count(total))}</h3>")
        sums = {"total", "non_embedding", "per_rank", "active", "active_non_embedding"}
        fine = [(k, n) for k, n in sizes.items() if n and k not in sums]
        coarse = [(k, sizes.get(k)) for k in ("embedding", "non_embedding")]
        chosen = fine if abs(sum(n for _, n in fine) - total) < 0.5 else [(k, n) for k, n in coarse if n]
        if chosen:
            parts.append(_shares([(label(k), n) for k, n in chosen]))
    parts.append(listing({**table(at(run.config, "model")), **_tokenizer(run)}))
    return "".join(parts)


def _tokenizer(run: Run) -> dict[str, Any]:
    found = table(run.get("data.tokenizer"))
    chosen = {"tokenizer": found.get("kind"), "bytes_per_token": run.bytes_per_token}
    return {k: v for k, v in chosen.items() if v is not None}


def machine(run: Run) -> str:
    """The machine the run was on, as it was measured."""
    found = table(run.get("machine"))
    return listing(dict(_flat({k: v for k, v in found.items() if k not in {"format_version", "key", "seconds"}})))


def _flat(tree: Mapping[str, Any], prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and number(value) is None:
            if depth < 3:
                yield from _flat(value, f"{name}.", depth + 1)
        else:
            yield name, value


def listing(pairs: Mapping[str, Any]) -> str:
    """Names and values beside each other, those that are numbers, words, or yes and no."""
    shown = []
    for name, value in list(pairs.items())[:60]:
        n = number(value)
        if n is not None and not isinstance(value, str):
            told: Both | str = numbers.field(name, n) if not isinstance(value, int) or "bytes" in name else f"{value:,}"
        elif isinstance(value, bool):
            told = text("value.yes" if value else "value.no")
        elif isinstance(value, str):
            told = value[:300]
        else:
            continue
        shown.append(f'<div><dt title="{escape(name)}">{html(_named(name))}</dt><dd class="n">{html(told)}</dd></div>')
    return f'<dl class="facts">{"".join(shown)}</dl>' if shown else ""


def _named(name: str) -> Both:
    """A label; the products of a machine record are named by their dtype and shape."""
    first, _, rest = name.partition(".")
    if first != "flops_per_second" or not rest:
        return label(name)
    dtype, _, shape = rest.partition(".")
    if shape in {"", "peak"}:
        return text("machine.products", dtype=dtype)
    return text("machine.products_shape", dtype=dtype, shape=shape.replace("x", " x "))


def repeat(run: Run) -> str:
    """Commands to type, and the whole configuration."""
    folder = f"runs/{run.name}" if run.folder.resolve().parent.name == "runs" else str(run.folder)
    quoted = shlex.quote(folder)
    commands = [
        (f"foretell train {shlex.quote(folder + '/config.toml')} --name {shlex.quote(run.name + '-again')}", "train"),
        (f"foretell verify {quoted}", "verify"),
        (f"foretell generate {quoted} --prompt '...'", "generate"),
        (f"foretell report {quoted}", "report"),
    ]
    listed = "".join(
        f"<li><code>{escape(c)}</code><span class='small'>{say('repeat.' + k)}</span></li>" for c, k in commands
    )
    out = f'<ul class="commands">{listed}</ul>'
    if run.config_text:
        shown = escape(run.config_text[:MOST_TEXT])
        out += f"<details><summary>config.toml</summary><pre class='code'>{shown}</pre></details>"
    return out
