"""Short trainings before the run: the probe measures the text, the trial measures the machine.

The probe trains one fixed small model for a fixed number of tokens; its loss is the covariate through which a new text
enters the loss law (`plan/scaling.py`). The trial takes a few real steps of the chosen shape on each execution path
that could pay, and so decides dtype and compilation by measurement and gives the time forecast its step time.

Both use throwaway models and leave nothing behind but their numbers.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from foretell import config as run_config
from foretell import evaluate, plan, runtime
from foretell.config import ModelConfig, RunConfig, TrainConfig
from foretell.data import Data
from foretell.models.attention import attend
from foretell.models.decoder import Decoder
from foretell.models.model import Model, made
from foretell.train import optim, tune
from foretell.train.alone import Alone
from foretell.train.loop import Job, loss_function, take_step
from foretell.train.saved import State
from foretell.vectors.embedding import Start

# The probe is part of the loss law's definition: change it and the prior must be recorded again.
PROBE_MODEL = ModelConfig(hidden_size=128, num_hidden_layers=2)
PROBE_TRAIN = TrainConfig(
    steps=80, context=128, micro_batch_size=16, global_batch_tokens=2048, dropout=0.0, save_every=80, eval_every=80
)
PROBE_EVAL_TOKENS = 131_072
# Seconds that compiling costs, and a margin; the first compiled step took 25 to 36 s on two cores (docs/log.md).
COMPILE_SECONDS = 40.0
LAYERS_OF_THAT = 8  # deeper models take longer in proportion
# Where a base is wide and bfloat16 so many times as fast, float32 is not tried: its steps alone would take a minute.
SURELY_FASTER, WIDE = 2.5, 512
# A shared machine is uneven over a second or two; steps are timed over longer than that.
TRIAL_SECONDS = 6.0
ATTENTION_ROUNDS = 6


def built(config: ModelConfig, dropout: float, seed: int, attention: str = "sdpa", start: Start | None = None) -> Model:
    """A model with its initial weights on this run's device: a pure function of (config, seed, start).

    start: what the embedding table begins from instead.
    """
    model = made(config, dropout, attention)
    model.initialise(seed)
    if start is not None:
        start.fill(model.model.embed_tokens.weight, (0, 0))
    runtime.seed_all(seed)
    return model.to(runtime.device())


def probe(data: Data) -> dict[str, Any]:
    """Train the probe on `data`; returns its size, tokens, bits per byte on validation text, and its step time."""
    model_config = PROBE_MODEL.resolved(data.tokenizer.vocab_size, PROBE_TRAIN.context)
    model = built(model_config, 0.0, seed=0)
    assert isinstance(model, Decoder)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(PROBE_TRAIN, data, Path(folder), "across", torch.float32, False, 0.0, 1.0)
        seconds = _timed_steps(job, model, job.steps)
    scores = evaluate.evaluate_split(
        model, data, "valid", max_tokens=PROBE_EVAL_TOKENS, context=PROBE_TRAIN.context, batch_size=16
    )
    total = sum(p.numel() for p in model.parameters())
    return {
        "parameters": total,
        "non_embedding": total - model.model.embed_tokens.weight.numel(),
        "hidden_size": model_config.hidden_size,
        "num_hidden_layers": model_config.num_hidden_layers,
        "tokens": job.steps * job.batch_tokens,
        "steps": job.steps,
        "seconds": sum(seconds),
        "step_seconds": statistics.median(seconds),
        "bits_per_byte": scores["bits_per_byte"],
        "loss": scores["loss"],
    }


def paths(config: RunConfig, machine: dict[str, Any], run_seconds: float) -> list[tuple[str, bool]]:
    """The execution paths (dtype, compiled) worth a trial: those the config allows and the machine record favours."""
    t = config.train
    rates = {
        k: v.get("peak", 0.0) if isinstance(v, dict) else v for k, v in machine.get("flops_per_second", {}).items()
    }
    dtypes = ["float32", "bfloat16"] if t.dtype == "auto" else [t.dtype]
    times = rates.get("bfloat16", 0.0) / rates.get("float32", 1.0)
    if t.dtype == "auto" and times < 1.2:
        dtypes = ["float32"]
    elif t.dtype == "auto" and t.base is not None and config.model.sizes.D >= WIDE and times > SURELY_FASTER:
        dtypes = ["bfloat16"]
    compiling = COMPILE_SECONDS * max(1.0, config.model.sizes.L / LAYERS_OF_THAT)
    # Of a base it did not pay: Gemma 3 270M with adapters took twice as long, in three trials of three (docs/log.md).
    worth = runtime.has_compiler() and run_seconds > 8 * compiling and t.base is None
    compiled = {"on": [True], "off": [False], "auto": [False, True] if worth else [False]}[t.compile]
    return [(d, c) for d in dtypes for c in compiled]


def attention_kernel(config: RunConfig, dtype: str) -> str:
    """`sdpa` or `products`: which computes one layer's attention and its gradient sooner here, in this shape and dtype.

    Products are left out where the probabilities they keep would not fit in memory.
    """
    m, t = config.model, config.train
    if t.attention != "auto":
        return t.attention
    if not plan.fits(config, {"attention": "products", "dtype": dtype}, runtime.memory_total_bytes()):
        return "sdpa"
    kind, device, size = runtime.dtype(dtype), runtime.device(), m.sizes
    q, k, v = (
        torch.randn(t.needed("micro_batch_size"), t.context, heads, size.E, dtype=kind, device=device)
        .transpose(1, 2)
        .requires_grad_()
        for heads in (size.H, size.K, size.K)
    )
    seconds: dict[str, list[float]] = {"sdpa": [], "products": []}
    for _ in range(ATTENTION_ROUNDS):
        for kernel, past in seconds.items():
            started = time.perf_counter()
            attend(q, k, v, kernel).sum().backward()
            past.append(time.perf_counter() - started)
    return min(seconds, key=lambda kernel: statistics.median(seconds[kernel][1:]))


def trial(config: RunConfig, data: Data, dtype: str, compiled: bool, steps: int = 6) -> dict[str, Any]:
    """Step seconds of some real optimiser steps of the exact shape on one execution path.

    Returns step_seconds, low and high (the middle 80% of the timed steps), first_step_seconds (with compilation),
    dtype, compile, attention; or `error` where the path does not work on this machine.
    """
    config = run_config.updated(config, train={"attention": attention_kernel(config, dtype)})
    path = {"dtype": dtype, "compile": compiled, "attention": config.train.attention}
    own = built(config.model, config.train.dropout or 0.0, config.train.seed, config.train.attention)
    model = tune.adapted(own, config)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(config.train, data, Path(folder), config.data.packing, runtime.dtype(dtype), compiled, 0.0, 1.0)
        job = replace(job, start=config.model.decoder_start_token_id)
        try:
            seconds = _timed_steps(job, model, steps + 2, TRIAL_SECONDS)
        except Exception as e:  # a compiler that fails is a path that is not there, whatever it raises
            if not compiled:
                raise
            return {**path, "error": f"{type(e).__name__}: {str(e)[:200]}"}
    timed = sorted(seconds[2:] or seconds[1:])
    return {
        **path,
        "step_seconds": statistics.median(timed),
        "low": timed[len(timed) // 10],
        "high": timed[-1 - len(timed) // 10],
        "first_step_seconds": seconds[0],
        "steps": len(timed),
    }


def choose_path(
    config: RunConfig, data: Data, machine: dict[str, Any], run_seconds: float
) -> tuple[RunConfig, dict[str, Any]]:
    """Try the paths and fix the fastest in the config. Returns the config and the chosen trial with all `tried`."""
    tried = [trial(config, data, d, c) for d, c in paths(config, machine, run_seconds)]
    works = [t for t in tried if "error" not in t]
    if not works:  # only a demanded torch.compile can fail alone
        tried.append(trial(config, data, "float32" if config.train.dtype == "auto" else config.train.dtype, False))
        works = tried[-1:]
    best = min(works, key=lambda t: t["step_seconds"])
    changes = {"dtype": best["dtype"], "compile": "on" if best["compile"] else "off", "attention": best["attention"]}
    return run_config.updated(config, train=changes), {**best, "tried": tried}


def _timed_steps(job: Job, model: Model, steps: int, least_seconds: float = 0.0) -> list[float]:
    """Wall seconds of each of the first `steps` steps, and of more until `least_seconds` after the first are over.

    Slow steps are fewer: one after the first is enough where it alone takes twice as long.
    """
    team = Alone(model)
    optimizers = optim.build(team.named(), job.config, job.dtype)
    loss_of = loss_function(job, team)
    state, seconds = State(), list[float]()
    model.train()
    while len(seconds) < steps or sum(seconds[1:]) < least_seconds:
        if sum(seconds[1:]) > 2 * least_seconds > 0:
            break
        started = time.perf_counter()
        take_step(job, team, loss_of, optimizers, state)
        seconds.append(time.perf_counter() - started)
    return seconds
