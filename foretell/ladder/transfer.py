"""How batch, learning rate and warm-up move along a ladder, so that every rung and the target are equally well tuned.

A law fitted on rungs that are tuned the worse the smaller, or the longer, they are says more about the tuning than
about size. The rule here:

- The batch is 0.58 D^0.571 tokens (Step Law, Li et al., 2025), in whole sequences, D the tokens of the longest run on
  the trunk.
- The rates of Muon and of the embedding stay. A run of k times the tokens wants less noise in its steps: at a fixed
  batch a rate lower by k^-0.3 (the token-horizon correction of Delphi, without which that ladder's first law was wrong
  at thirty times its compute). Where steps have a given size, as Muon's have, noise goes as rate / sqrt(batch), and
  the batch that grows by k^0.571 lowers it by k^-0.29 at the same rate: the batch makes the correction.
- The rates do not move with the width either: an orthogonalised step changes a layer's outputs by as much at any width.
- Warm-up is a share of the longest run on the trunk, and the same number of steps for the shorter ones.

Not handled: a rule for AdamW and SGD, whose rates want to fall with the width; they keep theirs, so tune them by hand.
"""

from __future__ import annotations

from typing import Any

from foretell.config import TrainConfig
from foretell.train.optim import DEFAULT_EMBEDDING_LR, DEFAULT_LR


def hyperparameters(given: TrainConfig, tokens: float) -> dict[str, Any]:
    """The keys of [train] for a run of `tokens`, and for the shorter ones on its trunk. What is given is kept."""
    batch = given.global_batch_tokens or max(1, round(0.58 * tokens**0.571 / given.context)) * given.context
    warmup = round(given.warmup_fraction * tokens / batch) if given.warmup_steps is None else given.warmup_steps
    found = {
        "global_batch_tokens": batch,
        "lr": given.lr or DEFAULT_LR[given.optimizer],
        "warmup_steps": warmup,
    }
    if given.optimizer == "muon":
        found["embedding_lr"] = given.embedding_lr or DEFAULT_EMBEDDING_LR
    return found
