"""The tokens that scores of overlap and diversity count, in Chinese and in languages with spaces alike."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence

from foretell.errors import DataError

# Han with its extensions and the marks that stand for characters (〇, 々), and kana: scripts written without spaces.
UNSPACED = "\u3005-\u3007\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_UNSPACED = re.compile(f"[{UNSPACED}]")
_WORD = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+")
_UNIT = re.compile(rf"[{UNSPACED}]|[^\W_{UNSPACED}]+|[^\w\s]|_")


def words(text: str) -> list[str]:
    """Letters and digits only, in lower case: each Han character or kana alone, all else in words."""
    return _WORD.findall(text.lower())


def units(text: str) -> list[str]:
    """As `words`, but each mark of punctuation is a token too, and case is kept."""
    return _UNIT.findall(text)


def spaced(texts: Iterable[str], language: str) -> None:
    """DataError where most letters are of a script without spaces, which `language` has not: scores would be near 0."""
    letters = [c for text in texts for c in text if c.isalpha()]
    found = sum(_UNSPACED.match(c) is not None for c in letters)
    if 2 * found > len(letters):
        raise DataError(
            f"{found:,} of {len(letters):,} letters are Han or kana, but the language is `{language}`: "
            "give language='zh' (or 'ja')"
        )


def tokenised(items: Sequence[str | Sequence[Hashable]]) -> list[Sequence[Hashable]]:
    """Texts in `units`; items that are sequences of tokens already (of a model, say) as they are."""
    return [units(item) if isinstance(item, str) else item for item in items]


def ngrams(tokens: Sequence[Hashable], n: int) -> list[tuple[Hashable, ...]]:
    """All runs of n tokens, in their order, repeated ones too."""
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
