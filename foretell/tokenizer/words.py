"""Words as tokens: the most frequent words of the texts, and <unk> for the others.

English and other texts with spaces are cut by a pattern of Unicode classes: letters with their marks and inner
apostrophes, numbers, every other sign alone, every line break; spaces between them are nothing. That pattern stands in
the tokenizer.json, so any program reads it. Chinese has no spaces: jieba (extra `zh`) finds the words of a run of Han
characters, before the tokenizers library sees them. In the tokenizer.json that is told by a sign at which its
pre-tokenizer cuts first, U+001E: `foretell.tokenizer.load` sees it, and jieba is called again. Another program would
take an uncut Chinese sentence for one word, and say <unk>.

A decoding puts a space between words that had one in most texts: it is readable, it is not the text.
"""

from __future__ import annotations

import functools
import json
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import chain

import tokenizers
from tokenizers import AddedToken, Regex, models, pre_tokenizers

from foretell.errors import ConfigError, MissingExtra

END, UNKNOWN = "<|endoftext|>", "<unk>"
CUT = "\x1e"
_WORD = r"[\p{L}\p{M}]+(?:['’][\p{L}\p{M}]+)*|\p{N}+|\n|[^\s\p{L}\p{M}\p{N}]"
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+")
_TIGHT_BEFORE = set(".,;:!?)]}%'’”»…、。，；：！？）》」』\n")
_TIGHT_AFTER = set("([{$#@“‘«（《「『\n")
_SAMPLE_CHARACTERS = 1_000_000


def train(texts: Iterable[str], vocab_size: int, chinese: bool | None = None) -> tokenizers.Tokenizer:
    """The `vocab_size` - 2 most frequent words of `texts`, <|endoftext|> and <unk>. `texts` is read once.

    `chinese`: runs of Han characters are cut by jieba. Where it is not said the first million characters tell: yes
    where a fifth of the letters or more are Han.
    """
    if vocab_size < 3:
        raise ConfigError(f"tokenizer.vocab_size ({vocab_size}) must be at least 3 for words")
    if chinese is None:
        texts, chinese = _looked_at(texts)
    cut = _cutter(chinese)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word, _ in cut.pre_tokenize_str(segment(text) if chinese else text))
    words = sorted(counts, key=lambda w: (-counts[w], w))[: vocab_size - 2]
    kept = [w for w in words if w not in (END, UNKNOWN)]
    vocab = {END: 0, UNKNOWN: 1} | {w: n for n, w in enumerate(kept, 2)}
    inner = tokenizers.Tokenizer(models.WordLevel(vocab, unk_token=UNKNOWN))
    inner.pre_tokenizer = cut
    inner.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in (END, UNKNOWN)])
    return inner


def _looked_at(texts: Iterable[str]) -> tuple[Iterable[str], bool]:
    rest, first, size = iter(texts), list[str](), 0
    for text in rest:
        first.append(text)
        size += len(text)
        if size >= _SAMPLE_CHARACTERS:
            break
    sample = "".join(t[:_SAMPLE_CHARACTERS] for t in first)
    han, letters = sum(map(len, _HAN.findall(sample))), sum(map(str.isalpha, sample))
    return chain(first, rest), 5 * han >= letters > 0


def segment(text: str) -> str:
    """`text` with the words of each run of Han characters set apart by `CUT`."""
    cut = _jieba()
    return _HAN.sub(lambda run: CUT + CUT.join(cut(run.group())) + CUT, text.replace(CUT, " "))


def join(words: Iterable[str]) -> str:
    """Words as a text: no space around Han characters, before a comma, behind a bracket."""
    text, before = "", "\n"
    for word in words:
        last, first = before[-1:], word[:1]
        apart = not (first in _TIGHT_BEFORE or last in _TIGHT_AFTER or _HAN.match(first) or _HAN.match(last))
        text, before = text + (" " if apart else "") + word, word or before
    return text


def alone(word: str) -> str:
    """A word as it stands in most texts: with a space before it, unless it is Chinese or a sign that stands close."""
    return word if word[:1] in _TIGHT_BEFORE or _HAN.match(word) else " " + word


def _cutter(chinese: bool) -> pre_tokenizers.PreTokenizer:
    words = pre_tokenizers.Split(Regex(_WORD), "removed", invert=True)
    if not chinese:
        return words
    return pre_tokenizers.Sequence([pre_tokenizers.Split(CUT, "removed"), words])


def shape(chinese: bool) -> str:
    """The JSON of how texts are cut, by which such a tokenizer is known again."""
    inner = tokenizers.Tokenizer(models.WordLevel({UNKNOWN: 0}, unk_token=UNKNOWN))
    inner.pre_tokenizer = _cutter(chinese)
    return json.dumps(json.loads(inner.to_str())["pre_tokenizer"])


@functools.cache
def _jieba() -> Callable[[str], list[str]]:
    """jieba's cut, its dictionary read from its own package: the cache it keeps in the temporary folder is anyone's."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import jieba
    except ImportError:
        raise MissingExtra("cutting Chinese text into words", "zh") from None
    cutter = jieba.Tokenizer()
    cutter.FREQ, cutter.total = cutter.gen_pfdict(cutter.get_dict_file())
    cutter.initialized = True
    return cutter.lcut
