"""Rules for what is made of digits: cards, accounts, IDs, phones.

One pass finds clusters of seven or more digits; a rule is tried around those that have enough for it. A number that has
only its digits to show, such as ten of them in a row, counts as a phone where a word beside it says so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from foretell.data import checksums

Span = tuple[int, int]


class Rule(NamedTuple):
    """How one kind looks. span: which part of a match is such a thing, None if none is."""

    kind: str
    pattern: re.Pattern[str]
    span: Callable[[re.Match[str]], Span | None]
    least: int = 0  # digits that the cluster around a number has, if not more


_SEP = r"(?>[ \r-]?[ \n-] ?)"  # between the groups of a card or an ID: a blank, a hyphen, a line break
_NO_DIGITS = str.maketrans("", "", " ().+\r\n-")
_LEFT = r"(?<![0-9A-Za-z_])(?<![0-9]\.)"
_RIGHT = r"(?![0-9A-Za-z_])(?!\.[0-9])"


def _plain(number: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", number)


def _digits(number: str) -> int:
    return len(number.translate(_NO_DIGITS))


def _whole(m: re.Match[str]) -> Span:
    return m.span(1)


def _checked(valid: Callable[[str], bool]) -> Callable[[re.Match[str]], Span | None]:
    return lambda m: m.span(1) if valid(_plain(m[1])) else None


def _number(body: str) -> re.Pattern[str]:
    """A pattern tried wherever a number can begin, also inside what it matched before."""
    return re.compile(f"{_LEFT}(?=({body}){_RIGHT})")


def _grouped(*groups: str) -> str:
    """Groups with the same separator between all of them, which stands neither before nor after with a digit."""
    kinds = ("-", " ", r"\.")
    return "|".join(f"(?<![0-9]{s}){s.join(groups).replace('SEP', s)}(?!{s}[0-9])" for s in kinds)


def _broken_card(m: re.Match[str]) -> Span | None:
    """A card with a line break within: a word stands beside it; in a column or a table, numbers or nothing."""
    text, (start, end) = m.string, m.span(1)
    before = text[text.rfind("\n", max(0, start - 80), start) + 1 : start].rstrip()[-1:]
    after = text[end : end + 20].partition("\n")[0].lstrip()[:1]
    alone = not (before or after) or before.isdigit() or after.isdigit()
    return m.span(1) if not alone and checksums.bank_card(_plain(m[1])) else None


def _iban(m: re.Match[str]) -> Span | None:
    """As many characters as the country's IBANs have, if a word ends there."""
    left = checksums.iban_length(m[1][:2])
    for end in range(m.start(1) + 1, m.end(1) + 1):
        left -= m.string[end - 1].isalnum()
        if not left:
            ends = not re.match("[0-9A-Za-z]", m.string[end : end + 1])
            return (m.start(1), end) if ends and checksums.iban(_plain(m.string[m.start(1) : end])) else None
    return None


_LABEL = re.compile(
    r"(?i:\b(?:(?:tele|cell)?phone|tel|mobile|cell|fax|whatsapp|call|dial|sms|desk|hotline|contact|reach)s?"
    r"|电话|手机|传真|座机|热线|致电|联系方式|電話|手機|傳真)"
    r"(?:[\s:：=#.,，()（）*+-]|number|no\b|me\b|us\b|him\b|her\b|now\b|at\b|on\b|is\b|号码|號碼|号|是|为){0,8}\Z"
)
_LABEL_AFTER = re.compile(r"(?i)[ -]{1,3}(?:office|fax|mobile|cell|home|work)[ \\]*(?:[,;\n]|\Z)")
_NO_PHONE = re.compile(
    r"(?:19|20)\d\d[-./ ]\d\d?[-./ ]\d\d?(?: \d.*)?|\d\d?[-./ ]\d\d?[-./ ](?:19|20)\d\d|(?:19|20)\d\d ?- ?(?:19|20)\d\d"
    r"|\d+\.\d+"
)


def _labelled(m: re.Match[str]) -> Span | None:
    if not 7 <= _digits(m["number"]) <= 15 or _NO_PHONE.fullmatch(m[1]):
        return None
    start, end = m.span(1)
    told = _LABEL.search(m.string, max(0, start - 40), start) or _LABEL_AFTER.match(m.string, end)
    return m.span(1) if told else None


def _international(m: re.Match[str]) -> Span | None:
    decimal = re.fullmatch(r"\+\d+\.\d+", m[1])  # a coordinate
    return m.span(1) if 9 <= _digits(m["number"]) <= 15 and not decimal else None


def _social_security(m: re.Match[str]) -> Span | None:
    """With blanks for hyphens (512 64 1024) only where the word stands before it."""
    told = "-" in m[1] or re.search(r"(?i)\bssn|social security", m.string[max(0, m.start() - 40) : m.start()])
    return m.span(1) if told and checksums.social_security(_plain(m[1])) else None


_EXTENSION = r"(?: ?(?:x|ext\.?|#|转) ?[0-9]{1,6})?"
_SIGN = "[0-9A-HJ-NP-RTUWXY]"
_NUMBERS = (
    Rule(
        "IBAN",
        re.compile(
            rf"{_LEFT}(?=([A-Z]{{2}}[0-9]{{2}}(?:[ -]?[A-Z0-9]){{11,30}}|[a-z]{{2}}[0-9]{{2}}[a-z0-9]{{11,30}}))"
        ),
        _iban,
        7,
    ),
    Rule(
        "resident ID",
        _number(rf"[1-8](?:{_SEP}?+[0-9]){{16}}{_SEP}?+[0-9Xx]"),
        _checked(checksums.resident_id),
        17,
    ),
    Rule("resident ID", _number("[1-8][0-9]{14}"), _checked(checksums.resident_id), 15),
    Rule(
        "credit code",
        _number(
            rf"{_SIGN}{{2}}[ -]?[0-9]{{6}}[ -]?{_SIGN}{{8,9}}[ -]?{_SIGN}{{1,2}}"
            rf"|{_SIGN}{{4}}[ -][0-9]{{4}}[ -]{_SIGN}{{4}}[ -]{_SIGN}{{4}}[ -]{_SIGN}{{2}}"
        ),
        lambda m: m.span(1) if len(_plain(m[1])) == 18 and checksums.credit_code(_plain(m[1])) else None,
        7,
    ),
    Rule(
        "bank card",
        _number(
            rf"[0-9]{{13,19}}|(?<![0-9][ -])(?:(?:[0-9]{{4}}{_SEP}){{3}}(?:[0-9]{{4}}{_SEP}[0-9]{{1,3}}|[0-9]{{1,7}})"
            rf"|(?:3[0-9]{{3}}{_SEP}[0-9]{{6}}{_SEP}[0-9]{{4,5}}|[0-9]{{6}}{_SEP}[0-9]{{10,13}})(?![ -][0-9]))"
        ),
        _checked(checksums.bank_card),
        13,
    ),
    Rule(  # four fours, and perhaps a code or a date after them
        "bank card",
        _number(rf"(?<![0-9][ -])(?:[0-9]{{4}}{_SEP}){{3}}[0-9]{{4}}(?!{_SEP}[0-9]{{4}})"),
        _checked(checksums.bank_card),
        16,
    ),
    Rule("bank card", _number(r"(?=[0-9\s]{14,24})[0-9]{2,17} ?\r?\n ?[0-9]{2,17}"), _broken_card, 13),
    Rule("SSN", _number(_grouped("[0-9]{3}", "[0-9]{2}", "[0-9]{4}")), _social_security, 9),
    Rule(
        "phone",  # a mobile of China
        _number(
            r"(?:(?:\+|00)?86[ -]?)?(?:1[3-9][0-9]{9}|"
            + "|".join(
                _grouped(rf"1[3-9][0-9]{{{a - 2}}}", f"[0-9]{{{b}}}", f"[0-9]{{{c}}}")
                for a, b, c in ((3, 4, 4), (4, 4, 3), (4, 3, 4), (3, 3, 5))
            )
            + ")"
        ),
        _whole,
        11,
    ),
    Rule(
        "phone",  # a landline of China
        _number(
            r"(?:\(0[1-9][0-9]{1,2}\) ?|0(?:10|2[0-9]|[3-9][0-9]{2})[ -])[2-9][0-9]{2,3}[ -]?[0-9]{4}"
            r"(?:(?:-|转)[0-9]{1,5})?"
        ),
        _whole,
        11,
    ),
    Rule(
        "phone",  # North America
        _number(
            rf"(?:{_grouped('(?:1SEP)?[2-9][0-9]{2}', '[2-9][0-9]{2}', '[0-9]{4}')}"
            r"|(?:1[ -]?)?\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[ .-][0-9]{4}|[2-9][0-9]{2} [2-9][0-9]{2}-[0-9]{4}"
            rf"|(?:\+|00)1[ .-]?\(?[2-9][0-9]{{2}}\)?[ .-]?[0-9]{{3}}[ .-]?[0-9]{{4}}){_EXTENSION}"
        ),
        _whole,
        10,
    ),
    Rule(
        "phone",
        re.compile(
            rf"(?<![0-9A-Za-z_+])(?=((?P<number>(?:\+|00(?=[1-9][0-9]{{0,2}}[ .-])){checksums.CALLING_CODE}\)?"
            rf"[ .-]?(?:\(0?[0-9]{{0,4}}\)[ .-]?)?[0-9]+(?:[ .-][0-9]{{2,}}){{0,6}}){_EXTENSION}){_RIGHT})"
        ),
        _international,
        9,
    ),
    Rule(
        "phone",
        re.compile(
            r"(?<![0-9])(?=((?P<number>(?:\+|\(\+?)?[0-9]+(?:[ ().-]{1,2}[0-9]+){0,8})"
            rf"{_EXTENSION})(?![0-9A-Za-z]))"
        ),
        _labelled,
        7,
    ),
)
_CLUSTER = re.compile(r"[0-9](?:[ ().\r\n-]{0,3}[0-9]){6,}")
_REACH = {"IBAN": (40, 40)}  # characters before and after a cluster that may belong to the number


def numbers(text: str) -> Iterator[tuple[str, Span]]:
    """Kind and span of every number found, in any order, perhaps overlapping."""
    for cluster in _CLUSTER.finditer(text):
        start, end = cluster.span()
        digits = _digits(cluster[0])
        for kind, pattern, span, least in _NUMBERS:
            if digits >= least:
                before, after = _REACH.get(kind, (4, 20))
                for m in pattern.finditer(text, max(0, start - before), end + after):
                    if m.start() < end and (found := span(m)):
                        yield kind, found
