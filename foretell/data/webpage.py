"""The visible text of an HTML page, in time linear in its size.

The standard library's `html.parser` needs minutes for 100 kB of `<a <a <a ...` (its scanning is quadratic on tags that
never close), and web pages are hostile input. Only what decides visibility is looked at: tags, comments, raw text
elements, character references (`html.unescape`). Not handled: CSS, so text hidden by a style sheet stays; scripts are
not run.
"""

from __future__ import annotations

import html
import re

# A tag that ends where the HTML standard says, quoted attribute values included; tried within 4 KiB only.
_TAG = re.compile(r"""<(/?)([a-zA-Z][^\s/>]*+)(?:[^"'>]|"[^"]*+"|'[^']*+')*+>""")
_TAG_NAME = re.compile(r"</?([a-zA-Z][^\s/>]{0,30})")
_TAG_CHARACTERS = 4096
_RAW = {name: re.compile(f"</{name}", re.IGNORECASE) for name in ("script", "style", "textarea", "iframe", "noembed")}
_HIDDEN = frozenset({"template", "noscript", "svg", "math", "object", "select", "button", "audio", "video", "canvas"})
_LINES = frozenset(
    {"address", "article", "aside", "blockquote", "br", "caption", "dd", "details", "div", "dl", "dt", "fieldset"}
    | {"figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main"}
    | {"nav", "ol", "p", "pre", "section", "summary", "table", "title", "tr", "ul"}
)


def visible_text(page: str) -> str:
    """Text as a browser shows it: block elements end a line, tabs part cells, spaces collapse outside <pre>."""
    parts: list[str] = []
    position = 0
    hidden, depth, preformatted = "", 0, 0
    while position < len(page):
        start = page.find("<", position)
        start = len(page) if start < 0 else start
        if not hidden and start > position:
            text = _unescaped(page[position:start])
            parts.append(text if preformatted else re.sub(r"[ \t\r\n\f]+", " ", text))
        closing, name, position = _markup(page, start)
        if hidden:
            depth += (name == hidden) * (-1 if closing else 1)
            hidden = hidden if depth > 0 else ""
        elif name in _HIDDEN and not closing:
            hidden, depth = name, 1
        elif name == "<":
            parts.append("<")
        elif name in _LINES:
            parts.append("\n")
            preformatted = max(0, preformatted + (name == "pre") * (-1 if closing else 1))
        elif name in {"td", "th"} and not closing:
            parts.append("\t")
    return _tidy("".join(parts))


def _markup(page: str, start: int) -> tuple[bool, str, int]:
    """(closing, lower-case name, where it ends) of the markup at `start`; the name is `<` where it is none, empty for
    what is not shown; a raw text element ends after its content."""
    if start >= len(page):
        return False, "", start
    if page.startswith("<!--", start):
        return False, "", _after(page, "-->", start + 4)
    if page[start + 1 : start + 2] in {"!", "?"}:
        return False, "", _after(page, ">", start)
    name = _TAG_NAME.match(page, start)
    if name is None:
        return False, "<", start + 1
    tag = _TAG.match(page, start, start + _TAG_CHARACTERS)
    end = tag.end() if tag else _after(page, ">", start)
    closing, word = page.startswith("</", start), name[1].lower()
    if word in _RAW and not closing:
        close = _RAW[word].search(page, end)
        end = close.start() if close else len(page)
    return closing, word, end


def _after(page: str, mark: str, start: int) -> int:
    at = page.find(mark, start)
    return len(page) if at < 0 else at + len(mark)


def _unescaped(text: str) -> str:
    try:
        return html.unescape(text)
    except ValueError:  # a numeric reference of thousands of digits
        return text


def _tidy(text: str) -> str:
    """No spaces at line ends or (outside pre) beginnings, at most one empty line."""
    lines = [line.rstrip(" \t") for line in text.split("\n")]
    lines = [line[1:] if line.startswith(" ") and not line.startswith("  ") else line for line in lines]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"
