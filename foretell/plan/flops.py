"""Parameters and FLOPs of the model that is trained, counted exactly from its config, by way of its architecture.

Convention, named in every plan: a product of (m, k) and (k, n) costs 2 m n k; every matrix product of the model counts,
the output head too, the embedding lookup not; the backward pass costs twice the forward pass. Attention is counted in
two ways: `full` as if every query met all T keys, which is what an operator-level counter sees with the plain kernel,
and `causal` exactly, (T + 1) / 2 keys a query, fewer where a window hides some. The headline `flops_per_token` is
causal, so that the share of the machine's peak (MFU) is not flattered by products that no kernel need do. `6n` is the
rule of thumb of Kaplan et al. (2020), for comparison. Of a mixture of experts a token costs the router and its own k
experts; that is exact, because no token is dropped and none is padded.

Not counted: norms, activations, softmax, the optimiser's own products (`optimizer_flops` has those of Muon; they are
time, not model FLOPs) and what attention kernels compute again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

from foretell.config import ModelConfig, TrainConfig
from foretell.plan import layout, models
from foretell.plan.architecture import Architecture, numbers

NEWTON_SCHULZ_STEPS = 5


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters by place; `total` is their sum. `non_embedding` leaves out the tables and an untied head.

    Biases count where their matrix does. A mixture of experts has `router` too (with the biases that balance), and
    beside the sums `active`: those that one token passes through, and `active_non_embedding`.
    """
    a = models.of_model(model)
    found = a.parameters
    count = {
        "embedding": found["embedding"],
        "attention": _numbers_of(a, "self_attn.") + _numbers_of(a, "cross_attn."),
        "feed_forward": _numbers_of(a, "mlp.") - _numbers_of(a, "mlp.gate"),
        "norms": sum(n * numbers(y.vectors) for n, y in a.kinds) + sum(numbers(s.vectors) for s in a.stacks),
        "head": found["head"] + numbers(a.vectors) + sum(m.parameters for m in a.head[:-1]),
    }
    if model.num_experts:
        biases = bias_parameters(model)
        count["norms"] -= biases
        count["router"] = _numbers_of(a, "mlp.gate") + biases
        count |= {k: found[k] for k in ("active", "active_non_embedding")}
    return {"total": found["total"], "non_embedding": found["non_embedding"], "per_rank": found["total"], **count}


def _numbers_of(a: Architecture, place: str) -> int:
    """Parameters of the matrices of all layers that stand at a place, given with its dot, or are named so."""
    return sum(
        n * m.parameters
        for n, y in a.kinds
        for m in y.matrices
        if m.name == place or (place.endswith(".") and m.name.startswith(place))
    )


def bias_parameters(model: ModelConfig) -> int:
    """The biases that balance experts, which have no optimiser tensors."""
    return model.sizes.L * (model.num_experts or 0) if model.balance == "bias" else 0


def flops_per_token(model: ModelConfig, context: int) -> dict[str, float]:
    """FLOPs to train on one token, forward and backward, under each convention. A source is as long as its target."""
    return models.of_model(model).flops_per_token(context, context)


def matrices(a: Architecture) -> Iterator[tuple[int, int, int, bool]]:
    """(how many, rows, columns, in a stack of experts) of the weight matrices of all layers."""
    for n, layer in a.kinds:
        for m in layer.matrices:
            yield n * m.copies, m.rows, m.columns, m.is_stack


def muon_matrices(a: Architecture) -> Iterator[tuple[int, int, int, bool]]:
    """All that Muon works on: a table of positions too, not of tokens or types, nor the head (`train/optim.py`)."""
    yield from matrices(a)
    for name, rows, width in a.tables:
        if not layout.is_table(name):
            yield 1, rows, width, False
    for m in a.head[:-1]:
        yield 1, m.rows, m.columns, False


def run_flops_per_token(model: ModelConfig, train: TrainConfig) -> dict[str, float]:
    """The same of a run, for each of the `context` tokens that a row has room for.

    Where the text decides how long rows are and where the head works (`row_tokens`, `row_scored`), that counts. Not all
    numbers may learn: a frozen product has no gradient of its weight; it still hands the gradient of its input on,
    which is also counted below the first layer that learns.
    """
    a, tokens = models.of_model(model), train.row_tokens or float(train.context)
    source, filled = train.row_source or tokens, tokens / train.context
    whole = {k: v * filled for k, v in a.flops_per_token(tokens, source, train.row_scored).items()}
    if train.trained_parameters is None:
        return whole
    f = a.forward_flops(tokens, source, train.row_scored)
    products = (f["matrices"] + f["head"]) / train.context
    frozen = max(0.0, products - 2 * filled * (train.trained_parameters - (train.added_parameters or 0)))
    more = 6 * filled * (train.added_parameters or 0) - frozen
    return {k: v + more for k, v in whole.items()}


def optimizer_flops(model: ModelConfig, optimizer: str) -> float:
    """FLOPs of matrix products in one optimiser step: Newton-Schulz over every matrix where the optimiser is Muon."""
    if optimizer != "muon":
        return 0.0
    every = muon_matrices(models.of_model(model))
    return sum(count * newton_schulz_flops(rows, columns) for count, rows, columns, _ in every)


def newton_schulz_flops(rows: int, columns: int) -> float:
    """FLOPs of the iteration over one matrix."""
    m, n = min(rows, columns), max(rows, columns)
    return float(NEWTON_SCHULZ_STEPS * (4 * m * m * n + 2 * m**3))
