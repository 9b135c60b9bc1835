"""Throughput of `prepare` against the tokenizers library's own `encode_batch_fast`, on the same text and cores.

    python benchmarks/prepare_speed.py [FOLDER] [--megabytes 100] [--out prepare_speed.json]

The text is that of FOLDER (default: the Python standard library) as JSON lines, repeated with a changed first line, so
that it does not count as duplicate, until it has the wanted size. Peer: the text cut into 2,000-character pieces,
already in memory, encoded in one call a megabyte with all of the library's threads; nothing is read, counted, written
or kept. `prepare` is timed from files to renamed output with the tokenizer given, so it reads twice, decodes, removes
duplicates, splits, encodes, writes and hashes. Both take turns, three times; the ratio is that of the best times.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import sys
import sysconfig
import tempfile
import time
from pathlib import Path

from foretell import runtime, tokenizer
from foretell.config import DataConfig, TokenizerConfig
from foretell.data import documents, prepare

BAR = 0.8
PIECE = 2_000


def write_corpus(source: str, folder: Path, size: int) -> list[str]:
    """JSON lines of distinct text, about `size` bytes in all; their texts."""
    folder.mkdir()
    texts: list[str] = []
    written = copy = 0
    originals = [d.text for d in documents(source)]
    while written < size:
        with (folder / f"{copy:04d}.jsonl").open("w", encoding="utf-8") as f:
            for n, text in enumerate(originals):
                if written >= size:
                    break
                changed = f"{copy} {n}\n{text}"
                f.write(json.dumps({"text": changed}, ensure_ascii=False) + "\n")
                written += len(changed.encode())
                texts.append(changed)
        copy += 1
    return texts


def peer_seconds(own: tokenizer.Tokenizer, texts: list[str]) -> float:
    pieces = [t[n : n + PIECE] for t in texts for n in range(0, len(t), PIECE)]
    began = time.perf_counter()
    for n in range(0, len(pieces), 500):
        own.inner.encode_batch_fast(pieces[n : n + 500], add_special_tokens=False)
    return time.perf_counter() - began


def prepare_seconds(folder: Path, out: Path, tokenizer_file: Path) -> float:
    shutil.rmtree(out, ignore_errors=True)
    began = time.perf_counter()
    prepare([str(folder)], out, TokenizerConfig(path=str(tokenizer_file)), DataConfig())
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", default=sysconfig.get_path("stdlib") + "/*.py")
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("prepare_speed.json"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        texts = write_corpus(args.folder, place / "in", int(args.megabytes * 1e6))
        size = sum(len(t.encode()) for t in texts)
        own = tokenizer.train_bpe(texts[:: max(1, len(texts) // 500)], 8192)
        own.save(place / "tokenizer.json")
        times: dict[str, list[float]] = {"peer": [], "prepare": []}
        for _ in range(args.rounds):
            times["peer"].append(peer_seconds(own, texts))
            times["prepare"].append(prepare_seconds(place / "in", place / "out", place / "tokenizer.json"))
    best = {name: min(t) for name, t in times.items()}
    result = {
        "bytes": size,
        "cores": runtime.cores(),
        "seconds": times,
        "peer_bytes_per_second": size / best["peer"],
        "prepare_bytes_per_second": size / best["prepare"],
        "ratio": best["peer"] / best["prepare"],
        "bar": BAR,
        "children_peak_memory_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(
        f"prepare {result['prepare_bytes_per_second'] / 1e6:.2f} MB/s, encode_batch_fast alone "
        f"{result['peer_bytes_per_second'] / 1e6:.2f} MB/s on {result['cores']} cores: "
        f"ratio {result['ratio']:.2f} (bar {BAR})"
    )
    sys.exit(0 if result["ratio"] >= BAR else 3)


if __name__ == "__main__":
    main()
