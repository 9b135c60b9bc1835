"""`evaluate --task dialogue`: how a decoder foretells answers, tells the true one from others, and answers itself.

    perplexity, bits_per_byte           of the true answers, each with the mark that ends it, after the true turns
    selection_accuracy, selection_mrr   the true answer among `CANDIDATES`, the others being answers of other dialogues
    the same with _pmi                  by what the words before an answer add to its likelihood
    distinct_1, distinct_2, rep_4       of the answers that the model gives, by the likeliest token

Candidates are ranked by log-likelihood per UTF-8 byte: the sum would prefer short answers, and the mean over tokens
would be of other pieces in every tokenizer. What is likely anywhere still ranks high, so they are also ranked by
pointwise mutual information, log p(answer | dialogue) - log p(answer | nothing said) (Li et al., 2016, arXiv
1510.03055; Holtzman et al., 2021, arXiv 2104.08315). Of a long dialogue `ANSWERS` turns, drawn by a fixed seed, are
chosen among and answered. Intervals are over dialogues. Simple rules stand beside: chance, the candidate that shares
most words with what was said last, and the diversity of the true answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from foretell import metrics
from foretell.errors import DataError, ModelError
from foretell.evaluate.likelihood import loglikelihoods
from foretell.evaluate.result import likelihood, scored
from foretell.evaluate.scoring import Window, score
from foretell.metrics import Measure
from foretell.models.decoder import Decoder
from foretell.tasks import prompts, tuned
from foretell.tasks.examples import Example, Message
from foretell.tasks.tuned import Tuned
from foretell.tokenizer import chat

CANDIDATES = 10  # the true answer and others
ANSWERS = 4  # of a dialogue, that are chosen among and given
_LONGEST = 2048  # tokens of a stretch of a dialogue
_BATCH_SIZE = 4
_AT_ONCE = 64  # answers between two reports of progress
_SHOWN = 4
_BY_GAIN = "pointwise mutual information"
Progress = Callable[[int, int], None]


class Turn(NamedTuple):
    """One answer of a dialogue: the number of the dialogue, what was said before, and the answer."""

    dialogue: int
    before: tuple[Message, ...]
    answer: str

    @property
    def last(self) -> str:
        """What was said last before the answer."""
        return self.before[-1]["content"] if self.before else ""


def evaluate_dialogue(
    asked: Tuned, examples: Sequence[Example], progress: Progress | None = None, batch_size: int | None = None
) -> dict[str, Any]:
    """Scores, rules, samples and answers, as `evaluate_task` has them. batch_size: rows at once; it moves no score."""
    measured, cut = answer_likelihood(asked, examples, batch_size)
    turns = drawn(examples)
    given = _answers(asked, turns, progress)
    human = [t.answer for t in turns]
    measured |= diversity(given)
    rules: dict[str, dict[str, float]] = {"human": {n: m.value for n, m in diversity(human).items()}}
    ranks = np.zeros(0, np.int64)
    if candidates := _candidates(turns):
        ranks, by_gain = _ranks(asked, turns, candidates, batch_size)
        count = len(candidates[0])
        near = [
            metrics.rank(np.array([overlap(t.last, c) for c in cs])) for t, cs in zip(turns, candidates, strict=True)
        ]
        selection = _selected(ranks, turns, count)
        selection |= {f"{k}_pmi": m for k, m in _selected(by_gain, turns, count, _BY_GAIN).items()}
        measured = dict([*list(measured.items())[:2], *selection.items(), *list(measured.items())[2:]])
        chance = [1 / count, sum(1 / n for n in range(1, count + 1)) / count]
        rules = {
            "chance": dict(zip(selection, chance * 2, strict=True)),
            "nearest answer": dict(
                zip(selection, [m.value for m in _selected(near, turns, count).values()] * 2, strict=True)
            ),
            **rules,
        }
    found = [
        {"name": examples[t.dialogue].name, "source": t.last, "wanted": [t.answer], "answer": a}
        | ({"rank": int(ranks[n])} if len(ranks) else {})
        for n, (t, a) in enumerate(zip(turns, given, strict=True))
    ]
    return {
        **scored(measured),
        "rules": rules,
        "turns": len(turns),
        "cut": cut,
        "samples": _samples(found),
        "answers": found,
    }


def answer_likelihood(
    asked: Tuned, examples: Sequence[Example], batch_size: int | None = None
) -> tuple[dict[str, Measure], int]:
    """perplexity and bits_per_byte of all answers by dialogue; and how many dialogues had a turn too long to read.

    A dialogue that does not fit goes in stretches of whole turns, each with what the system says.
    """
    model, template = asked.model, asked.template
    assert isinstance(model, Decoder)
    assert template is not None
    longest = min(model.config.needed("max_position_embeddings"), _LONGEST)
    sizes, cut = np.zeros(len(examples)), 0

    def stretches() -> Iterator[Window]:
        nonlocal cut
        for n, e in enumerate(examples):
            was_cut = False
            for messages in prompts.windows(e, template, asked.tokenizer, longest):
                ids, inside = chat.encode(asked.tokenizer, chat.render(template, messages))
                was_cut |= len(ids) > longest + 1
                line, wanted = np.array(ids[: longest + 1]), np.array(inside[: longest + 1])
                sizes[n] += sum(len(m["content"].strip().encode()) for m in messages if m["role"] == "assistant")
                yield Window(n, line[:-1], line[1:], 0, wanted[1:])
            cut += was_cut

    sums = score(model, stretches(), (batch_size or _BATCH_SIZE) * 512)
    nll, tokens, _ = sums.of_documents(len(examples))
    if not np.isfinite(nll).all():
        raise ModelError("the model's predictions are not numbers (NaN or infinite): its weights are damaged")
    if not tokens.sum():
        raise DataError(f"nothing to score: no answer of {len(examples):,} dialogues has a token within {longest:,}")
    how = f"of:answers with their end|template:{template.name}|window:{longest}"
    return likelihood(nll, tokens, sizes, how), cut


def drawn(examples: Sequence[Example], most: int = ANSWERS, seed: int = 0) -> list[Turn]:
    """At most so many answers of each dialogue, in their order. Which, depends on the seed and the dialogue's place."""
    turns = []
    for n, e in enumerate(examples):
        at = [i for i, m in enumerate(e.messages) if m["role"] == "assistant" and i and m["content"].strip()]
        chosen = np.sort(np.random.default_rng([seed, n]).permutation(len(at))[:most])
        turns += [Turn(n, e.messages[: at[i]], e.messages[at[i]]["content"].strip()) for i in chosen]
    if not turns:
        raise DataError(f"nothing to answer: none of {len(examples):,} dialogues has an answer behind something said")
    return turns


def _candidates(turns: Sequence[Turn], seed: int = 0) -> list[list[str]]:
    """Of each turn the true answer, then others; all different. None where there are no others.

    They are from other dialogues, and never answers to the same words, which could be as good.
    """
    found = []
    for n, t in enumerate(turns):
        random = np.random.default_rng([seed, n])
        chosen = {t.answer.casefold(): t.answer}
        for i in random.permutation(len(turns)):
            other = turns[i]
            if other.dialogue != t.dialogue and other.last.casefold() != t.last.casefold():
                chosen.setdefault(other.answer.casefold(), other.answer)
            if len(chosen) == CANDIDATES:
                break
        found.append(list(chosen.values()))
    fewest = min(map(len, found))
    return [c[:fewest] for c in found] if fewest > 1 else []


def _ranks(
    asked: Tuned, turns: Sequence[Turn], candidates: Sequence[Sequence[str]], batch_size: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """The place, from 1, of the true answer of each turn by its log-likelihood per byte, and by its gain."""
    model, every = asked.model, list(dict.fromkeys(c for several in candidates for c in several))
    assert isinstance(model, Decoder)
    pairs = [_pair(asked, t, c) for t, several in zip(turns, candidates, strict=True) for c in several]
    unasked = [_pair(asked, Turn(0, ({"role": "user", "content": ""},), c), c) for c in every]
    found, alone = (np.array([f for f, _ in loglikelihoods(model, x, batch_size=batch_size)]) for x in (pairs, unasked))
    sizes, base = np.array([len(c.encode()) for c in every]), dict(zip(every, range(len(every)), strict=True))
    which = [base[c] for several in candidates for c in several]
    by_byte, by_gain = (x.reshape(len(turns), -1) for x in (found / sizes[which], found - alone[which]))
    return np.array([*map(metrics.rank, by_byte)]), np.array([*map(metrics.rank, by_gain)])


def _pair(asked: Tuned, turn: Turn, answer: str) -> tuple[list[int], list[int]]:
    """The ids before an answer to what was said, as much of it as fits, and those of the answer with its end."""
    template = asked.template
    assert template is not None
    whole = Example("", turn.last, (answer,), messages=(*turn.before, {"role": "assistant", "content": answer}))
    fitting = prompts.fitted(whole, asked.task, template, asked.tokenizer, asked.prompt_tokens)
    ids, inside = chat.encode(asked.tokenizer, chat.render(template, fitting.messages))
    end = len(inside) - inside[::-1].index(True)
    start = end
    while start and inside[start - 1]:
        start -= 1
    return ids[:start], ids[start : min(end, start + asked.model.config.needed("max_position_embeddings"))]


def _selected(
    ranks: Sequence[int] | np.ndarray, turns: Sequence[Turn], count: int, by: str = "log-likelihood per byte"
) -> dict[str, Measure]:
    """Accuracy and MRR, whose items are dialogues."""
    _, group = np.unique([t.dialogue for t in turns], return_inverse=True)
    found = {}
    for name, m in metrics.selection(ranks, count).items():
        rows = np.stack([np.bincount(group, column) for column in m.rows.T], 1)
        found[f"selection_{name}"] = replace(m, rows=rows, how=f"{m.how}|by:{by}|seed:0")
    return found


def _answers(asked: Tuned, turns: Sequence[Turn], progress: Progress | None) -> list[str]:
    """What the model says at each turn."""
    whole = [
        Example("", t.last, (t.answer,), messages=(*t.before, {"role": "assistant", "content": t.answer}))
        for t in turns
    ]
    order = sorted(range(len(whole)), key=lambda n: sum(len(m["content"]) for m in turns[n].before))
    found: dict[int, str] = {}
    for i in range(0, len(order), _AT_ONCE):
        group = order[i : i + _AT_ONCE]
        found.update(zip(group, (a.text for a in tuned.answers(asked, [whole[n] for n in group])), strict=True))
        if progress is not None:
            progress(len(found), len(order))
    return [found[n] for n in range(len(turns))]


def diversity(texts: Sequence[str]) -> dict[str, Measure]:
    """distinct_1, distinct_2 and rep_4, each where the texts are long enough for it."""
    found = {}
    for metric, n in ((metrics.distinct, 1), (metrics.distinct, 2), (metrics.repetition, 4)):
        try:
            m = metric(texts, n)
        except DataError:
            continue
        found[m.name] = m
    return found


def overlap(one: str, two: str) -> float:
    """Shared words, or characters of Chinese, twice over those of both (Dice), 0 to 1."""
    a, b = Counter(metrics.words(one)), Counter(metrics.words(two))
    both = a.total() + b.total()
    return 2 * (a & b).total() / both if both else 0.0


def _samples(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers that share most words with the true ones, and that share least."""
    told = [{**f, "overlap": overlap(f["answer"], f["wanted"][0])} for f in found]
    order = sorted(told, key=lambda f: -f["overlap"])
    return [*order[:_SHOWN], *order[-_SHOWN:]] if len(order) > 2 * _SHOWN else order
