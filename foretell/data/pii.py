"""Personal data in English and Chinese text: e-mail, phone, cards, accounts, addresses on the net, IDs and secrets.

Everything here has a form that can be checked: a checksum, a date, a list of prefixes. Names and street addresses have
none and are not looked for. The rules (pii_numbers.py, pii_marked.py) look at a shadow of the text without disguises
(disguises.py); spans are those of the text itself.

docs/cleaning-pii.md says what is found, what is not, and how well.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal, NamedTuple

from foretell.data import disguises
from foretell.data.pii_marked import marked
from foretell.data.pii_numbers import numbers
from foretell.data.steps import Dropped, Kept, Step
from foretell.errors import ConfigError


class Found(NamedTuple):
    """kind: one of KINDS. start, end: characters of the text, end not included."""

    kind: str
    start: int
    end: int


# What wins where two overlap.
KINDS = ("secret", "e-mail", "IBAN", "resident ID", "credit code", "bank card", "SSN", "phone", "IP address")
_RANK = {kind: n for n, kind in enumerate(KINDS)}


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
    found = [Found(kind, *span) for kind, span in (*marked(shadow.text), *numbers(shadow.text))]
    found.sort(key=lambda f: f.start - f.end)  # the longest first
    if spoken := disguises.in_digits(shadow.text):  # besides, and after: 13800138000一个
        found += [Found(kind, *span) for kind, span in numbers(spoken)]
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
