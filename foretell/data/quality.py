"""A step that drops pages that do not read like prose, by the rules that made Gopher, C4 and FineWeb; for Chinese, too.

A rule is a row of `RULES`: a number measured on the text, and the bound it must keep to. The English bounds are Rae et
al. 2021 (Gopher), section A.1.1 and table A1; Raffel et al. 2020 (C4), section 2.2, without the rules that FineWeb or
code cannot live with (line ends, curly brackets); Penedo et al. 2024 (FineWeb), section 3.6. Words are what white space
parts. Chinese has none, so a text in which a fifth of what is visible are Han characters is counted by characters, with
bounds of our own: docs/cleaning-rules.md says what they were measured on. Lines that speak of JavaScript or of
policies, or (by words) are no sentence, are taken out of what is kept, and counted.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from foretell.data import repetition
from foretell.data.steps import Dropped, Kept, Step


class Rule(NamedTuple):
    """A number, its bound, and what it is: the words that follow the number in a sentence."""

    source: str
    side: str  # "least" or "most"
    bound: float
    is_what: str

    def broken_by(self, number: float) -> bool:
        """Whether the number is on the wrong side of the bound; the bound itself is on the right one."""
        return number < self.bound if self.side == "least" else number > self.bound


def _common(top: tuple[float, ...], repeated: tuple[float, ...], shortest: int) -> dict[str, Rule]:
    """The rows that differ in their bounds only."""
    rows = {
        "bullets": Rule("Gopher", "most", 0.9, "of the lines begin with a bullet"),
        "ellipsis at line ends": Rule("Gopher", "most", 0.3, "of the lines end in an ellipsis"),
        "repeated paragraphs": Rule("Gopher", "most", 0.3, "of the paragraphs are repeated"),
        "repeated paragraphs' characters": Rule("Gopher", "most", 0.2, "of the characters are in repeated paragraphs"),
        "repeated lines": Rule("Gopher", "most", 0.3, "of the lines are repeated"),
        "repeated lines' characters": Rule("Gopher", "most", 0.2, "of the characters are in repeated lines"),
    }
    for n, bound in zip(repetition.TOP, top, strict=True):
        rows[f"top {n}-gram"] = Rule("Gopher", "most", bound, f"of the characters are in the most frequent {n}-gram")
    for n, bound in zip(repetition.REPEATED, repeated, strict=True):
        rows[f"repeated {n}-grams"] = Rule("Gopher", "most", bound, f"of the characters are in repeated {n}-grams")
    return rows | {
        "lorem ipsum": Rule("C4", "most", 0, "times lorem ipsum"),
        "line ends": Rule("FineWeb", "least", 0.12, "of the lines end in punctuation"),
        "short lines": Rule("FineWeb", "most", 0.67, f"of the lines have at most {shortest} characters"),
        "duplicated characters": Rule("FineWeb", "most", 0.01, "of the characters are in repeated lines"),
    }


_SHORT_LINE, _SHORT_CHINESE_LINE = 30, 10
RULES: dict[str, dict[str, Rule]] = {
    "words": {
        "too short": Rule("Gopher", "least", 50, "words"),
        "too long": Rule("Gopher", "most", 100_000, "words"),
        "short words": Rule("Gopher", "least", 3, "characters is the mean word"),
        "long words": Rule("Gopher", "most", 10, "characters is the mean word"),
        "hash signs": Rule("Gopher", "most", 0.1, "hash signs a word"),
        "ellipses": Rule("Gopher", "most", 0.1, "ellipses a word"),
        "few letters": Rule("Gopher", "least", 0.8, "of the words have a letter"),
        "stop words": Rule("Gopher", "least", 2, "of the stop words occur"),
        "sentences": Rule("C4", "least", 5, "sentences"),
    }
    | _common((0.20, 0.18, 0.16), (0.15, 0.14, 0.13, 0.12, 0.11, 0.10), _SHORT_LINE),
    "characters": {
        "too short": Rule("Gopher", "least", 40, "characters"),
        "too long": Rule("Gopher", "most", 150_000, "characters"),
        "short words": Rule("Gopher", "least", 4, "characters is the mean clause"),
        "long words": Rule("Gopher", "most", 60, "characters is the mean clause"),
        "hash signs": Rule("Gopher", "most", 0.06, "hash signs a character"),
        "ellipses": Rule("Gopher", "most", 0.06, "ellipses a character"),
        "few letters": Rule("Gopher", "least", 0.5, "of the characters are letters"),
        "stop words": Rule("Gopher", "least", 3, "of the function characters occur"),
        "sentences": Rule("C4", "most", 300, "characters is the mean sentence"),
    }
    | _common((0.20, 0.22, 0.22), (0.50, 0.46, 0.42, 0.39, 0.37, 0.35), _SHORT_CHINESE_LINE),
}

STOP_WORDS = frozenset({"the", "be", "to", "of", "and", "that", "have", "with"})
FUNCTION_CHARACTERS = frozenset("的一是不了在有人我他这為为這之来來以个個对對与與和也而其中于於及并並将將或从從由被")
_STOP_WORD_FORMS = STOP_WORDS | {w.capitalize() for w in STOP_WORDS} | {w.upper() for w in STOP_WORDS}
_HAN_SHARE = 0.2
_ELLIPSES = ("...", "…", "。。。")
_BULLETS = tuple("•‣⁃●○◦■□◆◇▪▫★☆※·・-*")
_LINE_ENDS = tuple(".!?\"'。！？．｡…：；”’」』》）)")
_CHINESE_SENTENCE_END = re.compile(r"[。！？!?．｡…]+|(?<=[^\x00-\x7f])\.|\.(?=\s|$)")
_CLAUSE_END = re.compile(_CHINESE_SENTENCE_END.pattern.replace("…", "…，,；;：:"))
_SENTENCE_BREAK = re.compile(r"[.!?]+[\"'”’)\]]*[ \t]+(?=[\"'“‘(\[]?[^\Wa-z_])")
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
_SCRIPT = ("javascript",)
_POLICIES = (
    *("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies"),
    *("使用条款", "使用條款", "服务条款", "服務條款", "隐私政策", "隱私政策", "隐私权政策", "隱私權政策"),
)
_LONGEST_WORD = 1000
_FEWEST_WORDS = 3


def rules() -> Step:
    """Keeps a text that breaks no rule, without its bad lines; drops others as "quality: <rule>"."""
    return _keep


def counted_by(text: str) -> str:
    """The set of rules for the text: "characters" if at least a fifth of what is visible is Han, else "words"."""
    if text.isascii():
        return "words"
    code = _code_points(text)
    han = ((code >= 0x4E00) & (code <= 0x9FFF)) | ((code >= 0x3400) & (code <= 0x4DBF)) | (code >= 0x20000)
    return "characters" if np.count_nonzero(han) >= max(1, _HAN_SHARE * len(code)) else "words"


def numbers(text: str) -> dict[str, float]:
    """Every number that the rules are about, by the rule's name, in the order they are looked at."""
    by = counted_by(text)
    return {name: n for part in _numbers(text, _without_bad_lines(text, by)[0], by) for name, n in part.items()}


def _keep(text: str) -> Kept | Dropped:
    by = counted_by(text)
    kept, changed = _without_bad_lines(text, by)
    for part in _numbers(text, kept, by):
        for name, number in part.items():
            rule = RULES[by][name]
            if rule.broken_by(number):
                told = f"{_told(number)} {rule.is_what}, at {rule.side} {_told(rule.bound)}"
                return Dropped(f"quality: {name}", told)
    return Kept(kept, changed)


def _told(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 or number == int(number) else f"{number:.4g}"


def _numbers(text: str, kept: str, by: str) -> Iterator[dict[str, float]]:
    """The numbers in parts, so that a text that one of them condemns costs no more. kept: without its bad lines."""
    if by == "words":
        words = text.split()
        yield _words(text, words)
        tokens, sizes = repetition.word_tokens(words), np.fromiter(map(len, words), np.int64, len(words))
    else:
        tokens = _code_points(text)
        yield _characters(text, len(tokens))
        sizes = np.ones(len(tokens), np.int64)
    lines = _filled(text)
    yield _lines(text, lines)
    shares = repetition.ngram_shares(tokens, sizes)
    yield {(f"top {n}-gram" if n in repetition.TOP else f"repeated {n}-grams"): s for n, s in shares.items()}
    yield _page(kept, lines if kept is text else _filled(kept), by)


def _words(text: str, words: list[str]) -> dict[str, float]:
    count = max(1, len(words))
    mixed = [w for w in words if not w.isalpha()]
    unlettered = [w for w in mixed if not any(map(str.isalpha, w))]
    symbols = [w for w in unlettered if not any(map(str.isalnum, w))]
    real = len(words) - len(symbols)
    mean = (sum(map(len, words)) - sum(map(len, symbols))) / max(1, real)
    return {
        "too short": real,
        "too long": real,
        "short words": mean,
        "long words": mean,
        "hash signs": text.count("#") / count,
        "ellipses": sum(map(text.count, _ELLIPSES)) / count,
        "few letters": (len(words) - len(unlettered)) / count,
        "stop words": len({w.lower() for w in _STOP_WORD_FORMS.intersection(words)}),
    }


def _characters(text: str, count: int) -> dict[str, float]:
    clause = count / max(1, len(_CLAUSE_END.findall(text)))
    return {
        "too short": count,
        "too long": count,
        "short words": clause,
        "long words": clause,
        "hash signs": text.count("#") / count,
        "ellipses": sum(map(text.count, _ELLIPSES)) / count,
        "few letters": sum(map(str.isalpha, text)) / count,
        "stop words": len(FUNCTION_CHARACTERS.intersection(text)),
    }


def _lines(text: str, lines: list[str]) -> dict[str, float]:
    count = max(1, len(lines))
    apart = text.count("\n") >= len(lines)  # there may be blank lines
    paragraphs = [p.strip() for p in _PARAGRAPH_BREAK.split(text) if p.strip()] if apart else [text]
    in_paragraphs, in_lines = repetition.repeats(paragraphs), repetition.repeats(lines)
    return {
        "bullets": sum(line.startswith(_BULLETS) for line in lines) / count,
        "ellipsis at line ends": sum(line.endswith(_ELLIPSES) for line in lines) / count,
        "repeated paragraphs": in_paragraphs[0],
        "repeated paragraphs' characters": in_paragraphs[1],
        "repeated lines": in_lines[0],
        "repeated lines' characters": in_lines[1],
    }


def _page(text: str, lines: list[str], by: str) -> dict[str, float]:
    """What C4 and FineWeb look at, once the bad lines are out; no line at all breaks the rule of line ends."""
    count = max(1, len(lines))
    ended = [line.endswith(_LINE_ENDS) for line in lines]
    if by == "words":
        sentences: float = len(lines) + len(_SENTENCE_BREAK.findall(text))
        shortest = _SHORT_LINE
    else:
        sentences = sum(map(len, lines)) / max(1, len(_CHINESE_SENTENCE_END.findall(text)))
        shortest = _SHORT_CHINESE_LINE
        ended = [e or bool(_CHINESE_SENTENCE_END.search(line)) for e, line in zip(ended, lines, strict=True)]
    return {
        "lorem ipsum": text.lower().count("lorem ipsum"),
        "sentences": sentences,
        "line ends": sum(ended) / count,
        "short lines": sum(len(line) <= shortest for line in lines) / count,
        "duplicated characters": repetition.repeats(lines)[1],
    }


def _without_bad_lines(text: str, by: str) -> tuple[str, Counter[str]]:
    """The text without the lines that C4 leaves out, and how many of each kind there were."""
    low = text.lower()
    phrases = [p for p in (*_SCRIPT, *_POLICIES) if p in low]
    out: Counter[str] = Counter()
    kept = []
    for line in text.split("\n"):
        why = _about(line, phrases) or (_no_sentence(line) if by == "words" else "")
        if why:
            out[why] += 1
        else:
            kept.append(line)
    return ("\n".join(kept), out) if out else (text, out)


def _about(line: str, phrases: list[str]) -> str:
    """What the line is about that no page should be about; empty where it is not. phrases: those of the page."""
    if not phrases:
        return ""
    low = line.lower()
    said = [p for p in phrases if p in low]
    return ("line about JavaScript" if said[0] in _SCRIPT else "line about policies") if said else ""


def _no_sentence(line: str) -> str:
    if 0 < len(line.split(None, _FEWEST_WORDS - 1)) < _FEWEST_WORDS:
        return "line of one or two words"
    if len(line) > _LONGEST_WORD and max(map(len, line.split()), default=0) > _LONGEST_WORD:
        return "line with an endless word"
    return ""


def _filled(text: str) -> list[str]:
    return [line for line in map(str.strip, text.split("\n")) if line]


def _code_points(text: str) -> np.ndarray:
    """(C,) of the visible characters."""
    return np.frombuffer("".join(text.split()).encode("utf-32-le", "surrogatepass"), "<u4")
