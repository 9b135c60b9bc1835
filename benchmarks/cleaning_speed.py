"""Megabytes per second and core of the cleaning steps, each beside a peer on the same documents.

    python benchmarks/cleaning_speed.py SOURCE... [--rounds 3] [--out cleaning_speed.json]

SOURCE holds documents of web size, such as C4 as JSON lines. Every fiftieth is kept apart and is the evaluation text of
the last step. Peers: py3langid's own `classify` on whole texts; the n-gram shares of the repetition rules alone, and
long and short n-grams looked up in a set, both in plain Python with tuples of words or ideographs. Steps and peers take
turns; the best round counts, in CPU seconds of one process.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from py3langid.langid import MODEL_FILE, LanguageIdentifier

from foretell.data import decontaminate, documents, language, quality, repetition

BAR = 5.0
Work = Callable[[str], object]


def plain_ngram_shares(text: str) -> list[float]:
    words = text.split() if quality.counted_by(text) == "words" else list("".join(text.split()))
    total = max(1, sum(map(len, words)))
    shares = []
    for n in (*repetition.TOP, *repetition.REPEATED):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        if n in repetition.TOP:
            most, times = Counter(grams).most_common(1)[0] if grams else ((), 0)
            shares.append(times * sum(map(len, most)) / total)
            continue
        seen: set[tuple[str, ...]] = set()
        covered: set[int] = set()
        for i, gram in enumerate(grams):
            if gram in seen:
                covered.update(range(i, i + n))
            seen.add(gram)
        shares.append(sum(len(words[i]) for i in covered) / total)
    return shares


def plain_lookup(held_out: list[str]) -> Work:
    def grams(text: str) -> set[tuple[str, ...]]:
        words = re.findall(r"[\u3400-\u9fff]|[^\W_\u3400-\u9fff]+", text.lower())
        return {tuple(words[i : i + n]) for n in (13, 8) for i in range(len(words) - n + 1)}

    known = set().union(*map(grams, held_out))
    return lambda text: not known.isdisjoint(grams(text))


def seconds(work: Work, texts: list[str]) -> float:
    began = time.process_time()
    for text in texts:
        work(text)
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("cleaning_speed.json"))
    args = parser.parse_args()
    every = [d.text for d in documents(args.source)]
    held_out, texts = every[::50], [t for n, t in enumerate(every) if n % 50]
    size = sum(len(t.encode()) for t in texts)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "held-out.jsonl").write_text("".join(json.dumps(t) + "\n" for t in held_out), encoding="utf-8")
        against = decontaminate.against([folder])
    peer = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    pairs: dict[str, tuple[Work, Work]] = {
        "language": (language.only(["en", "zh"]), peer.classify),
        "quality": (quality.rules(), plain_ngram_shares),
        "decontaminate": (against, plain_lookup(held_out)),
    }
    times: dict[str, list[list[float]]] = {name: [] for name in pairs}
    for _ in range(args.rounds):
        for name, works in pairs.items():
            times[name].append([seconds(work, texts) for work in works])
    result = {}
    for name, rounds in times.items():
        step, other = (size / 1e6 / min(column) for column in zip(*rounds, strict=True))
        result[name] = {"megabytes_per_second": step, "peer_megabytes_per_second": other, "ratio": step / other}
        print(f"{name:14s} {step:6.2f} MB/s, peer {other:6.2f} MB/s, ratio {step / other:5.2f} (bar {BAR} MB/s)")
    about = {"bytes": size, "documents": len(texts), "bar": BAR, "steps": result}
    args.out.write_text(json.dumps(about, indent=1) + "\n")
    sys.exit(0 if all(r["megabytes_per_second"] >= BAR for r in result.values()) else 3)


if __name__ == "__main__":
    main()
