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
from foretell.data import Data
from foretell.data.shards import Tokens
from foretell.distributed import trace
from foretell.distributed.placed import Placed
from foretell.distributed.trace import Begun, Trace
from foretell.plan import layout
from foretell.tokenizer import Tokenizer
from foretell.train import loop, optim
from foretell.train.saved import State


class _Blank(Data):
    """One window of token 0, over and over."""

    def tokens(self, split: str) -> Tokens:
        context = self.index["context"]
        return Tokens([np.zeros(context, np.uint16)], np.dtype(np.uint16))


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
    tokenizer = Tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), "other", 0, None)
    blank = _Blank(Path(), {"context": c.context}, tokenizer)
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
