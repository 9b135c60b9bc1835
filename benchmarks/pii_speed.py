"""Throughput of the personal-data step on one core, against a peer on the same text in the same run.

    FORETELL_DATA=... python benchmarks/pii_speed.py [--rounds 3] [--out pii_speed.json]

Texts: English pages (lm-en/c4-mini), Chinese novels (lm-zh), the sources of Python's library, in pieces of at most
4,000 characters. Peer: scrubadub (its `Scrubber().clean` with the detectors it starts with) where it is installed, else
one regular expression a kind over every text (e-mail, IPv4, IPv6, card, SSN, IBAN, phone, resident ID, keys): no
disguises, no checksums. Both take turns; the ratio is that of the best times.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path

from foretell.data import pii

BAR = 5.0  # MB/s
PIECE = 4_000
ONE_PASS_EACH = [
    re.compile(pattern)
    for pattern in (
        r"\b[A-Za-z0-9._%+-]+@[A-Za-z0-9.-]+\.[A-Za-z]{2,}\b",
        r"\b(?:\d{1,3}\.){3}\d{1,3}\b",
        r"\b(?:[0-9A-Fa-f]{1,4}:){7}[0-9A-Fa-f]{1,4}\b",
        r"\b(?:\d[ -]*?){13,19}\b",
        r"\b\d{3}-\d{2}-\d{4}\b",
        r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b",
        r"(?:\+\d{1,3}[ .-]?)?\(?\d{3}\)?[ .-]?\d{3,4}[ .-]?\d{4}\b",
        r"\b\d{17}[\dXx]\b",
        r"\b(?:AKIA[0-9A-Z]{16}|gh[pousr]_[A-Za-z0-9]{36}|sk-[A-Za-z0-9]{20,}|eyJ[\w-]+\.[\w-]+\.[\w-]*)",
    )
]


def pieces(texts: list[str]) -> list[str]:
    return [t[n : n + PIECE] for t in texts for n in range(0, len(t), PIECE)]


def corpora(folder: Path) -> dict[str, list[str]]:
    """Documents by name of the text."""
    with gzip.open(folder / "lm-en" / "c4-mini" / "train.jsonl.gz", "rt", encoding="utf-8") as f:
        english = [json.loads(line)["text"] for line in f]
    chinese = []
    for file in sorted((folder / "lm-zh").glob("*/train.txt.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as f:
            chinese.append(f.read())
    code = [p.read_text(encoding="utf-8") for p in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))]
    return {"English pages": pieces(english), "Chinese novels": pieces(chinese), "Python sources": pieces(code)}


def replaced(text: str) -> str:
    for pattern in ONE_PASS_EACH:
        text = pattern.sub("<personal>", text)
    return text


def peer() -> tuple[str, Callable[[str], str]]:
    """Its name, and what it does."""
    try:
        import scrubadub
    except ImportError:
        return "one regular expression a kind", replaced
    return f"scrubadub {scrubadub.__version__}", scrubadub.Scrubber().clean


def speed(work: Callable[[str], object], texts: list[str]) -> float:
    """MB of UTF-8 a second."""
    size = sum(len(t.encode()) for t in texts)
    began = time.perf_counter()
    for text in texts:
        work(text)
    return size / 1e6 / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("pii_speed.json"))
    args = parser.parse_args()
    if not (folder := os.environ.get("FORETELL_DATA")):
        parser.error("FORETELL_DATA names no folder of full data sets")
    step = pii.scrubber("mask")
    name, other = peer()
    result: dict[str, dict[str, float | str]] = {}
    for text, documents in corpora(Path(folder)).items():
        own, others = 0.0, 0.0
        for _ in range(args.rounds):
            own, others = max(own, speed(step, documents)), max(others, speed(other, documents))
        result[text] = {"MB/s": own, "peer": name, "peer MB/s": others, "ratio": own / others}
        print(f"{text}: {own:.1f} MB/s (bar {BAR:g}); {name} {others:.2f} MB/s; ratio {own / others:.1f}")
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(0 if all(float(r["MB/s"]) >= BAR for r in result.values()) else 3)


if __name__ == "__main__":
    main()
