"""Published step times as cases for the forecast of a cluster: each row of a public table with its model and layout.

Read by fit_cluster.py and by the tests. The tables' sources and licences are listed in docs/cluster.md; what a table
does not print and was therefore assumed stands at its reader.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from foretell.plan import conventions, hardware, shape
from foretell.plan.cluster import Job
from foretell.plan.hardware import Hardware
from foretell.plan.layout import Degrees
from foretell.plan.shape import Shape


@dataclass(frozen=True)
class Case:
    """One measured step: what ran, on what, and how many seconds it took. group: what it is held out with."""

    name: str
    group: str
    shape: Shape
    job: Job
    hardware: Hardware
    seconds: float


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def degrees(tp: int = 1, dp: int = 1, pp: int = 1, cp: int = 1, ep: int = 1, shard: bool = False) -> Degrees:
    """dp as copies, or (shard) as one sharded copy; ep is a divisor of it."""
    return Degrees(pp, 1, dp // ep, ep, cp, tp) if shard or ep > 1 else Degrees(pp, dp, 1, 1, cp, tp)


def vtrain(path: Path, recompute: str) -> list[Case]:
    """Megatron-DeepSpeed, float16, DDP without overlap; 4 x 200 Gb/s a node (vTrain's `inter_node_bandwidth` = 800)."""
    machine = hardware.load("a100-80gb")
    slower = machine.network_link.model_copy(update={"bytes_per_second": 12.5e9})
    machine = machine.model_copy(update={"network_link": slower})
    cases = []
    for row in rows(path):
        n = {key: int(value) for key, value in row.items() if key not in {"iter_ms", "params_b"}}
        model = shape.gpt(n["hidden"], n["heads"], n["layers"], 50304, positions=n["seq_len"])
        job = Job(
            degrees(n["tp"], n["dp"], n["pp"]),
            n["micro_batch"],
            n["global_batch"],
            n["seq_len"],
            recompute=recompute,  # type: ignore[arg-type]
            sharding="none",
            sequence_parallel=False,
            overlap_gradients=False,
            gradient_bytes=2,
        )
        group = row.get("params_b") or f"{n['hidden']} x {n['layers']}"
        name = f"{group}: tp {n['tp']} dp {n['dp']} pp {n['pp']} micro-batch {n['micro_batch']}"
        cases.append(Case(name, group, model, job, machine, float(row["iter_ms"]) / 1e3))
    return cases


def sc21(path: Path) -> list[Case]:
    """Megatron, weak scaling. Assumed: micro-batch 4 without a pipeline, 1 with; two or three chunks a process."""
    cases = []
    for row in rows(path):
        n = {
            k: int(row[k])
            for k in ("heads", "hidden", "layers", "tp", "pp", "gpus", "global_batch", "seq_len", "vocab")
        }
        dp = n["gpus"] // (n["tp"] * n["pp"])
        chunks = next((v for v in (2, 3) if n["layers"] % (n["pp"] * v) == 0), 1) if n["pp"] > 1 else 1
        job = Job(
            degrees(n["tp"], dp, n["pp"]),
            4 if n["pp"] == 1 else 1,
            n["global_batch"],
            n["seq_len"],
            schedule="interleaved" if chunks > 1 else "1f1b",
            chunks=chunks,
            recompute="full",
            sharding="none",
            sequence_parallel=False,
            overlap_gradients=False,
        )
        flops = conventions.megatron_step_flops(n["global_batch"], n["seq_len"], n["layers"], n["hidden"], n["vocab"])
        seconds = flops / n["gpus"] / (float(row["tflops_per_gpu"]) * 1e12)
        model = shape.gpt(n["hidden"], n["heads"], n["layers"], n["vocab"], positions=n["seq_len"])
        cases.append(Case(f"{row['params_b']}B", "sc21", model, job, hardware.load("a100-80gb"), seconds))
    return cases


def korthikanti(path: Path) -> list[Case]:
    """Table 5: full recomputation without, selective with sequence parallelism."""
    cases = []
    for row in rows(path):
        n = {k: int(row[k]) for k in ("heads", "hidden", "layers", "tp", "pp", "gpus", "global_batch", "micro_batch")}
        chunks = int(row["interleave"])
        for column, recompute in (("iter_s_full_recompute", "full"), ("iter_s_seqpar_selective", "selective")):
            job = Job(
                degrees(n["tp"], n["gpus"] // (n["tp"] * n["pp"]), n["pp"]),
                n["micro_batch"],
                n["global_batch"],
                int(row["seq_len"]),
                schedule="interleaved" if chunks > 1 else "1f1b",
                chunks=chunks,
                recompute=recompute,  # type: ignore[arg-type]
                sharding="none",
                sequence_parallel=recompute == "selective",
            )
            model = shape.gpt(n["hidden"], n["heads"], n["layers"], int(row["vocab"]))
            name = f"{row['model']} {recompute}"
            cases.append(Case(name, "korthikanti", model, job, hardware.load("a100-80gb"), float(row[column])))
    return cases


def weak_scaling(path: Path) -> list[Case]:
    """Megatron-LM on H100. Assumed: micro-batch 1, at most 8 chunks, tp beside computation, no recomputation."""
    cases = []
    for row in rows(path):
        n = {k: int(row[k]) for k in ("heads", "hidden", "layers", "tp", "pp", "dp", "gpus", "global_batch", "seq_len")}
        vocab, each = int(row["vocab"]), n["layers"] // n["pp"]
        chunks = max(v for v in range(1, 9) if each % v == 0) if n["pp"] > 1 else 1
        job = Job(
            degrees(n["tp"], n["dp"], n["pp"]),
            1,
            n["global_batch"],
            n["seq_len"],
            schedule="interleaved" if chunks > 1 else "1f1b",
            chunks=chunks,
            overlap_tensor=True,
        )
        flops = conventions.megatron_step_flops(
            n["global_batch"], n["seq_len"], n["layers"], n["hidden"], vocab, recompute=False
        )
        seconds = flops / n["gpus"] / (float(row["tflops_per_gpu"]) * 1e12)
        model = shape.gpt(n["hidden"], n["heads"], n["layers"], vocab, positions=n["seq_len"], fused=True)
        cases.append(Case(row["model"], "weak scaling", model, job, hardware.load("h100-sxm"), seconds))
    return cases


MPT = {
    "125m": (12, 768, 12),
    "350m": (24, 1024, 16),
    "760m": (24, 1536, 12),
    "1b": (24, 2048, 16),
    "3b": (32, 2560, 20),
    "7b": (32, 4096, 32),
    "13b": (40, 5120, 40),
    "30b": (48, 7168, 56),
    "70b": (80, 8192, 64),
}


def llm_foundry(path: Path) -> list[Case]:
    """MPT under FSDP in pure 16 bits."""
    cases = []
    for row in rows(path):
        layers, hidden, heads = MPT[row["Model"]]
        context, devices = int(row["SeqLen (T)"]), int(row["# GPUs"])
        whole = row["Sharding Strategy"] == "SHARD_GRAD_OP"
        job = Job(
            degrees(dp=devices, shard=True),
            int(row["MicroBatchSize"]),
            int(row["GlobalBatchSize"]),
            context,
            dtype="float8" if row["Precision"] == "amp_fp8" else "bfloat16",
            recompute="full" if row["Activation Checkpointing"] == "True" else "none",
            sharding="optimizer" if whole else "full",
            gradient_bytes=2,
        )
        model = shape.gpt(hidden, heads, layers, 50368, positions=0, fused=True)
        seconds = int(row["GlobalBatchSize"]) * context / float(row["Throughput (T/s)"])
        name = f"{row['Model']} x {devices}, {context} tokens, {job.dtype}"
        cases.append(Case(name, f"llm-foundry {job.dtype}", model, job, hardware.load("h100-sxm"), seconds))
    return cases


LLAMA_8B = shape.llama(4096, 32, 8, 32, 14336, 128256)
LLAMA_70B = shape.llama(8192, 64, 8, 80, 28672, 128256)
LLAMA_405B = shape.llama(16384, 128, 8, 126, 53248, 128256)


def torchtitan(path: Path) -> list[Case]:
    """Llama 3.1 on H100 with 96 GB HBM2e at 2.4 TB/s and 500 W; rows without a sequence length have 8,192."""
    machine = hardware.load("h100-sxm").model_copy(update={"memory_bytes_per_second": 2.4e12, "memory_bytes": 96e9})
    cases = []
    for row in rows(path):
        model = LLAMA_8B if row["model"] == "8B" else LLAMA_70B
        plan = dict(zip(("FSDP", "CP", "TP"), (8, 1, 1), strict=True))
        for part in row["parallelism"].split():
            name = part.rstrip("0123456789")
            plan[name] = int(part[len(name) :] or 8)
        context, local = int(row["seq_len"]), int(row["local_batch"])
        job = Job(
            degrees(plan["TP"], plan["FSDP"], 1, plan["CP"], shard=True),
            local,
            local * plan["FSDP"],
            context,
            dtype="float8" if row["precision"] == "float8" else "bfloat16",
            recompute="full" if row["act_ckpt"] == "full" else "selective",
            sharding="full",
            overlap_tensor="Async" in row["technique"],
        )
        seconds = job.global_batch * context / (float(row["tokens_s_gpu"]) * int(row["gpus"]))
        cases.append(Case(f"{row['model']} {row['technique']} {context}", "torchtitan", model, job, machine, seconds))
    return cases


QWEN_30B = shape.llama(2048, 32, 4, 48, 768, 151936, head_dim=128, experts=128, top_k=8)


def megatron_bridge(path: Path) -> list[Case]:
    """Llama 3 70B and Qwen3 30B-A3B pre-trained on H100 and B200; the newest release of each layout."""
    models = {"LLAMA3_70B": LLAMA_70B, "Qwen3_30B_a3B": QWEN_30B}
    machines = {"DGX-H100": "h100-sxm", "DGX-B200": "b200"}
    cases: dict[str, Case] = {}
    for row in rows(path):
        if row["model"] not in models or row["system"] not in machines or not row["phase"].startswith("Pre"):
            continue
        n = {k: int(row[k]) for k in ("gpus", "gbs", "mbs", "seq", "tp", "pp", "cp")}
        ep = int(row["ep"]) if row["ep"] != "n/a" else 1
        chunks = int(row["vp"]) if row["vp"] != "n/a" else 1
        dp = n["gpus"] // (n["tp"] * n["pp"] * n["cp"])
        job = Job(
            degrees(n["tp"], dp, n["pp"], n["cp"], ep),
            n["mbs"],
            n["gbs"],
            n["seq"],
            dtype="float8",
            schedule="interleaved" if chunks > 1 else "1f1b",
            chunks=chunks,
            overlap_tensor=True,
        )
        seconds = n["gbs"] * n["seq"] / (float(row["tokens_s_gpu"]) * n["gpus"])
        name = f"{row['model']} {row['system']} {row['precision']} x {n['gpus']}"
        cases.setdefault(
            name,
            Case(name, "megatron bridge", models[row["model"]], job, hardware.load(machines[row["system"]]), seconds),
        )
    return list(cases.values())


def llama3() -> list[Case]:
    """Grattafiori et al. (2024), table 4: 430, 400 and 380 TFLOP/s a device; here with causal attention."""
    cases = []
    for devices, dp, cp, context, each, tflops in (
        (8192, 64, 1, 8192, 32, 430),
        (16384, 128, 1, 8192, 16, 400),
        (16384, 8, 16, 131072, 16, 380),
    ):
        job = Job(degrees(8, dp, 16, cp), 1, each * dp, context, schedule="interleaved", chunks=8)
        flops = job.global_batch * context * LLAMA_405B.flops_per_token(context)
        machine = hardware.load("h100-sxm")
        name = f"405B x {devices}, {context} tokens"
        cases.append(Case(name, "llama 3", LLAMA_405B, job, machine, flops / devices / (tflops * 1e12)))
    return cases
