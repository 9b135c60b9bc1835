"""What is wrong with examples before anything is learned from them, with counts: refused, mended, or told.

    left out     records without an example (examples.py); refused where they are more than half
    repeated     the same source and targets again: of training examples the later ones go, others are told of
    same text    of qa training examples whose passage stands in another split too, with another question: told
    leaked       training examples whose source stands in another split too: they go, or the score would be of memory
    copies       translations and summaries that are their source, letter for letter: told
    languages    references of another language than was said: refused where most are

Languages are judged over groups of references, because one short sentence says little.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from foretell.data import language
from foretell.errors import DataError, MissingExtra
from foretell.tasks.examples import Example, Read

_GROUP = 16  # references judged together
_GROUPS = 40
_MOST_LEFT_OUT = 0.5


def checked(
    splits: dict[str, Read], kind: str, target_language: str | None = None
) -> tuple[dict[str, list[Example]], list[str]]:
    """The examples of each split that are good to use, and what is to be told. DataError for what must not be used."""
    told: list[str] = []
    kept: dict[str, list[Example]] = {}
    for split, read in splits.items():
        _check_left_out(split, read, told)
        kept[split] = _once(split, read.examples, told)
    elsewhere = {_key(e) for split, found in kept.items() if split != "train" for e in found}
    if kind != "generation" and "train" in kept:
        clean = [e for e in kept["train"] if _key(e) not in elsewhere]
        leaked = len(kept["train"]) - len(clean)
        if leaked:
            told.append(f"train: {leaked:,} examples whose source stands in another split too are left out")
        kept["train"] = clean
        passages = {e.context for split, found in kept.items() if split != "train" for e in found} - {""}
        if shared := sum(e.context in passages for e in clean):
            told.append(
                f"train: {shared:,} questions are on passages of another split: a score is of texts that it knows"
            )
    for split, found in kept.items():
        if not found:
            raise DataError(f"{split}: nothing is left of {len(splits[split].examples):,} examples; {'; '.join(told)}")
        if kind in ("translation", "summarization"):
            copies = sum(e.source in e.targets for e in found)
            if copies:
                told.append(f"{split}: {copies:,} of {len(found):,} targets are their source, letter for letter")
        if target_language is not None:
            _check_language(split, found, target_language, told)
    return kept, told


def _check_left_out(split: str, read: Read, told: list[str]) -> None:
    total = len(read.examples) + read.left_out.total()
    counts = [f"{n:,} {reason} (first: {read.first[reason]})" for reason, n in read.left_out.most_common()]
    if read.left_out.total() > _MOST_LEFT_OUT * total:
        raise DataError(f"{split}: of {total:,} records {len(read.examples):,} can be used: {'; '.join(counts)}")
    told += [f"{split}: left out {c}" for c in counts]


def _once(split: str, examples: Sequence[Example], told: list[str]) -> list[Example]:
    seen: set[tuple[object, ...]] = set()
    kept: list[Example] = []
    for e in examples:
        whole = (_key(e), e.targets)
        if whole not in seen:
            seen.add(whole)
            kept.append(e)
    if len(kept) == len(examples):
        return kept
    twice = f"{split}: {len(examples) - len(kept):,} of {len(examples):,} examples are there twice"
    told.append(f"{twice}; {'once is kept' if split == 'train' else 'all are kept: a score is of what is given'}")
    return kept if split == "train" else list(examples)


def _key(e: Example) -> tuple[object, ...]:
    """What makes two examples ask the same."""
    return (e.source, e.context) if not e.messages else tuple(m["content"] for m in e.messages[:-1])


def _check_language(split: str, examples: Sequence[Example], wanted: str, told: list[str]) -> None:
    """DataError where most groups of references are of another language than `wanted` (ISO 639-1)."""
    step = max(1, len(examples) // (_GROUP * _GROUPS))
    texts = [e.targets[0] for e in examples[::step] if e.targets]
    groups = [" ".join(texts[i : i + _GROUP]) for i in range(0, len(texts), _GROUP)]
    try:
        found = Counter(language.identify(g)[0] for g in groups)
    except MissingExtra:
        told.append(f"{split}: the language of references was not looked at (install foretell[clean])")
        return
    found.pop(language.UNKNOWN, None)
    if found and found[wanted] < found.total() / 2:
        counts = ", ".join(f"{code} {n}" for code, n in found.most_common(3))
        raise DataError(
            f"{split}: references should be {wanted}, and of {found.total()} groups of them {found[wanted]} are: "
            f"{counts}. Are source and target the wrong way round? (--source-key, --target-key, --to)"
        )
