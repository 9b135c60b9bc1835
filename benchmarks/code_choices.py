"""Two tasks of source code, made of text that a ladder never trained on: the test split of its prepared folder.

    python benchmarks/code_choices.py PREPARED --out FOLDER [--items 500] [--seed 0]

Writes next_line.jsonl (endings: which of four lines comes next; the others are true lines of the same file, indented
alike, of like length; the context shows none of them) and next_name.jsonl (continuation: the next identifier, which
must be the likeliest token by token). One question of each kind a file at most, of files that parse as Python and
are long enough. The context is the text before, at most 400 bytes of it in whole lines.
Then: foretell ladder score LADDER --data FOLDER/next_line.jsonl
"""

from __future__ import annotations

import argparse
import ast
import json
import keyword
import random
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foretell.data import open_data

BYTES = 400  # of a context
CHOICES = 4
LINES, BEFORE = 40, 8  # a file's fewest, and those before the first question
LENGTHS = (12, 70)  # characters of a line that is asked for
LIKE = 6  # characters: lines of like length share a step of so many, so that the true one may be any of the four
NAME = re.compile(r"(?<![\w\"'])[A-Za-z_]\w{2,}")

Record = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--items", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    files = [t.splitlines() for t in test_texts(asked.prepared) if is_code(t)]
    rng = random.Random(asked.seed)
    rng.shuffle(files)
    asked.out.mkdir(parents=True, exist_ok=True)
    for name, make in (("next_line", next_line), ("next_name", next_name)):
        made = [r for lines in files if (r := make(lines, rng)) is not None][: asked.items]
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in made)
        (asked.out / f"{name}.jsonl").write_text(text, encoding="utf-8")
        print(f"{name}: {len(made)} questions of {len(files)} files")


def test_texts(prepared: Path) -> Iterator[str]:
    """The documents of the test split."""
    data = open_data(prepared)
    tokens, start = data.tokens("test"), 0
    for end in map(int, data.document_ends("test")):
        yield data.tokenizer.decode(map(int, tokens[start : end - 1]))
        start = end


def is_code(text: str) -> bool:
    """Whether it parses as Python that does something, not as a licence or a list of words."""
    if text.count("\n") < LINES or "    " not in text:
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            return len(ast.parse(text).body) >= 3
    except (SyntaxError, ValueError, RecursionError):
        return False


def context(lines: list[str]) -> str:
    """The last whole lines, at most so many bytes of them."""
    kept: list[str] = []
    room = BYTES
    for line in reversed(lines):
        room -= len(line.encode()) + 1
        if room < 0:
            break
        kept.append(line)
    return "\n".join(reversed(kept))


def next_line(lines: list[str], rng: random.Random) -> Record | None:
    """A question for the next line; None where the file has none that fits."""
    for i in rng.sample(range(BEFORE, len(lines)), len(lines) - BEFORE):
        gold, before = lines[i], context(lines[:i])
        if not before.strip() or not lines[i - 1].strip() or not fits(gold):
            continue
        shown = {line.strip() for line in before.splitlines()}
        if gold.strip() in shown:
            continue
        others = sorted({o for o in lines if o.strip() not in {*shown, gold.strip()} and alike(o, gold)})
        if len(others) >= CHOICES - 1:
            choices = [gold, *rng.sample(others, CHOICES - 1)]
            rng.shuffle(choices)
            return {"context": before, "choices": [f"\n{c}" for c in choices], "gold": choices.index(gold)}
    return None


def fits(line: str) -> bool:
    bare = line.strip()
    return LENGTHS[0] <= len(bare) <= LENGTHS[1] and bool(NAME.search(bare)) and not bare.startswith("#")


def alike(other: str, line: str) -> bool:
    """As far to the right, and nearly as long: the same both ways, or the true line would be the one in the middle."""
    indents = [len(x) - len(x.lstrip()) for x in (other, line)]
    lengths = [len(x.strip()) // LIKE for x in (other, line)]
    return fits(other) and indents[0] == indents[1] and lengths[0] == lengths[1]


def next_name(lines: list[str], rng: random.Random) -> Record | None:
    """A question for the next identifier; None where the file has none that fits."""
    for i in rng.sample(range(BEFORE, len(lines)), len(lines) - BEFORE):
        before = context(lines[:i])
        names = [m for m in NAME.finditer(lines[i]) if m[0] not in keyword.kwlist]
        if before.strip() and names and fits(lines[i]):
            name = rng.choice(names)
            return {"context": f"{before}\n{lines[i][: name.start()]}", "continuation": name[0]}
    return None


if __name__ == "__main__":
    main()
