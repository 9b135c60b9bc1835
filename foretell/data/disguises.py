"""A shadow of a text in which numbers stand plainly, with the way back to the places in the text itself.

Zero-width characters are left out; full-width signs become ASCII ones; unusual dashes, blanks and brackets beside a
digit become plain ones. Only where there are such characters: the shadow of ASCII text is the text. Digits in Chinese
characters are another matter: prose is full of them, and 一 after a number may be its last digit or the next word, so
they are rewritten only in runs of eleven or more, and that reading is tried besides the plain one.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

_INVISIBLE = re.compile("[\u00ad\u034f\u180e\u200b-\u200f\u202a-\u202e\u2060-\u2064\u2066-\u2069\ufeff]+")
_WIDE = re.compile("[０-９Ａ-Ｚａ-ｚ＠＋－．＿]+")
_NARROW = {wide: wide - 0xFEE0 for wide in range(ord("！"), ord("～") + 1)}
_BLANKS = "\u00a0\u2002-\u200a\u202f\u3000·"
_HYPHENS = "\u2010-\u2015\u2212－"
_BESIDE_A_DIGIT = re.compile(f"[{_BLANKS}{_HYPHENS}（）](?:(?=[ (]?[0-9])|(?<=[0-9].))")
_BLANK, _HYPHEN = re.compile(f"[{_BLANKS}]"), re.compile(f"[{_HYPHENS}]")
_CHINESE = "〇零○Ｏ一二三四五六七八九幺壹贰叁肆伍陆柒捌玖"
_ARABIC = str.maketrans(_CHINESE, "00001234567891123456789")
_LONG_RUN = re.compile(rf"[0-9{_CHINESE}](?:[ —-]{{0,2}}[0-9{_CHINESE}]){{10,}}")


class Shadow(NamedTuple):
    """gone: for each character left out, in order, how many are kept before it."""

    text: str
    gone: list[int]

    def original(self, start: int, end: int) -> tuple[int, int]:
        """The span in the text itself; what was left out at its edges is not part of it."""
        return start + bisect_right(self.gone, start), end + bisect_right(self.gone, end - 1)


def _plain_sign(m: re.Match[str]) -> str:
    if _BLANK.match(m[0]):
        return " "
    return "-" if _HYPHEN.match(m[0]) else "()"[m[0] == "）"]


def undo(text: str) -> Shadow:
    """The shadow of a text; but for `gone` every character of it has its own in the text."""
    gone: list[int] = []
    if text.isascii():
        return Shadow(text, gone)
    if _INVISIBLE.search(text):
        for m in _INVISIBLE.finditer(text):
            gone += [m.start() - len(gone)] * len(m[0])
        text = _INVISIBLE.sub("", text)
    text = _WIDE.sub(lambda m: m[0].translate(_NARROW), text)
    return Shadow(_BESIDE_A_DIGIT.sub(_plain_sign, text), gone)


def in_digits(text: str) -> str | None:
    """The text with long runs of digits, some in Chinese characters, all in Arabic ones; None where there are none."""
    if text.isascii() or all(m[0].isascii() for m in _LONG_RUN.finditer(text)):
        return None
    return _LONG_RUN.sub(lambda m: m[0].translate(_ARABIC), text)
