"""What a text is cut into before vectors are learned: words, words with single Chinese characters, or a model's tokens.

Words follow the word boundaries of Unicode (UAX #29, rules WB4 to WB13): letters, digits, marks and connectors run on;
an apostrophe, full stop or colon between letters, and a comma or full stop between digits, does not cut: don't,
U.S.A, 3.14, __init__. Punctuation and spaces are no words. Differences from the annex: numerals such as 2 in x² count
as letters, and scripts without spaces other than Chinese (Thai, Khmer, ...) stay whole runs. The standard cuts Chinese
into single characters; so does `characters`. `words` joins them to words by jieba (extra `zh`).

Letters are made lower case unless told otherwise. Nothing is normalised besides.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Literal

from foretell.tokenizer.words import chinese_words

Units = Literal["words", "characters", "tokens"]

# Han ideographs with the signs that are read as such. Chinese text is a run of these; kana are cut as UAX #29 says.
_HAN = "\u3005\u3007\u3021-\u3029\u3038-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_HIRAGANA = "\u3041-\u3096\u309d-\u309f"
_KATAKANA = "\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\u3031-\u3035\u309b\u309c\uff66-\uff9f"
_BETWEEN_LETTERS = r"'.:\u2018\u2019\u2024\u00b7\u0387\u055f\u05f4\u2027\ufe13\ufe52\ufe55\uff07\uff0e\uff1a"
_BETWEEN_DIGITS = (
    r"'.,;\u2018\u2019\u2024\u037e\u0589\u060c\u060d\u066c\u07f8\u2044"
    r"\ufe10\ufe14\ufe50\ufe52\ufe54\uff07\uff0c\uff0e\uff1b"
)
_CONNECTORS = "\u203f\u2040\u2054\ufe33\ufe34\ufe4d-\ufe4f\uff3f"  # and the underscore, which \w has
_SINGLE_PIECE = 1 << 16  # characters that jieba is given at once


def words_of(units: Units, lower: bool = True) -> Callable[[str], list[str]]:
    """The function that cuts a text into `words` or `characters`. MissingExtra when jieba is needed and not there.

    jieba is looked for when the first Chinese text comes.
    """
    alone = units == "characters"

    def cut(text: str) -> list[str]:
        text = text.lower() if lower else text
        words: list[str] = _pattern().findall(text)
        han = _han().search(text) is not None
        if not han and "_" not in text:
            return words
        found: list[str] = []
        for word in words:
            if han and _han().match(word):
                found += word if alone else _jieba(word)
            elif "_" not in word or any(c.isalnum() for c in word):
                found.append(word)
        return found

    return cut


@functools.cache
def _han() -> re.Pattern[str]:
    return re.compile(f"[{_HAN}]")


@functools.cache
def _pattern() -> re.Pattern[str]:
    marks = _marks()
    apart = _HAN + _HIRAGANA + _KATAKANA
    letter, digit = rf"[^\W\d_{apart}]", r"\d"
    piece = rf"(?:[^\W{apart}]|[{_CONNECTORS}])[{marks}]*"
    after_letter = rf"(?:(?<={letter})|(?<=[{marks}]))"
    joint = rf"(?:{after_letter}[{_BETWEEN_LETTERS}](?={letter})|(?<={digit})[{_BETWEEN_DIGITS}](?={digit}))"
    hebrew = r"(?<=[\u05d0-\u05ea])[\"](?=[\u05d0-\u05ea])"
    return re.compile(
        rf"{piece}(?:(?:{joint}|{hebrew})?{piece})*|[{_HAN}]+"
        rf"|[{_HIRAGANA}][{marks}]*|(?:[{_KATAKANA}][{marks}]*)+"
    )


@functools.cache
def _marks() -> str:
    """Marks and format characters, which belong to the letter before them, as the inside of a character class."""
    inside = [
        c for c in range(0x80, 0x20000) if unicodedata.category(chr(c)) in {"Mn", "Mc", "Me", "Cf"} and c != 0x200B
    ]
    inside += range(0xE0100, 0xE01F0)
    ranges: list[list[int]] = []
    for c in inside:
        if ranges and ranges[-1][1] == c - 1:
            ranges[-1][1] = c
        else:
            ranges.append([c, c])
    return "".join(f"\\U{low:08x}-\\U{high:08x}" for low, high in ranges)


def _jieba(run: str) -> Iterator[str]:
    """The words of a run of Chinese characters."""
    cut = chinese_words()
    for start in range(0, len(run), _SINGLE_PIECE):
        yield from cut(run[start : start + _SINGLE_PIECE])
