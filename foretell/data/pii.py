"""Personal data in English and Chinese text: e-mail, phone, cards, accounts, addresses on the net, IDs and secrets.

Everything here has a form that can be checked: a checksum, a date, a list of prefixes. Names and street addresses have
none and are not looked for. Where a number has only its digits to show (ten of them, say), a word before it must say
that it is a phone.

One pass finds clusters of seven or more digits, and the rules for numbers are tried around these only; the others only
where a mark of theirs (`@`, `eyJ`, ...) stands in the text. All look at a shadow of the text without disguises
(disguises.py); spans are those of the text itself.

docs/cleaning-pii.md says what is found, what is not, and how well.
"""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from foretell.data import checksums, disguises
from foretell.data.steps import Dropped, Kept, Step
from foretell.errors import ConfigError


class Found(NamedTuple):
    """kind: one of KINDS. start, end: characters of the text, end not included."""

    kind: str
    start: int
    end: int


Span = tuple[int, int]


class _Rule(NamedTuple):
    """Candidates are group 1 of the matches, or all of them; span: what of a candidate it is, None if it is not."""

    kind: str
    pattern: re.Pattern[str]
    span: Callable[[re.Match[str]], Span | None]
    least: int = 0  # characters of the shortest, for a number


# What wins where two overlap.
KINDS = ("secret", "e-mail", "IBAN", "resident ID", "credit code", "bank card", "SSN", "phone", "IP address")
_RANK = {kind: n for n, kind in enumerate(KINDS)}

_SEP = r"(?>[ \r-]?[ \n-] ?)"  # between the groups of a card or an ID: a blank, a hyphen, a line break
_LEFT = r"(?<![0-9A-Za-z_])(?<![0-9]\.)"
_RIGHT = r"(?![0-9A-Za-z_])(?!\.[0-9])"


def _plain(number: str) -> str:
    return re.sub(r"[^0-9A-Za-z]", "", number)


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


# Numbers


def _broken_card(m: re.Match[str]) -> Span | None:
    """A card with a line break within: not two lines of a column of numbers."""
    text, (start, end) = m.string, m.span(1)
    before = text[text.rfind("\n", 0, start) + 1 : start]
    after = text[end : end + 20].partition("\n")[0]
    return m.span(1) if (before + after).strip() and checksums.bank_card(_plain(m[1])) else None


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
    if not 7 <= sum(c.isdigit() for c in m[1]) <= 15 or _NO_PHONE.fullmatch(m[1]):
        return None
    start, end = m.span(1)
    told = _LABEL.search(m.string, max(0, start - 40), start) or _LABEL_AFTER.match(m.string, end)
    return m.span(1) if told else None


def _international(m: re.Match[str]) -> Span | None:
    decimal = re.fullmatch(r"\+\d+\.\d+", m[1])  # a coordinate
    return m.span(1) if 9 <= sum(c.isdigit() for c in m["number"]) <= 15 and not decimal else None


def _social_security(m: re.Match[str]) -> Span | None:
    """With blanks for hyphens (512 64 1024) only where the word stands before it."""
    told = "-" in m[1] or re.search(r"(?i)\bssn|social security", m.string[max(0, m.start() - 40) : m.start()])
    return m.span(1) if told and checksums.social_security(_plain(m[1])) else None


_EXTENSION = r"(?: ?(?:x|ext\.?|#|转) ?[0-9]{1,6})?"
_SIGN = "[0-9A-HJ-NP-RTUWXY]"
_NUMBERS = (
    _Rule(
        "IBAN",
        re.compile(
            rf"{_LEFT}(?=([A-Z]{{2}}[0-9]{{2}}(?:[ -]?[A-Z0-9]){{11,30}}|[a-z]{{2}}[0-9]{{2}}[a-z0-9]{{11,30}}))"
        ),
        _iban,
        7,
    ),
    _Rule(
        "resident ID",
        _number(rf"[1-8](?:{_SEP}?+[0-9]){{16}}{_SEP}?+[0-9Xx]"),
        _checked(checksums.resident_id),
        17,
    ),
    _Rule("resident ID", _number("[1-8][0-9]{14}"), _checked(checksums.resident_id), 15),
    _Rule(
        "credit code",
        _number(
            rf"{_SIGN}{{2}}[ -]?[0-9]{{6}}[ -]?{_SIGN}{{8,9}}[ -]?{_SIGN}{{1,2}}"
            rf"|{_SIGN}{{4}}[ -][0-9]{{4}}[ -]{_SIGN}{{4}}[ -]{_SIGN}{{4}}[ -]{_SIGN}{{2}}"
        ),
        lambda m: m.span(1) if len(_plain(m[1])) == 18 and checksums.credit_code(_plain(m[1])) else None,
        6,
    ),
    _Rule(
        "bank card",
        _number(
            rf"[0-9]{{13,19}}|(?:[0-9]{{4}}{_SEP}){{3}}(?:[0-9]{{4}}{_SEP}[0-9]{{1,3}}|[0-9]{{1,7}})"
            rf"|3[0-9]{{3}}{_SEP}[0-9]{{6}}{_SEP}[0-9]{{4,5}}|[0-9]{{6}}{_SEP}[0-9]{{10,13}}"
        ),
        _checked(checksums.bank_card),
        13,
    ),
    _Rule(  # four fours, and perhaps a code or a date after them
        "bank card",
        _number(rf"(?:[0-9]{{4}}{_SEP}){{3}}[0-9]{{4}}(?!{_SEP}[0-9]{{4}})"),
        _checked(checksums.bank_card),
        16,
    ),
    _Rule("bank card", _number(r"(?=[0-9\s]{14,24})[0-9]{2,17} ?\r?\n ?[0-9]{2,17}"), _broken_card, 14),
    _Rule("SSN", _number(_grouped("[0-9]{3}", "[0-9]{2}", "[0-9]{4}")), _social_security, 11),
    _Rule(
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
    _Rule(
        "phone",  # a landline of China
        _number(
            r"(?:\(0[1-9][0-9]{1,2}\) ?|0(?:10|2[0-9]|[3-9][0-9]{2})[ -])[2-9][0-9]{2,3}[ -]?[0-9]{4}"
            r"(?:(?:-|转)[0-9]{1,5})?"
        ),
        _whole,
        10,
    ),
    _Rule(
        "phone",  # North America
        _number(
            rf"(?:{_grouped('(?:1SEP)?[2-9][0-9]{2}', '[2-9][0-9]{2}', '[0-9]{4}')}"
            r"|(?:1[ -]?)?\([2-9][0-9]{2}\) ?[2-9][0-9]{2}[ .-][0-9]{4}|[2-9][0-9]{2} [2-9][0-9]{2}-[0-9]{4}"
            rf"|(?:\+|00)1[ .-]?\(?[2-9][0-9]{{2}}\)?[ .-]?[0-9]{{3}}[ .-]?[0-9]{{4}}){_EXTENSION}"
        ),
        _whole,
        10,
    ),
    _Rule(
        "phone",
        re.compile(
            rf"(?<![0-9A-Za-z_+])(?=((?P<number>(?:\+|00(?=[1-9][0-9]{{0,2}}[ .-])){checksums.CALLING_CODE}\)?"
            rf"[ .-]?(?:\(0?[0-9]{{0,4}}\)[ .-]?)?[0-9]+(?:[ .-][0-9]{{2,}}){{0,6}}){_EXTENSION}){_RIGHT})"
        ),
        _international,
        8,
    ),
    _Rule(
        "phone",
        re.compile(rf"(?<![0-9])(?=((?:\+|\(\+?)?[0-9]+(?:[ ().-]{{1,2}}[0-9]+){{0,8}}{_EXTENSION})(?![0-9A-Za-z]))"),
        _labelled,
        7,
    ),
)
_CLUSTER = re.compile(r"[0-9](?:[ ().\r\n-]{0,3}[0-9]){6,}")
_BEFORE, _AFTER = 40, 40  # characters around a cluster that may belong to the number


def _numbers(text: str) -> Iterator[Found]:
    for cluster in _CLUSTER.finditer(text):
        start, end = cluster.span()
        for kind, pattern, span, least in _NUMBERS:
            if end - start >= least - 3:
                before = _BEFORE if kind == "IBAN" else 4
                for m in pattern.finditer(text, max(0, start - before), end + _AFTER):
                    if m.start() < end and (found := span(m)):
                        yield Found(kind, *found)


# The others, by their marks

_LOCAL = re.compile(r"[0-9A-Za-zÀ-ɏ_](?:[0-9A-Za-zÀ-ɏ_.%+'-]*[0-9A-Za-zÀ-ɏ_+-])?\Z")
_FILES = re.compile("png|jpe?g|gif|svg|webp|ico|css|[jt]s|json|html?|py|md|txt|xml|ya?ml|pdf")


def _email(m: re.Match[str]) -> Span | None:
    local = _LOCAL.search(m.string, max(0, m.start() - 64), m.start())
    if not local or _FILES.fullmatch(m[1].lower()) or (local[0] == "git" and m.string[m.end() : m.end() + 1] == ":"):
        return None
    return local.start(), m.end()


_VERSION = re.compile(
    r"(?i)(?:\b(?:v|vers?|version|release|rel|build|firmware|update|section|sec|chapter|clause|fig|figure|table)s?"
    r"|版本|版|第|§)[\s.:=#号為为是]*\Z"
)


def _ipv4(m: re.Match[str]) -> Span | None:
    """Not a version or a section, nor an address that is everyone's: 0.*, 127.*, a mask."""
    octets = m[0].split(".")
    proper = all(str(int(o)) == o and int(o) < 256 for o in octets) and octets[0] not in {"0", "127", "255"}
    if not proper or _VERSION.search(m.string, max(0, m.start() - 24), m.start()):
        return None
    return m.span()


_GIVEN_OUT = tuple(map(ipaddress.IPv6Network, ("2000::/3", "fc00::/7", "fe80::/10")))


def _ipv6(m: re.Match[str]) -> Span | None:
    """Shortened ones only where addresses are given out: a[10::20] is no address."""
    written = m[0] if m[0].endswith("::") else m[0].rstrip(":")
    try:
        address = ipaddress.IPv6Address(written)
    except ValueError:
        return None
    known = "::" not in written or (written.find(":") == 4 and any(address in n for n in _GIVEN_OUT))
    return (m.start(), m.start() + len(written)) if known else None


def _secret(m: re.Match[str]) -> Span | None:
    """sk- begins names of style classes too: what follows must look drawn by lot."""
    drawn = all(any(test(c) for c in m[0][3:]) for test in (str.isdigit, str.isupper, str.islower))
    return m.span() if drawn or not m[0].startswith("sk-") else None


_SECRETS = {
    "AKIA": "AKIA[0-9A-Z]{16}",
    "ASIA": "ASIA[0-9A-Z]{16}",
    "gh": "gh[pousr]_[0-9A-Za-z]{36,}",
    "github_pat_": "github_pat_[0-9A-Za-z_]{22,}",
    "sk-": "sk-[0-9A-Za-z_-]{20,}",
    "sk_live_": "sk_live_[0-9A-Za-z]{16,}",
    "xox": r"xox[abeoprs](?:\.xox[bp])?-[0-9A-Za-z-]{10,}",
    "AIza": "AIza[0-9A-Za-z_-]{35}",
    "hf_": "hf_[0-9A-Za-z]{30,}",
    "eyJ": r"eyJ[0-9A-Za-z_-]{8,}\.eyJ[0-9A-Za-z_-]{4,}\.[0-9A-Za-z_-]*",
}
_PEM = (
    r"-----BEGIN ((?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?)-----"
    r"(?:[^-]*+(?:-(?!----)[^-]*+)*+-----END \1-----|(?:\s+[0-9A-Za-z+/=]{16,})*)"
)
_MARKED = (
    *(
        (m, _Rule("secret", re.compile(rf"{m[0]}(?<![0-9A-Za-z_-].){p[1:]}(?![0-9A-Za-z])"), _secret))
        for m, p in _SECRETS.items()
    ),
    ("-----BEGIN ", _Rule("secret", re.compile(_PEM), lambda m: m.span())),
    (
        "@",
        _Rule(
            "e-mail",
            re.compile(r"@(?:[0-9A-Za-zÀ-ɏ][0-9A-Za-zÀ-ɏ-]{0,62}\.(?=[0-9A-Za-z]))++([A-Za-z]{2,24})(?![0-9A-Za-z_(])"),
            _email,
        ),
    ),
    (
        ".",
        _Rule(
            "IP address",
            re.compile(
                r"[0-9](?<![0-9A-Za-z_.][0-9])(?<![A-Za-z_][/-][0-9])[0-9]{0,2}(?:\.[0-9]{1,3}){3}"
                r"(?![0-9A-Za-z_]|[.-][0-9A-Za-z_])"
            ),
            _ipv4,
        ),
    ),
    (
        ":",
        _Rule(
            "IP address",
            re.compile(
                r"[0-9A-Fa-f](?<![0-9A-Za-z_:.][0-9A-Fa-f])[0-9A-Fa-f]{0,3}+:[0-9A-Fa-f]{0,4}+:[0-9A-Fa-f:]{0,31}+"
                r"(?![0-9A-Za-z_:]|\.[0-9])"
            ),
            _ipv6,
        ),
    ),
)


def _others(text: str) -> Iterator[Found]:
    for mark, (kind, pattern, span, _) in _MARKED:
        if mark in text:
            for m in pattern.finditer(text):
                if found := span(m):
                    yield Found(kind, *found)


def _settled(found: list[Found]) -> list[Found]:
    """In order, of overlapping ones the higher in rank, then the earlier in the text, then in the list."""
    kept: list[Found] = []
    for new in sorted(found, key=lambda f: (f.start, _RANK[f.kind])):
        while kept and new.start < kept[-1].end and _RANK[new.kind] < _RANK[kept[-1].kind]:
            kept.pop()
        if not kept or new.start >= kept[-1].end:
            kept.append(new)
    return kept


def find(text: str) -> list[Found]:
    """All personal data of KINDS in the text, in order, not overlapping."""
    shadow = disguises.undo(text)
    found = sorted([*_others(shadow.text), *_numbers(shadow.text)], key=lambda f: f.start - f.end)
    if spoken := disguises.in_digits(shadow.text):  # besides, and after: 13800138000一个
        found += _numbers(spoken)
    kept = _settled(found)
    return [Found(kind, *shadow.original(start, end)) for kind, start, end in kept] if shadow.gone else kept


def _mask(text: str) -> Kept:
    found = find(text)
    if not found:
        return Kept(text)
    pieces, at = [], 0
    for kind, start, end in found:
        pieces += [text[at:start], f"<{kind}>"]
        at = end
    return Kept("".join([*pieces, text[at:]]), Counter(f.kind for f in found))


def _drop(text: str) -> Kept | Dropped:
    counts = Counter(f.kind for f in find(text))
    if not counts:
        return Kept(text)
    return Dropped("personal data", ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind]))


def scrubber(mode: Literal["mask", "drop"]) -> Step:
    """A step that puts `<e-mail>`, `<phone>`, ... in place of personal data, or drops documents that hold some.

    Raises ConfigError for another mode.
    """
    steps: dict[str, Step] = {"mask": _mask, "drop": _drop}
    if mode not in steps:
        raise ConfigError(f"personal data: mode {mode!r} is neither 'mask' nor 'drop'")
    return steps[mode]
