"""Which runs a ladder is made of: sizes around the target's, several lengths of each on one trunk, repeated seeds.

A target of N parameters and D tokens costs C. A rung costs at most C / ratio, and the sizes lie around the one that has
the target's tokens a parameter there: N / sqrt(ratio). All sizes get the same FLOPs, so small ones read more a
parameter and large ones less, which is what tells the law's terms of size and data apart. Lengths halve from there.
The shapes are the target's made smaller: its width to depth, its vocabulary, its context.

`Rung.origin` is the shorter run of the same size and seed whose trunk a rung goes on from. The order is that in which
they are trained. Rules of rate and batch are those of `transfer.py`. Nothing here trains or imports torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from foretell import config as run_config
from foretell import plan
from foretell.config import ModelConfig, RunConfig, TrainConfig
from foretell.errors import ConfigError
from foretell.ladder.transfer import hyperparameters
from foretell.plan import flops, size
from foretell.plan import rungs as rungs_law

# The smallest and the largest size over the one with the target's tokens a parameter.
SPAN = (0.33, 2.7)
# Widths are multiples of it, so that heads of the default number have an even width.
WIDTH_STEP = 8
# Checkpoints on the way to the end of a trunk, the last of which the next length goes on from.
SAVES = 10
# A run that validates while it trains does so on this many tokens; what counts is scored after it.
GLANCE_TOKENS = 8192
# Text on which every rung and the target are scored at the end, where the validation text is longer.
SCORED_BYTES = 2e6
FEWEST_STEPS = 20


@dataclass(frozen=True)
class Rung:
    """One run: its model, its length, and what it costs. `trunk_steps` are those before it decays."""

    name: str
    origin: str | None
    hidden_size: int
    num_hidden_layers: int
    seed: int
    steps: int
    trunk_steps: int
    tokens: int
    parameters: int
    non_embedding: int
    flops: float
    train: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """The JSON of it."""
        return asdict(self)


def settled(config: RunConfig, corpus: dict[str, Any], machine: dict[str, Any]) -> RunConfig:
    """The target's config with its size, length, rates and batch decided, and all that rungs have in common.

    Raises ConfigError where the config gives the target neither sizes nor a budget.
    """
    t = config.train
    if t.budget and not (t.steps or t.tokens):
        budget = plan.parse_budget(t.budget)
        sized = plan.size_for_budget(budget, machine=machine, corpus=corpus, probe=None, config=config)
        model = {k: getattr(sized.model, k) for k in ("hidden_size", "num_hidden_layers")}
        config = run_config.updated(config, model=model, train={"tokens": tokens_of(sized), "budget": None})
        t = config.train
    if not (t.tokens or t.steps):
        raise ConfigError("the ladder has no target: give model.hidden_size, model.num_hidden_layers and train.tokens")
    tokens = float(t.tokens or tokens_of(plan.completed(config, corpus, machine)))
    changes = {
        **hyperparameters(t, tokens),
        "schedule": "wsd",
        "decay_fraction": config.ladder.decay_fraction,
        "dropout": size.dropout(t, tokens, corpus) if t.dropout is None else t.dropout,
    }
    steps = t.steps or max(1, round(tokens / changes["global_batch_tokens"]))
    most = config.evaluate.max_tokens or round(SCORED_BYTES / corpus["bytes_per_token"])
    changed = run_config.updated(config, train={**changes, "steps": steps}, evaluate={"max_tokens": most})
    return plan.completed(changed, corpus, machine)


def rungs(target: RunConfig, given: TrainConfig) -> list[Rung]:
    """The ladder for a settled target. given: [train] as it was before, of which the rungs keep what is set.

    Raises ConfigError where the rungs would be too small to learn anything.
    """
    most = target.ladder.rung_flops or cost(target) / target.ladder.ratio
    widths = target.ladder.widths or _widths(target)
    if min(widths) < WIDTH_STEP or len(set(widths)) < 3:
        raise ConfigError(f"ladder.widths ({widths}) must be at least 3 different ones of {WIDTH_STEP} or more")
    first, seeds, middle = target.train.seed, target.ladder.seeds, widths[len(widths) // 2]
    trunks = [(width, first + n) for n in range(seeds) for width in widths]
    trunks += [(middle, first + seeds + n) for n in range(target.ladder.repeats)]
    return [r for width, seed in trunks for r in _trunk(target, given, width, seed, most)]


def tokens_of(config: RunConfig) -> int:
    """Tokens of a completed config's run."""
    return config.train.needed("steps") * config.train.needed("global_batch_tokens")


def cost(config: RunConfig) -> float:
    """FLOPs of a completed config's run, by the headline convention of `foretell plan`."""
    return flops.flops_per_token(config.model, config.train.context)["causal"] * tokens_of(config)


def scaled(model: ModelConfig, width: int) -> ModelConfig:
    """The model of that width with the same ratio of the feed-forward part to it; depth as `plan/rungs.py` says."""
    sizes = model.sizes
    changes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": rungs_law.layers(sizes, width),
        "head_dim": None,
        "intermediate_size": max(16, 16 * round(sizes.F * width / sizes.D / 16)),
    }
    if model.moe_intermediate_size:
        changes["moe_intermediate_size"] = max(16, 16 * round(model.moe_intermediate_size * width / sizes.D / 16))
    return model.model_copy(update=changes).resolved(sizes.V, model.needed("max_position_embeddings"))


def run_of(target: RunConfig, rung: Rung) -> RunConfig:
    """The complete config of a rung, from the settled target's."""
    model = scaled(target.model, rung.hidden_size).model_dump(exclude_none=True)
    return run_config.updated(target, model={**_unset(target.model), **model}, train=rung.train)


def _unset(model: ModelConfig) -> dict[str, None]:
    return {k: None for k in model.model_fields_set if getattr(model, k) is None}


def _widths(target: RunConfig) -> list[int]:
    """Widths whose parameters are evenly apart in the logarithm, around the target's tokens a parameter."""
    count, sizes = flops.parameters(target.model)["total"], target.ladder.sizes
    centre = count / target.ladder.ratio**0.5
    found = []
    for i in range(sizes):
        wanted = centre * SPAN[0] * (SPAN[1] / SPAN[0]) ** (i / (sizes - 1))
        step = max(WIDTH_STEP, 2 * target.model.sizes.H)
        fitting = range(step, target.model.sizes.D + 1, step)
        counts = {w: flops.parameters(scaled(target.model, w))["total"] for w in fitting}
        found.append(min(counts, key=lambda w: abs(counts[w] / wanted - 1)))
    distinct = sorted(set(found))
    if len(distinct) < 3:
        raise ConfigError(
            f"a target of {count:,} parameters leaves rungs of {len(distinct)} sizes only, and the law needs 3; "
            "give ladder.widths, or a larger target"
        )
    return distinct


def _trunk(target: RunConfig, given: TrainConfig, width: int, seed: int, most: float) -> Iterator[Rung]:
    """The lengths of one size and seed, shortest first: each goes on where the one before began to decay."""
    model, t = scaled(target.model, width), target.train
    per_token = flops.flops_per_token(model, t.context)["causal"]
    rates = hyperparameters(given, most / per_token)
    batch, n = rates["global_batch_tokens"], target.ladder.horizons
    count, origin = flops.parameters(model), None
    for horizon in range(n):
        trunk, steps = _lengths(most / per_token / batch / 2 ** (n - 1 - horizon), target.ladder.decay_fraction)
        if steps < FEWEST_STEPS:
            raise ConfigError(
                f"a rung of {count['total']:,} parameters would have {steps} steps of {batch:,} tokens; give "
                f"fewer ladder.horizons ({n}), a smaller train.global_batch_tokens, or a larger target"
            )
        name = f"w{width}-s{seed}-h{horizon + 1}"
        every = trunk // SAVES
        own = {
            **{k: getattr(given, k) for k in ("micro_batch_size", "loss_chunk_tokens")},
            "tokens": None,
            "steps": steps,
            "seed": seed,
            "eval_every": steps,
            "eval_tokens": GLANCE_TOKENS,
            "save_every": every,
            "keep": (steps - trunk) // every + 2,
        }
        tokens = steps * batch
        yield Rung(
            *(name, origin, width, model.sizes.L, seed, steps, trunk, tokens),
            *(count["total"], count["non_embedding"], per_token * tokens, {**rates, **own}),
        )
        origin = name


def _lengths(steps: float, decay: float) -> tuple[int, int]:
    """Steps of a trunk, a multiple of SAVES, and of the run that decays from its end."""
    trunk = SAVES * max(1, round(steps * (1 - decay) / SAVES))
    whole = round(trunk / (1 - decay))
    while whole - round(decay * whole) < trunk:
        whole += 1
    return trunk, whole
