"""Recall and precision of the personal-data step on a labelled set, kind by kind.

    python benchmarks/pii_recall.py presidio-synth_v2.json.gz [--misses] [--false]

The set is Microsoft's presidio-research synth_dataset_v2: JSON, a list of objects with `full_text` and `spans`
(`entity_type`, `start_position`, `end_position`). A labelled span counts as found if a found span of its kind overlaps
it; as hidden if found spans of whatever kind cover it whole. A found span of which no labelled one of its kind overlaps
is false. Precision counts found spans, recall labelled ones.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

from foretell.data import pii

KINDS = {
    "EMAIL_ADDRESS": "e-mail",
    "PHONE_NUMBER": "phone",
    "CREDIT_CARD": "bank card",
    "IBAN_CODE": "IBAN",
    "IP_ADDRESS": "IP address",
    "US_SSN": "SSN",
}


def measure(rows: list[dict[str, Any]]) -> tuple[dict[str, Counter[str]], list[str], list[str]]:
    """Counts by kind, the labelled spans that were missed, the found ones that no label covers."""
    counts = {kind: Counter[str]() for kind in [*KINDS.values(), *pii.KINDS]}
    misses, wrong = [], []
    for row in rows:
        text = row["full_text"]
        found = pii.find(text)
        spans = [
            (KINDS.get(s["entity_type"], s["entity_type"]), s["start_position"], s["end_position"])
            for s in row["spans"]
        ]
        hidden = {n for f in found for n in range(f.start, f.end)}
        for kind, start, end in spans:
            if kind in counts:
                hit = any(f.kind == kind and f.start < end and start < f.end for f in found)
                counts[kind].update(labelled=1, found=hit, hidden=hidden.issuperset(range(start, end)))
                if not hit:
                    misses.append(f"{kind}: {text[max(0, start - 30) : start]!r} [{text[start:end]}]")
        for f in found:
            right = any(f.kind == kind and f.start < end and start < f.end for kind, start, end in spans)
            counts[f.kind].update(given=1, right=right)
            if not right:
                other = [kind for kind, start, end in spans if f.start < end and start < f.end]
                wrong.append(f"{f.kind}: [{text[f.start : f.end]}] labelled {other}")
    return counts, misses, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--misses", action="store_true", help="list the labelled spans that were not found")
    parser.add_argument("--false", action="store_true", help="list the found spans that no label covers")
    args = parser.parse_args()
    counts, misses, wrong = measure(json.loads(gzip.decompress(args.file.read_bytes())))
    print(f"{'kind':12} labelled  found  recall  hidden  given  right  precision")
    for kind, c in counts.items():
        if c:
            recall = f"{c['found'] / c['labelled']:.3f}" if c["labelled"] else "-"
            precision = f"{c['right'] / c['given']:.3f}" if c["given"] else "-"
            print(
                f"{kind:12} {c['labelled']:8} {c['found']:6} {recall:>7} {c['hidden']:7} {c['given']:6} {c['right']:6} "
                f"{precision:>10}"
            )
    if args.misses:
        print(*misses, sep="\n")
    if args.false:
        print(*wrong, sep="\n")


if __name__ == "__main__":
    main()
