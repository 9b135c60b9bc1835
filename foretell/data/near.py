"""Near-duplicates: MinHash signatures of single documents, then which documents repeat an earlier one.

The two parts are apart. `signature` needs one text and runs in any process; `duplicates` needs all signatures, 512
bytes a document, which may be a memory-mapped file, and works on sorted arrays. Both are functions of their arguments
alone, so the result does not depend on how many processes made the signatures.

A text is its set of shingles: 5 words in a row or, where a script does not part its words, 8 characters. The signature
is one-permutation hashing (Li, Owen and Zhang 2012, arXiv:1208.1259): the smallest hash in each of 512 bins, 7 bits of
it. A bin without any borrows from another (Shrivastava 2017, "Optimal densification") and says so in its eighth bit:
borrowed bins are for the bands of locality-sensitive hashing, which want a value everywhere, and the similarity is
estimated from the others, which makes it nearly exact for short texts. Measurements: docs/cleaning-near.md.
"""

from __future__ import annotations

import functools
import unicodedata

import numpy as np

from foretell.errors import ConfigError, DataError

BINS = 512
WORDS, CHARACTERS = 5, 8  # units of a shingle
CANDIDATE_RECALL = 0.99  # wanted of the bands, for pairs as similar as the threshold
COMPARED = 16  # documents with the same band: each is compared with the first 16 and the 16 before it

_BORROWED = 128
_COLLISION = 1 / 128  # two different hashes agree in 7 bits
_PIECE = 1 << 16  # characters hashed at once, which bounds memory and the tables of powers
_KEYS_BYTES = 1 << 30
_PAIRS_AT_ONCE = 1 << 14
_ROWS_AT_ONCE = 1 << 14

_APART, _WORD, _CHARACTER, _IGNORED, _CONTEXT = range(5)  # the last: NFKC looks at its neighbours
_UNSPACED = (  # Thai and Lao, Myanmar, Khmer, kana and bopomofo, Han
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3021, 0x312F), (0x31A0, 0x31FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x1B000, 0x1B16F), (0x20000, 0x3FFFF)),
)
_JAMO = [chr(c) for c in range(0x1160, 0x1200)]  # vowels and finals of Hangul, which compose
_ASSIGNED = 0x32400  # beyond, there are only tags, variation selectors and private use
_BASE = 0x9E3779B97F4A7C15 | 5  # odd, so that it has an inverse modulo 2^64
_U64 = np.uint64
_NONE = _U64(0xFFFFFFFFFFFFFFFF)


def signature(text: str) -> np.ndarray:
    """uint8 (512,): what `duplicates` compares. Documents without a letter or digit have nothing to compare.

    Compared is NFKC with each character in lower case. Letters, digits and combining marks make words; anything else
    only parts them, except format characters (soft hyphens, zero-width spaces), which are as if not there. Han, kana,
    Thai, Lao, Khmer and Myanmar characters are units of their own. A shingle begins at each unit and has 5 words, 8
    such characters, or as much of both together; a text too short for one is a single shingle. Pieces of 65,536
    characters are hashed apart.
    """
    codes, kinds = _normalised(text)
    smallest = np.full(BINS, _NONE)
    for n in range(0, len(codes), _PIECE):
        hashes = _shingles(codes[n : n + _PIECE], kinds[n : n + _PIECE])
        np.minimum.at(smallest, (hashes >> _U64(65 - BINS.bit_length())).astype(np.int64), hashes)
    return _filled(smallest)


def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of the shingle sets, of signatures (..., 512). 0 where both have none.

    Without bias; its standard error is at most sqrt(J (1 - J) / 512), 0.018 at 0.8 (0.7 to 0.85 of that was measured).
    """
    agree = a == b
    nobody = (a & b) >= _BORROWED
    one = (a ^ b) >= _BORROWED
    bins = BINS - np.count_nonzero(nobody, axis=-1)
    apart = np.count_nonzero(one, axis=-1)
    differ = BINS - np.count_nonzero(agree | nobody | one, axis=-1)
    return np.where(bins > 0, 1 - (apart + differ / (1 - _COLLISION)) / np.maximum(bins, 1), 0.0)


def duplicates(signatures: np.ndarray, threshold: float = 0.8) -> np.ndarray:
    """int64 (documents,): the number of the earlier document that each repeats, or -1.

    signatures: uint8 (documents, 512), in memory or memory-mapped. A document is removed if its similarity to an
    earlier one *that is kept* is estimated at `threshold` or more; the most similar of those is named. So where A is
    like B, B like C, and C not like A, B goes and C stays: whatever is removed resembles something that remains.
    Raises ConfigError for a threshold outside (0, 1], DataError for another shape or type.
    """
    if not 0 < threshold <= 1:
        raise ConfigError(f"near-duplicates: threshold {threshold}: must be more than 0 and at most 1; 0.8 is usual")
    if signatures.dtype != np.uint8 or signatures.ndim != 2 or signatures.shape[1] != BINS:
        found = f"{signatures.dtype} {signatures.shape}"
        raise DataError(f"near-duplicates: signatures are uint8 (documents, {BINS}), found {found}: make them anew")
    later, earlier, alike = _similar(signatures, _candidates(signatures, threshold), threshold)
    repeats = np.full(len(signatures), -1, np.int64)
    for n in np.lexsort((earlier, -alike, later)):
        if repeats[later[n]] < 0 and repeats[earlier[n]] < 0:
            repeats[later[n]] = earlier[n]
    return repeats


def bands(threshold: float) -> tuple[int, int]:
    """Bands and rows: the longest bands of which pairs as similar as the threshold share one with probability 0.99."""
    for rows in range(BINS, 1, -1):
        if 1 - (1 - threshold**rows) ** (BINS // rows) >= CANDIDATE_RECALL:
            return BINS // rows, rows
    return BINS, 1


@functools.cache
def _characters() -> tuple[np.ndarray, np.ndarray]:
    """For each code point: what it becomes (uint32), and of what kind that is (uint8)."""
    folded, kinds = np.arange(0x110000, dtype=np.uint32), np.zeros(0x110000, np.uint8)
    for code in (*range(_ASSIGNED), *range(0xE0000, 0xE0200)):
        text = unicodedata.normalize("NFKC", chr(code))
        categories = {unicodedata.category(c) for c in text}
        if categories == {"Cf"}:
            kinds[code] = _IGNORED
        elif not {c[0] for c in categories} & set("LNM"):
            kinds[code] = _APART
        elif len(text) > 1 or unicodedata.category(text)[0] == "M" or text in _JAMO:
            kinds[code] = _CONTEXT
        else:
            lower = text.lower()
            folded[code] = ord(lower) if len(lower) == 1 else ord(text)
            kinds[code] = _CHARACTER if any(a <= folded[code] <= b for a, b in _UNSPACED) else _WORD
    return folded, kinds


def _normalised(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Code points of the letters, digits and what parts them, and their kinds."""
    fold, kind = _characters()
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = kind[codes]
    most = kinds.max(initial=0)
    if most == _CONTEXT:
        # A table cannot compose characters, but is many times faster for those that stand alone.
        text = unicodedata.normalize("NFKC", text)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = kind[codes]
        composed = kinds == _CONTEXT
        unspaced = composed & np.logical_or.reduce([(codes >= a) & (codes <= b) for a, b in _UNSPACED])
        kinds[composed] = _WORD
        kinds[unspaced] = _CHARACTER
    if most >= _IGNORED:
        there = kinds != _IGNORED
        codes, kinds = codes[there], kinds[there]
    return fold[codes], kinds


@functools.cache
def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of the base, and of its inverse, from 0 to length."""
    both = []
    for base in (_BASE, pow(_BASE, -1, 1 << 64)):
        factors = np.full(length + 1, base, _U64)
        factors[0] = 1
        both.append(np.cumprod(factors))
    return both[0], both[1]


def _shingles(codes: np.ndarray, kinds: np.ndarray) -> np.ndarray:
    """64-bit hashes of the shingles of one piece of normalised text, with repetitions."""
    word = np.zeros(len(kinds) + 2, bool)
    word[1:-1] = kinds == _WORD
    character = kinds == _CHARACTER
    starts = np.flatnonzero(character | (word[1:-1] & ~word[:-2]))
    stops = np.flatnonzero(character | (word[1:-1] & ~word[2:])) + 1
    units = _mixed(_spans(codes, starts, stops))
    # A word weighs 8 and a character 5: five words and eight characters are the same amount of text.
    weights = np.zeros(len(units) + 1, np.int64)
    np.cumsum(np.where(character[starts], WORDS, CHARACTERS), out=weights[1:])
    count = np.searchsorted(weights, weights[-1] - WORDS * CHARACTERS, "right")
    first = np.arange(max(count, min(1, len(units))))
    last = np.searchsorted(weights, weights[first] + WORDS * CHARACTERS)
    return _mixed(_spans(units, first, np.minimum(last, len(units))))


def _spans(values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """Polynomial hashes modulo 2^64 of values[start:stop], from the sums up to each place."""
    powers, inverses = _powers(_PIECE)
    sums = np.zeros(len(values) + 1, _U64)
    np.cumsum(values * powers[: len(values)], out=sums[1:])
    return (sums[stops] - sums[starts]) * inverses[starts]


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of x reaches every bit. Changes x."""
    x ^= x >> _U64(30)
    x *= _U64(0xBF58476D1CE4E5B9)
    x ^= x >> _U64(27)
    x *= _U64(0x94D049BB133111EB)
    x ^= x >> _U64(31)
    return x


@functools.cache
def _order() -> tuple[np.ndarray, np.ndarray]:
    """In which order each bin looks for a value: itself, then the others in a random order of its own.

    Two of (512, 512): bin, how many were tried before -> the bin to try; bin to try, bin -> how many are tried before.
    """
    random = _mixed(np.arange(1, BINS * BINS + 1, dtype=_U64) * _U64(_BASE)).reshape(BINS, BINS)
    np.fill_diagonal(random, 0)
    order = np.argsort(random, axis=1, kind="stable")
    return order, np.ascontiguousarray(np.argsort(order, axis=1).T.astype(np.uint16))


def _filled(smallest: np.ndarray) -> np.ndarray:
    """The signature of the smallest hash of each bin: its own bins, and those without any borrowed."""
    order, before = _order()
    filled = np.flatnonzero(smallest != _NONE)
    if not len(filled):
        return np.full(BINS, _BORROWED, np.uint8)
    every = np.arange(BINS)
    source = order[every, before[filled].min(axis=0)]
    # The bin's number goes into the value, or texts of one shingle would differ in 7 bits only.
    values = _mixed(smallest[source] ^ every.astype(_U64)) >> _U64(57)
    return (values + np.where(source == every, _U64(0), _U64(_BORROWED))).astype(np.uint8)


def _candidates(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """uint64, sorted: the pairs to compare, later document << 32 | earlier document."""
    number, rows = bands(threshold)
    several = max(1, _KEYS_BYTES // (8 * max(1, len(signatures))))
    pairs = np.zeros(0, _U64)
    for first in range(0, number, several):
        for keys in _keys(signatures, first, min(first + several, number), rows):
            pairs = np.union1d(pairs, _pairs(keys))
    return pairs


def _keys(signatures: np.ndarray, first: int, last: int, rows: int) -> np.ndarray:
    """uint64 (last - first, documents): what stands for each band, from one reading of the signatures."""
    keys = np.empty((last - first, len(signatures)), _U64)
    powers = _powers(_PIECE)[0][:rows]
    for n in range(0, len(signatures), _ROWS_AT_ONCE):
        block = signatures[n : n + _ROWS_AT_ONCE, first * rows : last * rows] % _BORROWED
        keys[:, n : n + _ROWS_AT_ONCE] = _mixed(block.reshape(len(block), last - first, rows) @ powers).T
    return keys


def _pairs(keys: np.ndarray) -> np.ndarray:
    """Pairs of documents with the same key; where many have it, each with the first and with those just before it."""
    order = np.argsort(keys, kind="stable")
    same = np.zeros(len(keys) + 1, bool)
    same[1:-1] = keys[order[1:]] == keys[order[:-1]]
    shared = same[1:] | same[:-1]
    documents = order[shared].astype(_U64)
    place = np.arange(len(documents))
    start = np.maximum.accumulate(np.where(same[:-1][shared], 0, place))
    rank = place - start
    found = []
    for n in range(min(COMPARED, rank.max(initial=0))):
        before = place[rank > n]
        found.append(documents[before] << _U64(32) | documents[before - n - 1])
        far = place[rank > COMPARED + n]
        found.append(documents[far] << _U64(32) | documents[start[far] + n])
    return np.concatenate(found) if found else np.zeros(0, _U64)


def _similar(signatures: np.ndarray, pairs: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the pairs those that are similar: later document, earlier document, similarity."""
    later, earlier = (pairs >> _U64(32)).astype(np.int64), (pairs & _U64(0xFFFFFFFF)).astype(np.int64)
    alike = np.empty(len(pairs))
    for n in range(0, len(pairs), _PAIRS_AT_ONCE):
        part = slice(n, n + _PAIRS_AT_ONCE)
        alike[part] = similarity(signatures[later[part]], signatures[earlier[part]])
    good = alike >= threshold
    return later[good], earlier[good], alike[good]
