"""Beam search: of each source, or prompt, the likeliest text that a search of fixed width finds (Graves, 2012).

What counts as better is the sum of log-probabilities over its length to the power of `length_penalty` (1: their mean),
the end of the text being one of its tokens. Which hypotheses are kept, and when a search ends, is as transformers has
it: of the 2 x beams likeliest continuations those that end are finished if they stand among the first `beams`, and the
`beams` best of the others go on. A source's keys and values are made once and shared by its beams; a source that is
done leaves the batch; sources of like length run together. What runs beside a source changes its scores by rounding
alone (about 1e-6), which can only tip a choice that was a tie.

Not handled: sampling among beams, groups of diverse beams, stop strings, several tokens that end a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from foretell.errors import ConfigError
from foretell.generate.cache import KVCache, SourceCache
from foretell.models import products
from foretell.models.decoder import Decoder
from foretell.models.seq2seq import Seq2Seq

_ROWS = 320  # beams at once
_CELLS = 1 << 16  # rows x positions at once: keys and values of 64 layers and heads of 64 numbers are 2 GB
_READ_AT_ONCE = 2048  # tokens of prompts: enough for large products, few enough that rows of like length meet
_NEVER = float("-inf")


class Hypothesis(NamedTuple):
    """ids: without what begins and what ends it. score: what it was chosen by."""

    ids: list[int]
    score: float


@dataclass(frozen=True)
class _Search:
    """What is looked for, the same for all sources."""

    beams: int
    length_penalty: float
    early_stopping: bool | Literal["never"]
    no_repeat_ngram_size: int
    eos: int | None

    def score(self, total: float, length: int) -> float:
        """Of a sum of log-probabilities over so many tokens."""
        return float(total / length**self.length_penalty)

    def __post_init__(self) -> None:
        if self.beams < 1:
            raise ConfigError(f"beams is {self.beams}; it must be at least 1")
        if self.no_repeat_ngram_size < 0:
            raise ConfigError(f"no_repeat_ngram_size is {self.no_repeat_ngram_size}; it must be 0 (off) or more")
        if self.early_stopping not in (True, False, "never"):
            raise ConfigError(f"early_stopping is {self.early_stopping!r}; it must be True, False or 'never'")


@dataclass
class _Source:
    """One source on its way."""

    number: int
    ids: list[int]
    room: int  # tokens its text may have, the end included
    finished: list[Hypothesis] = field(default_factory=list)

    def finish(self, found: Hypothesis, most: int) -> None:
        """Keep the best `most`, best first."""
        self.finished = sorted([*self.finished, found], key=lambda h: -h.score)[:most]

    def is_done(self, length: int, best: float, s: _Search) -> bool:
        """Whether its search ends after `length` tokens, `best` being the likeliest sum of what could go on."""
        if length >= self.room or best == _NEVER:
            return True
        if len(self.finished) < s.beams:
            return False
        if s.early_stopping is True or s.beams == 1:  # one beam is the greedy choice
            return True
        hopes = self.room if s.early_stopping == "never" and s.length_penalty > 0 else length
        return s.score(best, hopes) <= self.finished[-1].score


@torch.no_grad()
def beam_search(
    model: Seq2Seq | Decoder,
    sources: Sequence[Sequence[int]],
    *,
    beams: int = 4,
    length_penalty: float = 1.0,
    max_new_tokens: int | Sequence[int] = 128,
    early_stopping: bool | Literal["never"] = False,
    no_repeat_ngram_size: int = 0,
    eos: int | None = None,
    start: int | None = None,
) -> list[Hypothesis]:
    """The best text for each source (ids of an encoder-decoder's source) or prompt (ids of a decoder's), in order.

    length_penalty: above 0 longer texts are preferred, below 0 shorter ones. max_new_tokens: of all, or one for each
    source; the end counts. early_stopping: True ends a search with its `beams`th finished text, False when none that
    goes on would be better if it ended now, "never" when none can become better. no_repeat_ngram_size: so many tokens
    in a row occur once at most (of a decoder, prompt and all); 0: off. eos: what ends a text; None: only its length.
    start: what a target begins with; None: as the model's config says, else eos. beams=1 is the greedy choice.
    The scores are of float32 logits, whatever the model's dtype. Raises ConfigError.
    """
    search = _Search(beams, length_penalty, early_stopping, no_repeat_ngram_size, eos)
    if isinstance(model, Seq2Seq):
        start = model.config.decoder_start_token_id if start is None else start
        start = eos if start is None else start
        if start is None:
            raise ConfigError("nothing says what a target begins with: give start, or eos")
    waiting = _sources(model, sources, max_new_tokens)
    training = model.training
    model.eval()
    try:
        with products.fast():
            for group in _groups(waiting, beams, isinstance(model, Seq2Seq)):
                reads = _Reading(model, group, start) if isinstance(model, Seq2Seq) else _Prompts(model, group)
                _searched(reads, group, search)
    finally:
        model.train(training)
    return [s.finished[0] if s.finished else Hypothesis([], _NEVER) for s in waiting]


def _sources(
    model: Seq2Seq | Decoder, sources: Sequence[Sequence[int]], max_new_tokens: int | Sequence[int]
) -> list[_Source]:
    rooms = [max_new_tokens] * len(sources) if isinstance(max_new_tokens, int) else list(max_new_tokens)
    if len(rooms) != len(sources):
        raise ConfigError(f"max_new_tokens has {len(rooms)} entries for {len(sources)} sources; give one for each")
    if min(rooms, default=1) < 1:
        raise ConfigError(f"max_new_tokens is {min(rooms)}; it must be at least 1")
    context = model.config.max_position_embeddings or 1
    made = []
    for n, (ids, room) in enumerate(zip(sources, rooms, strict=True)):
        if not ids:
            raise ConfigError(f"source {n} has no tokens; give it at least the one that ends, or begins, a text")
        if isinstance(model, Decoder):
            if len(ids) > context:
                raise ConfigError(
                    f"prompt {n} has {len(ids):,} tokens, and the model's context {context:,}; shorten it"
                )
            room = min(room, context - len(ids) + 1)
        made.append(_Source(n, list(ids), room))
    return made


def _groups(sources: list[_Source], beams: int, apart: bool) -> Iterator[list[_Source]]:
    """Sources of similar length together, as many as memory allows. apart: whether a target has a cache of its own."""
    group: list[_Source] = []
    for s in sorted(sources, key=lambda s: (len(s.ids), s.room)):
        rows = beams * (len(group) + 1)
        room = max(r.room for r in [*group, s])
        if group and (rows > _ROWS or rows * (max(room, len(s.ids)) if apart else room + len(s.ids)) > _CELLS):
            yield group
            group = []
        group.append(s)
    if group:
        yield group


class _Reading:
    """An encoder-decoder that has read its sources: next-token logits of any number of targets of each."""

    def __init__(self, model: Seq2Seq, sources: list[_Source], start: int | None) -> None:
        device = model.lm_head.weight.device
        ids, self.mask = _padded([s.ids for s in sources], device, left=False)
        self.model, self.memory = model, model.encode(ids, self.mask)
        longest = max(s.room for s in sources)
        self.cache = SourceCache(model.config, len(sources), longest, self.memory.dtype, device)
        self.begun = torch.full((len(sources),), start or 0, device=device)

    def first(self) -> Tensor:
        """Logits (B, V) of what comes first."""
        return self.next(self.begun)

    def next(self, tokens: Tensor) -> Tensor:
        """Logits (N, V) behind tokens (N,)."""
        hidden = self.model.decode(tokens[:, None], self.memory, self.mask, self.cache)
        return self.model.lm_head(self.model.scaled(hidden[:, -1])).float()

    def keep(self, rows: Tensor, sources: Tensor) -> None:
        """Go on with these rows, of these sources."""
        if len(sources) < len(self.mask):
            self.memory, self.mask = self.memory[sources], self.mask[sources]
            self.cache.keep(rows, sources=sources)
        else:
            KVCache.keep(self.cache, rows)


class _Prompts:
    """A decoder that has read its prompts, padded on the left so that all go on at one place of the cache."""

    def __init__(self, model: Decoder, sources: list[_Source]) -> None:
        device = model.lm_head.weight.device
        ids, self.real = _padded([s.ids for s in sources], device, left=True)
        self.model, self.T = model, ids.shape[1]
        longest = self.T + max(s.room for s in sources)
        self.cache = KVCache(model.config, len(sources), longest, model.lm_head.weight.dtype, device)
        self.padding = (~self.real).sum(1)
        self.ids = ids

    def first(self) -> Tensor:
        """Logits (B, V) of what comes first. Prompts are read some at a time, those of like length together."""
        found, lengths, start = [], self.real.sum(1).tolist(), 0
        while start < len(lengths):
            end = start + 1
            while end < len(lengths) and (end + 1 - start) * max(lengths[start : end + 1]) <= _READ_AT_ONCE:
                end += 1
            found.append(self._read(slice(start, end), max(lengths[start:end])))
            start = end
        self.cache.length = self.T
        return torch.cat(found)

    def _read(self, rows: slice, T: int) -> Tensor:
        """Logits behind the prompts of some rows, of at most T tokens, whose keys and values go into the cache."""
        ids, real = self.ids[rows, self.T - T :], self.real[rows, self.T - T :]
        own = KVCache(self.model.config, len(ids), T, self.model.lm_head.weight.dtype, ids.device)
        if bool(real.all()):
            logits = self._logits(self.model.hidden(ids, cache=own))
        else:
            place = torch.arange(T, device=ids.device)
            # Padding sees itself, because a softmax over nothing is not a number.
            mask = (place[:, None] >= place) & real[:, None] | torch.eye(T, dtype=torch.bool, device=ids.device)
            positions = (place - (~real).sum(1)[:, None]).clamp_min(0)
            logits = self._logits(self.model.hidden(ids, positions, mask[:, None], own))
        self.cache.put(rows, own, self.T)
        return logits

    def next(self, tokens: Tensor) -> Tensor:
        """Logits (N, V) behind tokens (N,)."""
        if bool(self.real.all()):
            return self._logits(self.model.hidden(tokens[:, None], cache=self.cache))
        padding = self.padding.repeat_interleave(len(tokens) // len(self.padding))
        place = torch.arange(self.cache.length + 1, device=tokens.device)
        mask = (place >= padding[:, None])[:, None, None]
        return self._logits(self.model.hidden(tokens[:, None], self.cache.length - padding[:, None], mask, self.cache))

    def keep(self, rows: Tensor, sources: Tensor) -> None:
        """Go on with these rows, of these sources."""
        self.cache.keep(rows, self.T)  # rows of one source have its prompt in common
        self.real, self.padding = self.real[sources], self.padding[sources]

    def _logits(self, hidden: Tensor) -> Tensor:
        return self.model.lm_head(hidden[:, -1]).float()


def _padded(rows: list[list[int]], device: torch.device, left: bool) -> tuple[Tensor, Tensor]:
    """Ids (B, T), padded, and where they are real (B, T)."""
    T = max(map(len, rows))
    lines = [[*[0] * (T - len(r)), *r] if left else [*r, *[0] * (T - len(r))] for r in rows]
    place, lengths = torch.arange(T, device=device), torch.tensor([len(r) for r in rows], device=device)[:, None]
    return torch.tensor(lines, device=device), (place >= T - lengths) if left else (place < lengths)


def _searched(reading: _Reading | _Prompts, sources: list[_Source], s: _Search) -> None:
    """Run the sources to their ends; each then has its finished texts."""
    logits = reading.first()
    device, ngram = logits.device, s.no_repeat_ngram_size
    texts = torch.zeros(len(sources), 1, 0, dtype=torch.long, device=device)  # (B, beams, tokens so far)
    totals = torch.zeros(len(sources), 1, device=device)
    before = [x.ids if isinstance(reading, _Prompts) else [] for x in sources]
    length = 0
    while True:
        banned = _repeats(texts, before, ngram) if ngram else []
        totals, beam, token = _continuations(logits, totals, s.beams, banned)
        length += 1
        rooms = torch.tensor([x.room for x in sources], device=device)[:, None]
        ends = (token == s.eos) if s.eos is not None else torch.zeros_like(token, dtype=torch.bool)
        stops = (ends | (rooms <= length)) & (totals > _NEVER)
        for b, n in stops[:, : s.beams].nonzero().tolist():
            ids = texts[b, beam[b, n]].tolist() + ([] if ends[b, n] else [int(token[b, n])])
            sources[b].finish(Hypothesis(ids, s.score(float(totals[b, n]), length)), s.beams)
        totals, order = totals.masked_fill(stops, _NEVER).topk(min(s.beams, totals.shape[1]))
        beam, token = beam.gather(1, order), token.gather(1, order)
        best = totals[:, 0].tolist()
        left = [b for b, x in enumerate(sources) if not x.is_done(length, best[b], s)]
        if not left:
            return
        index = torch.tensor(left, device=device)
        wide = texts.shape[1]
        sources, before = [sources[b] for b in left], [before[b] for b in left]
        beam, token, totals = beam[index], token[index], totals[index]
        rows = index[:, None] * wide + beam
        texts = torch.cat([texts.flatten(0, 1)[rows], token[:, :, None]], 2)
        reading.keep(rows.flatten(), index)
        logits = reading.next(token.flatten())


def _continuations(
    logits: Tensor, totals: Tensor, beams: int, banned: list[list[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """The 2 x beams likeliest: sums of log-probabilities, the beam each goes on from, its token; (B, n), best first.

    logits: (B * W, V) of W beams a source; totals: (B, W) sums so far. banned: of each row what may not come.
    """
    B = len(totals)
    whole = logits.logsumexp(-1, keepdim=True)
    for row, never in enumerate(banned):
        logits[row, never] = _NEVER
    values, tokens = logits.topk(min(2 * beams, logits.shape[1]))
    sums = (values - whole).view(B, -1) + totals.repeat_interleave(values.shape[1], 1)
    found, place = sums.topk(min(2 * beams, sums.shape[1]))
    return found, place // values.shape[1], tokens.view(B, -1).gather(1, place)


def _repeats(texts: Tensor, before: list[list[int]], n: int) -> list[list[int]]:
    """Of each row the tokens that would make n tokens in a row that stand in it already."""
    found = []
    for prompt, beams in zip(before, texts.tolist(), strict=True):
        for beam in beams:
            ids = [*prompt, *beam]
            tail = ids[len(ids) - n + 1 :]
            found.append([ids[i + n - 1] for i in range(len(ids) - n + 1) if ids[i : i + n - 1] == tail])
    return found
