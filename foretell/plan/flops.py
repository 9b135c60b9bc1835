"""Parameters and FLOPs of the decoder, counted exactly from its config.

Convention, named in every plan: a product of (m, k) and (k, n) costs 2 m n k; every matrix product of the model counts,
the output head too, the embedding lookup not; the backward pass costs twice the forward pass. Attention is counted in
two ways: `full` as if every query met all T keys, which is what an operator-level counter sees with the plain kernel,
and `causal` exactly, (T + 1) / 2 keys a query. The headline `flops_per_token` is causal, so that the share of the
machine's peak (MFU) is not flattered by products that no kernel need do. `6n` is the rule of thumb of Kaplan et al.
(2020), for comparison. Of a mixture of experts a token costs the router and its own k experts; that is exact, because
no token is dropped and none is padded.

Not counted: norms, activations, softmax, the optimiser's own products (`optimizer_flops` has those of Muon; they are
time, not model FLOPs) and what attention kernels compute again in the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator

from foretell.config import ModelConfig, TrainConfig

NEWTON_SCHULZ_STEPS = 5


def layer_matrices(model: ModelConfig, experts: int | None = None) -> Iterator[tuple[str, int, int]]:
    """(name, rows, columns) of each weight matrix of one layer; in a mixture, of so many of its experts, or all."""
    D, _, H, K, E, F, _ = model.sizes
    yield "self_attn.q_proj", H * E, D
    yield "self_attn.k_proj", K * E, D
    yield "self_attn.v_proj", K * E, D
    yield "self_attn.o_proj", D, H * E
    if not model.num_experts:
        yield "mlp.gate_proj", F, D
        yield "mlp.up_proj", F, D
        yield "mlp.down_proj", D, F
        return
    inner = model.moe_intermediate_size or 0
    yield "mlp.gate", model.num_experts, D
    for e in range(model.num_experts if experts is None else experts):
        yield f"mlp.experts.{e}.gate_proj", inner, D
        yield f"mlp.experts.{e}.up_proj", inner, D
        yield f"mlp.experts.{e}.down_proj", D, inner


def active_matrices(model: ModelConfig) -> Iterator[tuple[str, int, int]]:
    """The same of the matrices that one token passes through: of its k experts, or of a dense layer all."""
    return layer_matrices(model, model.num_experts_per_tok)


def parameters(model: ModelConfig) -> dict[str, int]:
    """Parameters by place; `total` is their sum. `non_embedding` leaves out the embedding and an untied head.

    A mixture of experts has `router` too (with the biases that balance), and beside the sums `active`: those that one
    token passes through, and `active_non_embedding`.
    """
    D, L, _, _, E, _, V = model.sizes
    matrices = list(layer_matrices(model))
    router = L * sum(r * c for n, r, c in matrices if n == "mlp.gate")
    count = {
        "embedding": V * D,
        "attention": L * sum(r * c for n, r, c in matrices if n.startswith("self_attn")),
        "feed_forward": L * sum(r * c for n, r, c in matrices if n.startswith("mlp")) - router,
        "norms": L * (2 * D + 2 * E) + D,
        "head": 0 if model.tie_word_embeddings else V * D,
    }
    if model.num_experts:
        count["router"] = router + bias_parameters(model)
    total = sum(count.values())
    if model.num_experts:
        idle = L * (sum(r * c for _, r, c in matrices) - sum(r * c for _, r, c in active_matrices(model)))
        count["active"] = total - idle
        count["active_non_embedding"] = total - idle - count["embedding"] - count["head"]
    return {
        "total": total,
        "non_embedding": total - count["embedding"] - count["head"],
        "per_rank": total,
        **count,
    }


def bias_parameters(model: ModelConfig) -> int:
    """The biases that balance experts, which have no optimiser tensors."""
    return model.sizes.L * (model.num_experts or 0) if model.balance == "bias" else 0


def forward_flops_per_token(model: ModelConfig, context: int) -> dict[str, float]:
    """FLOPs of one token's forward pass: `matrices`, `head`, and attention `attention_full` or `attention_causal`."""
    D, L, H, _, E, _, V = model.sizes
    return {
        "matrices": 2 * L * sum(r * c for _, r, c in active_matrices(model)),
        "head": 2 * D * V,
        "attention_full": 4 * L * H * E * context,
        "attention_causal": 4 * L * H * E * (context + 1) / 2,
    }


def flops_per_token(model: ModelConfig, context: int) -> dict[str, float]:
    """FLOPs to train on one token, forward and backward, under each convention."""
    f = forward_flops_per_token(model, context)
    count = parameters(model)
    return {
        "causal": 3 * (f["matrices"] + f["head"] + f["attention_causal"]),
        "full": 3 * (f["matrices"] + f["head"] + f["attention_full"]),
        "without_head": 3 * (f["matrices"] + f["attention_causal"]),
        "6n": 6 * count.get("active", count["total"]),
    }


def run_flops_per_token(model: ModelConfig, train: TrainConfig) -> dict[str, float]:
    """The same of a run, in which not all numbers may learn: a frozen product has no gradient of its weight.

    It still hands the gradient of its input on, which is also counted below the first layer that learns.
    """
    whole = flops_per_token(model, train.context)
    if train.trained_parameters is None:
        return whole
    f = forward_flops_per_token(model, train.context)
    frozen = max(0.0, f["matrices"] + f["head"] - 2 * (train.trained_parameters - (train.added_parameters or 0)))
    more = 6 * (train.added_parameters or 0) - frozen
    return {k: v + more for k, v in whole.items()}


def optimizer_flops(model: ModelConfig, optimizer: str) -> float:
    """FLOPs of matrix products in one optimiser step: Newton-Schulz over every matrix where the optimiser is Muon."""
    if optimizer != "muon":
        return 0.0
    return model.sizes.L * sum(newton_schulz_flops(rows, columns) for _, rows, columns in layer_matrices(model))


def newton_schulz_flops(rows: int, columns: int) -> float:
    """FLOPs of the iteration over one matrix."""
    m, n = min(rows, columns), max(rows, columns)
    return float(NEWTON_SCHULZ_STEPS * (4 * m * m * n + 2 * m**3))
