"""What is learned from a row of tokens: objectives, each a pure function of (seed, step, row).

    next_token           each token from those before it
    masked               tokens that were hidden, from all others (BERT: Devlin et al., 2019)
    span_corruption      stretches that were cut out, from what is left (T5: Raffel et al., 2020)
    seq2seq              the target of a pair from its source
    fill_in_the_middle   a middle from what stands around it (Bavarian et al., 2022)
    answers              what the assistant says in a conversation (`answers.py`)
    labels               the label of a text (`windows.py`)
    spans                where the answer to a question stands in its context (`windows.py`)
    dpo                  which of two answers is preferred (Rafailov et al., 2023): rows two by two
    prefix               the rest of a row, whose beginning is seen as a whole (Raffel et al., 2020)

No process and no resume needs to know what another drew, and a batch does not depend on its division. How many tokens a
row of `masked` and `span_corruption` scores is fixed by its length; in `seq2seq` and `prefix` it differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from foretell.data import answers, loader, windows
from foretell.data.answers import UNSCORED as UNSCORED
from foretell.data.loader import Text
from foretell.data.shards import Data
from foretell.errors import ConfigError, DataError
from foretell.plan.rows import MASKED_SHARE, SPAN_TOKENS, masked_count, padded, span_counts
from foretell.plan.rows import MULTIPLE as MULTIPLE
from foretell.plan.rows import PARTLY as PARTLY
from foretell.plan.rows import WITH_SOURCE as WITH_SOURCE
from foretell.tokenizer import Tokenizer

FIM_SHARE = 0.5  # of the documents in a window; of those, half begin with the suffix
SENTINELS = 100

# The tokens that an objective puts into a row: what each may be called, the first being what is added.
MASK = (("[MASK]", "<mask>"),)
SPANS = tuple((f"<extra_id_{n}>",) for n in range(SENTINELS))
MIDDLE = (
    ("<fim_prefix>", "<|fim_prefix|>"),
    ("<fim_middle>", "<|fim_middle|>"),
    ("<fim_suffix>", "<|fim_suffix|>"),
)
SPECIAL: dict[str, tuple[tuple[str, ...], ...]] = {
    "masked": MASK,
    "span_corruption": SPANS,
    "fill_in_the_middle": MIDDLE,
}
OF_CONVERSATIONS = {"chat": "answers", "preference": "dpo"}
WITH_HEAD = frozenset({"labels", "spans"})  # these want an encoder with the head of that name


class Rows(NamedTuple):
    """Rows of a batch. inputs, targets (B, T) int64, targets UNSCORED where nothing is asked.

    segments: (B, T) document numbers. prefix: (B,) tokens that all may see. source (B, S) and whether each of its
    tokens is real (B, S). document: (B,) of preferences, the number of the pair. marks: (B, T) uint8 beside the tokens
    of texts with labels, whose targets are (B, 1), and of questions, whose targets are (B, 2) positions (`windows.py`).
    """

    inputs: np.ndarray
    targets: np.ndarray
    segments: np.ndarray | None = None
    prefix: np.ndarray | None = None
    source: np.ndarray | None = None
    source_real: np.ndarray | None = None
    document: np.ndarray | None = None
    marks: np.ndarray | None = None

    def part(self, which: slice | np.ndarray) -> Rows:
        """Some of the rows."""
        return Rows(*(None if a is None else a[which] for a in self))  # type: ignore[arg-type]

    def trimmed(self, multiple: int = MULTIPLE) -> Rows:
        """Without the columns in which no row has anything, but for what makes a width a multiple of that."""
        if self.marks is not None:
            T = _width(self.marks > 0, MULTIPLE)
            return self._replace(inputs=self.inputs[:, :T], marks=self.marks[:, :T])
        if self.source is None or self.source_real is None:
            return self
        T, S = (_width(real, multiple) for real in (self.targets != UNSCORED, self.source_real))
        inputs, targets = self.inputs[:, :T], self.targets[:, :T]
        return self._replace(
            inputs=inputs, targets=targets, source=self.source[:, :S], source_real=self.source_real[:, :S]
        )

    def by_length(self) -> Rows:
        """The longest first, so that rows of like length are trimmed together; only where rows are padded so much."""
        return self if self.marks is None else self.part(np.argsort(-(self.marks > 0).sum(1), kind="stable"))


def _width(real: np.ndarray, multiple: int) -> int:
    longest = int(np.flatnonzero(real.any(0))[-1]) + 1
    return min(real.shape[1], -(-longest // multiple) * multiple)


def special_ids(tokenizer: Tokenizer, objective: str) -> list[int]:
    """The ids of the tokens that an objective puts into rows. DataError says how they come into a tokenizer."""
    found = []
    for names in SPECIAL.get(objective, ()):
        ids = [i for n in names if (i := tokenizer.inner.token_to_id(n)) is not None]
        if not ids:
            raise DataError(
                f"train.objective={objective} needs the token {names[0]}, which the tokenizer lacks: prepare the text "
                f"with tokenizer.objective={objective}"
            )
        found.append(ids[0])
    return found


def with_special(tokenizer: Tokenizer, objective: str) -> list[str]:
    """The tokens of an objective that a tokenizer lacks."""
    names = SPECIAL.get(objective, ())
    return [n[0] for n in names if all(tokenizer.inner.token_to_id(m) is None for m in n)]


def count(data: Text, split: str, objective: str, context: int) -> int:
    """Rows of an epoch."""
    if objective == "seq2seq":
        _check_pairs(data)
        return len(data.document_ends(split))
    if objective in OF_CONVERSATIONS.values():
        own = _conversations(data, objective)
        return 2 * len(own.document_ends(split)) if objective == "dpo" else len(answers.layout(own, split, context))
    if objective in WITH_HEAD:
        return windows.count(_labelled(data, objective), split, context)
    return loader.window_count(len(data.tokens(split)), context, split)


def rows(
    objective: str,
    data: Text,
    split: str,
    *,
    seed: int,
    step: int,
    batch_size: int,
    context: int,
    rows: Sequence[int] | None = None,
    start: int | None = None,
) -> Rows:
    """The batch of `step`, or of its rows only `rows`. start: what a target begins with, the end of a text by default.

    Raises DataError where the tokenizer lacks a token, or the data has no pairs.
    """
    chosen = range(batch_size) if rows is None else rows
    own = data.tokenizer
    start = own.eot_id if start is None else start
    if objective == "seq2seq":
        return _pairs(data, split, seed, step * batch_size, batch_size, chosen, context, start or 0)
    if objective in OF_CONVERSATIONS.values():
        samples = [row + step * batch_size for row in chosen]
        makes = answers.pairs if objective == "dpo" else answers.rows
        found = makes(_conversations(data, objective), split, samples, context, seed)
        return Rows(found.inputs, found.targets, found.segments, document=found.document)
    if objective in WITH_HEAD:
        asked = windows.rows(_labelled(data, objective), split, [r + step * batch_size for r in chosen], context, seed)
        return Rows(asked.inputs, asked.targets, marks=asked.marks)
    where = {"seed": seed, "step": step, "batch_size": batch_size, "context": context, "rows": chosen}
    inputs, targets, segments = loader.batch(data, split, **where)  # type: ignore[arg-type]
    if objective == "next_token":
        return Rows(inputs, targets, segments)
    special = special_ids(own, objective)
    randoms = [np.random.default_rng([seed, row + step * batch_size]) for row in chosen]
    made: list[Rows] = []
    for n, random in enumerate(randoms):
        if objective == "masked":
            made.append(_masked(targets[n], segments[n], special[0], own, random))
        elif objective == "span_corruption":
            made.append(_spans(targets[n], special, own.eot_id or 0, start or 0, random))
        elif objective == "fill_in_the_middle":
            made.append(_middle(np.append(inputs[n], targets[n][-1]), special, own.eot_id, random))
        else:
            made.append(_prefix(inputs[n], targets[n], segments[n], random))
    return Rows(*(None if a[0] is None else np.stack(a) for a in zip(*made, strict=True)))  # type: ignore[arg-type]


def _conversations(data: Text, objective: str) -> Data:
    if not isinstance(data, Data) or OF_CONVERSATIONS.get(data.conversations or "") != objective:
        what = "preferences (prompt, chosen, rejected)" if objective == "dpo" else "conversations (messages)"
        raise DataError(f"train.objective={objective} wants {what}, and this text has none: see docs/finetune.md")
    return data


def _labelled(data: Text, objective: str) -> Data:
    if not isinstance(data, Data) or data.task != objective:
        raise DataError(
            f"train.objective={objective} wants text prepared with data.format={objective}, and this is not: see "
            "docs/data.md"
        )
    return data


def _masked(tokens: np.ndarray, segments: np.ndarray, mask: int, own: Tokenizer, random: np.random.Generator) -> Rows:
    """Of the tokens asked for, 80% are hidden, 10% are another, 10% stand as they are."""
    n = masked_count(len(tokens))
    able = np.flatnonzero(tokens != own.eot_id)
    asked = random.permutation(able if len(able) >= n else len(tokens))[:n]
    kind = random.random(n)
    inputs, targets = tokens.copy(), np.full_like(tokens, UNSCORED)
    targets[asked] = tokens[asked]
    drawn = random.integers(0, own.vocab_size, n)
    inputs[asked] = np.where(kind < 0.8, mask, np.where(kind < 0.9, drawn, tokens[asked]))
    return Rows(inputs, targets, segments)


def check_context(context: int) -> None:
    """ConfigError where a row of that length has more stretches than there are sentinels."""
    _, spans = span_counts(context)
    if spans > SENTINELS:
        raise ConfigError(
            f"train.context ({context:,}) has {spans:,} spans, and there are {SENTINELS} sentinels; a context of "
            f"{int(SENTINELS * SPAN_TOKENS / MASKED_SHARE):,} has as many"
        )


def _spans(tokens: np.ndarray, sentinels: list[int], end: int, start: int, random: np.random.Generator) -> Rows:
    """Each stretch becomes a sentinel in the source; the target has each sentinel and its stretch."""
    noise, spans = span_counts(len(tokens))
    kept, cut = _divided(len(tokens) - noise, spans, random), _divided(noise, spans, random)
    source: list[int] = []
    target: list[int] = []
    place = 0
    for sentinel, whole, gone in zip(sentinels, kept.tolist(), cut.tolist(), strict=False):
        source += [*tokens[place : place + whole].tolist(), sentinel]
        target += [sentinel, *tokens[place + whole : place + whole + gone].tolist()]
        place += whole + gone
    width_s, width_t = (padded(len(r) + 1) for r in (source, target))
    return _pair([*source, end], [*target, end], width_s, width_t, end, start)


def _divided(total: int, parts: int, random: np.random.Generator) -> np.ndarray:
    """`total` as so many parts of at least 1, all divisions being equally likely."""
    cuts = np.sort(random.permutation(total - 1)[: parts - 1]) + 1
    return np.diff(np.concatenate([[0], cuts, [total]]))


def _pair(source: list[int], target: list[int], width_s: int, width_t: int, padding: int, start: int) -> Rows:
    """One row, padded. Its inputs are the target's tokens, each a place later, behind `start`."""
    s, t = len(source), len(target)
    inputs, targets = np.full(width_t, padding, np.int64), np.full(width_t, UNSCORED, np.int64)
    inputs[:t], targets[:t] = [start, *target[:-1]], target
    given = np.full(width_s, padding, np.int64)
    given[:s] = source
    return Rows(inputs, targets, source=given, source_real=np.arange(width_s) < s)


def _check_pairs(data: Text) -> None:
    if not data.has_pairs:
        raise DataError(
            "train.objective=seq2seq wants pairs, and this text has none: prepare it with data.source_key and "
            "data.target_key, the keys or columns of source and target"
        )


def _pairs(
    data: Text, split: str, seed: int, first: int, batch_size: int, chosen: Sequence[int], context: int, start: int
) -> Rows:
    """An epoch takes each pair once, in an order of its own. Longer than `context`, a side keeps its beginning.

    The rows of a batch go by length, so that those of a micro-batch are padded to little more than their own.
    """
    _check_pairs(data)
    tokens, ends, end = data.tokens(split), data.document_ends(split), data.tokenizer.eot_id or 0
    width = padded(context)
    numbers = _drawn(first, batch_size, len(ends), seed)
    begins = np.where(numbers, ends[numbers - 1], 0)
    order = np.argsort(ends[numbers] - begins, kind="stable")
    made: list[Rows] = []
    for row in chosen:
        n = order[row]
        both = tokens[int(begins[n]) : int(ends[numbers[n]])].astype(np.int64)
        at = int(np.flatnonzero(both == end)[0])
        source, target = both[:at][: context - 1].tolist(), both[at + 1 : -1].tolist()
        made.append(_pair([*source, end], [*target, end][:context], width, width, end, start))
    return Rows(*(None if a[0] is None else np.stack(a) for a in zip(*made, strict=True)))  # type: ignore[arg-type]


def _drawn(first: int, count: int, of: int, seed: int) -> np.ndarray:
    """The numbers of `count` pairs out of `of`, the first of which is the `first` that was ever drawn."""
    epochs, places = np.divmod(np.arange(first, first + count), of)
    found = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        found[here] = loader.permuted(places[here], of, loader.key_of(seed, int(epoch), "pairs"))
    return found


def _middle(line: np.ndarray, special: list[int], end: int | None, random: np.random.Generator) -> Rows:
    """Documents of a window of T + 1 tokens, some rewritten: beginning, end, middle, or end, beginning, middle."""
    before, between, behind = ([i] for i in special)
    cuts = np.flatnonzero(line[1:] == end) + 1  # the first token of a window may be the end of what stood before it
    made: list[int] = []
    for piece in np.split(line, cuts):
        first = piece[:1].tolist() if len(piece) and piece[0] == end else []
        text = piece[len(first) :].tolist()
        if len(text) > 2 and random.random() < FIM_SHARE:
            a, b = sorted(random.integers(0, len(text) + 1, 2).tolist())
            prefix, middle, suffix = text[:a], text[a:b], text[b:]
            if random.random() < 0.5:
                text = [*before, *prefix, *behind, *suffix, *between, *middle]
            else:
                text = [*before, *behind, *suffix, *between, *prefix, *middle]
        made += [*first, *text]
    row = np.array(made[: len(line)], np.int64)
    inputs = row[:-1]
    return Rows(inputs, row[1:], np.cumsum(inputs == end))


def _prefix(inputs: np.ndarray, targets: np.ndarray, segments: np.ndarray, random: np.random.Generator) -> Rows:
    """The first tokens are seen by all; what comes behind them is asked for."""
    p = int(random.integers(1, len(inputs)))
    asked = targets.copy()
    asked[: p - 1] = UNSCORED
    return Rows(inputs, asked, segments, np.array(p, np.int64))
