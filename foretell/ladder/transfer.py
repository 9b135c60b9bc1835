"""How learning rate, batch and warm-up move along a ladder, so that every rung and the target are equally well tuned.

A law fitted on rungs that are tuned worse the smaller (or the longer) they are says more about the tuning than about
size: the first law of Delphi looked clean on small runs and was wrong at thirty times their compute until the rate
followed the length of the run. PLACEHOLDER
"""

from __future__ import annotations

from typing import Any

from foretell.config import TrainConfig
from foretell.plan import size
from foretell.train.optim import DEFAULT_EMBEDDING_LR, DEFAULT_LR

# Where the default rates are best.
AT_TOKENS = 1e6
HORIZON_EXPONENT = 0.0


def hyperparameters(given: TrainConfig, tokens: float) -> dict[str, Any]:
    """The keys of [train] for a run of `tokens`, and for the shorter ones on its trunk. What is given is kept."""
    batch = given.global_batch_tokens or size.batch_tokens(tokens, given.context)
    scale = (AT_TOKENS / tokens) ** HORIZON_EXPONENT
    warmup = round(given.warmup_fraction * tokens / batch) if given.warmup_steps is None else given.warmup_steps
    lr = given.lr or DEFAULT_LR[given.optimizer] * scale
    found = {"global_batch_tokens": batch, "lr": lr, "warmup_steps": warmup}
    if given.optimizer == "muon":
        found["embedding_lr"] = given.embedding_lr or DEFAULT_EMBEDDING_LR * scale
    return found
