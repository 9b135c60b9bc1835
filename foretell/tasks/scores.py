"""What answers are worth, by the metrics of each task, and what a simple rule would be worth on the same items.

    translation      BLEU and chrF (sacreBLEU); the rule: the source as it stands
    summarization    ROUGE-1, -2, -L; the rules: the first sentence, and the source as it stands
    qa               exact match and F1 by SQuAD's rules, by character in Chinese; the rule: the sentence that shares
                     most words with the question
    classification   accuracy and macro-F1; the rule: the commonest label

A score without a rule beside it says little: the first sentence of an abstract is a hard summary to beat.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from foretell import metrics
from foretell.config import TaskConfig
from foretell.errors import ConfigError
from foretell.metrics import Measure
from foretell.tasks.examples import Example

_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？])")


def language_of(examples: Sequence[Example], task: TaskConfig) -> str:
    """The language that answers are scored in: the task's, else zh where most of the targets are Chinese, else en."""
    if task.target_language or task.source_language:
        return task.target_language or task.source_language or "en"
    text = "".join(t for e in examples[:200] for t in e.targets)
    letters = [c for c in text if c.isalpha()]
    return "zh" if sum("\u4e00" <= c <= "\u9fff" for c in letters) > len(letters) / 2 else "en"


def spoken(task: TaskConfig, examples: Sequence[Example]) -> TaskConfig:
    """The task, with Chinese as its language where nobody says one and its targets are Chinese."""
    if task.kind == "translation" or language_of(examples, task) != "zh":
        return task
    return task.model_copy(update={"target_language": "zh"})


def measures(answers: Sequence[str], examples: Sequence[Example], task: TaskConfig) -> dict[str, Measure]:
    """The metrics of a task by name. ConfigError for a task whose score is not of answers alone."""
    language, targets = language_of(examples, task), [list(e.targets) for e in examples]
    if task.kind == "translation":
        return {
            "bleu": metrics.bleu(answers, targets, tokenize=tokenize(language)),
            "chrf": metrics.chrf(answers, targets),
        }
    if task.kind == "summarization":
        return metrics.rouge(answers, targets, language=language)
    if task.kind == "qa":
        version = 1 if all(targets) else 2
        return metrics.squad(answers, targets, language=language, version=version)
    if task.kind == "classification":
        gold = [t[0] for t in targets]
        return {
            "accuracy": metrics.accuracy(answers, gold),
            "macro_f1": metrics.macro_f1(answers, gold, labels=sorted({*gold})),
        }
    raise ConfigError(f"{task.kind} is not scored by its answers alone")


def tokenize(language: str) -> str:
    """sacreBLEU's tokenizer for a target language."""
    return {"zh": "zh", "ja": "char"}.get(language, "13a")


def rules(examples: Sequence[Example], task: TaskConfig) -> dict[str, list[str]]:
    """The answers of simple rules, by the rule's name."""
    if task.kind == "translation":
        return {"copy": [e.source for e in examples]}
    if task.kind == "summarization":
        return {"lead-1": [sentences(e.source)[0] for e in examples], "copy": [e.source for e in examples]}
    if task.kind == "qa":
        return {"nearest sentence": [_nearest(e) for e in examples]}
    if task.kind == "classification":
        commonest = Counter(e.targets[0] for e in examples).most_common(1)[0][0]
        return {"commonest label": [commonest] * len(examples)}
    return {}


def sentences(text: str) -> list[str]:
    """The sentences of a text, at least one, by their marks, English and Chinese."""
    return [s.strip() for s in _SENTENCE.split(text) if s.strip()] or [text]


def _nearest(example: Example) -> str:
    """The sentence of the passage that shares most words, or characters, with the question."""
    asked = set(metrics.units(example.source.lower()))
    return max(sentences(example.context), key=lambda s: len(asked & set(metrics.units(s.lower()))))
