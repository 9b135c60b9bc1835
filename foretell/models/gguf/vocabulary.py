"""The tokenizer that a GGUF file describes, as a `foretell.tokenizer.Tokenizer`.

`tokenizer.ggml.model` says the kind: `gpt2` is byte-level BPE with merges and a named way to cut texts first
(`tokenizer.ggml.pre`), `llama` is SentencePiece's BPE with a score a piece, `bert` is WordPiece, in whose files a
piece that begins a word has U+2581 in front and one that goes on has lost its ##. Special tokens come from the types
of the tokens (3 control, 4 user-defined), the ones put around a text from `add_bos_token` and `add_eos_token`.

Two oddities of files: Gemma's runs of spaces are written as spaces where the others have U+2581, and its scores do
not follow the order in which its pieces merge, which is that of the ids. Not handled: unigram (`t5`).
"""

from __future__ import annotations

from typing import Any

from foretell.errors import ConfigError, ModelError
from foretell.models.gguf.reader import Gguf
from foretell.tokenizer import Tokenizer, bytelevel, spm, wordpiece, wrap

_KEYS = "tokenizer.ggml."
_GEMMA = ("gemma", "gemma2", "gemma3")


def tokenizer(file: Gguf) -> Tokenizer:
    """The file's tokenizer. ModelError where there is none, or none of a kind that is read."""
    kind = file.metadata.get(_KEYS + "model")
    tokens = _list(file, "tokens", str)
    types = _list(file, "token_type", int, len(tokens)) if _KEYS + "token_type" in file.metadata else [1] * len(tokens)
    try:
        if kind == "gpt2":
            inner = _byte_level(file, tokens, types)
        elif kind == "llama":
            inner = spm.build(_pieces(file, tokens, types), str(file.path))
        elif kind == "bert":
            return _wordpiece(file, tokens, types)
        else:
            raise ModelError(f"{file.path}: the tokenizer is of the kind {kind!r}; gpt2, llama and bert are read")
    except ConfigError as e:
        raise ModelError(str(e)) from None
    return wrap(inner, _id(file, "eos_token_id", len(tokens)), "other")


def _byte_level(file: Gguf, tokens: list[str], types: list[int]) -> Any:
    patterns, whole_pieces = bytelevel.named(file.metadata.get(_KEYS + "pre", "default"), str(file.path))
    vocab = {t: n for n, t in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ModelError(f"{file.path}: {len(tokens) - len(vocab):,} tokens stand twice")
    merges = [tuple(m.split(" ")) for m in _list(file, "merges", str)]
    for n, pair in enumerate(merges):
        if len(pair) != 2 or pair[0] not in vocab or pair[1] not in vocab or pair[0] + pair[1] not in vocab:
            raise ModelError(f"{file.path}: merge {n:,} of the tokenizer, {' '.join(pair)!r}, is none of its tokens")
    special = tuple(t for t, kind in zip(tokens, types, strict=True) if kind == spm.CONTROL)
    whole = tuple(t for t, kind in zip(tokens, types, strict=True) if kind == spm.USER)
    first, last = _around(file, len(tokens), by_default=False)
    extra = bytelevel.Extra(
        special, whole, None if first is None else tokens[first], None if last is None else tokens[last]
    )
    return bytelevel.build(vocab, [(m[0], m[1]) for m in merges], patterns, extra, whole_pieces)


def _wordpiece(file: Gguf, tokens: list[str], types: list[int]) -> Tokenizer:
    def whole(token: str, kind: int) -> str:
        if kind == spm.CONTROL or (token[:1] == "[" and token[-1:] == "]"):  # which older files do not mark
            return token
        return token[1:] if token.startswith("\u2581") else "##" + token

    vocab = {whole(t, kind): n for n, (t, kind) in enumerate(zip(tokens, types, strict=True))}
    if len(vocab) != len(tokens):
        raise ModelError(f"{file.path}: {len(tokens) - len(vocab):,} tokens stand twice")
    if missing := [t for t in ("[UNK]", "[CLS]", "[SEP]") if t not in vocab]:
        raise ModelError(f"{file.path}: no {', '.join(missing)} among its {len(tokens):,} tokens; BERT's have them")
    return wrap(wordpiece.build(vocab, wordpiece.is_uncased(vocab)))


def _pieces(file: Gguf, tokens: list[str], types: list[int]) -> spm.Pieces:
    gemma = file.metadata.get("general.architecture") in _GEMMA
    scores = [float(s) for s in _list(file, "scores", float, len(tokens))]
    if gemma:
        tokens = ["\u2581" * len(t) if t and not t.strip(" ") else t for t in tokens]
        scores = [-float(n) for n in range(len(tokens))]
    first, last = _around(file, len(tokens), by_default=True)
    prefix = file.metadata.get(_KEYS + "add_space_prefix", not gemma)
    return spm.Pieces(tokens, scores, types, prefix_space=bool(prefix), first=first, last=last)


def _around(file: Gguf, count: int, by_default: bool) -> tuple[int | None, int | None]:
    """Ids put before and after a text; llama.cpp puts one before SentencePiece's where a file does not say."""
    ids = []
    for name, usual in (("bos", by_default), ("eos", False)):
        wanted = file.metadata.get(f"{_KEYS}add_{name}_token", usual)
        ids.append(_id(file, f"{name}_token_id", count) if wanted else None)
    return ids[0], ids[1]


def _id(file: Gguf, key: str, count: int) -> int | None:
    value = file.metadata.get(_KEYS + key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count):
        raise ModelError(f"{file.path}: {_KEYS}{key} is {value!r}; the tokenizer has {count:,} tokens")
    return value


def _list(file: Gguf, key: str, kind: type, count: int | None = None) -> list[Any]:
    value = file.metadata.get(_KEYS + key)
    if not isinstance(value, list) or not value or not isinstance(value[0], kind):
        raise ModelError(f"{file.path}: {_KEYS}{key} is missing or no list of {kind.__name__}; there is no tokenizer")
    if count is not None and len(value) != count:
        raise ModelError(f"{file.path}: {_KEYS}{key} has {len(value):,} entries for {count:,} tokens")
    return value
