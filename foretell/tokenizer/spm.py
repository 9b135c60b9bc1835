"""SentencePiece: `.model` files in, and BPE with scores as GGUF files have it. No part of the sentencepiece package.

A `.model` file is a protocol buffer (sentencepiece_model.proto). The few fields needed are read here by hand: the
pieces with scores and types, the kind of model, the marks of the normaliser. Lengths are compared with what is left
before anything is taken. Kudo (2018, arXiv 1804.10959) for unigram, Kudo and Richardson (2018, arXiv 1808.06226).

SentencePiece's BPE has no list of merges: of all neighbours that make a piece the one with the best score merges first,
the leftmost of equals. The merges of the tokenizers library are made from that. The two can differ where one piece has
several ways to be made and its characters repeat (a long run of one sign); the tests count it on real text.

Not handled: the word and character models, pieces that are to be taken as whole words (treat_whitespace_as_suffix).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers

from foretell.errors import ConfigError
from foretell.tokenizer.bytelevel import Extra, add

NORMAL, UNKNOWN, CONTROL, USER, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE = "\u2581"
_UNIGRAM, _BPE = 1, 2
_LARGEST_FILE = 1 << 26
_NEVER = -1e6
_SILENT = (CONTROL, BYTE, UNKNOWN, UNUSED)


@dataclass(frozen=True)
class Pieces:
    """A SentencePiece vocabulary: pieces in the order of their ids, and how texts are made ready."""

    tokens: list[str]
    scores: list[float]
    types: list[int]
    bpe: bool = True
    prefix_space: bool = True
    squeeze_spaces: bool = False
    charsmap: bytes = b""
    first: int | None = None  # id put before a text
    last: int | None = None


def load_model(path: Path) -> tokenizers.Tokenizer:
    """A SentencePiece `.model` file. ConfigError where it is none, or of a kind that is not read."""
    size = path.stat().st_size
    if size > _LARGEST_FILE:
        raise ConfigError(f"{path}: {size:,} bytes; SentencePiece models of at most {_LARGEST_FILE:,} are read")
    try:
        pieces = _read(path.read_bytes())
    except (ValueError, struct.error, UnicodeDecodeError) as e:
        raise ConfigError(f"{path}: not a SentencePiece model: {e}") from None
    return build(pieces, str(path))


def build(p: Pieces, where: str) -> tokenizers.Tokenizer:
    """The tokenizer of the pieces. ConfigError, naming `where`, when they are none of a whole vocabulary."""
    if not p.tokens or len(p.tokens) != len(p.scores) or len(p.tokens) != len(p.types):
        raise ConfigError(f"{where}: {len(p.tokens):,} pieces, {len(p.scores):,} scores, {len(p.types):,} types")
    if len(set(p.tokens)) != len(p.tokens):
        twice = next(t for n, t in enumerate(p.tokens) if t in p.tokens[:n])
        raise ConfigError(f"{where}: the piece {twice!r} stands twice")
    unknown = next((n for n, kind in enumerate(p.types) if kind == UNKNOWN), None)
    byte_fallback = BYTE in p.types
    if unknown is None and not byte_fallback:
        raise ConfigError(f"{where}: neither an unknown piece nor pieces for bytes")
    inner = tokenizers.Tokenizer(_bpe(p, unknown, byte_fallback) if p.bpe else _unigram(p, unknown, byte_fallback))
    inner.normalizer = _normalizer(p)
    cuts = [] if p.bpe else _cuts_of_silent(p)
    if not _across_spaces(p):
        cuts.append(pre_tokenizers.Split(_SPACE, "merged_with_next"))
    if cuts:
        inner.pre_tokenizer = pre_tokenizers.Sequence(cuts)
    back = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    inner.decoder = decoders.Sequence([*back, *([decoders.Strip(" ", 1, 0)] if p.prefix_space else [])])
    of_type: dict[int, tuple[str, ...]] = {
        kind: tuple(t for t, k in zip(p.tokens, p.types, strict=True) if k == kind) for kind in (CONTROL, USER, UNKNOWN)
    }
    ends = [None if id is None else p.tokens[id] for id in (p.first, p.last)]
    whole = tuple(t for t in of_type[USER] if _SPACE not in t)  # runs of spaces are found by merging
    add(inner, Extra(of_type[CONTROL] + of_type[UNKNOWN], whole, *ends))
    return inner


def _bpe(p: Pieces, unknown: int | None, byte_fallback: bool) -> models.BPE:
    vocab = {t: n for n, t in enumerate(p.tokens)}
    return models.BPE(
        vocab=vocab,
        merges=merges_of(p),
        unk_token=None if unknown is None else p.tokens[unknown],
        fuse_unk=True,
        byte_fallback=byte_fallback,
    )


def merges_of(p: Pieces) -> list[tuple[str, str]]:
    """Every way to make a piece of two others, best score first; of equals the one with the longer left part."""
    mergeable = {t: s for t, s, k in zip(p.tokens, p.scores, p.types, strict=True) if k in (NORMAL, USER)}
    found = []
    for piece, score in mergeable.items():
        for cut in range(1, len(piece)):
            a, b = piece[:cut], piece[cut:]
            if a in mergeable and b in mergeable:
                found.append((score, cut, a, b))
    found.sort(key=lambda m: (-m[0], -m[1]))
    return [(a, b) for _, _, a, b in found]


def _unigram(p: Pieces, unknown: int | None, byte_fallback: bool) -> models.Unigram:
    """What stands for no text must not be found in one, so its score is out of reach."""
    scores = [_NEVER if k in _SILENT else s for s, k in zip(p.scores, p.types, strict=True)]
    return models.Unigram(list(zip(p.tokens, scores, strict=True)), unknown, byte_fallback)


def _cuts_of_silent(p: Pieces) -> list[pre_tokenizers.PreTokenizer]:
    """A cut behind the first sign of such a piece, where a text spells it with signs that are no pieces.

    The library scores an unknown sign below every piece, so that otherwise it would take the piece after all.
    """
    known = {t for t, k in zip(p.tokens, p.types, strict=True) if k in (NORMAL, USER)}
    silent = [t for t, k in zip(p.tokens, p.types, strict=True) if k in _SILENT and len(t) > 1 and not set(t) <= known]
    signs = [f"{re.escape(t[0])}(?={re.escape(t[1:])})" for t in silent]
    return [pre_tokenizers.Split(Regex("|".join(signs)), "merged_with_previous")] if signs else []


def _normalizer(p: Pieces) -> normalizers.Normalizer:
    """As SentencePiece: its table of characters, spaces squeezed, one put in front, and all of them U+2581."""
    steps: list[normalizers.Normalizer] = [normalizers.Precompiled(p.charsmap)] if p.charsmap else []
    if p.squeeze_spaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if p.prefix_space:
        steps.append(normalizers.Prepend(_SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])


def _across_spaces(p: Pieces) -> bool:
    """Whether a piece has a space behind its first character, so that a text cannot be cut at spaces."""
    return any(_SPACE in t[1:] for t, k in zip(p.tokens, p.types, strict=True) if k in (NORMAL, USER))


@dataclass
class _Model:
    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    types: list[int] = field(default_factory=list)
    kind: int = _UNIGRAM
    charsmap: bytes = b""
    prefix_space: bool = True
    squeeze_spaces: bool = True
    suffix_spaces: bool = False


def _read(data: bytes) -> Pieces:
    """The message ModelProto: 1 pieces, 2 trainer_spec, 3 normalizer_spec."""
    m = _Model()
    for number, value in _fields(data):
        if number in (1, 2, 3) and not isinstance(value, bytes):
            raise ValueError(f"field {number} is no message")
        if number == 1 and isinstance(value, bytes):
            piece = dict(_fields(value))
            m.tokens.append(_bytes(piece.get(1, b"")).decode())
            (score,) = struct.unpack("<f", _bytes(piece.get(2, b"\0\0\0\0")))
            m.scores.append(score)
            m.types.append(_int(piece.get(3, NORMAL)))
        elif number == 2 and isinstance(value, bytes):
            spec = dict(_fields(value))
            m.kind, m.suffix_spaces = _int(spec.get(3, _UNIGRAM)), bool(spec.get(24, 0))
        elif number == 3 and isinstance(value, bytes):
            spec = dict(_fields(value))
            m.charsmap = _bytes(spec.get(2, b""))
            m.prefix_space, m.squeeze_spaces = bool(spec.get(3, 1)), bool(spec.get(4, 1))
    if m.kind not in (_UNIGRAM, _BPE) or m.suffix_spaces:
        what = "spaces at the end of pieces" if m.suffix_spaces else f"model_type {m.kind}"
        raise ValueError(f"{what}; unigram and BPE with spaces in front are read")
    return Pieces(m.tokens, m.scores, m.types, m.kind == _BPE, m.prefix_space, m.squeeze_spaces, m.charsmap)


def _bytes(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where text is needed")
    return value


def _int(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("text where a number is needed")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Number and value of each field of a message; fixed-size values as their bytes."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            n, at = _varint(data, at)
        elif wire in (1, 5):
            n = 8 if wire == 1 else 4
        else:
            raise ValueError(f"wire type {wire} at byte {at:,}")
        if n > len(data) - at:
            raise ValueError(f"a field of {n:,} bytes at byte {at:,}, {len(data) - at:,} are left")
        yield number, data[at : at + n]
        at += n


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError(f"a number that does not end at byte {at:,}")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
