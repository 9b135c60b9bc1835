"""Texts with labels and questions with answers from JSON lines, and their tokens.

    {"text": ..., "label": ...}                                                                 data.format=labels
    {"question": ..., "context": ..., "answers": [{"text": ..., "answer_start": ...}]}          data.format=spans

`answer_start` counts characters; no answers (SQuAD v2; Rajpurkar et al., 2018) means that the context holds none; of
several the first one is learned. A record becomes one document, JSON in one form, so that duplicates are found; a text
goes to its split by itself, a question by its context. Among the tokens of a split stand, for a text, the number of its
label, its tokens and the end of a text; for a question its tokens, an end, those of the context, an end. Beside each
token of these stands a byte: START and END at the answer, LOST at a question whose answer has no tokens.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from foretell.data.records import Turns
from foretell.tokenizer import Tokenizer

START, END, LOST = 1, 2, 4
KINDS = ("labels", "spans")


class Encoded(NamedTuple):
    """Documents: all tokens, of each how many, the byte beside each token. inexact, lost: answers, and how many."""

    tokens: np.ndarray
    lengths: np.ndarray
    beside: np.ndarray
    inexact: int = 0
    lost: int = 0


def canonical(value: dict[str, Any], turns: Turns) -> str:
    """The document of a record. Raises ValueError, which says what is wrong."""
    found = _labelled(value, turns.labels) if turns.kind == "labels" else _asked(value)
    return json.dumps(found, ensure_ascii=False, separators=(",", ":"))


def _labelled(value: dict[str, Any], known: Sequence[str] | None) -> list[str]:
    text, label = _text(value, "text"), value.get("label")
    if isinstance(label, int):
        label = str(label)
    if not isinstance(label, str) or not label.strip():
        raise ValueError("no label" if label in (None, "") else f"the label is {type(label).__name__}, not a string")
    if known is not None and label not in known:
        near = difflib.get_close_matches(label, known, 1, 0.0)[0]
        raise ValueError(f"label {label!r} is not one of data.labels; the nearest is {near!r}")
    return [text, label]


def _asked(value: dict[str, Any]) -> list[Any]:
    question, context = _text(value, "question"), _text(value, "context")
    answers = value.get("answers", [])
    if isinstance(answers, dict):  # a list for each key, as some write it
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise ValueError("answers: as many `text` as `answer_start` are wanted")
        answers = [{"text": t, "answer_start": s} for t, s in zip(texts, starts, strict=True)]
    if not isinstance(answers, list):
        raise ValueError(f"answers is {type(answers).__name__}, not a list")
    if not answers:
        return [question, context]
    first = answers[0] if isinstance(answers[0], dict) else {}
    text, start = first.get("text"), first.get("answer_start")
    if not isinstance(text, str) or not text.strip() or type(start) is not int:
        raise ValueError("an answer has no `text`, or its `answer_start` is no number")
    if start < 0 or context[start : start + len(text)] != text:
        there = context[max(0, start) : max(0, start) + len(text)]
        raise ValueError(
            f"the answer {text[:40]!r} is not at character {start} of its context, where {there[:40]!r} is"
        )
    start += len(text) - len(text.lstrip())
    return [question, context, start, start + len(text.strip())]


def _text(value: dict[str, Any], key: str) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise ValueError(f"no {key}" if text is None else f"{key} is {type(text).__name__}, not a string")
    if not text.strip():
        raise ValueError(f"an empty {key}")
    return text


def splitting(text: str, kind: str) -> str:
    """What of a document decides to which split it goes."""
    return str(json.loads(text)[0 if kind == "labels" else 1])


def label_of(text: str) -> str:
    """The label of a document of labelled text."""
    return str(json.loads(text)[1])


def encoded_labels(own: Tokenizer, texts: Sequence[str], labels: Sequence[str]) -> Encoded:
    """Labelled documents as tokens, the number of each one's label before them."""
    number = {label: n for n, label in enumerate(labels)}
    both = [json.loads(t) for t in texts]
    flat, lengths = own.encode_flat([text for text, _ in both])
    lengths = lengths + 2
    ends = np.cumsum(lengths)
    tokens, inner = np.full(int(lengths.sum()), _end(own), np.uint32), np.ones(int(lengths.sum()), bool)
    tokens[ends - lengths] = [number[label] for _, label in both]
    inner[ends - lengths] = inner[ends - 1] = False
    tokens[inner] = flat
    return Encoded(tokens, lengths, np.zeros(len(tokens), np.uint8))


def encoded_spans(own: Tokenizer, texts: Sequence[str]) -> Encoded:
    """Questions with contexts as tokens, and the answers beside them."""
    read = [json.loads(t) for t in texts]
    questions = own.encode_batch([r[0] for r in read])
    inexact = lost = 0
    tokens, beside, lengths = list[np.ndarray](), list[np.ndarray](), list[int]()
    end = np.array([_end(own)], np.uint32)
    for (_, context, *answer), question in zip(read, questions, strict=True):
        ids, places = own.located(context)
        marks = np.zeros(len(ids), np.uint8)
        first = 0
        if answer:
            start, stop = answer
            over = np.flatnonzero((places[:, 0] < stop) & (places[:, 1] > start))
            if len(over):
                marks[over[0]] |= START
                marks[over[-1]] |= END
                told = context[places[over[0], 0] : places[over[-1], 1]]
                inexact += told.strip() != context[start:stop]
            else:
                first, lost = LOST, lost + 1
        tokens += [question, end, ids, end]
        beside += [np.zeros(len(question) + 1, np.uint8), marks, np.zeros(1, np.uint8)]
        beside[-3][0] = first
        lengths.append(len(question) + len(ids) + 2)
    return Encoded(np.concatenate(tokens), np.array(lengths, np.int64), np.concatenate(beside), inexact, lost)


def _end(own: Tokenizer) -> int:
    return own.eot_id or 0
