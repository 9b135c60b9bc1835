"""Translation against transformers' MarianMT of the same weights: seconds of training steps, and of beam search.

    python benchmarks/translation_speed.py RUN SOURCES [--sentences 200] [--steps 6] [--out translation_speed.json]

RUN is a run folder of `foretell train` with `train.objective=seq2seq` and its own tokenizer; SOURCES a text with a
sentence a line. Training: the run's own batches and shape. The peer is transformers' model in a plain loop as a user
writes it: pairs in random order, micro-batches padded to their longest, torch's AdamW, bfloat16 autocast where the run
has it. Beam search: 4 beams, float32, sources sorted by length, the peer's in batches of 32. Seconds are those of the
processor, so that other jobs on the machine count for less.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from foretell import config as run_config
from foretell import runtime
from foretell.data import objectives, open_data
from foretell.generate import beam_search
from foretell.generate.answer import source_ids
from foretell.models import hf
from foretell.models.seq2seq import Seq2Seq
from foretell.train import optim, trial
from foretell.train.alone import Alone
from foretell.train.loop import Job, autocast, loss_function, take_step
from foretell.train.run import prepared
from foretell.train.saved import State

BEAMS, BATCH = 4, 32


def timed(step: Callable[[], Any], steps: int, warmup: int = 2) -> float:
    """Median processor seconds of a call."""
    seconds = []
    for _ in range(steps + warmup):
        began = time.process_time()
        step()
        seconds.append(time.process_time() - began)
    return statistics.median(seconds[warmup:])


def training(run: Path, steps: int) -> dict[str, float]:
    """Seconds of an optimiser step of the run's shape: ours, and a plain loop around transformers' model."""
    from transformers import AutoModelForSeq2SeqLM

    c, data = run_config.load(run / "config.toml"), open_data(prepared(run))
    model = trial.built(c.model, c.train.dropout or 0.0, 0, c.train.attention).train()
    optimizers, state, team = optim.build(model.named_parameters(), c.train), State(), Alone(model)
    with tempfile.TemporaryDirectory() as folder:
        job = Job(c.train, data, Path(folder), "across", runtime.dtype(c.train.dtype), False, 0.0, 1.0)
        job = replace(job, start=c.model.decoder_start_token_id)
        loss_of = loss_function(job, team)
        ours = timed(lambda: take_step(job, team, loss_of, optimizers, state), steps)
    peer = AutoModelForSeq2SeqLM.from_pretrained(run / "model").train()
    optimizer = torch.optim.AdamW(peer.parameters(), 1e-4)
    number = iter(range(10**6))

    def step() -> None:
        order = torch.randperm(job.sequences).tolist()  # ours go by length
        for i in range(0, job.sequences, job.micro_batch_size):
            where = {"seed": 0, "step": next(number), "batch_size": job.sequences, "context": c.train.context}
            rows = objectives.rows("seq2seq", data, "train", rows=order[i : i + job.micro_batch_size], **where)
            source, real, labels = (torch.from_numpy(a) for a in (rows.source, rows.source_real, rows.targets))
            S, T = int(real.sum(1).max()), int((labels >= 0).sum(1).max())
            labels = labels[:, :T].masked_fill(labels[:, :T] < 0, -100)
            with autocast(job.dtype):
                loss = peer(input_ids=source[:, :S], attention_mask=real[:, :S].long(), labels=labels).loss
            (loss * job.micro_batch_size / job.sequences).backward()
        torch.nn.utils.clip_grad_norm_(peer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return {"foretell": ours, "transformers": timed(step, max(2, steps // 2), 1), "pairs": job.sequences}


@torch.no_grad()
def searching(run: Path, sources: list[str]) -> dict[str, float]:
    """Seconds of translating all sources with 4 beams, and the share of equal translations."""
    from transformers import AutoModelForSeq2SeqLM

    model, tokenizer = hf.load(run / "model")
    assert isinstance(model, Seq2Seq)
    rows = sorted((source_ids(tokenizer, s) for s in sources), key=len)
    longest, eos = 2 * len(rows[-1]) + 10, tokenizer.eot_id
    peer = AutoModelForSeq2SeqLM.from_pretrained(run / "model").eval()
    peer.generation_config.forced_eos_token_id = None
    texts: dict[str, list[list[int]]] = {"foretell": [], "transformers": []}
    began = time.process_time()
    texts["foretell"] = [h.ids for h in beam_search(model, rows, beams=BEAMS, max_new_tokens=longest, eos=eos)]
    middle = time.process_time()
    for i in range(0, len(rows), BATCH):
        part = rows[i : i + BATCH]
        S = max(map(len, part))
        ids = torch.tensor([[*r, *[0] * (S - len(r))] for r in part])
        mask = torch.tensor([[1] * len(r) + [0] * (S - len(r)) for r in part])
        found = peer.generate(
            ids, attention_mask=mask, num_beams=BEAMS, max_new_tokens=longest, do_sample=False, bad_words_ids=None
        )
        for line in found[:, 1:].tolist():
            texts["transformers"].append(line[: line.index(eos)] if eos in line else line)
    end = time.process_time()
    same = sum(a == b for a, b in zip(*texts.values(), strict=True)) / len(rows)
    return {"foretell": middle - began, "transformers": end - middle, "same": same, "sentences": len(rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("sources", type=Path)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--out", type=Path, default=Path("translation_speed.json"))
    args = parser.parse_args()
    torch.set_num_threads(runtime.threads())
    lines = args.sources.read_text(encoding="utf-8").splitlines()[: args.sentences]
    result = {"training": training(args.run, args.steps), "beam_search": searching(args.run, lines)}
    for what, found in result.items():
        ratio = found["transformers"] / found["foretell"]
        print(
            f"{what}: {found['foretell']:.2f} s, transformers {found['transformers']:.2f} s: {ratio:.2f} times as fast"
        )
    print(f"equal translations: {result['beam_search']['same']:.1%}")
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
