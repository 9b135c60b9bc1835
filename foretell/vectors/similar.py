"""Near words, and a is to b as c is to ?.

Nearness is the cosine. Analogies by 3CosAdd, the word nearest to b - a + c of unit vectors (Mikolov et al., 2013), or
3CosMul, the word of greatest cos(b) cos(c) / (cos(a) + 0.001), cosines moved into [0, 1] (Levy and Goldberg, 2014). The
words of the question are never the answer. On small text analogies mostly fail: their worth lies in large text.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

import numpy as np

from foretell.errors import ConfigError
from foretell.vectors.folder import Folder

EPSILON = 1e-3
_SPELLED = 50_000  # words among which a nearly spelled one is looked for, the most frequent first


def nearest(opened: Folder, words: list[str], count: int = 10) -> dict[str, Any]:
    """The fields of `foretell vectors nearest --json`: for each word the `count` words of greatest cosine.

    Raises ConfigError naming nearly spelled words when one is unknown.
    """
    rows = _rows(opened, words)
    directions = opened.vectors.directions
    found = []
    for word, row in zip(words, rows, strict=True):
        scores = directions @ directions[row]
        found.append({"word": word, "nearest": _best(opened, scores, {row}, count)})
    return {"vectors": str(opened.path), "words": found}


def analogy(opened: Folder, a: str, b: str, c: str, count: int = 5, multiply: bool = False) -> dict[str, Any]:
    """The fields of `foretell vectors analogy --json`: the best words x for a : b = c : x. Raises as `nearest`."""
    rows = _rows(opened, [a, b, c])
    scores = scored(opened.vectors.directions, np.array([rows]), multiply)[0]
    answers = _best(opened, scores, set(rows), count)
    method = "3CosMul" if multiply else "3CosAdd"
    return {"vectors": str(opened.path), "question": [a, b, c], "method": method, "answers": answers}


def scored(directions: np.ndarray, questions: np.ndarray, multiply: bool) -> np.ndarray:
    """Scores (Q, N) of every word as the answer to questions (Q, 3) of rows a, b, c."""
    a, b, c = (directions[questions[:, n]] for n in range(3))
    if not multiply:
        wanted = b - a + c
        lengths = np.linalg.norm(wanted, axis=1, keepdims=True)
        return np.asarray((wanted / np.where(lengths > 0, lengths, 1.0)) @ directions.T)
    near = [(1.0 + v @ directions.T) / 2.0 for v in (a, b, c)]
    return np.asarray(near[1] * near[2] / (near[0] + EPSILON))


def _best(opened: Folder, scores: np.ndarray, without: Iterable[int], count: int) -> list[dict[str, Any]]:
    scores = scores.copy()
    scores[list(without)] = -np.inf
    count = max(0, min(count, int(np.isfinite(scores).sum())))
    rows = np.argsort(-scores, kind="stable")[:count]
    return [{"word": opened.shown(int(r)), "score": float(scores[r])} for r in rows]


def _rows(opened: Folder, words: list[str]) -> list[int]:
    rows = []
    for word in words:
        row = opened.find(word)
        if row is None:
            raise ConfigError(_unknown(opened, word))
        rows.append(row)
    return rows


def _unknown(opened: Folder, word: str) -> str:
    known = [opened.shown(n) for n in range(min(len(opened.vectors.words), _SPELLED))]
    near = difflib.get_close_matches(word.lower(), known, n=5, cutoff=0.6)
    if not near:  # of a Chinese word few characters can differ: those that share one
        near = [k for k in known if set(k) & set(word) and not k.isascii()][:5]
    least = opened.meta.get("min_count")
    why = f" (words that occur less than {least} times have none)" if isinstance(least, int) and least > 1 else ""
    return f"{opened.path} has no vector of {word!r}{why}" + (f"; nearly so spelled: {', '.join(near)}" if near else "")
