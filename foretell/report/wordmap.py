"""The map of word vectors as a figure: of a folder of vectors, and of a run whose embedding table began from vectors.

What it shows stands in map.json (docs/formats.md); nothing is computed here but which labels fit. The picture is whole
without JavaScript: dots by group, and the most frequent words that do not cover each other. The script puts a canvas in
its place, to look through, search and zoom.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foretell.errors import DataError
from foretell.report.facts import listing
from foretell.report.run import number, positive, table
from foretell.report.sections import section
from foretell.report.words import Both, escape, html, say, stress, text

FILE = "map.json"
FORMAT_VERSION = 1
MOST_WORDS = 5000
HUES = 8
BOX = 1000  # units of the still picture
LETTERS = 15  # height of its letters
_KINDS = {"word2vec": "Word2Vec", "glove": "GloVe"}
_FACTS = ("units", "dim", "window", "min_count", "epochs", "seed", "documents", "units_total", "distinct")
_ORIGIN = ("architecture", "negative", "x_max", "pairs", "reading_seconds", "training_seconds")


@dataclass(frozen=True)
class Map:
    """n words, their places ((x, y) in [0, 1]) by projection, the group of each, and the rows near each."""

    name: str
    kind: str
    of: int
    dim: int
    words: list[str]
    places: dict[str, list[float]]
    group: list[int]
    near: list[list[int]]


def taken(raw: Any) -> Map | None:
    """A map of what map.json said, or None where that is none."""
    found = table(raw)
    words, places, group, near = (found.get(k) for k in ("words", "places", "group", "near"))
    if not (isinstance(words, list) and 2 <= len(words) <= MOST_WORDS and all(isinstance(w, str) for w in words)):
        return None
    n = len(words)
    shown = {k: _numbers(table(places).get(k), 2 * n) for k in ("tsne", "pca")}
    groups = _rows(group, HUES)
    close = [_rows(row, n) for row in near] if isinstance(near, list) else []
    if groups is None or len(groups) != n or len(close) != n or None in close or None in shown.values():
        return None
    return Map(
        name=name if isinstance(name := found.get("name"), str) else "?",
        kind=_KINDS.get(str(found.get("kind")), ""),
        of=int(positive(found.get("of")) or n),
        dim=int(positive(found.get("dim")) or 0),
        words=words,
        places={k: v for k, v in shown.items() if v is not None},
        group=groups,
        near=[row for row in close if row is not None],
    )


def _numbers(raw: Any, count: int) -> list[float] | None:
    """So many numbers from 0 to 1, or None."""
    if not isinstance(raw, list) or len(raw) != count:
        return None
    found = [number(v) for v in raw]
    return [v for v in found if v is not None] if all(v is not None and 0 <= v <= 1 for v in found) else None


def _rows(raw: Any, below: int) -> list[int] | None:
    """Whole numbers from 0 to below `below`, or None."""
    fits = isinstance(raw, list) and all(type(v) is int and 0 <= v < below for v in raw)
    return raw if fits else None


def is_vectors(folder: Path) -> bool:
    """Whether the folder is one that `foretell vectors train` made."""
    return (folder / "meta.json").is_file() and not (folder / "config.toml").exists()


def read(folder: Path) -> tuple[Map, dict[str, Any]]:
    """The map of a folder of vectors, and its meta.json. Raises DataError where one is missing or damaged."""
    found = []
    for name in (FILE, "meta.json"):
        try:
            found.append(table(json.loads((folder / name).read_bytes().decode("utf-8-sig", errors="replace"))))
        except (OSError, ValueError, RecursionError):
            found.append({})
    version, shown = found[0].get("format_version"), taken(found[0])
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise DataError(f"{folder / FILE}: format_version {version} is newer than this Foretell reads (1)")
    if shown is None:
        what = "cannot be read" if (folder / FILE).exists() else "is not there"
        raise DataError(f"{folder / FILE} {what}; draw the map anew: foretell vectors map {folder} --out map.html")
    return shown, found[1]


def page_body(shown: Map, meta: Mapping[str, Any]) -> str:
    """A page about vectors: how many and of what, the map, how they were made."""
    facts = listing({k: meta[k] for k in (*_FACTS, *_ORIGIN) if k in meta})
    over = f" · {escape(shown.kind)}" if shown.kind else ""
    return (
        f'<header class="top"><p class="over">{say("vectors.over")} <b>{escape(shown.name)}</b>{over}</p>'
        f"<h1>{stress('vectors.headline', of=f'{shown.of:,}', dim=f'{shown.dim:,}')}</h1></header>"
        + section("map", figure(shown, 0), 0)
        + section("vectors", facts, 0)
    )


def of_run(raw: Any, i: int) -> str:
    """The map that run `i` began from; nothing for any other run."""
    shown = taken(raw)
    if shown is None:
        return ""
    kind = shown.kind or Both("word", "词")
    return f"<p>{say('map.begun', name=shown.name, kind=kind)}</p>{figure(shown, i)}"


def figure(shown: Map, i: int) -> str:
    """The figure number `i` of the page: what the script needs, its tools, the still picture, and a line of words."""
    data = {"words": shown.words, "places": shown.places, "group": shown.group, "near": shown.near}
    said = escape(json.dumps(data, ensure_ascii=False, separators=(",", ":")))
    count = say("map.count", shown=f"{len(shown.words):,}", of=f"{shown.of:,}")
    choices = "".join(
        f'<label><input type="radio" name="place-{i}" value="{key}"{" checked" if key == "tsne" else ""}>'
        f"<span>{name}</span></label>"
        for key, name in (("tsne", "t-SNE"), ("pca", "PCA"))
    )
    buttons = "".join(
        f'<button type="button" class="{key}" aria-label="{escape(" ".join(text("map." + key)))}">{sign}</button>'
        for key, sign in (("closer", "+"), ("farther", "−"), ("all", "⤢"))
    )
    return (
        f'<figure class="map" data-map="{said}"><figcaption class="small">{count}</figcaption>'
        f'<div class="tools" hidden><label>{say("map.search")} '
        f'<input type="search" list="map-{i}-words" autocomplete="off" spellcheck="false"></label>'
        f'<datalist id="map-{i}-words"></datalist>'
        f'<fieldset class="switch"><legend class="unseen">{say("map.projection")}</legend>{choices}</fieldset>'
        f'<span class="switch">{buttons}</span></div>'
        f'<div class="land">{_still(shown)}'
        f'<canvas hidden tabindex="0" role="img" aria-label="{escape(" ".join(text("map.name")))}"></canvas></div>'
        f'<p class="found" aria-live="polite" hidden>{say("map.hint")}</p>'
        f'<p class="small">{say("about.map")}</p></figure>'
    )


def _still(shown: Map) -> str:
    """The picture without a script: a path of dots for each group, and labels where there is room."""
    xy = shown.places["tsne"]
    spots = [(round(BOX * xy[2 * n]), round(BOX * xy[2 * n + 1])) for n in range(len(shown.words))]
    dots = ""
    for hue in range(HUES):
        path = "".join(f"M{x} {y}h0" for (x, y), g in zip(spots, shown.group, strict=True) if g == hue)
        dots += f'<path class="line hue{hue}" d="{path}"/>' if path else ""
    taken: list[tuple[int, int, int]] = []  # left, right, middle
    labels = ""
    for (x, y), g, word in zip(spots, shown.group, shown.words, strict=True):
        word = word.strip()
        left, right = x + 6, x + 6 + sum(LETTERS if ord(c) > 0x2E80 else LETTERS * 6 // 10 for c in word)
        if not word or right > BOX or any(a < right and left < b and abs(y - m) < LETTERS for a, b, m in taken):
            continue
        taken.append((left, right, y))
        labels += f'<text class="hue{g}" x="{left}" y="{y}" dy="0.32em">{escape(word)}</text>'
    name = html(Both(*text("map.name")), "tspan")
    return f'<svg viewBox="-10 -10 {BOX + 20} {BOX + 20}" role="img"><title>{name}</title>{dots}{labels}</svg>'
