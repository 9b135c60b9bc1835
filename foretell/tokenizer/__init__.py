"""Byte-level BPE: train one, load any Hugging Face `tokenizer.json`, encode and decode exactly.

Every string of Unicode text round-trips exactly, because the alphabet is the 256 bytes and nothing is normalised. The
pre-tokenizer is the pattern of Qwen2 (arXiv 2407.10671; the family of OpenAI's cl100k): transformers, vLLM and
llama.cpp know it by name, digits stand alone, a run of spaces merges, and Chinese clauses stay whole words for BPE to
merge. Qwen's NFC normalisation is left out: it would change the text.

A special token such as <|endoftext|> inside user text stays text: it is spelled in ordinary tokens and never becomes
the special id. Long texts are encoded in pieces, cut only where the pre-tokenizer cuts anyhow (`_CUT`), because the
library slows down tenfold on one long string.

Other kinds in: SentencePiece `.model` files (`spm`), tiktoken rank files (`bytelevel`), vocab.txt of BERT
(`wordpiece`), words (`words`). All become a `tokenizers.Tokenizer`, so all are saved as a tokenizer.json, and read
again from it.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from foretell.errors import ConfigError, DataError
from foretell.tokenizer import bytelevel, spm, wordpiece, words

END_OF_TEXT = "<|endoftext|>"
_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# Places where `_PATTERN` always ends a match, whatever stands further left or right: after a newline between two
# characters that are not spaces, before a space between two letters, before a Chinese comma or stop between two
# ideographs. Only characters whose class no Unicode version disputes.
_CUT = re.compile(r"(?<=\S\n)(?=\S)|(?<=[A-Za-z])(?= [A-Za-z])|(?<=[\u4e00-\u9fa5])(?=[，。][\u4e00-\u9fa5])")
_PIECE_CHARACTERS = 2_000
_BATCH_CHARACTERS = 1 << 18  # a token costs the library some 150 bytes until it is copied out
_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "[SEP]")
_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt")
Kind = Literal["bpe", "bytes", "wordpiece", "word", "other"]


@dataclass(frozen=True)
class Tokenizer:
    """A `tokenizers.Tokenizer` and the few questions Foretell asks of one. `kind`: a trained one's, or other."""

    inner: tokenizers.Tokenizer
    kind: Kind
    eot_id: int | None
    bos_id: int | None

    @functools.cached_property
    def vocab_size(self) -> int:
        """One more than the largest id: some vocabularies have gaps."""
        return max(self.inner.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def unk_id(self) -> int | None:
        """The id of text that the vocabulary does not have, if there is any such text."""
        model = json.loads(self.inner.to_str())["model"]
        token = model.get("unk_token")
        return model.get("unk_id") if token is None else self.inner.token_to_id(token)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        canonical = json.dumps(json.loads(self.inner.to_str()), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def encode(self, text: str) -> list[int]:
        """Ids of `text`. Adds no special token and recognises none. Raises DataError on a lone surrogate."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """One uint32 array a text, on all threads the library takes."""
        for text in texts:
            check_encodable(text)
        flat, lengths = self.encode_flat(texts)
        ends = np.cumsum(lengths).tolist()
        return [flat[end - n : end] for end, n in zip(ends, lengths.tolist(), strict=True)]

    def encode_flat(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """The same for valid text, as one uint32 array of all tokens and an int64 array of each text's count."""
        if self.kind == "bytes":
            data = [t.encode() for t in texts]
            return np.frombuffer(b"".join(data), np.uint8).astype(np.uint32), np.array([len(d) for d in data], np.int64)
        cut = [self._made_ready(text) for text in texts]
        pieces = list(chain.from_iterable(cut))
        parts, counts = [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)]
        for group in _groups(pieces):
            ids = [e.ids for e in self.inner.encode_batch_fast(pieces[group], add_special_tokens=False)]
            counts.append(np.fromiter(map(len, ids), np.int64, len(ids)))
            parts.append(np.fromiter(chain.from_iterable(ids), np.uint32, int(counts[-1].sum())))
        owners = np.repeat(np.arange(len(texts)), np.fromiter(map(len, cut), np.int64, len(cut)))
        lengths = np.bincount(owners, np.concatenate(counts), len(texts)).astype(np.int64)
        return np.concatenate(parts), lengths

    def located(self, text: str) -> tuple[np.ndarray, np.ndarray]:
        """(T,) uint32 ids of `text`, and (T, 2) int64: the characters from which on, and up to which, each stands."""
        check_encodable(text)
        ready = words.segment(text) if self._finds_words else text
        found = self.inner.encode(ready, add_special_tokens=False)
        places = np.array(found.offsets, np.int64).reshape(-1, 2)
        if ready != text:  # every sign that was put between words takes one place
            put = np.cumsum([0, *(c == words.CUT for c in ready)])
            places = places - put[places]
        return np.array(found.ids, np.uint32), places

    def _made_ready(self, text: str) -> list[str]:
        if self.kind == "bpe":
            return _pieces(text)
        return [words.segment(text) if self._finds_words else text]

    @functools.cached_property
    def _finds_words(self) -> bool:
        """Whether words are set apart before the library sees a text (Chinese), as its pre-tokenizer then expects."""
        return self.kind == "word" and json.dumps(words.CUT) in json.dumps(
            json.loads(self.inner.to_str())["pre_tokenizer"]
        )

    def encode_special(self, text: str) -> tokenizers.Encoding:
        """The library's encoding of `text` in which special tokens are recognised. Never give it text of others."""
        return self._special.encode(text, add_special_tokens=False)

    @functools.cached_property
    def _special(self) -> tokenizers.Tokenizer:
        """A second one, so that no other thread meets the first in a state it did not ask for."""
        inner = tokenizers.Tokenizer.from_str(self.inner.to_str())
        inner.encode_special_tokens = False
        return inner

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; special tokens give nothing, an incomplete UTF-8 sequence gives U+FFFD."""
        ids = [int(i) for i in ids]
        if self.kind in ("bpe", "bytes"):
            return b"".join(map(self.token_bytes, ids)).decode(errors="replace")
        if self.kind == "word":
            return words.join(self.token_bytes(i).decode().removeprefix(" ") for i in ids)
        return self.inner.decode(ids, skip_special_tokens=True)

    def token_bytes(self, id: int) -> bytes:
        """The exact bytes of one token, empty for a special token or an id outside the vocabulary."""
        return self._bytes_of_id.get(id, b"")

    @functools.cached_property
    def _bytes_of_id(self) -> dict[int, bytes]:
        added = self.inner.get_added_tokens_decoder()
        decoder = json.loads(self.inner.to_str())["decoder"]
        spell = _byte_level_bytes if "ByteLevel" in json.dumps(decoder) else _metaspace_bytes
        if self.kind in ("wordpiece", "word"):
            spell = _word_bytes
        of_id = {i: spell(t) for t, i in self.inner.get_vocab(with_added_tokens=False).items()}
        for i, token in added.items():
            of_id[i] = b"" if token.special else token.content.encode()
        return of_id

    def save(self, path: Path) -> None:
        """Write `tokenizer.json` (into a folder when `path` is one)."""
        path = Path(path)
        self.inner.save(str(path / "tokenizer.json" if path.is_dir() else path))


def load(path: Path) -> Tokenizer:
    """A tokenizer.json, SentencePiece `.model`, `.tiktoken` or BERT vocab.txt file, or a folder that has one.

    ConfigError when it is missing or not one.
    """
    path = Path(path)
    file = next((path / n for n in _FILES if (path / n).is_file()), path / _FILES[0]) if path.is_dir() else path
    try:
        if file.suffix == ".model":
            return wrap(spm.load_model(file))
        if file.suffix == ".tiktoken":
            return wrap(bytelevel.load_ranks(file))
        if file.suffix == ".txt":
            return wrap(wordpiece.load_vocab(file))
        return wrap(tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise ConfigError(f"{file}: no such file; give a tokenizer.json or a folder that has one") from None
    except ConfigError:
        raise
    except Exception as e:  # the library raises bare Exception
        raise ConfigError(f"{file}: not a tokenizer.json of the tokenizers library: {e}") from None


def train(texts: Iterable[str], kind: str, vocab_size: int, lowercase: bool = True) -> Tokenizer:
    """A tokenizer of that kind (bpe, bytes, wordpiece, word) of at most `vocab_size` tokens. `texts` is read once."""
    if kind == "bytes":
        return byte_tokenizer()
    if kind == "wordpiece":
        return wrap(wordpiece.train(texts, vocab_size, lowercase))
    return wrap(words.train(texts, vocab_size)) if kind == "word" else train_bpe(texts, vocab_size)


def added(own: Tokenizer, specials: list[str]) -> Tokenizer:
    """The tokenizer with these special tokens behind its others; itself where there are none to add."""
    if not specials:
        return own
    inner = tokenizers.Tokenizer.from_str(own.inner.to_str())
    inner.add_special_tokens(specials)
    return wrap(inner, own.eot_id)


def train_bpe(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-level BPE of at most `vocab_size` ids: <|endoftext|> (id 0), the 256 bytes, and merges.

    A small corpus runs out of repeated pairs and gives a smaller vocabulary. `texts` is read once.
    """
    if vocab_size < 257:
        raise ConfigError(f"tokenizer.vocab_size ({vocab_size}) must be at least 257: 256 bytes and {END_OF_TEXT}")
    inner = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    inner.train_from_iterator((p for text in texts for p in _pieces(text)), trainer)
    return wrap(inner)


def byte_tokenizer() -> Tokenizer:
    """UTF-8 bytes as tokens: id = byte value, <|endoftext|> = 256. A byte-level BPE without merges on disk."""
    inner = _byte_level(models.BPE(vocab=dict(_byte_of_character()), merges=[]))
    inner.add_special_tokens([END_OF_TEXT])
    return wrap(inner)


def fitted_vocab_size(bytes_of_text: int) -> int:
    """Vocabulary for a corpus: 8 bytes^0.4, a multiple of 64 in [320, 49,152]: 1 MB 1,984, 10 MB 5,056, 1 GB 31,872.

    A vocabulary pays while its rarest merges are still seen often enough to be learned, so it grows with the text, but
    slower (compare Tao et al., 2024, arXiv 2407.13623). The two numbers are ours: 5 k at 10 MB, 32 k at 1 GB.
    """
    return int(min(49_152, max(320, 64 * round(8 * max(1, bytes_of_text) ** 0.4 / 64))))


def check_encodable(text: str) -> None:
    """Raise DataError when `text` is not Unicode text: a lone surrogate has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise DataError(f"lone surrogate U+{ord(text[e.start]):04X} at character {e.start}: not Unicode text") from None


def wrap(inner: tokenizers.Tokenizer, eot: int | None = None, kind: Kind | None = None) -> Tokenizer:
    """The library's tokenizer as ours.

    `eot`: the id that ends a text, looked for by name where it is not given; `kind`: found out where it is not given.
    """
    inner.no_truncation()
    inner.no_padding()
    inner.encode_special_tokens = True  # special tokens inside user text stay text
    kind = kind or _kind(json.loads(inner.to_str()), inner)
    ends = (inner.token_to_id(t) for t in _ENDS)
    eot = eot if eot is not None else next((i for i in ends if i is not None), None)
    return Tokenizer(inner, kind, eot, eot if kind in ("bpe", "bytes", "word") else _leading_id(inner))


def _kind(spec: dict[str, Any], inner: tokenizers.Tokenizer) -> Kind:
    model = spec["model"]["type"]
    if model == "WordPiece":
        return "wordpiece"
    if model == "WordLevel" and inner.token_to_id(words.UNKNOWN) is not None:
        return "word" if any(spec["pre_tokenizer"] == json.loads(words.shape(zh)) for zh in (False, True)) else "other"
    ours = json.loads(_byte_level(models.BPE()).to_str())
    same = all(spec[k] == ours[k] for k in ("normalizer", "pre_tokenizer", "decoder", "post_processor"))
    if not same or inner.token_to_id(END_OF_TEXT) is None or spec["model"]["type"] != "BPE":
        return "other"
    vocab = spec["model"]["vocab"]
    return "bytes" if not spec["model"]["merges"] and vocab == _byte_of_character() else "bpe"


def _leading_id(inner: tokenizers.Tokenizer) -> int | None:
    """The id that a foreign tokenizer itself puts before a text, if it does."""
    with_special, without = inner.encode("a").ids, inner.encode("a", add_special_tokens=False).ids
    return with_special[0] if with_special != without and with_special[1 : 1 + len(without)] == without else None


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    split = pre_tokenizers.Split(Regex(_PATTERN), "isolated")
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    inner.decoder = decoders.ByteLevel()
    return inner


def _pieces(text: str) -> list[str]:
    """`text` cut at safe places about every 2,000 characters; joined they are the text, and so are their tokens."""
    pieces, start = [], 0
    while len(text) - start > 2 * _PIECE_CHARACTERS:
        cut = _CUT.search(text, start + _PIECE_CHARACTERS)
        if cut is None:
            break
        pieces.append(text[start : cut.start()])
        start = cut.start()
    pieces.append(text[start:])
    return pieces


def _groups(pieces: list[str]) -> Iterator[slice]:
    start = size = 0
    for n, piece in enumerate(pieces):
        size += len(piece)
        if size >= _BATCH_CHARACTERS:
            yield slice(start, n + 1)
            start, size = n + 1, 0
    if start < len(pieces):
        yield slice(start, len(pieces))


def _byte_level_bytes(token: str) -> bytes:
    table = _byte_of_character()
    return bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()


@functools.cache
def _byte_of_character() -> dict[str, int]:
    return {c: b for b, c in bytelevel.alphabet().items()}


def _word_bytes(token: str) -> bytes:
    """WordPiece goes on with ##; everything else begins a word."""
    return (token[2:] if len(token) > 2 and token.startswith("##") else words.alone(token)).encode()


def _metaspace_bytes(token: str) -> bytes:
    """SentencePiece style: U+2581 is a space, <0x0A> a byte."""
    if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()
