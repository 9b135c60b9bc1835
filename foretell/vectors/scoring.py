"""How good vectors are: do they order pairs of words as people do, and do they solve analogies.

WordSim-353 (Finkelstein et al., 2002) and Google's analogies (Mikolov et al., 2013) come with gensim, as files; gensim
itself is not imported. There is no Chinese set of either kind at hand: give one of your own with `--pairs`.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np

from foretell.errors import DataError, MissingExtra
from foretell.vectors.folder import Folder
from foretell.vectors.similar import scored

WORDSIM, QUESTIONS = "wordsim353.tsv", "questions-words.txt"
_Z90 = 1.6448536
_QUESTIONS_AT_ONCE = 256


def similarity(opened: Folder, pairs: Path | None = None) -> dict[str, Any]:
    """Spearman's correlation of cosines with people's scores: `name`, `spearman`, `ci` (90%), `pairs`, `covered`.

    pairs: a file of `word<TAB>word<TAB>score` lines, # for comments; WordSim-353 when not given. A pair counts where
    both words have vectors; `spearman` is None below three such pairs. Raises DataError for a file of another form.
    """
    path = pairs if pairs is not None else _of_gensim(WORDSIM)
    asked = read_pairs(path)
    rows = [(opened.find(a), opened.find(b), score) for a, b, score in asked]
    known = [(a, b, score) for a, b, score in rows if a is not None and b is not None]
    directions = opened.vectors.directions
    cosines = [float(directions[a] @ directions[b]) for a, b, _ in known]
    value = spearman(np.array(cosines), np.array([score for *_, score in known])) if len(known) > 2 else None
    if value is not None and math.isnan(value):
        value = None
    return {
        "name": "WordSim-353" if pairs is None else str(pairs),
        "spearman": value,
        "ci": interval(value, len(known)) if value is not None else None,
        "pairs": len(asked),
        "covered": len(known),
    }


def analogies(opened: Folder, multiply: bool = False, questions: Path | None = None) -> dict[str, Any]:
    """Share of Google's analogies answered right, of those whose four words have vectors, in all and by section.

    Fields: `accuracy` (None where none is covered), `questions`, `covered`, `sections` of the same. Words of the
    question are no answers. questions: another file of that form.
    """
    sections = read_questions(questions if questions is not None else _of_gensim(QUESTIONS))
    found, right_in_all, covered_in_all = [], 0, 0
    for name, asked in sections.items():
        rows = [[opened.find(w) for w in four] for four in asked]
        known = np.array([r for r in rows if None not in r], np.int64).reshape(-1, 4)
        right = _right(opened.vectors.directions, known, multiply)
        share = right / len(known) if len(known) else None
        found.append({"name": name, "accuracy": share, "questions": len(asked), "covered": len(known)})
        right_in_all, covered_in_all = right_in_all + right, covered_in_all + len(known)
    return {
        "accuracy": right_in_all / covered_in_all if covered_in_all else None,
        "questions": sum(len(q) for q in sections.values()),
        "covered": covered_in_all,
        "sections": found,
    }


def _right(directions: np.ndarray, known: np.ndarray, multiply: bool) -> int:
    right = 0
    for start in range(0, len(known), _QUESTIONS_AT_ONCE):
        part = known[start : start + _QUESTIONS_AT_ONCE]
        scores = scored(directions, part[:, :3], multiply)
        scores[np.arange(len(part))[:, None], part[:, :3]] = -np.inf
        right += int((scores.argmax(axis=1) == part[:, 3]).sum())
    return right


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Spearman's rank correlation of x and y (n,), ties with their mean rank; nan where one of them is constant."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    lengths = math.sqrt(float(a @ a) * float(b @ b))
    return float(a @ b) / lengths if lengths else math.nan


def interval(value: float, n: int) -> list[float] | None:
    """Central 90% of Spearman's correlation of n pairs, by Fisher's transform (Bonett and Wright, 2000)."""
    if n < 4 or abs(value) >= 1:
        return None
    spread = _Z90 * math.sqrt((1 + value**2 / 2) / (n - 3))
    return [math.tanh(math.atanh(value) - spread), math.tanh(math.atanh(value) + spread)]


def _ranks(x: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(x, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2.0)[place.reshape(-1)], np.float64)


def read_pairs(path: Path) -> list[tuple[str, str, float]]:
    """Lines of two words and a score, between them tabs, or commas where there is no tab."""
    found: list[tuple[str, str, float]] = []
    may_be_names = True
    for number, line in enumerate(_lines(path), 1):
        if not line.strip() or line.startswith("#"):
            continue
        fields = [f.strip() for f in line.split("\t" if "\t" in line else ",")]
        try:
            a, b, score = fields[0], fields[1], float(fields[2])
            if not (a and b and math.isfinite(score)):
                raise ValueError("empty, or not a number")
        except (ValueError, IndexError):
            if may_be_names:
                may_be_names = False
                continue
            raise DataError(f"{path}: line {number} is not `word<TAB>word<TAB>score`: {line.strip()[:60]!r}") from None
        may_be_names = False
        found.append((a, b, score))
    if not found:
        raise DataError(f"{path}: no line is `word<TAB>word<TAB>score`")
    return found


def read_questions(path: Path) -> dict[str, list[list[str]]]:
    """Sections of four words a line, each begun by `: name`."""
    sections: dict[str, list[list[str]]] = {}
    name = "all"
    for number, line in enumerate(_lines(path), 1):
        if line.startswith(":"):
            name = line[1:].strip()
            continue
        words = line.split()
        if words and len(words) != 4:
            raise DataError(f"{path}: line {number} has {len(words)} words, not 4")
        if words:
            sections.setdefault(name, []).append(words)
    return sections


def _lines(path: Path) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path}: cannot be read: {getattr(e, 'strerror', None) or e}") from None


def _of_gensim(name: str) -> Path:
    found = importlib.util.find_spec("gensim")
    if found is None or not found.submodule_search_locations:
        raise MissingExtra(f"{name}, which comes with gensim,", "vectors")
    path = Path(found.submodule_search_locations[0]) / "test" / "test_data" / name
    if not path.is_file():
        raise DataError(f"this gensim comes without {name}; give --pairs")
    return path
