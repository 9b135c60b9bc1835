"""Throughput of GloVe, ours, against gensim's Word2Vec on the same text in the same run.

    FORETELL_DATA=... python benchmarks/vectors_speed.py [--threads 1] [--out vectors_speed.json]

Text: WikiText-2 and C4 pages (lm-en), and the Chinese novels by characters. Both learn 100 dimensions with window 5:
Word2Vec five rounds over the text, GloVe its counts and 25 rounds over them. Reading and cutting the text is the same
for both and told apart. The ratio is that of words of text a second of the whole training, rounds and counting
included.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from foretell import vectors

TEXTS = {"English": ["lm-en/wikitext2", "lm-en/c4-mini"], "Chinese novels": ["lm-zh/hongloumeng", "lm-zh/sanguo"]}


def unpacked(folder: Path, names: list[str], out: Path) -> list[str]:
    """The texts, unpacked."""
    found = []
    for name in names:
        for packed in sorted((folder / name).glob("*.gz")):
            path = out / f"{name.replace('/', '-')}-{packed.stem}"
            with gzip.open(packed) as source, path.open("wb") as sink:
                shutil.copyfileobj(source, sink)
            found.append(str(path))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not os.environ.get("FORETELL_DATA"):
        sys.exit("FORETELL_DATA names no folder of full data sets")
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        for name, texts in TEXTS.items():
            sources = unpacked(Path(os.environ["FORETELL_DATA"]), texts, work)
            rates = {}
            for kind in ("word2vec", "glove"):
                settings = vectors.Settings(kind=kind, units="characters", threads=options.threads)  # type: ignore[arg-type]
                made = vectors.train(sources, work / f"{name}-{kind}", settings)
                seconds = made["training_seconds"] + made.get("counting_seconds", 0.0)
                rates[kind] = made["units_trained"] / seconds
                passes = f"{made['pairs']:,} pairs, {made['pairs_per_second']:,.0f} a second" if kind == "glove" else ""
                print(
                    f"{name}: {kind}: {made['units_trained']:,} words in {seconds:.1f} s "
                    f"(reading {made['reading_seconds']:.1f} s): {rates[kind]:,.0f} words/s {passes}"
                )
            results[name] = {**rates, "ratio": rates["glove"] / rates["word2vec"]}
            print(f"{name}: GloVe / Word2Vec {results[name]['ratio']:.2f}")
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
