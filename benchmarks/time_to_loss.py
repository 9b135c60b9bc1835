"""Seconds to 1.886 nats a character on tinyshakespeare: foretell's own loop and models beside nanoGPT's CPU recipe.

    python benchmarks/time_to_loss.py SHAKESPEARE_FOLDER [--seeds 5] [--config configs/tinyshakespeare-sprint.toml]
    python benchmarks/time_to_loss.py SHAKESPEARE_FOLDER --config MY.toml --seeds 1 --no-peer

SHAKESPEARE_FOLDER holds train.txt, valid.txt and test.txt (or their .gz); joined they are the whole file, 1,115,394
characters. The last 111,540 are for validation, all of them are scored. Peer: nanoGPT's published CPU recipe
(karpathy/nanoGPT, README: 4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps, AdamW 1e-3 with cosine to
1e-4, no dropout), written out plainly in PyTorch below and run beside it. Both are timed from process start to the end
of the full validation; the text is prepared before, for both. The model is an ordinary Transformer decoder: no n-gram
features.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

TARGET = 1.886
VALIDATION_CHARACTERS = 111_540
CHARACTERS = 1_115_394


def whole_text(folder: Path) -> str:
    parts = []
    for name in ("train.txt", "valid.txt", "test.txt"):
        packed = folder / f"{name}.gz"
        raw = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / name).read_bytes()
        parts.append(raw.decode("utf-8"))
    text = "".join(parts)
    if len(text) != CHARACTERS:
        sys.exit(f"{folder}: {len(text):,} characters, tinyshakespeare has {CHARACTERS:,}")
    return text


def which_split(source: str) -> str:
    return Path(source).stem


def prepare_text(folder: Path, work: Path) -> None:
    from foretell import data
    from foretell.config import DataConfig, TokenizerConfig

    text = whole_text(folder)
    parts = {"train": text[:-VALIDATION_CHARACTERS], "valid": text[-VALIDATION_CHARACTERS:]}
    for name, part in parts.items():
        (work / f"{name}.txt").write_text(part, encoding="utf-8", newline="")
    write_character_tokenizer(text, work / "tokenizer.json")
    data.prepare(
        [str(work / f"{name}.txt") for name in parts],
        work / "data",
        TokenizerConfig(path=str(work / "tokenizer.json")),
        DataConfig(test_fraction=0.0),
        workers=1,
        split_of=which_split,
    )


def write_character_tokenizer(text: str, file: Path) -> None:
    """The characters of an ASCII text as tokens, as nanoGPT has them, and <|endoftext|>: no merges."""
    from foretell import tokenizer

    every_byte = tokenizer.byte_tokenizer()
    spec = json.loads(every_byte.inner.to_str())
    kept = [every_byte.inner.id_to_token(byte) for byte in sorted(set(text.encode("ascii")))]
    spec["model"]["vocab"] = {token: i for i, token in enumerate(kept)}
    spec["added_tokens"][0]["id"] = len(kept)
    file.write_text(json.dumps(spec), encoding="utf-8")


def run_foretell(work: Path, config: str, seed: int) -> dict[str, Any]:
    """Train and validate with foretell's own loop."""
    import torch

    from foretell import config as run_config
    from foretell import data, evaluate, runtime
    from foretell.train import loop, trial
    from foretell.train.alone import Alone

    c = run_config.load(Path(config), [f"train.seed={seed}"])
    text = data.open_data(work / "data")
    c = run_config.updated(c, model=c.model.resolved(text.tokenizer.vocab_size, c.train.context).model_dump())
    torch.set_num_threads(runtime.threads())
    model = trial.built(c.model, c.train.dropout or 0.0, seed, c.train.attention)
    with tempfile.TemporaryDirectory() as run:
        job = loop.Job(
            c.train, text, Path(run), c.data.packing, runtime.dtype(c.train.dtype), c.train.compile == "on", 0.0, 1.0
        )
        outcome = loop.run(Alone(model), job)
    context = c.evaluate.context or c.train.context
    scores = evaluate.evaluate_split(model, text, "valid", context=context, batch_size=32)
    if scores["tokens"] != VALIDATION_CHARACTERS:
        raise SystemExit(f"{scores['tokens']:,} characters were scored, not {VALIDATION_CHARACTERS:,}")
    return {
        "loss": scores["loss"],
        "training_seconds": outcome["seconds"],
        "steps": outcome["steps"],
        "tokens": outcome["tokens"],
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def run_peer(work: Path, seed: int) -> dict[str, Any]:
    """nanoGPT's CPU recipe, plainly."""
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn

    torch.manual_seed(seed)
    width, heads, layers, context, batch, steps, warmup = 128, 4, 4, 64, 12, 2000, 100

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ln_1, self.ln_2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
            self.attn, self.proj = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
            self.fc, self.out = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            B, T, _ = x.shape
            q, k, v = (
                s.view(B, T, heads, width // heads).transpose(1, 2) for s in self.attn(self.ln_1(x)).chunk(3, -1)
            )
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.proj(y.transpose(1, 2).reshape(B, T, width))
            return x + self.out(F.gelu(self.fc(self.ln_2(x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wte, self.wpe = nn.Embedding(65, width), nn.Embedding(context, width)
            self.h = nn.ModuleList(Block() for _ in range(layers))
            self.ln_f, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, 65, bias=False)
            self.head.weight = self.wte.weight
            for name, p in self.named_parameters():
                if p.ndim == 2:
                    residual = name.endswith(("proj.weight", "out.weight"))
                    nn.init.normal_(p, 0.0, 0.02 / math.sqrt(2 * layers) if residual else 0.02)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            h = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
            for block in self.h:
                h = block(h)
            return F.cross_entropy(self.head(self.ln_f(h)).flatten(0, 1), y.flatten())

    texts = {n: (work / f"{n}.txt").read_bytes().decode() for n in ("train", "valid")}
    alphabet = {c: i for i, c in enumerate(sorted(set(texts["train"] + texts["valid"])))}
    train, valid = (torch.tensor([alphabet[c] for c in texts[n]]) for n in ("train", "valid"))
    model = GPT()
    matrices = [p for p in model.parameters() if p.ndim == 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, 1e-3, (0.9, 0.99))
    for step in range(steps):
        factor = (step + 1) / warmup
        if step >= warmup:
            factor = 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * factor
        at = torch.randint(len(train) - context, (batch, 1)) + torch.arange(context)
        model(train[at], train[at + 1]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    joined = torch.cat((train[-1:], valid))
    total = 0.0
    with torch.no_grad():
        for i in range(0, len(valid), context * 32):
            x, y = joined[i : i + context * 32], valid[i : i + context * 32]
            x = x[: len(y)]
            whole = len(y) // context * context
            for a, b in ((0, whole), (whole, len(y))):
                if b > a:
                    rows = (-1, context) if a == 0 else (1, -1)
                    total += model(x[a:b].view(rows), y[a:b].view(rows)).item() * (b - a)
    return {"loss": total / len(valid), "parameters": sum(p.numel() for p in model.parameters())}


def timed(contestant: str, work: Path, config: str, seed: int) -> dict[str, Any]:
    from foretell import runtime

    environment = runtime.tuned_environment() if contestant == "foretell" else None
    command = [sys.executable, __file__, str(work), "--contestant", contestant, "--config", config, "--seed", str(seed)]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds = time.perf_counter() - began
    if done.returncode:
        sys.exit(f"{contestant}: exit {done.returncode}\n{done.stderr[-3000:]}")
    return {"seconds": seconds, "seed": seed, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--config", default="configs/tinyshakespeare-sprint.toml")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("time_to_loss.json"))
    parser.add_argument("--contestant", help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.contestant:
        found = run_peer(a.folder, a.seed) if a.contestant == "nanogpt" else run_foretell(a.folder, a.config, a.seed)
        print(json.dumps(found))
        return
    results: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as name:
        prepare_text(a.folder, Path(name))
        for contestant in ("foretell",) if a.no_peer else ("nanogpt", "foretell"):
            for seed in range(a.seeds if contestant == "foretell" else 1):
                r = timed(contestant, Path(name), a.config, seed)
                results.setdefault(contestant, []).append(r)
                print(
                    f"{contestant:9} seed {seed}: {r['loss']:.4f} nats a character in {r['seconds']:.1f} s", flush=True
                )
    ours = results["foretell"]
    worst, median = max(r["loss"] for r in ours), statistics.median(r["seconds"] for r in ours)
    print(f"foretell: worst loss {worst:.4f} (bar {TARGET}), median {median:.1f} s, longest "
          f"{max(r['seconds'] for r in ours):.1f} s; {ours[0]['parameters']:,} parameters")  # fmt: skip
    if "nanogpt" in results:
        peer = results["nanogpt"][0]
        print(f"nanoGPT's recipe: {peer['loss']:.4f} in {peer['seconds']:.1f} s; ratio {peer['seconds'] / median:.1f}x")
    a.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
