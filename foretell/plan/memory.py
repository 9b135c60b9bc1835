"""Peak resident memory of training on the CPU: the process, the model's states, what backward needs, logits.

Every term is a count of tensors alive at the peak, derived from the code of `models/decoder.py`, `train/loss.py` and
`train/optim.py` rather than a rule of thumb from another architecture:

- states: weights, gradients, and the optimiser's tensors (Muon one momentum, AdamW two moments, SGD one momentum);
- activations: what autograd saves for the backward pass, tensor by tensor; a test counts them on the built model;
- attention by products keeps its probabilities too, and takes some arrays of a block for a moment;
- logits: what the cross-entropy holds at its peak, whole or in chunks (`moments.py`);
- snapshot: weights and optimiser's tensors once more, for the checkpoint that is written while training goes on;
- workspace: what the optimiser takes for a moment after the backward pass;
- the process itself: interpreter, libraries and thread stacks, measured when the machine was calibrated;
- the allocator: what glibc holds and cannot use, because gradients and the optimiser's arrays do not fit into the holes
  that activations leave. This part is not counted but measured on ten shapes (docs/plan.md).

Which moment of a step is the peak depends on the sizes: `moments.py` counts six of them. The largest is within 0.02% of
torch's own count on ten configs that it was not derived on (benchmarks/memory.py). Resident memory, which is what kills
a process, is some percent more. Not handled: other devices' allocators, what kernels take inside themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

from foretell.config import ModelConfig, TrainConfig
from foretell.plan import moments
from foretell.plan.flops import bias_parameters, layer_matrices, parameters
from foretell.plan.moments import Held

FLOAT, HALF, INDEX = moments.FLOAT, moments.HALF, 8
# Interpreter with torch and this package loaded, where no calibration has measured it.
PROCESS_BYTES = 3.5e8
# torch.compile's modules, graphs and code in this process; what its kernels keep of the activations. Estimates.
COMPILER_BYTES = 2.5e8
COMPILED_SHARE = 0.85
# Held by the allocator beyond the live tensors: a share of them, and a constant (docs/plan.md).
HELD_SHARE, HELD_BYTES = 0.2, 2.2e7
# Rows of queries a block of attention by products: few enough to skip most masked keys, enough for fast products.
FEWEST_ROWS, MOST_BLOCKS = 128, 4


def state_bytes(model: ModelConfig, optimizer: str) -> dict[str, int]:
    """Bytes of weights, gradients and optimiser tensors; all in float32."""
    count = parameters(model)
    total = count["total"]
    updated = total - bias_parameters(model)
    matrices = count["attention"] + count["feed_forward"] + count.get("router", 0) - bias_parameters(model)
    kept = {"sgd": updated, "adamw": 2 * updated, "muon": matrices + 2 * (updated - matrices)}[optimizer]
    return {"weights": FLOAT * total, "gradients": FLOAT * total, "optimizer": FLOAT * kept}


def saved_bytes_per_token(model: ModelConfig, dtype: str, dropout: bool = False) -> int:
    """Bytes that autograd keeps of one token, all layers and the last norm, up to the input of the head.

    An RMSNorm keeps its input, its scaled input (D each) and one number. Under autocast, norms stay in float32 and each
    product keeps its own copy of its input in the lower precision.
    """
    D, L, H, K, E, _, _ = model.sizes
    q, kv = H * E, K * E
    norm = FLOAT * (2 * D + 1)
    norms_of_heads = FLOAT * (2 * q + H + 2 * kv + K)
    item, copies = (HALF, 3) if dtype == "bfloat16" else (FLOAT, 1)
    attended = item * (q + 2 * kv + q) + FLOAT * H  # rotated q and k, v, the output; log-sum-exp of each head
    attention = norm + item * copies * D + norms_of_heads + attended
    feed_forward = _feed_forward_bytes_per_token(model, dtype)
    masks = (2 * L + 1) * D if dropout else 0
    return L * (attention + feed_forward) + norm + item * D + masks


def _feed_forward_bytes_per_token(model: ModelConfig, dtype: str) -> int:
    """What autograd keeps of one layer's feed-forward part: norm, input, gate, up, silu(gate) and their product."""
    D, F = model.sizes.D, model.sizes.F
    item, copies = (HALF, 2) if dtype == "bfloat16" else (FLOAT, 1)
    if model.num_experts:
        return FLOAT * (2 * D + 1) + item * D + _experts_bytes_per_token(model, item)
    return FLOAT * (2 * D + 1) + item * copies * D + item * 4 * F


def _experts_bytes_per_token(model: ModelConfig, item: int) -> int:
    """What autograd keeps of one token's router and experts.

    The router's probabilities, the experts it chose, and their weights, before they sum to one and after; of each of
    the k copies of the token its input, gate, up, silu(gate), their product and the output, and its places in the order
    of tokens and of experts.
    """
    N, k, F = model.needed("num_experts"), model.needed("num_experts_per_tok"), model.needed("moe_intermediate_size")
    router = FLOAT * (N + (k + 1 if model.norm_topk_prob else 0)) + item * k + INDEX * k
    return router + k * (item * (2 * model.sizes.D + 4 * F) + 2 * INDEX)


def attention_blocks(T: int) -> Iterator[tuple[int, int]]:
    """The rows [start, end) of each block of queries in which `models/attention.py` forms its products."""
    rows = max(FEWEST_ROWS, -(-T // MOST_BLOCKS))
    return ((start, min(start + rows, T)) for start in range(0, T, rows))


def probability_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes of the attention probabilities kept for a micro-batch in place of each row's log-sum-exp; else 0."""
    if train.attention != "products":
        return 0
    kept = sum((end - start) * end for start, end in attention_blocks(train.context))
    item = HALF if train.dtype == "bfloat16" else FLOAT
    rows = (train.micro_batch_size or 1) * model.sizes.L * model.sizes.H
    return rows * (item * kept - FLOAT * train.context)


def attention_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes over the other activations in the backward pass of the last layer's attention by products; else 0.

    Two arrays of the last block in float32, a third where the probabilities are kept in less; what Python still names
    of the one before; the gradients of queries so far, of keys and values, and of the block's output (that of the whole
    stands where the output was kept). The feed-forward part of that layer is gone by then: it may be less than 0.
    """
    if train.attention != "products":
        return 0
    _, _, H, K, E, _, _ = model.sizes
    item, arrays, named = (HALF, 3, 2 * FLOAT + HALF) if train.dtype == "bfloat16" else (FLOAT, 2, FLOAT)
    *others, (start, end) = attention_blocks(train.context)
    block = arrays * FLOAT * H * (end - start) * end
    before = sum(named * H * (e - s) * e for s, e in others[-1:])
    gradients = item * E * (2 * K * train.context + H * start + H * (end - start))
    gone = train.context * _feed_forward_bytes_per_token(model, train.dtype)
    return (train.micro_batch_size or 1) * (block + before + gradients - gone)


def activation_bytes(model: ModelConfig, train: TrainConfig) -> float:
    """Bytes kept for the backward pass of one micro-batch, without the logits."""
    tokens = micro_batch_tokens(train)
    kept = tokens * saved_bytes_per_token(model, train.dtype, bool(train.dropout)) + probability_bytes(model, train)
    if moments.is_chunked(train):  # the chunked loss keeps gradients in place of the head's input
        kept -= tokens * model.sizes.D * (HALF if train.dtype == "bfloat16" else FLOAT)
    return kept * (COMPILED_SHARE if train.compile == "on" else 1.0) + cast_bytes(model, train)


def cast_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes of the copies of weights that autocast makes for products, kept until their backward pass."""
    if train.dtype != "bfloat16":
        return 0
    head = 0 if moments.is_chunked(train) else model.sizes.V * model.sizes.D
    return HALF * (model.sizes.L * _layer_numbers(model) + head)


def _layer_numbers(model: ModelConfig) -> int:
    """Numbers in the matrices of one layer."""
    return sum(rows * columns for _, rows, columns in layer_matrices(model))


def micro_batch_tokens(train: TrainConfig) -> int:
    """Tokens that one forward and backward pass holds at once."""
    return (train.micro_batch_size or 1) * train.context


def logit_bytes(model: ModelConfig, train: TrainConfig) -> float:
    """Bytes of the cross-entropy at its peak."""
    return moments.loss_bytes(model, train)


def table_bytes(model: ModelConfig) -> int:
    """Bytes of the rotary tables: a cosine and a sine of every position."""
    return 2 * FLOAT * model.needed("max_position_embeddings") * model.sizes.E


def workspace_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes the optimiser takes.

    Muon's iteration holds three of each matrix of a shape, and two squares; in bfloat16 the momenta and the update
    whole, one half between them, and the squares. torch's SGD adds the decay to a copy of the gradients.
    """
    if train.optimizer == "sgd" and train.weight_decay:
        c = parameters(model)
        return FLOAT * (c["total"] - c["norms"] - bias_parameters(model))
    if train.optimizer != "muon":
        return 0
    matrix, square = (2 * FLOAT + HALF, 2 * HALF) if train.dtype == "bfloat16" else (3 * FLOAT, 2 * FLOAT)
    groups: dict[tuple[int, int, bool], int] = {}
    for name, rows, columns in layer_matrices(model):
        kind = (rows, columns, ".experts." in name)
        groups[kind] = groups.get(kind, 0) + model.sizes[1]
    return max(
        n * (matrix * rows * columns + square * min(rows, columns) ** 2) for (rows, columns, _), n in groups.items()
    )


def live_moments(m: ModelConfig, t: TrainConfig) -> dict[str, float]:
    """Bytes of live tensors over weights, optimiser and tables at each moment that may be a step's peak."""
    activations, gradients = activation_bytes(m, t), state_bytes(m, t.optimizer)["gradients"]
    own = FLOAT * (_layer_numbers(m) + 2 * (m.sizes.D + m.sizes.E))
    held = Held(activations, activations / m.sizes.L, gradients, own, attention_bytes(m, t), workspace_bytes(m, t))
    return moments.moments(m, t, held)


def memory_bytes(m: ModelConfig, t: TrainConfig, process_bytes: float | None = None) -> dict[str, float]:
    """The parts, the peak of live tensors (`live`) and of resident memory (`peak`), in bytes, of completed tables."""
    states = state_bytes(m, t.optimizer)
    activations, logits = activation_bytes(m, t), logit_bytes(m, t)
    workspace = workspace_bytes(m, t)
    process = (process_bytes or PROCESS_BYTES) + (COMPILER_BYTES if t.compile == "on" else 0.0)
    several = moments.several(t)
    live = max(live_moments(m, t).values())
    # Gradients and workspace find no room among the activations' holes, so they come on top of a peak they are not in.
    held = HELD_BYTES + HELD_SHARE * live + min(workspace, activations) + (0 if several else states["gradients"])
    # What is being written while training goes on; the save at the end finds room where activations were.
    saves = t.save_every is None or t.steps is None or t.save_every < t.steps
    copy = states["weights"] + states["optimizer"]
    snapshot, most = (copy, live) if saves else (0, max(live, float(copy)))
    return {
        "states": sum(states.values()),
        "activations": activations,
        "logits": logits,
        "workspace": workspace,
        "snapshot": snapshot,
        "allocator": held,
        "process": process,
        "live": states["weights"] + states["optimizer"] + table_bytes(m) + live,
        "peak": process + states["weights"] + states["optimizer"] + table_bytes(m) + most + held + snapshot,
    }
