"""A step that drops documents which hold text of evaluation sets, so that a score measures more than memory.

Texts are compared by n-grams of normalised tokens (NFKC, lower case, no punctuation): 13 words, as GPT-3 did (Brown et
al. 2020, appendix C), and where there are none, 21 characters: in XQuAD 13 English words are 20.4 Chinese characters.
Strings of 8 to 12 words (13 to 20 characters) are compared by 8 words (13 characters), as short items were by GPT-3
and all by Llama 3 and Tulu 3; a record without a string so long is taken as one. What is shorter still cannot be told
from ordinary text and is counted as `too_short`.

GPT-3 removed what shared one n-gram with an item, Tulu 3 what shared half of one. The default here is one: of a
question of 20 words a single changed word leaves no 13 whole, and what is quoted in passing costs but a document.
Not handled: paraphrases, translations, simplified against traditional characters, scripts without spaces other than
Chinese and Japanese.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from foretell.data.encodings import Binary, utf8_like
from foretell.data.readers import Entry, expand
from foretell.data.records import Damaged, Rejected
from foretell.data.steps import Dropped, Kept
from foretell.data.streams import blocks
from foretell.data.texts import texts
from foretell.errors import ConfigError, DataError

_SHORT_WORDS = 8
_CHARACTERS_A_WORD = 1.6
_APART, _WORD, _CHARACTER, _NOWHERE = range(4)  # a code point parts words, is in one, is a token, is passed over
_FACTOR = 0x9E3779B97F4A7C15
_MIX = np.uint64(0xD6E8FEB86659FD93)
_HALF = np.uint64(32)
_TABLES = ("grams", "items", "sizes", "records")


@dataclass(frozen=True)
class _About:
    """What a table is of. firsts: the number of the first item of each file. too_short: records without an n-gram."""

    n: int
    share: float
    too_short: int = 0
    names: list[str] = field(default_factory=list)
    firsts: list[int] = field(default_factory=list)


class _Table(NamedTuple):
    """grams: (G,) uint64 in order; items: (G,) whose they are; sizes, records: (I,) an item's n-grams and record."""

    grams: np.ndarray
    items: np.ndarray
    sizes: np.ndarray
    records: np.ndarray


class Against:
    """The step that `against` and `load` give. A loaded one is sent to other processes as the name of its folder."""

    def __init__(self, table: _Table, about: _About, folder: Path | None = None) -> None:
        self._table, self._about, self._folder = table, about, folder

    @property
    def too_short(self) -> int:
        """How many records of the evaluation sets are too short to be found."""
        return self._about.too_short

    def __call__(self, text: str) -> Kept | Dropped:
        """Drops as "evaluation text", with the item of which most is there."""
        table = self._table
        grams = np.concatenate([_ngrams(*_of) for _of in _streams(text, self._about.n)])
        at = np.searchsorted(table.grams, grams)
        at[at == len(table.grams)] = 0
        found = np.unique(grams[table.grams[at] == grams])
        if not len(found):
            return Kept(text)
        ranges = zip(*(np.searchsorted(table.grams, found, side) for side in ("left", "right")), strict=True)
        items, held = np.unique(np.concatenate([table.items[a:b] for a, b in ranges]), return_counts=True)
        shares = held / table.sizes[items]
        most = int(shares.argmax())
        if shares[most] < self._about.share:
            return Kept(text)
        item = int(items[most])
        file = int(np.searchsorted(self._about.firsts, item, "right")) - 1
        place = f"{self._about.names[file]}, record {table.records[item]}"
        return Dropped("evaluation text", f"{held[most]} of {table.sizes[item]} n-grams of {place}, {self._bound()}")

    def _bound(self) -> str:
        return f"fewer than {self._about.share:g} of them allowed" if self._about.share else "none allowed"

    def save(self, folder: Path) -> None:
        """Writes the table as .npy files, which `load` maps into memory, and about.json."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, values in zip(_TABLES, self._table, strict=True):
            np.save(folder / f"{name}.npy", values, False)
        (folder / "about.json").write_text(json.dumps(asdict(self._about)) + "\n", encoding="utf-8")

    def __reduce__(self) -> Any:
        return (load, (self._folder,)) if self._folder else (Against, (self._table, self._about))


def against(sources: list[str], n: int = 13, share: float = 0.0) -> Against:
    """Drops a document that holds at least one n-gram, and at least `share` of the n-grams, of a string of the sources.

    sources: files and folders as everywhere; of JSON every string of a record counts, wherever it is. DataError when
    something of them cannot be read, for what is not read is not found; ConfigError for an n or a share out of range.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ConfigError(f"n-grams of {n} words and a share of {share}: give at least 1 word, and a share of 0 to 1")
    grams: list[np.ndarray] = []
    records: list[int] = []
    names, firsts, too_short = [], [], 0
    for entry in expand(sources).entries:
        names.append(entry.name)
        firsts.append(len(grams))
        for number, strings in enumerate(_records(entry), 1):
            found = [g for s in strings if len(g := _of_item(s, n))] or [_of_item("\n".join(strings), n)]
            found = [g for g in found if len(g)]
            grams += found
            records += [number] * len(found)
            too_short += not found
    if not grams:
        raise DataError(f"{', '.join(sources)}: no text is long enough, all {too_short:,} records have too few words")
    sizes = np.array([len(g) for g in grams], np.int32)
    together, items = np.concatenate(grams), np.repeat(np.arange(len(grams), dtype=np.int32), sizes)
    order = together.argsort(kind="stable")
    table = _Table(together[order], items[order], sizes, np.array(records, np.int32))
    return Against(table, _About(n, share, too_short, names, firsts))


def load(folder: Path) -> Against:
    """What was saved, mapped into memory. DataError when it is not there."""
    try:
        about = _About(**json.loads((folder / "about.json").read_text(encoding="utf-8")))
        table = _Table(*(np.lib.format.open_memmap(folder / f"{name}.npy", "r") for name in _TABLES))
    except (OSError, ValueError, TypeError) as e:
        raise DataError(f"{folder} holds no table of evaluation text: {e}; make it anew with save") from None
    return Against(table, about, folder.absolute())


def _records(entry: Entry) -> Iterator[list[str]]:
    """The strings of each record: all of a JSON value, else the text of a document."""
    path = entry.path
    packed = path is not None and path.suffix.lower() in {".gz", ".zst"}
    if path is not None and (path.with_suffix("") if packed else path).suffix.lower() in {".json", ".jsonl", ".ndjson"}:
        for value in _json_values(path):
            yield list(_strings(value))
        return
    for record in texts([entry.name]):
        if isinstance(record, Rejected):
            raise DataError(f"{record.source} at {record.offset}: {record.reason}; evaluation text is read whole")
        yield [record.text]


def _json_values(path: Path) -> Iterator[Any]:
    """The elements of a list, any other JSON value, or the value on each line."""
    try:
        text = b"".join(utf8_like(iter(blocks(path)))).decode()
    except (Binary, Damaged, OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: {e}; evaluation text is read whole") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as e:
                    raise DataError(f"{path}, line {number}: not JSON: {e}; evaluation text is read whole") from None
    else:
        yield from value if isinstance(value, list) else [value]


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _of_item(text: str, n: int) -> np.ndarray:
    """The distinct n-grams of the string: the long ones if it is long enough for them, else the short ones."""
    streams = list(_streams(text, n))
    kept = []
    for long, short in zip(streams[::2], streams[1::2], strict=True):
        grams = _ngrams(*long)
        kept.append(grams if len(grams) else _ngrams(*short))
    return np.unique(np.concatenate(kept))


def _streams(text: str, n: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """(tokens, size of n-grams, number of the kind), long and short, for words and for characters."""
    words, characters = _tokens(text)
    short = min(n, _SHORT_WORDS)
    yield words, n, 0
    yield words, short, 1
    yield characters, round(n * _CHARACTERS_A_WORD), 2
    yield characters, round(short * _CHARACTERS_A_WORD), 3


def _ngrams(tokens: np.ndarray, size: int, kind: int) -> np.ndarray:
    starts = np.arange(max(0, len(tokens) - size + 1))
    return _hashes(tokens, starts, starts + size) + np.uint64(kind)


def _tokens(text: str) -> tuple[np.ndarray, np.ndarray]:
    """uint64 of each word and of each character that is a token by itself; what is between them does not count."""
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    code = np.frombuffer(text.lower().encode("utf-32-le", "surrogatepass"), "<u4")
    kinds = _kinds()
    kind = kinds[np.minimum(code, len(kinds) - 1)]
    if (kind == _NOWHERE).any():
        code, kind = code[kind != _NOWHERE], kind[kind != _NOWHERE]
    inside = np.zeros(len(kind) + 2, np.int8)
    inside[1:-1] = kind == _WORD
    edges = np.flatnonzero(inside[1:] != inside[:-1])
    values = code.astype(np.uint64)
    return _hashes(values, edges[::2], edges[1::2]), values[kind == _CHARACTER]


def _hashes(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Of each stretch the polynomial hash modulo 2^64, from running sums, mixed."""
    powers, inverses = _powers(max(1, len(values)).bit_length())
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    found = (sums[ends] - sums[starts]) * inverses[starts]
    found = (found ^ (found >> _HALF)) * _MIX
    return found ^ (found >> _HALF)


@cache
def _powers(bits: int) -> tuple[np.ndarray, np.ndarray]:
    """The first 2^bits powers of the factor and of its inverse, modulo 2^64."""
    factors = (_FACTOR, pow(_FACTOR, -1, 1 << 64))
    first, second = (np.multiply.accumulate(np.full(1 << bits, f, np.uint64)) for f in factors)
    return first, second


@cache
def _kinds() -> np.ndarray:
    """What each code point is, up to that of the last ideograph; what comes later parts words."""
    plane = np.array([c.isalnum() or unicodedata.category(c)[0] == "M" for c in map(chr, range(0x10000))])
    kinds = np.full(0x40001, _APART, np.uint8)
    kinds[:0x10000][plane] = _WORD
    for first, last in ((0x3005, 0x3007), (0x3041, 0x30FF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)):
        kinds[first : last + 1][kinds[first : last + 1] == _WORD] = _CHARACTER
    kinds[0xF900:0xFB00] = kinds[0x20000:0x40000] = _CHARACTER
    kinds[[ord("'"), ord("’"), ord("ʼ")]] = _NOWHERE
    return kinds
