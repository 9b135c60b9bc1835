"""Which language a document is in, and a step that keeps some languages.

The judge is py3langid (extra `clean`): naive Bayes over byte n-grams, 142 languages, its model inside the wheel. Three
things are added to it. Only 600 characters from three places are looked at. Code and tables are no language: too few
letters, or too many of the marks that prose does without. And Chinese is one language here: py3langid knows Wu and
Cantonese beside it and gives them one in fourteen Tang poems; members of other macrolanguages are added up likewise.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache, partial
from typing import TYPE_CHECKING

from foretell.data.steps import Dropped, Kept, Step
from foretell.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

UNKNOWN = "und"
_PLACE_CHARACTERS = 200
_PLACES = 3
_LEAST_CONFIDENCE = 0.4
_LEAST_LETTERS = 0.5
_MOST_CODE_MARKS = 0.03
_FREE_CODE_MARKS = 2
_CODE_MARK = re.compile(r"[{}\[\]=_;\\*+#$^&|~`]")
# ISO 639-3 codes that have none of two letters, by the code of their macrolanguage, or their own of two letters.
_MEMBER_OF = {"wuu": "zh", "yue": "zh", "ary": "ar", "arz": "ar", "fuv": "ff", "gug": "gn", "kik": "ki", "ltg": "lv"}
_MEMBER_OF |= {"sdh": "ku", "uzs": "uz"}


def identify(text: str) -> tuple[str, float]:
    """The ISO 639-1 code of the text's language and the judge's probability for it.

    "und" for what is no language (code, tables, numbers), has no code of two letters, or is told with less than 0.4.
    MissingExtra without py3langid.
    """
    sample = _sample(text)
    if not _is_prose(sample):
        return UNKNOWN, 0.0
    code, confidence = _judge().classify(sample)
    known = len(code) == 2 and confidence >= _LEAST_CONFIDENCE
    return code if known else UNKNOWN, confidence


def only(languages: list[str]) -> Step:
    """Keeps documents in these languages, ISO 639-1. ConfigError for an unknown code, MissingExtra as above."""
    codes = sorted(c for c in _judge().labels if len(c) == 2)
    if not languages or not set(languages) <= {*codes, UNKNOWN}:
        raise ConfigError(f"languages {languages}: of {', '.join(codes)} and und, name one or more")
    return partial(_keep, languages=tuple(languages))


def _keep(text: str, languages: tuple[str, ...]) -> Kept | Dropped:
    code, confidence = identify(text)
    if code in languages:
        return Kept(text)
    return Dropped("language", f"{code} {confidence:.2f}, kept are {', '.join(languages)}")


@cache
def _judge() -> LanguageIdentifier:
    try:
        from py3langid import langid
    except ImportError:
        raise MissingExtra("telling languages apart", "clean") from None
    known = langid.LanguageIdentifier.from_model_file(langid.MODEL_FILE)
    names = [_MEMBER_OF.get(n, n) for n in known.nb_classes]  # equal names: it adds up their probabilities
    tables = known.nb_ptc, known.nb_pc, names, known.tk_nextmove, known.tk_output
    return langid.LanguageIdentifier(*tables, norm_probs=True, tk_row=known.tk_row)


def _sample(text: str) -> str:
    """The text, or its beginning, middle and end."""
    size = _PLACE_CHARACTERS
    if len(text) <= size * _PLACES:
        return text
    middle = (len(text) - size) // 2
    return "\n".join((text[:size], text[middle : middle + size], text[-size:]))


def _is_prose(sample: str) -> bool:
    """Whether enough of what is visible are letters, and few of its bytes marks of code.

    Bytes, not characters: a mark is one byte of ASCII, and a Chinese character says as much as three letters.
    """
    visible = "".join(sample.split())
    letters = sum(map(str.isalpha, visible))
    if letters < _LEAST_LETTERS * len(visible):  # then with the vowel signs of Hindi, Thai, ...
        letters += sum(unicodedata.category(c).startswith("M") for c in visible)
    size = len(visible.encode("utf-8", "surrogatepass"))
    few_marks = len(_CODE_MARK.findall(visible)) <= max(_FREE_CODE_MARKS, _MOST_CODE_MARKS * size)
    return letters > 0 and letters >= _LEAST_LETTERS * len(visible) and few_marks
