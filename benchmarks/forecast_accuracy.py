"""Writes docs/forecast-accuracy.md from the records in docs/records: every forecast that was on file before its run.

    python benchmarks/forecast_accuracy.py [--runs FOLDER ...]

--runs: run folders, or folders that hold some; their plan.json and measured.json are added as the record
`runs.json`, so that the page can be made again without them. The peer of a ladder's forecast is the guess that needs no
law: the lowest loss of a rung.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from foretell import plan

ROOT = Path(__file__).parent.parent
RECORDS, PAGE = ROOT / "docs" / "records", ROOT / "docs" / "forecast-accuracy.md"
HEAD = """# forecast accuracy

Made by `benchmarks/forecast_accuracy.py` from the records in `docs/records/`: forecasts that were on file before what
they forecast began, and what came out (of memory: what today's code says of configs whose steps fitted nothing).
Errors are measured over forecast, minus one; intervals are central 90%. Nothing is left out because it missed. How
step times of published runs compare stands in [cluster.md](cluster.md), back-tests of the scaling law on public tables
in [scaling-laws.md](scaling-laws.md), the loss law of `foretell train` on texts left out in
[plan.md](plan.md#final-loss).
"""
STEPS = (
    "Three repeats of each, minutes apart. *Error*: the forecast for the speed that the machine was measured to have "
    "beside the steps. *Record alone*: the forecast from the machine record, whose speed is that of the moment when it "
    "was made, against the steps as they were; on a shared machine the two moments differ."
)
COLUMNS = (
    ("target", "parameters", "tokens", "times the largest rung", "forecast", "interval"),
    ("measured", "error", "held", "best rung"),
)


def added(folders: list[Path]) -> None:
    """Put what `verify` says of the finished runs in the folders on record."""
    every = [p.parent for f in folders for p in sorted(f.rglob("measured.json")) if (p.parent / "plan.json").exists()]
    pairs = [(r.name, plan.stored(r / "plan.json"), plan.stored(r / "measured.json")) for r in every]
    if pairs:
        text = json.dumps({"format_version": 1, **plan.gathered(pairs)}, indent=1)
        (RECORDS / "runs.json").write_text(text + "\n", encoding="utf-8")


def runs(record: dict[str, Any]) -> str:
    """The history of whole runs."""
    share = record["held_share"]
    lines = [
        f"## Whole runs on one machine\n\n{len(record['runs'])} runs; {100 * share:.0f}% of all intervals held.",
        "",
        "| quantity | runs | held | median error | worst error |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for q in record["quantities"]:
        held = f"{100 * q['held_share']:.0f}%" if q["held_share"] is not None else ""
        errors = " | ".join(f"{q[k]:+.1f}%" for k in ("median_error_percent", "worst_error_percent"))
        lines.append(f"| {q['name']} | {q['runs']} | {held} | {errors} |")
    return "\n".join(lines) + "\n"


def steps(record: dict[str, Any]) -> str:
    """Step times of configs that calibrated nothing (`benchmarks/step_time.py`)."""
    machine, by_speed = record["machine"], record["summary"]["error_percent"]
    where = f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; {record['created'][:10]}."
    plain = {n: 100 * (r["forecast_seconds"] / r["measured_seconds"] - 1) for n, r in record["configs"].items()}
    lines = [
        f"## Step time\n\n{len(record['configs'])} configs that no calibration has seen, chosen beforehand; {where}",
        "",
        STEPS,
        "",
        "| config | parameters | measured | forecast | error | record alone | repeats |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for name, r in record["configs"].items():
        repeats = ", ".join(f"{e:+.1f}" for e in r["repeats_percent"])
        times = f"{1e3 * r['measured_seconds']:,.0f} ms | {1e3 * r['forecast_seconds']:,.0f} ms"
        lines.append(
            f"| {name} | {r['parameters']:,} | {times} | {r['error_percent']:+.1f}% | {plain[name]:+.1f}% | {repeats} |"
        )
    sizes = sorted(abs(e) for e in plain.values())
    lines += [
        "",
        f"Median error {by_speed['median']:.1f}%, worst {by_speed['worst']:.1f}%; of the record alone "
        f"{statistics.median(sizes):.1f}% and {sizes[-1]:.1f}%.",
    ]
    return "\n".join(lines) + "\n"


def ladder(name: str, record: dict[str, Any]) -> str:
    """The targets of one ladder."""
    lines = [
        f"## Ladder {name}\n\n{record['rungs']} rungs. Target: width x layers.",
        "",
        f"| {' | '.join(COLUMNS[0] + COLUMNS[1])} |",
        "| --- | ---: | ---: | ---: | ---: | --- | ---: | ---: | --- | ---: |",
    ]
    errors = []
    for t in record["targets"]:
        shape, f = t["target"], t["forecast"]
        target = f"{shape['hidden_size']} x {shape['num_hidden_layers']}"
        cells = [target, f"{shape['parameters']:,}", f"{shape['tokens']:,}", f"{t['compute_ratio']:.0f}"]
        cells += [f"{f['value']:.3f}", f"{f['low']:.3f} to {f['high']:.3f}"]
        if t["measured"] is None:
            cells += ["not trained yet", "", "", ""]
        else:
            errors.append(abs(t["error_percent"]))
            held = "yes" if t["held"] else "no"
            best = f"{t['error_percent_of_best_rung']:+.1f}%"
            cells += [f"{t['measured']:.3f}", f"{t['error_percent']:+.2f}%", held, best]
        lines.append(f"| {' | '.join(cells)} |")
    if errors:
        lines += ["", f"Median error {statistics.median(errors):.2f}%, worst {max(errors):.2f}%."]
    return "\n".join(lines) + "\n"


MEMORY = {
    "eager": "Peak of live tensors, an eager step on one device",
    "compiled": "Peak of live tensors, a compiled step",
    "tune": "The same where adapters or some parts learn",
    "process": "Largest resident memory of a whole `foretell train`",
}
SEEN = (
    "Two faults of the count were found on the runs of 1M, 5M and 10M (docs/log.md), which are not held out. "
    "The forecast is today's, for what the process held before its first step. The runs from nothing were measured "
    "before malloc's caches of small blocks were off, those on SmolLM2 135M after it; that the save at the end is the "
    "peak of the whole one was seen on it, so it is not held out either."
)


def memory(record: dict[str, Any]) -> str:
    """Memory of steps and of processes (`benchmarks/memory.py`)."""
    machine = record["machine"]
    lines = [f"## Memory\n\n{machine['processor']}, {machine['threads']} thread(s), torch {machine['torch']}."]
    for part, title in MEMORY.items():
        rows, summary = record["parts"].get(part), record["summary"].get(part)
        if not rows:
            continue
        lines += ["", f"### {title}", "", "| config | parameters | path | measured | forecast | error |"]
        lines.append("| --- | ---: | --- | ---: | ---: | ---: |")
        for name, r in rows.items():
            how = r.get("train") or r["path"]
            path = ", ".join(str(how[k]) for k in ("dtype", "attention", "optimizer") if k in how)
            sizes = " | ".join(f"{r[k] / 1e6:,.1f} MB" for k in ("measured_bytes", "forecast_bytes"))
            lines.append(f"| {name} | {r['parameters']:,} | {path} | {sizes} | {r['error_percent']:+.2f}% |")
        if part == "process":
            lines += ["", SEEN]
        told = f"median {summary['median']:.2f}%, worst {summary['worst']:.2f}%; the bar is {summary['bar']:g}%."
        lines += ["", f"Without their sign: {told}"]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="*", default=[])
    added(parser.parse_args().runs)
    parts = [HEAD]
    for file in sorted(RECORDS.glob("*/targets.json")):
        parts.append(ladder(file.parent.name.removeprefix("ladder-"), json.loads(file.read_text(encoding="utf-8"))))
    if (RECORDS / "step-time.json").exists():
        parts.append(steps(json.loads((RECORDS / "step-time.json").read_text(encoding="utf-8"))))
    if (RECORDS / "runs.json").exists():
        parts.append(runs(json.loads((RECORDS / "runs.json").read_text(encoding="utf-8"))))
    if (RECORDS / "memory.json").exists():
        parts.append(memory(json.loads((RECORDS / "memory.json").read_text(encoding="utf-8"))))
    PAGE.write_text("\n".join(parts), encoding="utf-8")
    print(PAGE.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
