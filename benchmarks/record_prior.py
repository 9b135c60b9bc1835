"""Records the runs that the loss law's prior is fitted on, fits it, and prints its errors on texts left out.

    python benchmarks/record_prior.py DATA_FOLDER [--work FOLDER] [--only NAME ...] [--tiny] [--fit-only]

DATA_FOLDER holds lm-en and lm-zh (docs/plan.md names their sources); the code corpora are installed packages, found by
import. None is the demo's text, the standard library. For each corpus: prepare, probe (train/trial.py), then a grid of
(width, layers, tokens, batch) through foretell.train's own loop with the default recipe, one JSON line a run in
foretell/plan/runs.jsonl. A run that is recorded under the same recipe is not repeated, so the program can be stopped
and started at will. Then the law is fitted (plan/fit.py), written to foretell/plan/prior.json, and a table in Markdown
is printed: for each corpus the error of the law fitted on the others.

One thread of about 60 GFLOP/s takes some four minutes a corpus.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import importlib.util
import json
import math
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from foretell import config as run_config
from foretell import data, evaluate, plan, runtime
from foretell.checkpoint import files
from foretell.config import RunConfig, TrainConfig
from foretell.data import Data
from foretell.plan import fit, flops, size
from foretell.train import log as run_log
from foretell.train import loop, optim, trial
from foretell.train.alone import Alone

PLACE = Path(plan.__file__).parent
RUNS = PLACE / "runs.jsonl"
PRIOR = PLACE / "prior.json"
MOST_VALIDATION_TOKENS = 131_072

# (width, layers, tokens, batch tokens or None for the rule)
Shape = tuple[int, int, int, int | None]
GRID: tuple[Shape, ...] = ((64, 2, 500_000, None), (128, 4, 250_000, None), (192, 4, 300_000, None))
# Beyond the common grid, on some corpora: longer and wider runs, other batches, many repeats, the demo's own scale.
_LONGER: Shape = (128, 4, 1_000_000, None)
_LONGEST: Shape = (64, 2, 2_000_000, None)
_WIDER: Shape = (256, 4, 250_000, None)
_OFTEN: Shape = (128, 3, 2_500_000, 4096)  # four epochs of the novel, eight of the plays
# A small model on much text and a larger one on less, for the same four minutes: what the choice of size rests on.
_MINUTES: tuple[Shape, ...] = ((128, 2, 4_000_000, 4096), (64, 2, 8_000_000, 4096))
_BATCHES: tuple[Shape, ...] = ((128, 4, 250_000, 4096), (128, 4, 250_000, 16_384))
MORE: dict[str, tuple[Shape, ...]] = {
    "sympy": (_LONGER, _LONGEST, *_MINUTES, *_BATCHES, (192, 4, 1_500_000, None)),
    "c4-mini": (_LONGER, *_BATCHES),
    "tinyshakespeare": (_LONGER, _LONGEST, _OFTEN),
    "torch-python": (_LONGER, _LONGEST, _WIDER),
    "hongloumeng": (_LONGER, _OFTEN, (128, 3, 4_500_000, 4096)),
    "networkx": (_LONGER, _WIDER),
    "wikitext2": (_WIDER,),
    "tang-poetry": (_WIDER,),
}
SIZES = ("steps", "tokens", "budget", "global_batch_tokens", "micro_batch_size", "loss_chunk_tokens", "save_every")
COURSE = ("eval_every", "eval_tokens", "keep", "dtype", "compile", "attention")
TINY: tuple[Shape, ...] = ((64, 2, 8_192, None),)


def corpora(folder: Path, work: Path) -> dict[str, Callable[[], Data]]:
    """Name to a function that prepares the corpus and opens it."""

    def text(name: str, *parts: str) -> Callable[[], Data]:
        return lambda: _joined(folder / name, parts, work)

    def code(name: str, package: str, pattern: str, *inside: str) -> Callable[[], Data]:
        return lambda: _package(name, package, pattern, inside, work)

    return {
        "tinyshakespeare": text("lm-en/tinyshakespeare", "train.txt", "valid.txt", "test.txt"),
        "wikitext2": text("lm-en/wikitext2", "valid.txt", "test.txt"),
        "c4-mini": text("lm-en/c4-mini", "train.jsonl", "validation.jsonl"),
        "hongloumeng": text("lm-zh/hongloumeng", "train.txt", "valid.txt", "test.txt"),
        "tang-poetry": text("lm-zh/tang-poetry", "train.jsonl", "test.jsonl"),
        "sympy": code("sympy", "sympy", "*.py"),
        "networkx": code("networkx", "networkx", "*.py", "algorithms", "generators", "drawing", "readwrite", "classes"),
        "numpy": code("numpy", "numpy", "*.py"),
        "torch-python": code("torch-python", "torch", "*.py", "distributed", "nn", "fx", "utils", "ao", "onnx"),
    }


def _joined(folder: Path, parts: tuple[str, ...], work: Path) -> Data:
    """The parts of a text in order as one file; of JSON lines, `text` or the lines of `paragraphs`."""
    raws = [gzip.decompress((folder / f"{part}.gz").read_bytes()) for part in parts]
    if parts[0].endswith(".jsonl"):
        rows = [json.loads(line) for raw in raws for line in raw.decode("utf-8").splitlines()]
        texts = [r["text"] if "text" in r else "\n".join(r["paragraphs"]) for r in rows]
        whole = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts).encode()
    else:
        whole = b"\n".join(raws)
    source = work / "text" / f"{folder.name}{Path(parts[0]).suffix}"
    source.parent.mkdir(parents=True, exist_ok=True)
    if not source.exists() or source.read_bytes() != whole:
        source.write_bytes(whole)
    return _prepared([str(source)], work / "data" / folder.name, None)


def _package(name: str, package: str, pattern: str, inside: tuple[str, ...], work: Path) -> Data:
    """Source files of an installed package, without tests, held out by whole folders as the demo holds out modules."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"{package} is not installed")
    root = Path(found.submodule_search_locations[0])
    roots = [root / i for i in inside] if inside else [root]
    paths = sorted(p for r in roots for p in r.rglob(pattern) if not {"tests", "testing"} & set(p.parts))
    groups: dict[str, list[Path]] = defaultdict(list)
    depth = 2 if inside else 1
    for p in paths:
        groups["/".join(p.relative_to(root).parts[:-1][: depth + 1]) or p.stem].append(p)
    total = sum(p.stat().st_size for p in paths)
    split: dict[str, str] = {}
    held = dict.fromkeys(("valid", "test"), 0)
    for group in sorted(groups, key=lambda g: hashlib.sha256(g.encode()).digest()):
        bytes_ = sum(p.stat().st_size for p in groups[group])
        part = next((s for s in held if held[s] < 0.04 * total and held[s] + bytes_ < 0.1 * total), "train")
        if part in held:
            held[part] += bytes_
        split |= {str(p): part for p in groups[group]}
    return _prepared([str(p) for p in paths], work / "data" / name, split.__getitem__)


def _prepared(sources: list[str], out: Path, split_of: Callable[[str], str] | None) -> Data:
    if not (out / "index.json").exists():
        data.prepare(sources, out, run_config.TokenizerConfig(), run_config.DataConfig(), workers=1, split_of=split_of)
    return data.open_data(out)


def recipe() -> str:
    """A digest of everything in the default recipe that a run's loss depends on besides its sizes."""
    values = TrainConfig().model_dump()
    for key in SIZES + COURSE:
        values.pop(key)
    values["dropout"] = 0.0  # what the rule gave every run before it was one: none of few epochs has any
    values["rates"] = [optim.DEFAULT_LR["muon"], optim.DEFAULT_EMBEDDING_LR]
    probe = {k: v for k, v in trial.PROBE_TRAIN.model_dump().items() if k != "attention"}
    values["probe"] = [trial.PROBE_MODEL.model_dump(), probe, trial.PROBE_EVAL_TOKENS]
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:12]


def recorded() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RUNS.read_text().splitlines()] if RUNS.exists() else []


def _append(row: dict[str, Any]) -> None:
    with RUNS.open("a", encoding="utf-8") as f:
        f.write(json.dumps(row, ensure_ascii=False) + "\n")


def train_one(prepared: Data, width: int, layers: int, tokens: int, batch: int | None) -> dict[str, Any]:
    """One run of the grid through the loop; its sizes, its final score on the validation text, and its course."""
    config = run_config.updated(
        RunConfig(),
        model={"hidden_size": width, "num_hidden_layers": layers},
        train={
            "tokens": tokens,
            "global_batch_tokens": batch or size.batch_tokens(tokens, TrainConfig().context),
            "eval_tokens": max(16_384, tokens // 100),
            "dtype": "float32",
            "compile": "off",
        },
    )
    config = plan.completed(config, prepared.corpus)
    t = run_config.updated(config, train={"save_every": config.train.steps}).train
    model = trial.built(config.model, t.dropout or 0.0, t.seed)
    with tempfile.TemporaryDirectory() as folder:
        job = loop.Job(t, prepared, Path(folder), "across", torch.float32, False, 0.0, 1.0)
        outcome = loop.run(Alone(model), job)
        events = list(run_log.read(Path(folder) / "log.jsonl"))
    scores = evaluate.evaluate_split(
        model, prepared, "valid", max_tokens=MOST_VALIDATION_TOKENS, context=t.context, batch_size=16
    )
    count = flops.parameters(config.model)
    last = [e["loss"] for e in events if e["event"] == "step"][-10:]
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "parameters": count["total"],
        "non_embedding": count["non_embedding"],
        "tokens": outcome["tokens"],
        "batch_tokens": t.global_batch_tokens,
        "steps": t.steps,
        "context": t.context,
        "flops": flops.flops_per_token(config.model, t.context)["causal"] * outcome["tokens"],
        "bits_per_byte": scores["bits_per_byte"],
        "loss": scores["loss"],
        "train_loss": sum(last) / len(last),
        "seconds": outcome["seconds"],
        "curve": [[e["step"] / (t.steps or 1), round(e["bits_per_byte"], 4)] for e in events if e["event"] == "eval"],
    }


def jobs(names: list[str], tiny: bool) -> Iterator[tuple[str, Shape]]:
    """A shape on every corpus before the next shape, so that what is recorded is even at any moment."""
    for shape in TINY if tiny else GRID:
        for name in names:
            yield name, shape
    for turn in range(0 if tiny else max(map(len, MORE.values()))):
        for name in names:
            yield from ((name, shape) for shape in MORE.get(name, ())[turn : turn + 1])


def record(folder: Path, work: Path, only: list[str], tiny: bool) -> None:
    """Append every run of the grid that is not recorded yet."""
    known, digest = corpora(folder, work), recipe()
    names = only or list(known)
    opened: dict[str, tuple[Data, dict[str, Any]]] = {}
    for name, (width, layers, tokens, batch) in jobs(names, tiny):
        wanted = {"corpus": name, "recipe": digest, "asked": [width, layers, tokens, batch]}
        rows = recorded()
        if any(all(r.get(k) == v for k, v in wanted.items()) for r in rows):
            continue
        if name not in opened:
            prepared = known[name]()
            again = [r["probe"] for r in rows if r["corpus"] == name and r["recipe"] == digest]
            opened[name] = prepared, again[0] if again else trial.probe(prepared)
        prepared, probed = opened[name]
        began = time.perf_counter()
        row = train_one(prepared, width, layers, tokens, batch)
        _append({**wanted, **row, "text": prepared.corpus, "probe": probed})
        print(
            f"{name:16} {width:4} x {layers}  {row['tokens']:>9,} tokens  batch {row['batch_tokens']:>6,}  "
            f"{row['bits_per_byte']:.4f} bits/byte (probe {probed['bits_per_byte']:.4f})  "
            f"{time.perf_counter() - began:.0f} s",
            file=sys.stderr,
            flush=True,
        )


def fitted() -> None:
    """Fit the law on the newest recipe's rows, write it, and print the table of errors on texts left out."""
    rows = recorded()
    rows = [r for r in rows if r["recipe"] == rows[-1]["recipe"]]
    law = fit.fit(rows)
    out = fit.leave_one_out(rows)
    law |= fit.spreads(rows, out, law)
    files.write_atomic(PRIOR, (json.dumps(law, indent=1) + "\n").encode())
    print("| corpus | bytes | xz bits/byte | probe | runs | mean error | worst error | without probe, mean |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for name, errors in out.items():
        text, mine = errors["text"], errors["with_probe"]
        print(
            f"| {name} | {text['bytes']:,} | {text['xz_bits_per_byte']:.3f} | {errors['probe']:.3f} | {len(mine)} "
            f"| {100 * sum(mine) / len(mine):+.1f}% | {100 * max(mine, key=abs):+.1f}% "
            f"| {100 * sum(errors['without_probe']) / len(mine):+.1f}% |"
        )
    print(
        f"\nRoot mean square {100 * _rms([e for o in out.values() for e in o['with_probe']]):.1f}%, without the probe "
        f"{100 * _rms([e for o in out.values() for e in o['without_probe']]):.1f}%. "
        f"Noise {100 * law['noise']:.1f}%, drift {100 * law['drift']:.1f}% of the way, without the probe "
        f"{100 * law['without_probe']:.1f}%; the 90% interval is {law['quantile']:.2f} times that."
    )


def _rms(errors: list[float]) -> float:
    return math.sqrt(sum(e * e for e in errors) / len(errors))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/prior"), help="prepared corpora are kept here")
    parser.add_argument("--only", nargs="*", default=[], help="names of corpora")
    parser.add_argument("--tiny", action="store_true", help="one tiny run a corpus, to see that the program works")
    parser.add_argument("--fit-only", action="store_true")
    parser.add_argument("--runs", type=Path, help="record here instead of foretell/plan/runs.jsonl")
    args = parser.parse_args()
    global RUNS, PRIOR
    if args.runs is not None:
        RUNS, PRIOR = args.runs, args.runs.with_name("prior.json")
    torch.set_num_threads(runtime.threads())
    if not args.fit_only:
        record(args.folder, args.work, args.only, args.tiny)
    fitted()


if __name__ == "__main__":
    main()
