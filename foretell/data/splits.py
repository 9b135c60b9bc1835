"""Which part of the text trains, validates and tests.

`hash`: by document. A document's digest, read as a number in [0, 1), falls below test_fraction (test), below
test_fraction + valid_fraction (valid), or above (train); so a document keeps its split when others are added. Where
chance leaves test or valid empty, its bound moves up to the next document.
`tail`: by place. The last bytes of the text are test, those before them valid; the document at a bound is cut there, at
a line. For few, long documents, where hashing would give splits of wild sizes. `auto`: tail below 20 documents.
`name`: whole files, by what their names begin with.
`split_of`: the caller decides by the document's source (whole modules, whole books).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foretell.data import dedup
from foretell.data.intake import Text
from foretell.data.shards import SPLITS
from foretell.errors import DataError

FEW_DOCUMENTS = 20
_BEGINNINGS = {"train": ("train",), "valid": ("val", "dev"), "test": ("test",)}
Digest = bytes


@dataclass(frozen=True)
class Rule:
    """A decision made once, after the survey, and kept in the index. `bounds`: upper bounds of the first two splits."""

    kind: str
    bounds: tuple[float, float]

    def record(self) -> dict[str, Any]:
        return asdict(self)


def by_name(source: str) -> str:
    """The split of a file: what its name begins with, train, valid (val, dev) or test. DataError for another name."""
    name = Path(source).name.lower()
    for split, beginnings in _BEGINNINGS.items():
        if name.startswith(beginnings):
            return split
    raise DataError(f"{source}: data.split=name wants files whose names begin with train, valid (val, dev) or test")


def positions(digests: Sequence[Digest]) -> np.ndarray:
    """Each document's place in [0, 1), uniform over digests: its first six bytes."""
    raw = np.frombuffer(b"".join(digests), np.uint8).reshape(-1, dedup.DIGEST_BYTES)
    padded = np.zeros((len(raw), 8), np.uint8)
    padded[:, 2:] = raw[:, :6]
    return padded.view(">u8")[:, 0] / float(1 << 48)


@dataclass
class Tally:
    """What the survey must remember to make the rule: counts, and the lowest places at and above each bound."""

    test_fraction: float
    valid_fraction: float
    documents: int = 0
    bytes: int = 0
    lowest: list[float] = field(default_factory=list)  # the two lowest of all
    above: list[float] = field(default_factory=list)  # the lowest at or above test_fraction

    def add(self, digests: Sequence[Digest], size: int) -> None:
        """Documents by their digests, `size` bytes in all."""
        self.documents += len(digests)
        self.bytes += size
        places = np.array([*self.lowest, *self.above, *positions(digests)])
        places.sort()
        # What was kept may stand twice, which does no harm: `lowest` and `above` are only compared.
        self.lowest = np.unique(places)[:2].tolist()
        self.above = places[places >= self.test_fraction][:1].tolist()

    def rule(self, kind: str) -> Rule:
        """The rule for `auto`, `hash` or `tail`. DataError when there is too little text to divide."""
        if kind == "auto":
            kind = "tail" if self.documents < FEW_DOCUMENTS else "hash"
        if kind == "tail":
            return Rule("tail", self._tail_bounds())
        wanted = 2 + (self.test_fraction > 0)
        if self.documents < wanted:
            raise DataError(
                f"{self.documents} distinct documents cannot fill {wanted} splits by hash; use data.split=tail"
            )
        test, valid = self.test_fraction, self.test_fraction + self.valid_fraction
        lowest = list(self.lowest)
        if test and lowest[0] >= test:
            test = _just_above(lowest[0])
            valid = max(valid, _just_above(lowest[1]))
        elif not self.above:
            raise DataError(f"by hash, all of {self.documents} documents fall into test; use data.split=tail")
        elif self.above[0] >= valid:
            valid = _just_above(self.above[0])
        return Rule("hash", (test, valid))

    def _tail_bounds(self) -> tuple[float, float]:
        test = round(self.bytes * self.test_fraction)
        valid = round(self.bytes * self.valid_fraction)
        if not valid or (self.test_fraction and not test) or self.bytes - test - valid < 1:
            raise DataError(f"{self.bytes:,} bytes of text are too few to hold out {test:,} and {valid:,} of them")
        return (float(self.bytes - test - valid), float(self.bytes - test))


def _just_above(place: float) -> float:
    return place + 2.0**-49


def divided(
    block: list[Text], start: int, rule: Rule, split_of: Callable[[str], str] | None = None
) -> tuple[list[bytes], np.ndarray]:
    """The block's texts, and the number in `SPLITS` of each. `start`: place of the first byte in all text.

    One text more for each place where `tail` cuts a document.
    """
    if split_of is None and rule.kind == "hash":
        order = np.array([SPLITS.index(s) for s in ("test", "valid", "train")])
        places = positions([t.digest for t in block])
        return [t.data for t in block], order[np.searchsorted(rule.bounds, places, "right")]
    texts: list[bytes] = []
    of_split: list[int] = []
    for text in block:
        for split, data in [(split_of(text.source), text.data)] if split_of else _cut(text, start, rule):
            if split not in SPLITS:
                raise DataError(f"split_of gave `{split}` for {text.source}; it must be one of {', '.join(SPLITS)}")
            texts.append(data)
            of_split.append(SPLITS.index(split))
        start += len(text.data)
    return texts, np.array(of_split, np.int64)


def _cut(text: Text, start: int, rule: Rule) -> list[tuple[str, bytes]]:
    reach = int(rule.bounds[1] - rule.bounds[0]) // 2  # so that the two cuts cannot meet
    cuts = [0, *(_line_start(text.data, int(b) - start, reach) for b in rule.bounds), len(text.data)]
    spans = zip(SPLITS, cuts, cuts[1:], strict=False)
    return [(split, text.data[low:high]) for split, low, high in spans if low < high]


def _line_start(data: bytes, target: int, reach: int) -> int:
    """The last line start within `reach` bytes before `target`, else a character start; inside [0, len(data)]."""
    if target <= 0 or target >= len(data):
        return max(0, min(target, len(data)))
    at = data.rfind(b"\n", max(0, target - reach), target) + 1
    if at:
        return at
    while target and data[target] & 0xC0 == 0x80:
        target -= 1
    return target
