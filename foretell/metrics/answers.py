"""Exact match and F1 of answers, by the rules of the official scripts of SQuAD 1.1, SQuAD 2.0 and MLQA.

English: lower case, no ASCII punctuation, no articles (Rajpurkar et al., 2016). All other languages: MLQA's rules
(Lewis et al., 2020), that is punctuation of all of Unicode, the articles of the language, and "mixed segmentation",
by which each Han character is a token and the rest are words. F1 is over the two bags of tokens, and of several right
answers the best counts. CMRC 2018 differs: its F1 is over the longest common substring; its numbers do not compare
with these.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np

from foretell.errors import DataError
from foretell.metrics.measure import Measure, ratio, same_length
from foretell.metrics.units import spaced

_ARTICLES = {
    "en": r"\b(a|an|the)\b",
    "de": r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b",
    "es": r"\b(un|una|unos|unas|el|la|los|las)\b",
    "vi": r"\b(của|là|cái|chiếc|những)\b",
    "ar": r"\sال^|ال",
}
# The characters that MLQA's script cuts out one by one.
_HAN = re.compile(r"([\u4e00-\u9fa5])")
_ALL_MARKS = set(string.punctuation)


def answer_tokens(text: str, language: str = "en") -> list[str]:
    """The tokens of an answer that count, in `language` (ISO 639-1); two answers are equal where these are."""
    text = text.lower()
    if language == "en":
        text = "".join(c for c in text if c not in _ALL_MARKS)
    else:
        text = "".join(c for c in text if c not in _ALL_MARKS and unicodedata.category(c)[0] != "P")
    if articles := _ARTICLES.get(language):
        text = re.sub(articles, " ", text)
    return (text if language in _ARTICLES else _HAN.sub(r" \1 ", text)).split()


def squad(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    language: str = "en",
    version: int = 1,
    no_answer: Sequence[float] | None = None,
    threshold: float = 1.0,
) -> dict[str, Measure]:
    """Exact match and F1, mean over questions, 0 to 100, under `exact_match` and `f1`.

    `references`: the right answers of each question. With `version=2` a question may have none, "" is then the right
    prediction, and there are `has_answer_exact_match`, `has_answer_f1`, `no_answer_exact_match` and `no_answer_f1`
    where there are such questions; `no_answer` may give each question's probability, or any number, of having no
    answer: where it is above `threshold`, the prediction counts as "". DataError where lengths differ or version 1
    meets a question without answers.
    """
    exact, f1, has = _each(predictions, references, language, version)
    how = f"rules:{'squad' if language == 'en' else 'mlqa'}|lang:{language}|version:{version}"
    if no_answer is not None:
        same_length("predictions", predictions, "numbers for no answer", no_answer)
        refused = np.asarray(no_answer) > threshold
        exact, f1 = (np.where(refused, ~has, scores) for scores in (exact, f1))
        how += f"|threshold:{threshold:g}"
    scores = {"exact_match": exact, "f1": f1}
    found = {name: ratio(name, values, None, how, scale=100.0) for name, values in scores.items()}
    if version == 2:
        for kind, those in (("has_answer", has), ("no_answer", ~has)):
            if those.any():
                for name, values in scores.items():
                    found[f"{kind}_{name}"] = ratio(f"{kind}_{name}", values * those, those, how, scale=100.0)
    return found


def best_threshold(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    no_answer: Sequence[float],
    *,
    language: str = "en",
) -> dict[str, tuple[float, float]]:
    """The best `exact_match` and `f1`, 0 to 100, that a threshold on `no_answer` can give, each with that threshold.

    SQuAD 2.0's `best_exact` and `best_f1`: an upper bound, chosen on the questions that it is reported for. Choose on
    the validation set and pass the threshold to `squad`.
    """
    exact, f1, has = _each(predictions, references, language, 2)
    same_length("predictions", predictions, "numbers for no answer", no_answer)
    numbers = np.asarray(no_answer, np.float64)
    order = np.argsort(numbers, kind="stable")
    found = {}
    for name, scores in (("exact_match", exact), ("f1", f1)):
        # From "no question has an answer" on, one question after the other is answered, the surest first.
        gained = np.where(has, scores, [-1.0 if p else 0.0 for p in predictions])[order]
        totals = np.concatenate([[0.0], np.cumsum(gained)]) + (~has).sum()
        best = int(totals.argmax())
        found[name] = (100 * float(totals[best]) / len(numbers), float(numbers[order[best - 1]]) if best else 0.0)
    return found


def _each(
    predictions: Sequence[str], references: Sequence[Sequence[str]], language: str, version: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Exact match and F1 of each question, 0 to 1, and whether it has an answer."""
    same_length("predictions", predictions, "lists of right answers", references)
    has = np.array([len(r) > 0 for r in references])
    if language in _ARTICLES:
        spaced((r for right in references for r in right), language)
    if version == 1 and not has.all():
        raise DataError(
            f"{(~has).sum():,} of {len(has):,} questions have no right answer, the first is question {has.argmin()}: "
            "that is SQuAD 2.0, version=2"
        )
    exact, f1 = np.zeros(len(has)), np.zeros(len(has))
    for i, (prediction, right) in enumerate(zip(predictions, references, strict=True)):
        ours = answer_tokens(prediction, language)
        theirs = [answer_tokens(r, language) for r in right]
        if version == 2:
            # Its script drops right answers of which nothing counts, and what is left without any has no answer.
            theirs = [t for t in theirs if t] or [[]]
        exact[i] = max(ours == t for t in theirs)
        f1[i] = max(_f1(ours, t, version) for t in theirs)
    return exact, f1, has


def _f1(ours: list[str], theirs: list[str], version: int) -> float:
    if version == 2 and not (ours and theirs):
        return float(ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    if not same:
        return 0.0
    precision, recall = same / len(ours), same / len(theirs)
    return 2 * precision * recall / (precision + recall)
