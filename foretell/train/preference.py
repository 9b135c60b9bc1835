"""Preference tuning: direct preference optimisation (Rafailov et al., 2023), the sigmoid loss.

Of a pair, with log-likelihoods of the two answers under the model and under its base, the reward margin is

    beta ((log p(chosen) - log p_base(chosen)) - (log p(rejected) - log p_base(rejected)))

and the loss is -log sigmoid of it. What the base says is computed once, when the model is still its base, and kept in
the run folder, so no second model stays in memory. Rows come two by two: a chosen one, and the rejected one behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foretell.checkpoint import files
from foretell.config import RunConfig
from foretell.data import Data, answers
from foretell.data.answers import UNSCORED
from foretell.data.shards import SPLITS
from foretell.evaluate.objective import dealt
from foretell.models.model import head
from foretell.train.alone import Team
from foretell.train.objectives import Batch

FILE = "reference.safetensors"
_CHUNK = 2048
Reference = dict[str, Tensor]


def log_likelihoods(team: Team, inputs: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """(B,) float32: in nats, the sum over the targets (B, T) that are scored. chunk: tokens whose logits are held.

    A row is one conversation. What fills it up stands behind, where a causal model does not look.
    """
    row, place = (targets != UNSCORED).nonzero(as_tuple=True)
    if team.crew is None:  # several processes have one width
        inputs = inputs[:, : int(place.max()) + 1 if len(place) else 1]
    hidden, weight = head(team.model, team.hidden(inputs, None)[row, place])
    if torch.is_autocast_enabled(hidden.device.type):
        weight = weight.to(torch.get_autocast_dtype(hidden.device.type))
    wanted, each = targets[row, place], list[Tensor]()
    for h, t in zip(hidden.to(weight.dtype).split(chunk), wanted.split(chunk), strict=True):
        each.append(checkpoint(_of_tokens, h, weight, t, use_reentrant=False))
    zeros = torch.zeros(len(inputs), device=inputs.device)
    return zeros.index_add(0, row, torch.cat(each)) if each else zeros + hidden.sum() * 0.0


def _of_tokens(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return -F.cross_entropy((hidden @ weight.T).float(), targets, reduction="none")


def margins(own: Tensor, base: Tensor, beta: float) -> Tensor:
    """(pairs,) reward margins of log-likelihoods (2 pairs,) of a model and its base, chosen and rejected in turn."""
    rewards = beta * (own - base)
    return rewards[0::2] - rewards[1::2]


@dataclass
class Loss:
    """The mean loss of a micro-batch; keeps what the margins were until they are told.

    reference: (documents, 2) of the base, chosen and rejected; None: as if the base found all equally likely.
    """

    team: Team
    beta: float
    chunk: int | None
    reference: Tensor | None
    _margins: list[Tensor] = field(default_factory=list)

    def __call__(self, batch: Batch) -> Tensor:
        own = log_likelihoods(self.team, batch.inputs, batch.targets, self.chunk or _CHUNK)
        base = torch.zeros_like(own)
        if self.reference is not None and batch.document is not None:
            base = self.reference.to(own.device)[batch.document[0::2]].flatten()
        found = margins(own, base, self.beta)
        self._margins.append(found.detach())
        return -F.logsigmoid(found).mean()

    def told(self) -> dict[str, float]:
        """Mean reward margin, and the share of pairs in which the chosen answer has the higher reward, since last."""
        every = torch.cat(self._margins).double().cpu()
        self._margins.clear()
        own = torch.stack([every.sum(), (every > 0).sum(), torch.tensor(every.numel())])
        total, right, pairs = self.team.totals(own).tolist()
        return {"reward_margin": total / pairs, "reward_accuracy": right / pairs}


@torch.no_grad()
def reference(team: Team, config: RunConfig, data: Data, run: Path) -> Reference:
    """What a model that has not learned yet, a run's base, says of the pairs of each split: (documents, 2).

    Read from the run folder, where it is kept, if it is there and is of this base, data and context. All processes must
    call this; the first one writes it.
    """
    t = config.train
    facts = {"base": t.base_digest or "", "data": data.index["fingerprint"], "context": str(t.context)}
    known = _kept(run / FILE, facts)
    if not team.agreed(int(known is None)) and known is not None:
        return known
    found: Reference = {}
    for split in SPLITS:
        n = data.index["splits"].get(split, {}).get("documents", 0)
        if n:
            found[split] = _likelihoods(team, data, split, t.context, n, t.needed("micro_batch_size"))[0].float()
    if team.rank == 0:
        files.write_atomic(run / FILE, save(found, facts))
    return found


def _kept(file: Path, facts: dict[str, str]) -> Reference | None:
    if file.is_file():
        with safe_open(file, framework="pt") as opened:
            if opened.metadata() == facts:
                return {split: opened.get_tensor(split) for split in opened.keys()}  # noqa: SIM118 - not a mapping
    return None


def _likelihoods(team: Team, data: Data, split: str, context: int, pairs: int, micro: int) -> tuple[Tensor, np.ndarray]:
    """Of the first pairs of a split, in evaluation mode: log-likelihoods (pairs, 2), and of the chosen answers (2,).

    The latter is how many tokens and bytes they have. Each process takes some of the pairs and gets the sums of all.
    """
    device = next(team.chunks.parameters()).device
    lengths = np.array([len(data.tokenizer.token_bytes(i)) for i in range(team.model.config.sizes.V)])
    own, sizes = np.zeros((pairs, 2)), np.zeros(2)
    training = team.chunks.training
    team.chunks.eval()
    try:
        for numbers, empty in dealt(pairs, max(1, micro // 2), team.crew):
            rows = answers.preferences(data, split, [(n, side) for n in numbers for side in (0, 1)], context)
            inputs, targets = (torch.from_numpy(a).to(device) for a in rows[:2])
            likely = log_likelihoods(team, inputs, targets, _CHUNK)
            if not empty:
                own[numbers] = likely.view(-1, 2).double().cpu().numpy()
                chosen = rows.targets[0::2]
                chosen = chosen[chosen != UNSCORED]
                sizes += [len(chosen), lengths[chosen].sum()]
    finally:
        team.chunks.train(training)
    if team.crew is not None:
        own, sizes = team.crew.summed(own), team.crew.summed(sizes)
    return torch.from_numpy(own), sizes


@torch.no_grad()
def scores(
    team: Team, data: Data, split: str, base: Reference, *, beta: float, context: int, micro: int, most: int | None
) -> dict[str, Any]:
    """Of a split: loss, reward_margin, reward_accuracy; of its chosen answers perplexity and bits_per_byte.

    most: tokens, of which so many rows are taken. Training mode is left as it was. All processes must call this.
    """
    n = data.index["splits"][split]["documents"]
    n = n if most is None else max(1, min(n, most // (2 * context)))
    own, (tokens, size) = _likelihoods(team, data, split, context, n, micro)
    found = margins(own.flatten(), base[split][:n].flatten().double(), beta)
    nats = -own[:, 0].sum().item()
    return {
        "loss": -F.logsigmoid(found).mean().item(),
        "reward_margin": found.mean().item(),
        "reward_accuracy": (found > 0).double().mean().item(),
        "perplexity": math.exp(min(nats / max(1, tokens), 700.0)),
        "bits_per_byte": nats / math.log(2) / max(1, size),
        "tokens": int(tokens),
        "bytes": int(size),
        "documents": n,
        "objective": "dpo",
        "context": context,
    }
