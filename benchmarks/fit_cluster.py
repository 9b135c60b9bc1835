"""Fits the constants of the cluster forecast on public tables, validates them, and says how wrong it all is.

    python benchmarks/fit_cluster.py TABLES [--write foretell/plan/efficiency.json] [--docs docs/cluster.md] [--quick]

TABLES is a folder with the tables that docs/cluster.md lists, at any depth; tests/data/cluster holds them. The peer of
each figure is named beside it: the vTrain paper's own error (Bang et al., 2024: 14.73% on several nodes, 8.37% on one)
and the usual model of a constant efficiency. Robust least squares on the logarithm of seconds: Huber's loss, a prior on
each constant (log-normal, from what hardware allows), damped Gauss-Newton steps (Levenberg, 1944; Marquardt, 1963).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cluster_tables
import numpy as np
from cluster_tables import Case

from foretell.plan import cluster, hardware, links
from foretell.plan.kernels import Constants

# Log-residuals above this count linearly; the noise of a step time that is not an outlier.
HUBER, NOISE = 0.10, 0.05
# Shares of something physical are at most 1.
SHARES = {"product", "fused", "memory", "node", "network", "overlap"}
# Standard deviations of the logarithm, around the defaults of `Constants`.
SEVERAL_NODES = {
    "product": 0.10,
    "half_inner": 0.5,
    "batched": 0.4,
    "memory": 0.08,
    "node": 0.10,
    "network": 0.15,
    "kernel_seconds": 0.5,
    "collective_seconds": 0.3,
}
ONE_NODE = {
    "product": 0.15,
    "half_inner": 0.7,
    "batched": 0.6,
    "memory": 0.15,
    "node": 0.20,
    "kernel_seconds": 1.0,
    "host_seconds": 1.0,
    "collective_seconds": 1.0,
    "step_seconds": 1.0,
}
PYTORCH = {
    "product": 0.15,
    "half_inner": 0.5,
    "fused": 0.5,
    "memory": 0.25,
    "kernel_seconds": 0.5,
    "step_seconds": 1.0,
}
# Weight of the prior (no correction) in cases, in the mean log-residual of a shape.
SHRINK = 2.0


def forecast(case: Case, c: Constants) -> float:
    return sum(cluster.step_parts(case.shape, case.job, case.hardware, c).values())


def solve(
    residuals: Callable[[np.ndarray], np.ndarray], start: np.ndarray, spreads: np.ndarray, most: np.ndarray
) -> np.ndarray:
    """Parameters (logarithms) of least Huber loss with a normal prior around the start; none above `most`."""

    def loss(r: np.ndarray, theta: np.ndarray) -> float:
        size = np.abs(r) / HUBER
        huber = np.where(size <= 1, size**2 / 2, size - 0.5).sum() * (HUBER / NOISE) ** 2
        return float(huber + (((theta - start) / spreads) ** 2).sum() / 2)

    theta, damping = start.copy(), 1e-2
    r = residuals(theta)
    value = loss(r, theta)
    for _ in range(30):
        jacobian = np.stack([(residuals(theta + step) - r) / 1e-3 for step in 1e-3 * np.eye(len(theta))], axis=1)
        weight = np.where(np.abs(r) <= HUBER, 1.0, HUBER / np.maximum(np.abs(r), 1e-12)) / NOISE**2
        hessian = jacobian.T @ (weight[:, None] * jacobian) + np.diag(spreads**-2.0)
        slope = jacobian.T @ (weight * r) + (theta - start) / spreads**2
        for _ in range(8):
            new = np.minimum(theta - np.linalg.solve(hessian + damping * np.diag(np.diag(hessian)), slope), most)
            new_r = residuals(new)
            if loss(new_r, new) < value:
                break
            damping *= 4
        else:
            return theta
        gain = value - loss(new_r, new)
        theta, r, value, damping = new, new_r, loss(new_r, new), max(damping / 5, 1e-8)
        if gain < 1e-5 * value:
            return theta
    return theta


def fit(cases: Sequence[Case], free: dict[str, float], start: Constants) -> Constants:
    """Constants fitted on the cases; those not in `free` stay."""
    measured = np.log([case.seconds for case in cases])

    def with_values(theta: np.ndarray) -> Constants:
        return replace(start, **dict(zip(free, np.exp(theta).tolist(), strict=True)))

    def residuals(theta: np.ndarray) -> np.ndarray:
        c = with_values(theta)
        return np.log([forecast(case, c) for case in cases]) - measured

    first = np.log([getattr(start, name) for name in free])
    most = np.array([0.0 if name in SHARES else math.inf for name in free])
    return with_values(solve(residuals, first, np.array(list(free.values())), most))


def corrected(cases: Sequence[Case], c: Constants) -> Constants:
    """With one factor for each (hidden, tp, micro-batch), shrunk to 1: what a trial of that shape would have shown."""
    found = defaultdict(list)
    for case in cases:
        key = (case.shape.hidden, case.job.degrees.tp, case.job.micro_batch)
        found[key].append(math.log(case.seconds / forecast(case, c)))
    table = tuple((*key, math.exp(sum(logs) / (len(logs) + SHRINK))) for key, logs in sorted(found.items()))
    return replace(c, corrections=table)


def errors(cases: Sequence[Case], c: Constants) -> np.ndarray:
    """Forecast over measured, less one."""
    return np.array([forecast(case, c) / case.seconds - 1 for case in cases])


def summary(e: np.ndarray) -> dict[str, float]:
    return {
        "n": len(e),
        "mape_percent": float(100 * np.abs(e).mean()),
        "median_percent": float(100 * np.median(np.abs(e))),
        "bias_percent": float(100 * e.mean()),
        "worst_percent": float(100 * np.abs(e).max()),
    }


def constant_efficiency(cases: Sequence[Case]) -> np.ndarray:
    """The peer: one share of the peak for all, the median of these very cases, and the bubble of 1F1B."""

    def ideal(case: Case) -> float:
        job, tokens = case.job, case.job.global_batch * case.job.context
        layers = 4 / 3 if job.recompute == "full" else 1.0
        flops = tokens * layers * case.shape.flops_per_token(job.context, causal=False)
        wait = 1 + (job.degrees.pp - 1) / job.micro_batches
        return flops * wait / job.degrees.world_size / case.hardware.peak("bfloat16")

    shares = np.array([ideal(case) / case.seconds for case in cases])
    return shares / np.median(shares) - 1


def table(folder: Path, name: str) -> Path:
    """The file of that name in the folder or below it."""
    found = sorted(folder.rglob(name))
    if not found:
        sys.exit(f"{folder} holds no {name}")
    return found[0]


def all_reduces(path: Path) -> list[tuple[int, int, float]]:
    """(ranks, bytes, seconds) of the A100 rows, out of place."""
    a100 = [row for row in cluster_tables.rows(path) if row["gpu"] == "A100"]
    return [(int(row["ranks"]), int(row["size_bytes"]), float(row["time_oop_ns"]) * 1e-9) for row in a100]


def fit_all_reduces(measured: list[tuple[int, int, float]]) -> tuple[Constants, hardware.Hardware]:
    """node, memory, collective_seconds and the node link's latency, from a table of all-reduces in one node."""
    machine = hardware.load("a100-80gb")
    link = machine.node_link
    logs = np.log([seconds for _, _, seconds in measured])

    def at(theta: np.ndarray) -> tuple[Constants, hardware.Hardware]:
        node, memory, collective, latency = np.exp(theta).tolist()
        c = Constants(node=node, memory=memory, collective_seconds=collective)
        return c, machine.model_copy(update={"node_link": link.model_copy(update={"latency_seconds": latency})})

    def residuals(theta: np.ndarray) -> np.ndarray:
        c, m = at(theta)
        times = [links.all_reduce_seconds(size, links.group(n, 1, m), m, c) for n, size, _ in measured]
        return np.log(times) - logs

    start = np.log([0.95, 0.85, 3e-5, 6e-6])
    return at(solve(residuals, start, np.ones(4), np.array([0.01, 0.0, math.inf, math.inf])))


def all_reduce_errors(measured: list[tuple[int, int, float]], c: Constants, machine: hardware.Hardware) -> np.ndarray:
    times = [links.all_reduce_seconds(size, links.group(n, 1, machine), machine, c) for n, size, _ in measured]
    return np.array(times) / np.array([seconds for _, _, seconds in measured]) - 1


def folds(cases: Sequence[Case], k: int) -> list[set[str]]:
    """The groups dealt into k folds, in their order."""
    names = sorted({case.group for case in cases})
    return [set(names[i::k]) for i in range(k)]


def quantiles(groups: dict[str, np.ndarray]) -> tuple[float, float]:
    """Measured over forecast at 5% and 95%, each group counting the same however many rows it has."""
    pairs = sorted((1 / (1 + x), 1 / len(e)) for e in groups.values() for x in e)
    share = np.cumsum([w for _, w in pairs]) / len(groups)
    ratios = [ratio for ratio, _ in pairs]
    low, high = np.searchsorted(share, [0.05, 0.95])
    return ratios[low], ratios[min(high, len(ratios) - 1)]


def held(cases: Sequence[Case], c: Constants) -> list[bool]:
    """Whether each measured time lay within its interval."""
    spans = [cluster.step(case.shape, case.job, case.hardware, c)["seconds"] for case in cases]
    return [span["low"] <= case.seconds <= span["high"] for span, case in zip(spans, cases, strict=True)]


def several_nodes(tables: Path, report: dict[str, Any]) -> tuple[Constants, list[Case]]:
    """vTrain's A100 cluster: fitted on 3.6B alone, judged on all larger models; then with the NCCL table too."""
    cases = cluster_tables.vtrain(table(tables, "vtrain_multi_node_a100.csv"), "full")
    train, test = [c for c in cases if c.group == "3.6"], [c for c in cases if c.group != "3.6"]
    strict = fit(train, SEVERAL_NODES, Constants())
    nccl, _ = fit_all_reduces(all_reduces(table(tables, "vtrain_nccl_allreduce.csv")))
    known = replace(Constants(), node=min(1.0, nccl.node), collective_seconds=nccl.collective_seconds)
    both = fit(train, {k: v for k, v in SEVERAL_NODES.items() if k not in {"node", "collective_seconds"}}, known)
    report["several nodes"] = {
        "fitted on 3.6B": summary(errors(train, strict)),
        "all larger models": summary(errors(test, strict)),
        **{
            f"{g}B": summary(errors([c for c in test if c.group == g], strict))
            for g in dict.fromkeys(x.group for x in test)
        },
        "all larger models, links from the NCCL table": summary(errors(test, both)),
        "all larger models, one efficiency fitted on them": summary(constant_efficiency(test)),
        "vTrain paper": {"mape_percent": 14.73},
    }
    return strict, test


def one_node(tables: Path, report: dict[str, Any]) -> None:
    """vTrain's single-node table: five folds over (hidden, layers)."""
    cases = cluster_tables.vtrain(table(tables, "vtrain_single_node_a100.csv"), "none")
    plain, shaped = [], []
    for fold in folds(cases, 5):
        train, test = [c for c in cases if c.group not in fold], [c for c in cases if c.group in fold]
        c = fit(train[::4], ONE_NODE, Constants(host_seconds=3e-5, step_seconds=2e-3))  # enough for nine constants
        plain.append(errors(test, c))
        shaped.append(errors(test, corrected(train, c)))
    report["one node, 5 folds over (hidden, layers)"] = {
        "model alone": summary(np.concatenate(plain)),
        "with a factor for each (hidden, tp, micro-batch)": summary(np.concatenate(shaped)),
        "one efficiency fitted on all": summary(constant_efficiency(cases)),
        "vTrain paper": {"mape_percent": 8.37},
    }


def collectives(tables: Path, report: dict[str, Any]) -> None:
    """NCCL's all-reduce on A100: fitted on all, and predicted for a number of ranks that was left out."""
    measured = all_reduces(table(tables, "vtrain_nccl_allreduce.csv"))
    c, machine = fit_all_reduces(measured)
    found = {
        "all": summary(all_reduce_errors(measured, c, machine)),
        "node": c.node,
        "memory": c.memory,
        "collective_seconds": c.collective_seconds,
        "latency_seconds": machine.node_link.latency_seconds,
    }
    for n in (2, 4, 8):
        left_out = [row for row in measured if row[0] == n]
        without = fit_all_reduces([row for row in measured if row[0] != n])
        found[f"{n} ranks, left out"] = summary(all_reduce_errors(left_out, *without))
    report["all-reduce"] = found


def unfitted(tables: Path) -> dict[str, list[Case]]:
    """The tables that no constant of the set `megatron` was fitted on."""
    cases = [
        *cluster_tables.sc21(table(tables, "megatron_sc21_table1.csv")),
        *cluster_tables.korthikanti(table(tables, "korthikanti.csv")),
        *cluster_tables.weak_scaling(table(tables, "megatron_lm_h100_weak_scaling.csv")),
        *cluster_tables.llama3(),
        *cluster_tables.megatron_bridge(table(tables, "megatron_bridge.csv")),
        *cluster_tables.llm_foundry(table(tables, "llmfoundry_mpt_h100.csv")),
        *cluster_tables.torchtitan(table(tables, "torchtitan_llama31_h100.csv")),
    ]
    groups = defaultdict(list)
    for case in cases:
        groups[case.group].append(case)
    return dict(groups)


def pytorch(groups: dict[str, list[Case]], start: Constants, report: dict[str, Any]) -> Constants:
    """A set for programs in plain PyTorch: fitted on MPT of at most 3B, judged on 7B to 70B, float8 and torchtitan."""
    mpt = groups["llm-foundry bfloat16"]
    small = [case for case in mpt if case.shape.parameters < 4e9]
    unseen = {
        "MPT 7B to 70B": [case for case in mpt if case.shape.parameters >= 4e9],
        "MPT float8": groups["llm-foundry float8"],
        "torchtitan": groups["torchtitan"],
    }
    c = fit(small, PYTORCH, start)
    found = {name: errors(cases, c) for name, cases in unseen.items()}
    low, high = quantiles(found)
    c = replace(c, fastest=low, slowest=high)
    report["pytorch set"] = {"fitted on MPT to 3B": summary(errors(small, c))} | {
        name: summary(e) for name, e in found.items()
    }
    return c


def as_json(c: Constants) -> dict[str, Any]:
    values = dataclasses.asdict(c)
    if not values["corrections"]:
        values.pop("corrections")
    return {k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in values.items()}


def table_lines(report: dict[str, Any]) -> list[str]:
    """The report as Markdown tables."""
    lines = ["| table | cases | mean error | median | bias | worst |", "| --- | --- | --- | --- | --- | --- |"]
    for section, entries in report.items():
        for name, entry in entries.items():
            if not isinstance(entry, dict) or "mape_percent" not in entry:
                continue
            cells = [f"{section}: {name}", str(entry.get("n", "")), f"{entry['mape_percent']:.2f}%"]
            cells += [
                f"{entry[k]:.1f}%" if k in entry else "" for k in ("median_percent", "bias_percent", "worst_percent")
            ]
            lines.append("| " + " | ".join(cells) + " |")
    shares = report["share of intervals that held"]
    lines += ["", f"| intervals that held | {' | '.join(shares)} |", "| --- |" + " --- |" * len(shares)]
    for name in next(iter(shares.values())):
        lines.append(f"| {name} | " + " | ".join(f"{100 * s[name]:.0f}%" for s in shares.values()) + " |")
    return lines


def into_docs(path: Path, lines: list[str]) -> None:
    """Between the two markers of the page."""
    text = path.read_text(encoding="utf-8")
    before, marker, rest = text.partition("<!-- errors: written by benchmarks/fit_cluster.py -->\n")
    _, end, after = rest.partition("<!-- end of errors -->")
    if not marker or not end:
        sys.exit(f"{path} lacks the markers of the table")
    path.write_text(before + marker + "\n".join(lines) + "\n" + end + after, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path)
    parser.add_argument("--write", type=Path, help="where the constants go")
    parser.add_argument("--docs", type=Path, help="page whose table of errors is replaced")
    parser.add_argument(
        "--quick", action="store_true", help="without the single-node table, which takes a minute or two"
    )
    options = parser.parse_args()
    report: dict[str, Any] = {}
    strict, larger = several_nodes(options.tables, report)
    collectives(options.tables, report)
    if not options.quick:
        one_node(options.tables, report)
    groups = unfitted(options.tables)
    megatron = [name for name in groups if not name.startswith(("llm-foundry", "torchtitan"))]
    usual = replace(strict, network=Constants().network)  # of a network that was not measured
    found = {name: errors(cases, usual) for name, cases in groups.items()}
    known = {name: errors([c for c in groups[name] if c.hardware.compared], usual) for name in megatron}
    low, high = quantiles(known | {"vtrain": errors(larger, strict)})
    usual = replace(usual, fastest=low, slowest=high)
    plain = pytorch(groups, usual, report)
    report["not fitted on, set megatron"] = {name: summary(e) for name, e in found.items()}
    report["share of intervals that held"] = {
        f"set {s}": {name: sum(held(cases, c)) / len(cases) for name, cases in groups.items()}
        for s, c in (("megatron", usual), ("pytorch", plain))
    }
    report["not fitted on, set pytorch"] = {name: summary(errors(groups[name], plain)) for name in groups}
    if options.write:
        sets = {
            "megatron": {
                "fitted_on": "vTrain's multi-node table, rows of 3.6B (Bang et al., 2024); Megatron-DeepSpeed, A100",
                "interval_from": "vTrain 18.4B, SC21, Korthikanti, Megatron H100, Llama 3, Megatron Bridge; unfitted",
                "constants": as_json(usual),
            },
            "pytorch": {
                "fitted_on": "llm-foundry's MPT to 3B on H100 under FSDP, bfloat16; what is left from megatron",
                "interval_from": "MPT of 7B to 70B, MPT in float8, torchtitan; unfitted",
                "constants": as_json(plain),
            },
        }
        text = json.dumps({"format_version": 1, "sets": sets}, indent=1)
        options.write.write_text(text + "\n", encoding="utf-8")
    lines = table_lines(report)
    if options.docs:
        into_docs(options.docs, lines)
    print("\n".join(lines), file=sys.stderr)
    report["constants"] = {"strict": as_json(strict), "megatron": as_json(usual), "pytorch": as_json(plain)}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
