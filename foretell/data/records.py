"""What a reader yields: a document, or a record that could not be read, with its place and the reason.

Nothing is ever skipped in silence: every record of the input becomes exactly one `Document` or one `Rejected`, so that
documents_in = documents_out + quarantined + sum(dropped) can hold.
"""

from __future__ import annotations

from typing import NamedTuple

from foretell.tokenizer.chat import Template


class Document(NamedTuple):
    """`offset`: byte position in the decompressed UTF-8 (or GB18030) stream; row number in parquet, arrow and hf://."""

    text: str
    source: str
    offset: int


class Rejected(NamedTuple):
    """A quarantined record."""

    source: str
    offset: int
    reason: str


class Turns(NamedTuple):
    """Records are conversations (`chat`) or preferences (`preference`), and no texts; how they will be written.

    Or they are texts with `labels`, of which these are the only ones where they are given, or questions with `spans`.
    """

    kind: str
    template: Template | None = None
    labels: tuple[str, ...] | None = None


class Damaged(Exception):
    """A byte stream ends early or cannot be trusted further; what came before it is good."""


# Between the two texts of a pair, while they are one document: the record separator of ASCII, which no text has.
BETWEEN = "\x1e"


class Pair(NamedTuple):
    """The keys of a pair's source and target, or the numbers of their columns, from 1."""

    source: str
    target: str

    @property
    def numbered(self) -> bool:
        """Whether these are numbers: then there is no header."""
        return self.source.isdecimal() and self.target.isdecimal()
