"""Byte-level BPE of others: GPT-2's spelling of bytes, the ways published models cut a text first, tiktoken rank files.

The ways are named as llama.cpp names them in `tokenizer.ggml.pre` of a GGUF file, the patterns are those of each
model's own tokenizer.json (or of tiktoken, for its encodings). A name that is not here is an error: a wrong pattern
gives ids that look right and are not.

A tiktoken file is one token a line, base64 and its rank. The ranks are the merges' order; which two tokens make a third
is found by merging its bytes with the lower ranks alone. Special tokens stand in no such file: they belong to the name.
"""

from __future__ import annotations

import base64
import binascii
import functools
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors

from foretell.errors import ConfigError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_WORD = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+X"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*X"
)
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_O200K = _WORD.replace("X", _ENDINGS + "?") + r"|\p{N}{1,3}" + _REST
_TEKKEN = _WORD.replace("X", "") + r"|\p{N}" + _REST

# Patterns that cut one after the other, by the name in `tokenizer.ggml.pre`.
PATTERNS = {
    **dict.fromkeys(("gpt-2", "gpt2", "default", "mpt", "olmo"), (_GPT2,)),
    **dict.fromkeys(("smollm", "starcoder", "refact", "command-r", "codeshell"), (r"\p{N}", _GPT2)),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "hunyuan", "megrez"), (_QWEN2,)),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3", "dbrx", "smaug-bpe", "falcon3", "pixtral"), (_LLAMA3,)),
    **dict.fromkeys(("gpt-4o", "llama4"), (_O200K,)),
    "tekken": (_TEKKEN,),
}
# Where a whole piece that is a token is taken as it is, without merging.
_WHOLE_PIECES = {"llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "tekken", "gpt-4o", "llama4"}

# OpenAI's encodings: pattern, special tokens. The patterns are tiktoken's without its possessive marks, which only
# make it faster.
_END, _PROMPT = "<|endoftext|>", "<|endofprompt|>"
_MIDDLE = {f"<|fim_{part}|>": 100_258 + n for n, part in enumerate(("prefix", "middle", "suffix"))}
ENCODINGS = {
    "gpt2": (_GPT2, {_END: 50_256}),
    "r50k_base": (_GPT2, {_END: 50_256}),
    "cl100k_base": (_LLAMA3, {_END: 100_257, **_MIDDLE, _PROMPT: 100_276}),
    "o200k_base": (_O200K, {_END: 199_999, _PROMPT: 200_018}),
}
_LARGEST_FILE = 1 << 26
_MOST_RANKS = 1 << 20
_LONGEST_TOKEN = 1 << 12


@dataclass(frozen=True)
class Extra:
    """Tokens beside the learned ones: `special` ones stand for no text, `whole` ones are never cut.

    `first` and `last`: special ones that are put around a text.
    """

    special: tuple[str, ...] = ()
    whole: tuple[str, ...] = ()
    first: str | None = None
    last: str | None = None


def build(
    vocab: dict[str, int],
    merges: list[tuple[str, str]],
    patterns: Iterable[str],
    extra: Extra,
    whole_pieces: bool = False,
) -> tokenizers.Tokenizer:
    """A byte-level BPE of tokens in GPT-2's spelling that cuts by each pattern in turn before it merges."""
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=whole_pieces))
    cuts = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    add(inner, extra)
    return inner


def add(inner: tokenizers.Tokenizer, extra: Extra) -> None:
    """Give a tokenizer the extra tokens. They must be in its vocabulary, or they would change its size."""
    inner.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in extra.special])
    inner.add_tokens([AddedToken(t, normalized=False, special=False) for t in extra.whole])
    ends = [t for t in (extra.first, extra.last) if t is not None]
    if ends:
        form = " ".join([*([extra.first] if extra.first else []), "$A", *([extra.last] if extra.last else [])])
        known = [(t, inner.token_to_id(t)) for t in dict.fromkeys(ends)]
        inner.post_processor = processors.TemplateProcessing(single=form, pair=f"{form} $B", special_tokens=known)


def named(pre: object, where: str) -> tuple[tuple[str, ...], bool]:
    """The patterns of that name, and whether whole pieces are taken as they are. ConfigError where there is none."""
    if not isinstance(pre, str) or pre not in PATTERNS:
        known = ", ".join(PATTERNS)
        raise ConfigError(f"{where}: texts are cut by the pattern {pre!r}, which is not known; known are {known}")
    return PATTERNS[pre], pre in _WHOLE_PIECES


def spell(data: bytes) -> str:
    """Bytes in GPT-2's printable spelling."""
    return "".join(map(alphabet().__getitem__, data))


def load_ranks(path: Path, encoding: str | None = None) -> tokenizers.Tokenizer:
    """A tiktoken file. `encoding`, a name of `ENCODINGS`, is taken from the file's name where it is not given."""
    name = encoding or path.stem
    if name not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        raise ConfigError(
            f"{path}: a rank file does not say how texts are cut; name it NAME.tiktoken with one of {known}"
        )
    pattern, special = ENCODINGS[name]
    ranks = read_ranks(path)
    vocab = {spell(token): rank for token, rank in ranks.items()}
    taken = {rank: token for token, rank in vocab.items()}
    for token, id in special.items():
        if id in taken:
            raise ConfigError(f"{path}: {name} keeps id {id:,} for {token}, here it is {taken[id]!r}: another encoding")
    merges = [(spell(a), spell(b)) for a, b in merges_of(ranks)]
    return build(vocab | special, merges, [pattern], Extra(special=tuple(special)), whole_pieces=True)


def read_ranks(path: Path) -> dict[bytes, int]:
    """The tokens of a tiktoken file and their ranks. ConfigError where a line is none."""
    if path.stat().st_size > _LARGEST_FILE:
        raise ConfigError(f"{path}: {path.stat().st_size:,} bytes; rank files of at most {_LARGEST_FILE:,} are read")
    ranks: dict[bytes, int] = {}
    for n, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line:
            continue
        try:
            text, number = line.split()
            token, rank = base64.b64decode(text, validate=True), int(number)
        except (ValueError, binascii.Error):
            raise ConfigError(f"{path}: line {n:,} is no token in base64 and its rank: {line[:40]!r}") from None
        if token in ranks or not token or len(token) > _LONGEST_TOKEN or not 0 <= rank < _MOST_RANKS:
            raise ConfigError(f"{path}: line {n:,}: a token that is empty, too long, twice there, or of rank {rank:,}")
        ranks[token] = rank
    if len(set(ranks.values())) != len(ranks) or not all(bytes([b]) in ranks for b in range(256)):
        raise ConfigError(f"{path}: two tokens of one rank, or not all 256 bytes are tokens: no rank file of a BPE")
    return ranks


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """The merges that ranks imply, in their order. Tokens that no merging reaches have none."""
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            parts = [token[i : i + 1] for i in range(len(token))]
            while len(parts) > 2:
                pairs = [ranks.get(a + b, rank) for a, b in pairwise(parts)]
                best = min(pairs)
                if best >= rank:
                    break
                at = pairs.index(best)
                parts[at : at + 2] = [parts[at] + parts[at + 1]]
            if len(parts) == 2:
                merges.append((parts[0], parts[1]))
    return merges


@functools.cache
def alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte: itself where printable, else the next free one from U+0100."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return {b: chr(b) for b in plain} | {b: chr(0x100 + n) for n, b in enumerate(others)}
