"""From sums over documents to metrics with intervals, and their table for the terminal.

Words are what whitespace separates. Scripts that are written without spaces (Chinese, Japanese, Thai, Lao, Burmese,
Khmer) have none, so where most of the text is in them, the score is per character instead.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from foretell import metrics
from foretell.errors import DataError
from foretell.metrics import Measure

if TYPE_CHECKING:
    from rich.table import Table

_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]+"
)
# exp(700) is the largest round number JSON can carry; a model that bad needs no more digits.
_LARGEST_EXPONENT = 700.0


class Counts(NamedTuple):
    """Sizes of a document: UTF-8 bytes, words, characters, those that are no space, those of unspaced scripts."""

    bytes: int
    words: int
    characters: int
    visible: int
    unspaced: int


def counted(text: str) -> Counts:
    """What the quotients divide by: UTF-8 bytes, words, characters."""
    words = text.split()
    unspaced = 0 if text.isascii() else sum(map(len, _UNSPACED.findall("".join(words))))
    return Counts(len(text.encode()), len(words), len(text), sum(map(len, words)), unspaced)


def summary(
    sums: tuple[np.ndarray, np.ndarray, np.ndarray], counts: Sequence[Counts], told: dict[str, Any]
) -> dict[str, Any]:
    """The fields of `foretell evaluate --json`. sums: nll, tokens and correct tokens of every document."""
    nll, tokens, correct = sums
    scored = int(tokens.sum())
    if not scored:
        raise DataError(f"nothing to score: {len(counts)} documents without a token that can be scored")
    of = dict(zip(Counts._fields, np.array(counts, np.float64).T, strict=True))
    spaced = of["unspaced"].sum() <= of["visible"].sum() / 2
    unit, units = ("word", of["words"]) if spaced else ("char", of["characters"])
    metric: dict[str, tuple[np.ndarray, np.ndarray, Callable[[float], float]]] = {
        "loss": (nll, tokens, float),
        "perplexity": (nll, tokens, _exp),
        f"{unit}_perplexity": (nll, units, _exp),
        "bits_per_byte": (nll / math.log(2), of["bytes"], float),
        "accuracy": (correct, tokens, float),
    }
    kept = of["bytes"] > 0  # an empty document says nothing of how texts differ
    values, ci = {}, {}
    for name, (top, bottom, f) in metric.items():
        if bottom.sum() <= 0:  # no words at all
            continue
        values[name] = f(float(top.sum() / bottom.sum()))
        interval = metrics.ratio_interval(top[kept], bottom[kept])
        if interval is not None:
            ci[name] = [f(v) for v in interval]
    sizes = {"tokens": scored, "bytes": int(of["bytes"].sum()), "documents": int(kept.sum())}
    return {**values, **sizes, "ci": ci, **told}


def _exp(x: float) -> float:
    return math.exp(min(x, _LARGEST_EXPONENT))


def scored(measured: dict[str, Measure]) -> dict[str, Any]:
    """Each metric of a task by its name, their 95% intervals (ci) and how they were computed (how)."""
    card = {name: metrics.score(m) for name, m in measured.items()}
    return {
        **{name: s.value for name, s in card.items()},
        "ci": {name: [s.low, s.high] for name, s in card.items() if s.low is not None},
        "how": {name: s.how for name, s in card.items()},
    }


def likelihood(nll: np.ndarray, tokens: np.ndarray, sizes: np.ndarray, how: str) -> dict[str, Measure]:
    """perplexity and bits_per_byte of items: nll in nats, the tokens it is of, their UTF-8 bytes, each (N,)."""
    per_token, per_byte = np.stack([nll, tokens], 1), np.stack([nll / math.log(2), sizes], 1)
    return {
        "perplexity": Measure("perplexity", per_token, _perplexity, how, (1.0, math.inf)),
        "bits_per_byte": Measure("bits_per_byte", per_byte, _quotient, how, (0.0, math.inf)),
    }


def _quotient(sums: np.ndarray) -> np.ndarray:
    top, bottom = sums[..., 0], sums[..., 1]
    return np.divide(top, bottom, out=np.full_like(top, np.nan), where=bottom > 0)


def _perplexity(sums: np.ndarray) -> np.ndarray:
    return np.exp(np.minimum(_quotient(sums), _LARGEST_EXPONENT))


def render(result: dict[str, Any]) -> Table:
    """A table for the terminal: metric, value, interval; below it, of what."""
    from rich.table import Table

    below = f"{result['tokens']:,} tokens, {result['bytes']:,} bytes, documents: {result['documents']:,}"
    below += f"; windows of {result['context']:,} tokens every {result['stride']:,}"
    if "objective" in result:
        below += f"\nof what {result['objective']} asks for alone"
    if not result["ci"]:
        below += "\none document: no interval"
    if "quarantined" in result:
        below += f"\n{result['quarantined']:,} records could not be read; the first: {result['first_quarantined']}"
    if "note" in result:
        below += f"\n{result['note']}"
    table = Table("metric", caption=_literal(below), caption_justify="left")
    table.add_column("value", justify="right")
    table.add_column("90% interval", justify="right")
    for name in ("bits_per_byte", "loss", "perplexity", "word_perplexity", "char_perplexity", "accuracy"):
        if name in result:
            low_high = result["ci"].get(name)
            interval = f"{_shown(name, low_high[0])} to {_shown(name, low_high[1])}" if low_high else ""
            table.add_row(name.replace("_", " "), _shown(name, result[name]), interval)
    return table


def _literal(text: str) -> str:
    """File names may hold brackets, which rich would take for markup."""
    from rich.markup import escape

    return escape(text)


def _shown(name: str, value: float) -> str:
    if name == "accuracy":
        return f"{100 * value:.2f}%"
    return f"{value:,.2f}" if 1000 <= value < 1e7 else f"{value:.4g}"
