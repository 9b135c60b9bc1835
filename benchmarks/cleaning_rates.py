"""What the cleaning steps do to real text: the numbers of docs/cleaning-rules.md.

    FORETELL_DATA=FOLDER python benchmarks/cleaning_rates.py

Prints the share of each set whose language is told rightly, not told, and told wrongly; the share that breaks no
quality rule, and the rules that the others break first; how many evaluation items are found when each is put into
another page of C4 in other letters, spaces and marks, and what is dropped of pages without one.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import sysconfig
from collections import Counter
from pathlib import Path

from foretell.data import decontaminate, language, quality
from foretell.data.steps import Dropped, Kept

DATA = Path(os.environ["FORETELL_DATA"])
PARTS = ("train", "valid", "test")


def content(name: str) -> str:
    with gzip.open(DATA / name, "rt", encoding="utf-8") as f:
        return f.read()


def json_lines(name: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in content(name).split("\n") if line.strip()]


def c4() -> list[str]:
    return [str(r["text"]) for part in ("train", "validation") for r in json_lines(f"lm-en/c4-mini/{part}.jsonl.gz")]


def abstracts() -> list[str]:
    rows = [
        line.split("\t") for part in ("dev", "test") for line in content(f"sum-zh/csl-title/{part}.tsv.gz").split("\n")
    ]
    return [row[1] for row in rows if len(row) > 2]


def xquad(code: str) -> list[str]:
    data = json.loads(content(f"qa/xquad/xquad.{code}.json.gz"))["data"]
    return [p["context"] for article in data for p in article["paragraphs"]]


def poems() -> list[str]:
    return ["\n".join(r["paragraphs"]) for r in json_lines("lm-zh/tang-poetry/test.jsonl.gz")]  # type: ignore[arg-type]


def novel(name: str) -> str:
    return "".join(content(f"lm-zh/{name}/{part}.txt.gz") for part in PARTS)


def paragraphs(name: str) -> list[str]:
    return [p for p in novel(name).split("\n") if len(p.strip()) >= 20]


def chapters(name: str) -> list[str]:
    parts = re.split(r"(?m)^(?=\s*第[一二三四五六七八九十百〇零]+回)", novel(name))
    return [p for p in parts if len(p) > 300]


def groups(name: str, size: int) -> list[str]:
    made = [""]
    for paragraph in novel(name).split("\n"):
        if len(made[-1]) >= size:
            made.append("")
        made[-1] += paragraph + "\n" if paragraph.strip() else ""
    return made[:-1]


def wikitext() -> list[str]:
    lines = content("lm-en/wikitext2/valid.txt.gz").split("\n")
    return [line.strip() for line in lines if len(line.strip()) > 60 and not line.strip().startswith("= ")]


def multi30k(code: str) -> list[str]:
    return [line for line in content(f"mt-en-de/multi30k/test_2016_flickr.{code}.gz").split("\n") if line.strip()]


def dialogues() -> list[str]:
    every = json.loads(content("dialogue/crosswoz/val.json.gz"))
    return ["\n".join(m["content"] for m in d["messages"]) for d in every.values()]


def languages() -> None:
    library = [p.read_text("utf-8", "replace") for p in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    five = {code: [" ".join(multi30k(code)[n : n + 5]) for n in range(0, 1000, 5)] for code in ("en", "de")}
    sets = {
        "C4 documents": ("en", c4()),
        "XQuAD en": ("en", xquad("en")),
        "WikiText-2 paragraphs": ("en", wikitext()),
        "Multi30k en, sentences": ("en", multi30k("en")),
        "Multi30k en, by five": ("en", five["en"]),
        "Multi30k de, sentences": ("de", multi30k("de")),
        "Multi30k de, by five": ("de", five["de"]),
        "XQuAD zh": ("zh", xquad("zh")),
        "CSL abstracts": ("zh", abstracts()),
        "Hongloumeng paragraphs": ("zh", paragraphs("hongloumeng")),
        "Sanguo paragraphs": ("zh", paragraphs("sanguo")),
        "Tang poems": ("zh", poems()),
        "Python standard library": ("und", library),
    }
    for name, (code, texts) in sets.items():
        told = Counter(language.identify(text)[0] for text in texts)
        right, unknown = told[code] / len(texts), (told["und"] if code != "und" else 0) / len(texts)
        print(
            f"language  {name:24s} {len(texts):5d} right {right:.4f} und {unknown:.4f} wrong {1 - right - unknown:.4f}"
        )


def qualities() -> None:
    sets = {
        "C4 documents": c4(),
        "Hongloumeng chapters": chapters("hongloumeng"),
        "Sanguo chapters": chapters("sanguo"),
        "Hongloumeng by 500": groups("hongloumeng", 500),
        "Sanguo by 500": groups("sanguo", 500),
        "CSL abstracts": abstracts(),
        "XQuAD zh": xquad("zh"),
        "CrossWOZ dialogues": dialogues(),
        "Tang poems": poems(),
        "Tang poems from 100": [p for p in poems() if len(p) >= 100],
    }
    step = quality.rules()
    for name, texts in sets.items():
        fates = [step(text) for text in texts]
        why = Counter(f.reason.removeprefix("quality: ") for f in fates if isinstance(f, Dropped))
        kept = 1 - why.total() / len(texts)
        print(f"quality   {name:24s} {len(texts):5d} kept {kept:.4f} {dict(why.most_common(5))}")


def dressed(text: str, choose: random.Random) -> str:
    text = choose.choice([str.upper, str.lower, str.swapcase])(text)
    text = re.sub(r"[,.;:?!\"()]+(?=\s|$)|(?<=\s)[\"(]|-", lambda _: choose.choice([" ", ", ", "; ", "... "]), text)
    return re.sub(r"\s+", lambda _: choose.choice([" ", "  ", "\n", " \t", "\u00a0"]), text)


def contaminations() -> None:
    pages = c4()
    choose = random.Random(5)
    for name in ("piqa", "arc_easy", "gsm8k", "lambada_openai", "triviaqa_sm_sub"):
        file = f"lmeval/{name}.jsonl.gz"
        step = decontaminate.against([str(DATA / file)])
        items = [" ".join(decontaminate._strings(r)) for r in json_lines(file)]
        found = 0
        for n, item in enumerate(items):
            page = pages[n % len(pages)]
            middle = page.find(" ", len(page) // 2)
            found += isinstance(step(f"{page[:middle]} {dressed(item, choose)} {page[middle:]}"), Dropped)
        false = [page[:60] for page in pages if not isinstance(step(page), Kept)]
        print(f"evaluation {name}: {len(items)} items, {step.too_short} too short, {found} found; without: {false}")


if __name__ == "__main__":
    languages()
    qualities()
    contaminations()
