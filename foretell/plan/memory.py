"""Peak resident memory of training on the CPU: the process, the model's states, what backward needs, logits.

Every term is a count of tensors alive at the peak, derived from the code of `models/decoder.py`, `train/loss.py` and
`train/optim.py` rather than a rule of thumb from another architecture:

- states: weights, gradients, and the optimiser's tensors (Muon one momentum, AdamW two moments, SGD one momentum);
- activations: what autograd saves for the backward pass, tensor by tensor; a test counts them on the built model;
- attention by products keeps its probabilities too, and takes three arrays of a block for a moment;
- logits: the full cross-entropy holds three arrays of tokens x V at its peak (the log-softmax, its gradient and the
  gradient of the logits), the chunked one two chunks, and twice the gradients of hidden states and head;
- snapshot: weights and optimiser's tensors once more, for the checkpoint that is written while training goes on;
- workspace: what the optimiser takes for a moment after the backward pass;
- the process itself: interpreter, libraries and thread stacks, measured when the machine was calibrated;
- the allocator: what glibc holds and cannot use, because gradients and the optimiser's arrays do not fit into the holes
  that activations leave. This part is not counted but measured on ten shapes (docs/plan.md).

Two moments can be the peak of live tensors: the loss, when all activations live and gradients only from the second
micro-batch on; and the optimiser step, when all gradients live and no activations. The sum over live tensors agrees
with torch's own count within 3% (tests); resident memory, which is what kills a process, is some percent more. Not
handled: other devices' allocators.
"""

from __future__ import annotations

from collections.abc import Iterator

from foretell.config import ModelConfig, TrainConfig
from foretell.plan.flops import bias_parameters, layer_matrices, parameters

FLOAT, HALF, INDEX = 4, 2, 8
# Interpreter with torch and this package loaded, where no calibration has measured it.
PROCESS_BYTES = 3.5e8
# torch.compile's modules, graphs and code in this process; what its kernels keep of the activations. Estimates.
COMPILER_BYTES = 2.5e8
COMPILED_SHARE = 0.85
# Held by the allocator beyond the live tensors: a share of them, and a constant (docs/plan.md).
HELD_SHARE, HELD_BYTES = 0.2, 2.2e7
# Rows of queries a block of attention by products: few enough to skip most masked keys, enough for fast products.
FEWEST_ROWS, MOST_BLOCKS = 128, 4


def state_bytes(
    model: ModelConfig, optimizer: str, trained: int | None = None, added: int | None = None
) -> dict[str, int]:
    """Bytes of weights, gradients and optimiser tensors; all in float32.

    trained: of so many numbers, where not all learn (LoRA, frozen parts); added: numbers of adapters among them.
    """
    count = parameters(model)
    if trained is not None:
        kept = (2 if optimizer == "adamw" else 1) * trained  # Muon's tables and norms are not told apart here
        weights = FLOAT * (count["total"] + (added or 0))
        return {"weights": weights, "gradients": FLOAT * trained, "optimizer": FLOAT * kept}
    total = count["total"]
    updated = total - bias_parameters(model)
    matrices = count["attention"] + count["feed_forward"] + count.get("router", 0) - bias_parameters(model)
    kept = {"sgd": updated, "adamw": 2 * updated, "muon": matrices + 2 * (updated - matrices)}[optimizer]
    return {"weights": FLOAT * total, "gradients": FLOAT * total, "optimizer": FLOAT * kept}


def run_state_bytes(model: ModelConfig, train: TrainConfig) -> dict[str, int]:
    """The same of a run."""
    return state_bytes(model, train.optimizer, train.trained_parameters, train.added_parameters)


def saved_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes of a checkpoint: what learns, and the optimiser's tensors."""
    states = run_state_bytes(model, train)
    return states["optimizer"] + (states["weights"] if train.trained_parameters is None else states["gradients"])


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
    """Bytes above the other activations at the backward pass of the last layer's attention by products; else 0.

    Two arrays of one block in float32, a third where the probabilities are kept in less; the gradients of what goes in
    and out. The feed-forward part of that layer is gone by then.
    """
    if train.attention != "products":
        return 0
    _, _, H, K, E, _, _ = model.sizes
    item, arrays = (HALF, 3) if train.dtype == "bfloat16" else (FLOAT, 2)
    *_, (start, end) = attention_blocks(train.context)
    block = arrays * FLOAT * H * (end - start) * end
    gradients = item * 2 * (H + K) * E * train.context
    gone = train.context * _feed_forward_bytes_per_token(model, train.dtype)
    return max(0, (train.micro_batch_size or 1) * (block + gradients - gone))


def activation_bytes(model: ModelConfig, train: TrainConfig) -> float:
    """Bytes kept for the backward pass of one micro-batch, without the logits."""
    tokens = micro_batch_tokens(train)
    kept = tokens * saved_bytes_per_token(model, train.dtype, bool(train.dropout)) + probability_bytes(model, train)
    cast = HALF * parameters(model)["total"] if train.dtype == "bfloat16" else 0
    return kept * (COMPILED_SHARE if train.compile == "on" else 1.0) + cast


def micro_batch_tokens(train: TrainConfig) -> int:
    """Tokens that one forward and backward pass holds at once."""
    return (train.micro_batch_size or 1) * train.context


def logit_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes of the cross-entropy at its peak."""
    D, _, _, _, _, _, V = model.sizes
    tokens = micro_batch_tokens(train)
    chunk = train.loss_chunk_tokens
    if chunk is None or chunk >= tokens:
        return FLOAT * 3 * tokens * V
    return FLOAT * (2 * chunk * V + 2 * (tokens * D + V * D))


def workspace_bytes(model: ModelConfig, optimizer: str) -> int:
    """Bytes the optimiser takes: Muon's iteration holds three of each matrix of a shape, and three squares."""
    if optimizer != "muon":
        return 0
    groups: dict[tuple[int, int, bool], int] = {}
    for name, rows, columns in layer_matrices(model):
        kind = (rows, columns, ".experts." in name)
        groups[kind] = groups.get(kind, 0) + model.sizes[1]
    return max(FLOAT * 3 * n * (rows * columns + min(rows, columns) ** 2) for (rows, columns, _), n in groups.items())


def memory_bytes(m: ModelConfig, t: TrainConfig, process_bytes: float | None = None) -> dict[str, float]:
    """The parts, the peak of live tensors (`live`) and of resident memory (`peak`), in bytes, of completed tables."""
    states = run_state_bytes(m, t)
    activations, logits = activation_bytes(m, t), logit_bytes(m, t)
    workspace = workspace_bytes(m, t.optimizer)
    process = (process_bytes or PROCESS_BYTES) + (COMPILER_BYTES if t.compile == "on" else 0.0)
    several = micro_batch_tokens(t) < (t.global_batch_tokens or 0)
    passing = max(logits, attention_bytes(m, t))
    live = max(activations + passing + (states["gradients"] if several else 0), states["gradients"] + workspace)
    # Gradients and workspace find no room among the activations' holes, so they come on top of a peak they are not in.
    held = HELD_BYTES + HELD_SHARE * live + min(workspace, activations) + (0 if several else states["gradients"])
    snapshot = saved_bytes(m, t)  # from the first save on: what is being written
    return {
        "states": sum(states.values()),
        "activations": activations,
        "logits": logits,
        "workspace": workspace,
        "snapshot": snapshot,
        "allocator": held,
        "process": process,
        "live": states["weights"] + states["optimizer"] + live,
        "peak": process + states["weights"] + states["optimizer"] + live + held + snapshot,
    }
