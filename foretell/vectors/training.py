"""`foretell vectors train`: from text to a folder of vectors."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from foretell import runtime
from foretell.errors import ConfigError
from foretell.tokenizer import Tokenizer
from foretell.vectors import corpus, folder, wordmap
from foretell.vectors.cooccurrence import LONGEST_WINDOW
from foretell.vectors.corpus import Corpus, Progress
from foretell.vectors.folder import Folder
from foretell.vectors.formats import Vectors
from foretell.vectors.units import Units

# Rounds where none are asked for. A round of GloVe goes over counts, not over the text, and is shorter.
EPOCHS = {"word2vec": 5, "glove": 25}
# The forecast is made from this much of the training, or these seconds, whichever is later.
_FORECAST_SHARE = 0.02
_FORECAST_SECONDS = 2.0


@dataclass(frozen=True)
class Settings:
    """How vectors are made. epochs: unset 5 for word2vec, 25 for glove; threads: unset one a core."""

    kind: Literal["word2vec", "glove"] = "word2vec"
    architecture: Literal["skip-gram", "cbow"] = "skip-gram"
    dim: int = 100
    window: int = 5
    negative: int = 5
    epochs: int | None = None
    min_count: int = 5
    x_max: float = 10.0
    seed: int = 0
    threads: int | None = None
    units: Units = "words"
    lower: bool = True

    def checked(self) -> Settings:
        """With its numbers in their bounds and nothing open. Raises ConfigError."""
        least = {"dim": 1, "window": 1, "negative": 1, "min_count": 1, "seed": 0}
        given = asdict(self)
        least |= {k: 1 for k in ("epochs", "threads") if given[k] is not None}
        for name, low in least.items():
            if given[name] < low:
                raise ConfigError(f"--{name.replace('_', '-')} ({given[name]}) must be at least {low}")
        if self.kind == "glove" and self.window > LONGEST_WINDOW:
            raise ConfigError(f"--window ({self.window}) must be at most {LONGEST_WINDOW} for glove")
        if not self.x_max > 0:
            raise ConfigError(f"--x-max ({self.x_max}) must be above 0")
        given |= {"epochs": self.epochs or EPOCHS[self.kind], "threads": self.threads or runtime.threads()}
        return Settings(**given)


def train(
    sources: list[str],
    out: Path,
    settings: Settings = Settings(),
    *,
    tokenizer: Path | None = None,
    formats: tuple[str, ...] = folder.FORMATS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Learn vectors of the units of `sources`, write the folder `out`; the fields of `foretell vectors train --json`.

    tokenizer: where units are tokens, whatever has a tokenizer.json; of one prepared folder as source, its own.
    progress gets {"stage", "done", "total", "of", "seconds"} and, once, {"forecast_seconds"}. Raises ConfigError for
    settings that mean nothing, DataError for text without frequent units, MissingExtra without gensim or jieba.
    """
    s = settings.checked()
    own = _tokenizer(sources, s.units, tokenizer)
    if wrong := [f for f in formats if f not in folder.FORMATS]:
        raise ConfigError(f"--format {wrong[0]}: there are {', '.join(folder.FORMATS)}")
    began = time.monotonic()
    with folder.making(out) as (work, finish):
        text = corpus.build(
            sources, work, units=s.units, lower=s.lower, min_count=s.min_count, own=own, progress=progress
        )
        read_seconds = time.monotonic() - began
        clock = _Clock(progress)
        matrix, found = _learned(text, s, work, clock)
        meta = {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "sources": sources,
            **_told(s),
            "tokenizer": own.digest if own is not None else None,
            "words": len(text.words),
            "units_trained": text.size,
            **text.facts,
            **found,
            "reading_seconds": read_seconds,
            "training_seconds": clock.seconds,
            "forecast_seconds": clock.forecast,
            "units_per_second": text.size * (s.epochs or 1) / max(clock.seconds, 1e-9),
        }
        made = Folder(Path(out), Vectors(text.words, matrix), meta, own)
        finish(made, formats, _map(made, s, progress))
    return {"out": str(out), **meta, "seconds": time.monotonic() - began}


def _told(s: Settings) -> dict[str, Any]:
    """The settings that had a part in the result."""
    unused = {"word2vec": ("x_max",), "glove": ("architecture", "negative")}[s.kind]
    return {k: v for k, v in asdict(s).items() if k not in unused}


def _tokenizer(sources: list[str], units: Units, given: Path | None) -> Tokenizer | None:
    if units != "tokens":
        if given is not None:
            raise ConfigError(f"--tokenizer has no effect with --units {units}; give --units tokens")
        return None
    if given is None and len(sources) == 1 and corpus.is_prepared(Path(sources[0])):
        given = Path(sources[0])
    if given is None:
        raise ConfigError("--units tokens needs --tokenizer: a prepared folder, a run folder or a tokenizer.json")
    return corpus.tokenizer_at(Path(given))


def _learned(text: Corpus, s: Settings, work: Path, clock: _Clock) -> tuple[np.ndarray, dict[str, Any]]:
    """The vectors, and what else came out."""
    assert s.epochs is not None
    assert s.threads is not None
    if s.kind == "word2vec":
        from foretell.vectors.word2vec import word2vec

        matrix = word2vec(
            text,
            architecture=s.architecture,
            dim=s.dim,
            window=s.window,
            negative=s.negative,
            epochs=s.epochs,
            seed=s.seed,
            threads=s.threads,
            told=clock,
        )
        clock.stop()
        return matrix, {}
    import torch

    from foretell.vectors import cooccurrence, glove

    torch.set_num_threads(s.threads)
    counting = time.monotonic()
    pairs = cooccurrence.count(text.blocks(), len(text.words), s.window, work, s.seed)
    counted = time.monotonic() - counting
    clock.begin()
    matrix, losses = glove.glove(
        pairs, len(text.words), dim=s.dim, epochs=s.epochs, x_max=s.x_max, seed=s.seed, told=clock
    )
    clock.stop()
    found = {"pairs": len(pairs), "losses": losses, "counting_seconds": counted}
    return matrix, {**found, "pairs_per_second": len(pairs) * s.epochs / max(clock.seconds, 1e-9)}


def _map(made: Folder, s: Settings, progress: Progress | None) -> bytes | None:
    """The bytes of map.json; None where a single word makes no map."""
    import torch

    if len(made.vectors.words) < 2:
        return None
    torch.set_num_threads(s.threads or 1)
    began = time.monotonic()

    def told(share: float) -> None:
        if progress is not None:
            gone = time.monotonic() - began
            progress({"stage": "map", "done": share, "total": 1.0, "of": "", "seconds": gone})

    return wordmap.dumps(wordmap.chart(made, told=told))


class _Clock:
    """Times the training, says how far it is, and once how long it will take."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress or (lambda _: None)
        self._began, self.seconds = time.monotonic(), 0.0
        self.forecast: float | None = None

    def begin(self) -> None:
        """Training starts now."""
        self._began = time.monotonic()

    def stop(self) -> None:
        """Training is over."""
        self.seconds = time.monotonic() - self._began

    def __call__(self, share: float) -> None:
        if share == 0:
            self.begin()
        gone = time.monotonic() - self._began
        if self.forecast is None and share > _FORECAST_SHARE and gone > _FORECAST_SECONDS:
            self.forecast = gone / share
            self._progress({"forecast_seconds": self.forecast})
        self._progress({"stage": "training", "done": share, "total": 1.0, "of": "", "seconds": gone})
