"""One optimiser step of a planned run on a cluster that is not there: `loop.take_step` itself, traced.

`distributed/trace.py` has the cluster, the fake tensors and what is recorded; here is what the loop needs besides a
model: optimisers, a job, and text, of which a step without numbers needs only that it is long enough.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tokenizers

from foretell import runtime
from foretell.config import RunConfig
from foretell.data import Data, objectives
from foretell.data.conversations import ANSWER
from foretell.data.shards import Tokens
from foretell.distributed import trace
from foretell.distributed.placed import Placed
from foretell.distributed.trace import Begun, Trace
from foretell.plan import layout
from foretell.tokenizer import Tokenizer
from foretell.train import loop, optim
from foretell.train.saved import State


class _Blank(Data):
    """A document that says nothing: enough for a row of `context` tokens, a pair or a conversation."""

    def tokens(self, split: str) -> Tokens:
        document = np.ones(self.index["context"] + 1, np.uint16)
        document[-1] = 0  # the end of a text
        return Tokens([np.tile(document, 2 if self.has_pairs else 1)], np.dtype(np.uint16))

    def answers(self, split: str) -> Tokens:
        return Tokens([np.full(self.index["context"] + 1, ANSWER, np.uint8)], np.dtype(np.uint8))

    def document_ends(self, split: str) -> np.ndarray:
        return np.array([len(self.tokens(split))])


def rehearse(config: RunConfig, world_size: int, *, pp_place: int = 0, steps: int = 2, memory: bool = False) -> Trace:
    """What the first rank of place `pp_place` of the pipeline does in the last of so many steps of `config`.

    config must be complete (`plan.completed`). Raises ConfigError where the layout is not of so many processes, or
    this process is part of a run.
    """
    c = config.train
    d = layout.degrees(config.parallel, world_size)
    sequences = c.needed("global_batch_tokens") // c.context
    layout.check(d, config.parallel, config.model, c.context, sequences, c.needed("micro_batch_size"))
    return trace.trace(
        config.model,
        c,
        config.parallel,
        world_size,
        lambda placed: _begun(config, placed),
        pp_place=pp_place,
        steps=steps,
        memory=memory,
    )


def _begun(config: RunConfig, placed: Placed) -> Begun:
    """A step as `loop.run` takes it, with its question behind it."""
    c = config.train
    plain = tokenizers.Tokenizer(tokenizers.models.BPE())
    plain.add_special_tokens(["", *(names[0] for names in objectives.SPECIAL.get(c.objective, ()))])
    index = {"context": c.context, "fingerprint": str(c.context), "pairs": c.objective == "seq2seq"}
    kind = next((k for k, objective in objectives.OF_CONVERSATIONS.items() if objective == c.objective), None)
    blank = _Blank(
        Path(), {**index, "conversations": {"kind": kind} if kind else None}, Tokenizer(plain, "other", 0, None)
    )
    dtype = runtime.dtype(c.dtype)
    job = loop.Job(
        c, blank, Path(), config.data.packing, dtype, compiled=False, flops_per_token=0.0, peak_flops_per_second=1.0
    )
    optimizers = optim.build(placed.named(), c, dtype, placed.matrices)
    loss_of, state = loop.loss_function(job, placed), State()

    def step() -> None:
        loop.take_step(job, placed, loss_of, optimizers, state)
        placed.agreed(0)

    return step, optimizers
