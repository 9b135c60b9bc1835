"""The tokens that scores of overlap and diversity count, in Chinese and in languages with spaces alike."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from functools import cache

from foretell.errors import DataError

# Han with its extensions and the marks that stand for characters (〇, 々), and kana: scripts written without spaces.
_KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff"
_CHARACTERS = f"\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff{_KANA}"
_UNSPACED = re.compile(f"[{_CHARACTERS}]")
_LAST_MARK = 0x1FFFF


def words(text: str) -> list[str]:
    """Letters and digits only, in lower case: each Han character or kana alone, all else in words."""
    return re.findall(_word(), text.lower())


def units(text: str) -> list[str]:
    """As `words`, but each mark of punctuation is a token too, and case is kept."""
    return re.findall(rf"{_word()}|[^\w\s]|_", text)


@cache
def _word() -> str:
    """A character, or a run of letters, digits and the marks that combine with them: Hindi's vowels are marks."""
    marks = "".join(c for c in map(chr, range(_LAST_MARK)) if unicodedata.category(c)[0] == "M")
    return rf"[{_CHARACTERS}]|(?:[^\W_{_CHARACTERS}][{marks}]*)+"


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
