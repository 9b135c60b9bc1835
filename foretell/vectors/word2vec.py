"""Word2Vec by gensim: skip-gram or CBOW with negative sampling (Mikolov et al., 2013, arXiv 1310.4546).

gensim is given the counted vocabulary and the units block by block, so the text is neither held nor counted twice. With
one thread the result is the same for the same seed; with more, threads write to the same rows in turn as they come.
Frequent words are thinned out at gensim's usual 1e-3. Not handled: hierarchical softmax, going on with a trained model.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np

from foretell.errors import MissingExtra
from foretell.vectors.corpus import Corpus

_SENTENCE = 10_000  # gensim reads no more of one list


class _Sentences:
    """The corpus as gensim wants it: lists of words, again and again; tells how many words went by."""

    def __init__(self, corpus: Corpus, told: Callable[[int], None]) -> None:
        self._corpus, self._told = corpus, told
        self._words = np.array(corpus.words, dtype=object)
        self._passed = 0

    def __iter__(self) -> Iterator[list[str]]:
        for ids, document in self._corpus.blocks():
            for part in np.split(ids, np.flatnonzero(np.diff(document)) + 1):
                for start in range(0, len(part), _SENTENCE):
                    piece = part[start : start + _SENTENCE]
                    yield self._words[piece].tolist()
                    self._passed += len(piece)
                    self._told(self._passed)


def word2vec(
    corpus: Corpus,
    *,
    architecture: Literal["skip-gram", "cbow"],
    dim: int,
    window: int,
    negative: int,
    epochs: int,
    seed: int,
    threads: int,
    told: Callable[[float], None],
) -> np.ndarray:
    """Vectors (len(corpus.words), dim), float32, in the order of `corpus.words`. `told` gets the share that is done."""
    try:
        from gensim.models import Word2Vec
    except ImportError:
        raise MissingExtra("Word2Vec (or take --kind glove)", "vectors") from None
    logging.getLogger("gensim").setLevel(logging.ERROR)
    total = max(1, corpus.size * epochs)
    last = 0.0

    def tell(passed: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2:
            last = time.monotonic()
            told(passed / total)

    model = Word2Vec(
        vector_size=dim,
        window=window,
        negative=negative,
        sg=int(architecture == "skip-gram"),
        min_count=1,
        seed=seed,
        workers=threads,
    )
    model.build_vocab_from_freq(dict(zip(corpus.words, corpus.counts.tolist(), strict=True)))
    told(0.0)
    model.train(_Sentences(corpus, tell), total_words=corpus.size, epochs=epochs)
    places = [model.wv.key_to_index[w] for w in corpus.words]
    return np.ascontiguousarray(model.wv.vectors[places], dtype=np.float32)
