"""Training speed of `foretell train` against transformers' GPT-2 of the same shape, on this machine, in one run.

    python benchmarks/train_speed.py [--rounds 3] [--steps 8] [--out train_speed.json]

A decoder of 6 layers, width 384, 6 heads, context 256, batch 16, dropout 0, at vocabularies of 65 and 16,384; parameter
counts agree within 1%. Peers: transformers' GPT2LMHeadModel with its own loss and torch's AdamW, in float32 as a user
gets it on a CPU, and under bfloat16 autocast. Ours: `train.loop.take_step` with AdamW too, on the execution path that
`foretell train` itself would choose here (`train.trial.choose_path`), in a process started with the allocator settings
that the command line sets. Contestants take turns, each in a process of its own; a contestant's figure is its median
step over all rounds. The machine's product rates are measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from foretell import config as run_config
from foretell import data, runtime
from foretell.config import DataConfig, RunConfig, TokenizerConfig
from foretell.train import optim, trial
from foretell.train.alone import Alone
from foretell.train.loop import Job, loss_function, take_step
from foretell.train.saved import State

VOCABULARIES = (65, 16_384)
BATCH, CONTEXT = 16, 256
SHAPE = {
    "hidden_size": 384,
    "num_hidden_layers": 6,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "intermediate_size": 1040,
}
BARS = {65: {"float32": 3.4, "autocast": 1.4, "peak": 0.63}, 16_384: {"float32": 5.4, "autocast": 1.4, "peak": 0.70}}


def product_rate(dtype: torch.dtype, size: int = 2048, least_seconds: float = 1.0) -> float:
    """FLOP/s of a square product; a smaller one where the processor is slow in `dtype`."""
    while size > 128 and (_product_seconds(dtype, 128, 1) * (size / 128) ** 3) > least_seconds:
        size //= 2
    _product_seconds(dtype, size, 2)
    repeats = max(2, int(least_seconds / _product_seconds(dtype, size, 1)))
    return 2 * size**3 / min(_product_seconds(dtype, size, max(1, repeats // 3)) for _ in range(3))


def _product_seconds(dtype: torch.dtype, size: int, repeats: int) -> float:
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    a @ b
    began = time.perf_counter()
    for _ in range(repeats):
        a @ b
    return (time.perf_counter() - began) / repeats


def run_peer(vocab_size: int, steps: int, autocast: bool, batch: int, warmup: int) -> dict[str, Any]:
    """Seconds a token of each step of transformers' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    shape = GPT2Config(
        vocab_size=vocab_size,
        n_positions=CONTEXT,
        n_embd=384,
        n_layer=6,
        n_head=6,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
    )
    model = GPT2LMHeadModel(shape).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    tokens = torch.randint(vocab_size, (batch, CONTEXT))
    seconds = []
    for _ in range(steps + warmup):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        seconds.append((time.perf_counter() - began) / tokens.numel())
    return {"seconds": seconds[warmup:], "parameters": sum(p.numel() for p in model.parameters())}


def _config(vocab_size: int) -> RunConfig:
    c = run_config.updated(
        RunConfig(),
        model=SHAPE,
        train={
            "optimizer": "adamw", "steps": 1000, "context": CONTEXT, "micro_batch_size": BATCH,
            "global_batch_tokens": BATCH * CONTEXT, "save_every": 1000, "eval_every": 1000,
        },
    )  # fmt: skip
    model = c.model.resolved(vocab_size, CONTEXT)
    return run_config.updated(c, model=model.model_dump())


def _random_data(vocab_size: int, folder: Path) -> data.Data:
    """A prepared folder of bytes; the loader is real, the tokens are replaced by uniform ones of the vocabulary."""
    source = folder / "text.txt"
    source.write_bytes(np.random.default_rng(0).integers(97, 122, 400_000, np.uint8).tobytes())
    data.prepare([str(source)], folder / "data", TokenizerConfig(kind="bytes"), DataConfig(), workers=1)
    opened = data.open_data(folder / "data")
    for split in ("train", "valid"):
        n = len(opened.tokens(split))
        tokens = np.random.default_rng(1).integers(0, vocab_size, n).astype(np.uint16)
        opened._tokens[split] = type(opened.tokens(split))([tokens], np.dtype(np.uint16))
    return opened


def run_ours(vocab_size: int, steps: int, machine: dict[str, Any], chosen: dict[str, str] | None) -> dict[str, Any]:
    """Seconds a token of each of foretell's own steps; without a path it is chosen first, as `foretell train` does."""
    torch.set_num_threads(runtime.threads())
    with tempfile.TemporaryDirectory() as name:
        corpus = _random_data(vocab_size, Path(name))
        c = _config(vocab_size)
        if chosen is None:
            c, _ = trial.choose_path(c, corpus, machine, run_seconds=3600.0)
        else:
            c = run_config.updated(c, train=chosen)
        model = trial.built(c.model, 0.0, 0, c.train.attention)
        job = Job(
            c.train, corpus, Path(name), "across", runtime.dtype(c.train.dtype), c.train.compile == "on", 0.0, 1.0
        )
        optimizers, loss_of, state, seconds = (
            optim.build(model.named_parameters(), c.train),
            loss_function(job, Alone(model)),
            State(),
            [],
        )
        model.train()
        for _ in range(steps + 3):
            began = time.perf_counter()
            take_step(job, Alone(model), loss_of, optimizers, state)
            seconds.append((time.perf_counter() - began) / c.train.global_batch_tokens)
    path = {"dtype": c.train.dtype, "compile": c.train.compile, "attention": c.train.attention}
    return {
        "seconds": seconds[3:],
        "first_step_seconds": seconds[0],
        "parameters": sum(p.numel() for p in model.parameters()),
        "path": path,
    }


def in_process(contestant: str, vocab_size: int, steps: int, extra: dict[str, Any]) -> dict[str, Any]:
    environment = runtime.tuned_environment() if contestant == "foretell" else None
    command = [sys.executable, __file__, "--contestant", contestant, "--vocab", str(vocab_size), "--steps", str(steps)]
    command += ["--extra", json.dumps(extra)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{contestant}, vocabulary {vocab_size}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def flops_per_token(vocab_size: int, parameters: int) -> float:
    """6 per parameter that is multiplied, and full attention, as in the reference figures."""
    head = vocab_size * 384
    blocks = parameters - head - 384 * CONTEXT  # GPT-2's positions are looked up, not multiplied
    return 6.0 * (blocks + head) + 12.0 * 6 * 384 * CONTEXT


def compared(vocab_size: int, rounds: int, steps: int, machine: dict[str, Any]) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"gpt2 float32": [], "gpt2 bfloat16 autocast": [], "foretell": []}
    rates = machine["flops_per_second"]
    slow_bfloat16 = rates["bfloat16"]["peak"] < 0.1 * rates["float32"]["peak"]
    path: dict[str, str] | None = None
    facts: dict[str, Any] = {}
    for _ in range(rounds):
        found = in_process("gpt2", vocab_size, steps, {"batch": BATCH, "warmup": 2})
        seconds["gpt2 float32"] += found["seconds"]
        facts["peer_parameters"] = found["parameters"]
        if not slow_bfloat16:
            found = in_process("gpt2-autocast", vocab_size, steps, {"batch": BATCH, "warmup": 2})
            seconds["gpt2 bfloat16 autocast"] += found["seconds"]
        elif not seconds["gpt2 bfloat16 autocast"]:  # emulated: a step of the whole batch would take many minutes
            found = in_process("gpt2-autocast", vocab_size, 1, {"batch": 1, "warmup": 0})
            seconds["gpt2 bfloat16 autocast"] += found["seconds"]
        found = in_process("foretell", vocab_size, steps, {"machine": machine, "path": path})
        seconds["foretell"] += found["seconds"]
        path, facts["parameters"] = found["path"], found["parameters"]
    tokens_per_second = {k: 1 / statistics.median(v) for k, v in seconds.items()}
    per_token = flops_per_token(vocab_size, facts["peer_parameters"])
    rate = tokens_per_second["foretell"] * per_token
    return {
        **facts,
        "path": path,
        "tokens_per_second": tokens_per_second,
        "ratio_to_float32": tokens_per_second["foretell"] / tokens_per_second["gpt2 float32"],
        "ratio_to_autocast": tokens_per_second["foretell"] / tokens_per_second["gpt2 bfloat16 autocast"],
        "flops_per_second": rate,
        "share_of_bfloat16_peak": rate / rates["bfloat16"]["peak"],
        "share_of_float32_peak": rate / rates["float32"]["peak"],
        "bars": BARS[vocab_size],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("train_speed.json"))
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--vocab", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--extra", default="{}", help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.contestant:
        extra = json.loads(a.extra)
        if a.contestant == "foretell":
            print(json.dumps(run_ours(a.vocab, a.steps, extra["machine"], extra["path"])))
        else:
            print(json.dumps(run_peer(a.vocab, a.steps, a.contestant.endswith("autocast"), **extra)))
        return
    rates = {n: {"peak": product_rate(getattr(torch, n))} for n in ("float32", "bfloat16")}
    machine = {**runtime.machine_facts(), "flops_per_second": rates}
    print(f"{machine['processor']}, {machine['threads']} threads, torch {machine['torch']}; product rates "
          + ", ".join(f"{n} {r['peak'] / 1e9:,.1f} GFLOP/s" for n, r in rates.items()))  # fmt: skip
    result: dict[str, Any] = {"machine": machine}
    for vocab_size in VOCABULARIES:
        r = result[f"vocabulary {vocab_size}"] = compared(vocab_size, a.rounds, a.steps, machine)
        print(
            f"\nvocabulary {vocab_size:,}: {r['parameters']:,} parameters, peer {r['peer_parameters']:,}; {r['path']}"
        )
        for name, rate in r["tokens_per_second"].items():
            print(f"  {name:24} {rate:9,.0f} tokens/s")
        bars = r["bars"]
        print(f"  ratio to float32  {r['ratio_to_float32']:6.2f}x   (bar {bars['float32']}x)")
        print(f"  ratio to autocast {r['ratio_to_autocast']:6.2f}x   (bar {bars['autocast']}x)")
        shares = (f"{100 * r[f'share_of_{n}_peak']:,.0f}%" for n in ("bfloat16", "float32"))
        print("  share of the machine's bfloat16 rate {}, of its float32 rate {}".format(*shares))
        print(f"  (bar {100 * bars['peak']:.0f}% of the bfloat16 rate)")
    a.out.write_text(json.dumps(result, indent=1))
    print(f"\nwritten to {a.out}")


if __name__ == "__main__":
    main()
