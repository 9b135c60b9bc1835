"""A cleaning step: a function of one document's text that keeps it, perhaps changed, or drops it with a reason.

Steps know nothing of files, processes or other documents, so they run in any process and in any order of documents, and
the same text always meets the same fate. Near-duplicates, which need all documents, are found elsewhere (near.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

NOTHING: Mapping[str, int] = MappingProxyType({})


class Kept(NamedTuple):
    """changed: how often what was replaced, by kind, such as {"e-mail": 2}; empty where the text is as it came."""

    text: str
    changed: Mapping[str, int] = NOTHING


class Dropped(NamedTuple):
    """reason: the row of the funnel, such as "quality: repeated lines". detail: the number that decided, its bound."""

    reason: str
    detail: str


Step = Callable[[str], Kept | Dropped]
