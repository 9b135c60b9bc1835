"""`evaluate --task generation`: how a decoder foretells texts, and how what it writes differs from them.

    perplexity, bits_per_byte             of the texts, each by itself, in windows
    length                                of continuations that the model draws of beginnings of passages of the texts,
                                          as a share of that of the true ones, which it cannot exceed
    distinct_1, distinct_2, rep_4         of the same
    self_bleu                             of the same
    mauve                                 of the same against the true continuations, from a vector for each

Beside them stand the same of the true continuations, of `mauve` that of one half of them against the other half, and
what `xz -9` makes of the texts in bits per byte. Vectors are of an encoder (`features`), or means of a decoder's last
hidden states, by default the model's own. Then the score says how far the model itself tells its texts from true ones,
and compares with no other model's: give the same `features` to compare.
"""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from foretell import embed, generate, metrics
from foretell.errors import DataError, ModelError
from foretell.evaluate.dialogue import Progress, diversity, overlap
from foretell.evaluate.result import likelihood, scored
from foretell.evaluate.scoring import score, windows
from foretell.metrics import Measure
from foretell.models import source
from foretell.models.decoder import Decoder
from foretell.models.encoder import Encoder
from foretell.models.model import Model
from foretell.tasks.examples import Example
from foretell.tasks.tuned import Tuned
from foretell.tokenizer import Tokenizer

PASSAGE = 400  # characters at most
CONTINUED = 200  # passages at most, spread over all
_SHORTEST = 12  # characters
_LONGEST = 2048  # tokens of a window
_BATCH_TOKENS = 1 << 13
_AT_ONCE, _SHOWN = 64, 4
_SAMPLING: dict[str, Any] = {"temperature": 1.0, "top_p": 0.95}
# Where tokens of most tokenizers end: the end of a line is one with the mark before it, a space with the word behind.
_BREAK = re.compile(r"\n+|(?=[^\S\n])|(?<=[，。！？；：、])(?![，。！？；：、\s])")


class Passage(NamedTuple):
    """A stretch of a text: of which, how it begins, and how it goes on."""

    name: str
    beginning: str
    rest: str


def evaluate_generation(
    asked: Tuned,
    examples: Sequence[Example],
    progress: Progress | None = None,
    features: Path | None = None,
    *,
    seed: int = 0,
    batch_size: int | None = None,
) -> dict[str, Any]:
    """Scores, rules, samples and answers, as `evaluate_task` has them. batch_size: windows at once; it moves no score.

    features: a stored model whose vectors `mauve` takes. seed: of what is drawn.
    """
    model = asked.model
    assert isinstance(model, Decoder)
    texts = [e.source for e in examples]
    measured = text_likelihood(model, asked.tokenizer, texts, batch_size)
    chosen = passages(examples)
    given = continued(model, asked.tokenizer, chosen, seed, progress)
    human = [p.rest.strip() for p in chosen]
    sizes, whole = np.array([len(g) for g in given]), np.array([len(h) for h in human])
    measured["length"] = metrics.ratio("length", sizes, whole, "characters over those of the true rests")
    measured |= _written(given)
    rules = {
        "xz -9": {"bits_per_byte": _packed(texts)},
        "human": {name: m.value for name, m in _written(human).items()},
    }
    if len(chosen) >= 8:
        encoder, tokenizer = (model, asked.tokenizer) if features is None else source.load(features)
        told = f"features:{'the model itself' if features is None else features.name}"
        vectors = text_vectors(encoder, tokenizer, [*human, *given])
        true, drawn = vectors[: len(human)], vectors[len(human) :]
        m = metrics.mauve(true, drawn)
        measured["mauve"] = Measure(m.name, m.rows, m.of, f"{m.how}|{told}", m.within)
        rules["human"]["mauve"] = metrics.mauve(true[::2], true[1::2]).value
    found = [
        {"name": p.name, "source": p.beginning, "wanted": [h], "answer": g}
        for p, h, g in zip(chosen, human, given, strict=True)
    ]
    return {**scored(measured), "rules": rules, "continued": len(chosen), "samples": _samples(found), "answers": found}


def text_likelihood(
    model: Decoder, tokenizer: Tokenizer, texts: Sequence[str], batch_size: int | None = None
) -> dict[str, Measure]:
    """perplexity and bits_per_byte of texts, each by itself, in windows that do not overlap, as `evaluate` has them."""
    context = min(model.config.needed("max_position_embeddings"), _LONGEST)
    encoded = enumerate(tokenizer.encode_batch(list(texts)))
    of = (w for n, ids in encoded for w in windows(n, ids, tokenizer.bos_id, context, context))
    nll, tokens, _ = score(model, of, _BATCH_TOKENS if batch_size is None else batch_size * context).of_documents(
        len(texts)
    )
    if not np.isfinite(nll).all():
        raise ModelError("the model's predictions are not numbers (NaN or infinite): its weights are damaged")
    if not tokens.sum():
        raise DataError(f"nothing to score: {len(texts):,} texts without a token that can be scored")
    sizes = np.array([len(t.encode()) for t in texts], np.float64)
    first = "" if tokenizer.bos_id is not None else "|first token of a window unscored"
    return likelihood(nll, tokens, sizes, f"of:texts|window:{context}{first}")


def passages(examples: Sequence[Example], most: int = CONTINUED) -> list[Passage]:
    """At most so many stretches of the texts, evenly spread, each cut in two at the first break behind its quarter."""
    found = []
    for e in examples:
        for n, text in enumerate(_stretches(e.source)):
            quarter = max(1, len(text) // 4)
            place = _BREAK.search(text, quarter)
            at = place.end() if place is not None and place.end() <= len(text) // 2 else quarter
            if len(text) >= _SHORTEST and text[at:].strip():
                found.append(Passage(f"{e.name}#{n + 1}", text[:at], text[at:]))
    if not found:
        raise DataError(f"nothing to go on from: none of {len(examples):,} texts has {_SHORTEST} characters")
    if len(found) <= most:
        return found
    return [found[i * len(found) // most] for i in range(most)]


def _stretches(text: str) -> list[str]:
    """The text in pieces of at most `PASSAGE` characters, cut at the last line, else the last space, that fits."""
    found, at = [], 0
    while at < len(text):
        end = at + PASSAGE
        if end < len(text):
            half = at + PASSAGE // 2
            end = max(text.rfind("\n", half, end), 0) or max(text.rfind(" ", half, end), 0) or end
        found.append(text[at:end].strip())
        at = end
    return found


def continued(
    model: Decoder, tokenizer: Tokenizer, chosen: Sequence[Passage], seed: int = 0, progress: Progress | None = None
) -> list[str]:
    """What the model draws behind each beginning, at most as many tokens and characters as the true rest has."""
    found: dict[int, str] = {}
    rooms = [max(1, len(ids)) for ids in tokenizer.encode_batch([p.rest for p in chosen])]
    order = sorted(range(len(chosen)), key=lambda n: rooms[n])
    for i in range(0, len(order), _AT_ONCE):
        group = order[i : i + _AT_ONCE]
        made = generate.generate(
            model,
            tokenizer,
            [chosen[n].beginning for n in group],
            max_new_tokens=[rooms[n] for n in group],
            seed=seed + i,
            **_SAMPLING,
        )
        for n, said in zip(group, made, strict=True):
            found[n] = said["completion"][: len(chosen[n].rest)].strip()
        if progress is not None:
            progress(len(found), len(chosen))
    return [found[n] for n in range(len(chosen))]


def _written(texts: Sequence[str]) -> dict[str, Measure]:
    """What can be said of texts without others beside them."""
    return diversity(texts) | ({"self_bleu": metrics.self_bleu(texts)} if len(texts) > 1 else {})


@torch.no_grad()
def text_vectors(model: Model, tokenizer: Tokenizer, texts: Sequence[str]) -> np.ndarray:
    """A vector (N, D) for each text: as `foretell embed`, or the mean of a decoder's last hidden states.

    Texts of a decoder run one by one, so no vector depends on what stands beside it.
    """
    if isinstance(model, Encoder):
        return embed.embed(model, tokenizer, texts).vectors
    if not isinstance(model, Decoder):
        raise ModelError("vectors are of an encoder or a decoder; an encoder-decoder has none here")
    longest = min(model.config.needed("max_position_embeddings"), _LONGEST)
    device, found = model.lm_head.weight.device, []
    first = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    for text in texts:
        ids = [*first, *tokenizer.encode(text)][:longest] or [tokenizer.eot_id or 0]
        found.append(model.hidden(torch.tensor([ids], device=device))[0].mean(0).float().cpu().numpy())
    return np.stack(found)


def _packed(texts: Sequence[str]) -> float:
    """Bits that `xz -9` takes for a byte of the texts, one after the other."""
    whole = "\n".join(texts).encode()
    return 8 * len(lzma.compress(whole, preset=9)) / len(whole)


def _samples(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Continuations that share most words with the true ones, and that share least."""
    told = [{**f, "overlap": overlap(f["answer"], f["wanted"][0])} for f in found]
    order = sorted(told, key=lambda f: -f["overlap"])
    return [*order[:_SHOWN], *order[-_SHOWN:]] if len(order) > 2 * _SHOWN else order
