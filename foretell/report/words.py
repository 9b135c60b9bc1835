"""Every word of the page, in English and in Chinese. Both stand in the page; the switch hides one of them.

This is where text becomes HTML: everything that comes from a run passes through `escape` here or in the section that
shows it. `Both` holds plain text; only `html`, `say` and `stress` return markup.
"""

from __future__ import annotations

import functools
import html as _html
import json
import re
from importlib import resources
from typing import NamedTuple

_UNFIT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


class Both(NamedTuple):
    """The same plain text in English and in Chinese."""

    en: str
    zh: str


def escape(text: object) -> str:
    """Text made safe inside elements and quoted attributes. Characters no HTML page may hold become U+FFFD."""
    return _html.escape(_UNFIT.sub("\ufffd", str(text)), quote=True)


@functools.cache
def words() -> dict[str, Both]:
    """Every sentence of the page, by key, in both languages."""
    raw = json.loads(resources.files(__package__).joinpath("words.json").read_text(encoding="utf-8"))
    return {key: Both(*pair) for key, pair in raw.items()}


def text(key: str, **values: object) -> Both:
    """The sentence `key` with its places filled in, as plain text."""
    sentence = words()[key]
    return Both(*(t.format(**{k: pick(v)[i] for k, v in values.items()}) for i, t in enumerate(sentence)))


def pick(value: object) -> Both:
    """`value` in both languages; the same text twice where it has only one."""
    return value if isinstance(value, Both) else Both(str(value), str(value))


def html(value: object, tag: str = "span") -> str:
    """Escaped markup showing `value` in the language of the reader. `tag` is tspan inside SVG text."""
    both = pick(value)
    if both.en == both.zh:
        return escape(both.en)
    return (
        f'<{tag} class="en" lang="en">{escape(both.en)}</{tag}><{tag} class="zh" lang="zh-CN">{escape(both.zh)}</{tag}>'
    )


def say(key: str, **values: object) -> str:
    """The sentence `key` as markup, its places filled in."""
    return html(text(key, **values))


def stress(key: str, *, light: tuple[str, ...] = (), **values: object) -> str:
    """As `say`, with the values that were filled in set in bold, except those named in `light`."""
    parts = []
    for i, (name, lang) in enumerate((("en", "en"), ("zh", "zh-CN"))):
        filled = {k: _weigh(pick(v)[i], k not in light) for k, v in values.items()}
        parts.append(f'<span class="{name}" lang="{lang}">{escape(words()[key][i]).format(**filled)}</span>')
    return "".join(parts)


def _weigh(value: str, bold: bool) -> str:
    return f"<b>{escape(value)}</b>" if bold else escape(value)


def label(name: str, kind: str = "field") -> Both:
    """A field name, or a `reason`, in words; the name itself where there are no words for it."""
    plain = name.replace("_", " ")
    return words().get(f"{kind}.{name}", Both(plain, plain))
