"""WordPiece as BERT has it (Devlin et al., 2018, arXiv 1810.04805): a vocab.txt in, or one trained on texts.

Text is cleaned, Chinese characters stand alone, and, in uncased vocabularies, letters lose case and accents: what comes
back from a decoding is not the text to the letter. A word is spelled by the longest pieces from the left, those that
go on with ## in front; a word that cannot be spelled is [UNK] as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from foretell.errors import ConfigError

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LARGEST_FILE = 1 << 26


def load_vocab(path: Path) -> tokenizers.Tokenizer:
    """A vocab.txt, one token a line. Cased or not is said by tokenizer_config.json beside it, else by the tokens."""
    if path.stat().st_size > _LARGEST_FILE:
        raise ConfigError(f"{path}: {path.stat().st_size:,} bytes; vocabularies of at most {_LARGEST_FILE:,} are read")
    try:
        tokens = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise ConfigError(f"{path}: not UTF-8: {e.reason}") from None
    tokens = [t.removesuffix("\r") for t in (tokens[:-1] if tokens[-1] == "" else tokens)]
    vocab = {t: n for n, t in enumerate(tokens)}
    if missing := [t for t in ("[UNK]", "[CLS]", "[SEP]") if t not in vocab]:
        raise ConfigError(f"{path}: no {', '.join(missing)} among {len(tokens):,} lines; a vocab.txt of BERT has them")
    return build(vocab, _lowercase(path.parent / "tokenizer_config.json", vocab))


def build(vocab: dict[str, int], lowercase: bool) -> tokenizers.Tokenizer:
    """The tokenizer of a vocabulary of BERT's form. It puts [CLS] and [SEP] around a text when asked for specials."""
    inner = _around(models.WordPiece(vocab, unk_token="[UNK]"), lowercase)
    inner.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL if t in vocab])
    _frame(inner)
    return inner


def train(texts: Iterable[str], vocab_size: int, lowercase: bool = True) -> tokenizers.Tokenizer:
    """A WordPiece of at most `vocab_size` tokens, BERT's five special ones first. `texts` is read once."""
    if vocab_size < 64:
        raise ConfigError(f"tokenizer.vocab_size ({vocab_size}) must be at least 64 for a WordPiece")
    inner = _around(models.WordPiece(unk_token="[UNK]"), lowercase)
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        limit_alphabet=max(32, vocab_size // 2),
        special_tokens=list(SPECIAL),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    _frame(inner)
    return inner


def _around(model: models.WordPiece, lowercase: bool) -> tokenizers.Tokenizer:
    inner = tokenizers.Tokenizer(model)
    inner.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(prefix="##")
    return inner


def _frame(inner: tokenizers.Tokenizer) -> None:
    ends = [(t, inner.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )


def _lowercase(config: Path, vocab: dict[str, int]) -> bool:
    if config.is_file() and config.stat().st_size < _LARGEST_FILE:
        try:
            said = json.loads(config.read_text(encoding="utf-8")).get("do_lower_case")
        except (ValueError, AttributeError):
            raise ConfigError(f"{config}: not a JSON object") from None
        if isinstance(said, bool):
            return said
    return is_uncased(vocab)


def is_uncased(vocab: Iterable[str]) -> bool:
    """Whether no token but special ones has a capital letter."""
    return not any("A" <= c <= "Z" for token in vocab if token[:1] != "[" for c in token)
