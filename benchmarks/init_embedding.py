"""Does an embedding table begun from word vectors help a small model? Validation loss with and without, several seeds.

    FORETELL_DATA=... python benchmarks/init_embedding.py [--steps 64] [--seeds 3] [--text NAME] [--kind KIND]
        [--work FOLDER] [--out init.json]

The text is prepared, vectors of its tokens are learned from its training split (GloVe and Word2Vec), and the same model
of about a million parameters is trained from the drawn table and from either. Loss: nats a token on 4,096 tokens of
the validation split, at several steps; mean and standard deviation over seeds of weights and data order together.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from foretell import calibrate, config, data, train, vectors
from foretell.config import DataConfig, TokenizerConfig
from foretell.train import log

TEXTS = {
    "wikitext2": ["lm-en/wikitext2/valid.txt.gz", "lm-en/wikitext2/test.txt.gz"],
    "tinyshakespeare": ["lm-en/tinyshakespeare/train.txt.gz"],
    "hongloumeng": ["lm-zh/hongloumeng/train.txt.gz"],
}
VOCABULARY, WIDTH = 2048, 128
MODEL = {"hidden_size": WIDTH, "num_hidden_layers": 3}


def curve(text: data.Data, steps: int, seed: int, start: Path | None, run: Path) -> dict[int, float]:
    """Validation loss by step of one run."""
    table: dict[str, Any] = {
        "steps": steps,
        "context": 128,
        "micro_batch_size": 8,
        "global_batch_tokens": 1024,
        "dtype": "float32",
        "compile": "off",
        "attention": "sdpa",
        "eval_every": max(1, steps // 4),
        "eval_tokens": 4_096,
        "save_every": steps,
        "dropout": 0.0,
        "seed": seed,
    }
    if start is not None:
        table["init_embedding"] = str(start)
    c = config.validate({"model": MODEL, "train": table, "evaluate": {"max_tokens": 4096}})
    train.begin(c, text, run, 1, machine=calibrate.record(), trials=False)
    train.go_on(run, text, resume=False)
    return {e["step"]: e["loss"] for e in log.read(run / "log.jsonl") if e["event"] == "eval"}


def compare(name: str, kinds: list[str], steps: int, seeds: int, folder: Path, work: Path) -> dict[str, Any]:
    """Validation losses by what the table begins from, then by step, one a seed. What `work` has is not made again."""
    work.mkdir(parents=True, exist_ok=True)
    if not (work / name).exists():
        sources = []
        for part in TEXTS[name]:
            path = work / part.replace("/", "-").removesuffix(".gz")
            path.write_bytes(gzip.decompress((folder / part).read_bytes()))
            sources.append(str(path))
        data.prepare(sources, work / name, TokenizerConfig(vocab_size=VOCABULARY), DataConfig())
    text = data.open_data(work / name)
    for kind in kinds:
        if not (work / f"{name}-{kind}").exists():
            settings = vectors.Settings(kind=kind, units="tokens", dim=WIDTH, min_count=1, threads=1)  # type: ignore[arg-type]
            made = vectors.train([str(work / name)], work / f"{name}-{kind}", settings)
            print(f"{name}: {kind} of {made['words']:,} tokens in {made['training_seconds']:.1f} s", flush=True)
    curves: dict[str, list[dict[int, float]]] = {kind: [] for kind in ("drawn", *kinds)}
    for seed in range(seeds):
        for kind, past in curves.items():
            start = None if kind == "drawn" else work / f"{name}-{kind}"
            with tempfile.TemporaryDirectory() as run:
                past.append(curve(text, steps, seed, start, Path(run) / "run"))
            print(f"{name}: {kind}, seed {seed}: {past[-1]}", flush=True)
    found: dict[str, Any] = {}
    for kind, past in curves.items():
        found[kind] = {step: [c[step] for c in past] for step in past[0]}
        told = ", ".join(
            f"{step}: {statistics.mean(v):.3f} +- {statistics.stdev(v) if len(v) > 1 else 0:.3f}"
            for step, v in found[kind].items()
        )
        print(f"{name}: {kind}: {told}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--text", choices=TEXTS, action="append")
    parser.add_argument("--kind", choices=["word2vec", "glove"], action="append")
    parser.add_argument("--work", type=Path, help="a folder to keep the text and the vectors in")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if not os.environ.get("FORETELL_DATA"):
        sys.exit("FORETELL_DATA names no folder of full data sets")
    results = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in options.text or TEXTS:
            kinds = options.kind or ["word2vec", "glove"]
            folder = Path(os.environ["FORETELL_DATA"])
            results[name] = compare(name, kinds, options.steps, options.seeds, folder, options.work or Path(temporary))
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
