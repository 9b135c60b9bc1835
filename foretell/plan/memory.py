"""Peak resident memory of training on the CPU: what stands in the process, the model's states, what backward needs, logits.

Every term is a count of tensors that are alive at the peak, derived from the code of `models/decoder.py`, `train/loss.py`
and `train/optim.py`, not a rule of thumb from another architecture:

- states: weights, gradients, and the optimiser's tensors (Muon one momentum, AdamW two moments, SGD one momentum);
- activations: what autograd saves for the backward pass of each layer, tensor by tensor (`saved_floats_per_token`);
- logits: the full cross-entropy holds logits, their log-softmax and the gradient; the chunked one a chunk of two of them
  and the gradients of hidden states and head;
- the process itself: interpreter, libraries and thread stacks, measured when the machine was calibrated.

Not handled: other devices' allocators, dropout's masks beyond one byte an element.
"""

from __future__ import annotations

from foretell.config import ModelConfig, RunConfig, TrainConfig
from foretell.plan.flops import layer_matrices, parameters, sizes

FLOAT = 4
# Interpreter with torch and this package loaded, where no calibration has measured it.
PROCESS_BYTES = 330e6


def state_bytes(model: ModelConfig, optimizer: str) -> dict[str, int]:
    """Bytes of weights, gradients and optimiser tensors; all in float32."""
    count = parameters(model)
    total = count["total"]
    matrices = count["attention"] + count["feed_forward"]
    kept = {"sgd": total, "adamw": 2 * total, "muon": matrices + 2 * (total - matrices)}[optimizer]
    return {"weights": FLOAT * total, "gradients": FLOAT * total, "optimizer": FLOAT * kept}


def saved_floats_per_token(model: ModelConfig) -> float:
    """Numbers that autograd keeps of one token in one layer, the residual stream included."""
    D, _, H, K, E, F, _ = sizes(model)
    q, kv = H * E, K * E
    attention = (
        2 * D  # the residual stream before the norm, and the normed input of the three projections
        + q
        + kv  # q and k before their norms
        + 2 * (q + kv)  # normed and rotated; the rotation keeps neither, but its inputs live until the layer ends
        + kv  # v
        + q  # the attention's output
        + H  # log-sum-exp of each head
    )
    feed_forward = 2 * D + 2 * F + 2 * F  # residual, normed, gate and up, silu(gate) and the product
    return attention + feed_forward


def activation_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes kept for the backward pass of one micro-batch, all layers, without the logits."""
    D, L, _, _, _, _, _ = sizes(model)
    tokens = (train.micro_batch_size or 1) * train.context
    item = 2 if train.dtype == "bfloat16" else FLOAT
    dropout = 3 * D * L if train.dropout else 0
    return int(tokens * (item * (L * saved_floats_per_token(model) + 2 * D) + dropout))


def logit_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes of the cross-entropy at its peak."""
    D, _, _, _, _, _, V = sizes(model)
    tokens = (train.micro_batch_size or 1) * train.context
    chunk = train.loss_chunk_tokens
    if chunk is None or chunk >= tokens:
        return FLOAT * 3 * tokens * V
    return FLOAT * (2 * chunk * V + tokens * D + V * D)


def workspace_bytes(model: ModelConfig, optimizer: str) -> int:
    """Bytes the optimiser step takes for a moment: Muon's batched iteration over the largest group of equal matrices."""
    if optimizer != "muon":
        return 0
    groups: dict[tuple[int, int], int] = {}
    for _, rows, columns in layer_matrices(model):
        groups[rows, columns] = groups.get((rows, columns), 0) + sizes(model)[1]
    return max(FLOAT * n * (4 * rows * columns + 2 * min(rows, columns) ** 2) for (rows, columns), n in groups.items())


def memory_bytes(config: RunConfig, process_bytes: float | None = None) -> dict[str, float]:
    """states, activations, logits, workspace, process and peak of a completed config, in bytes."""
    states = state_bytes(config.model, config.train.optimizer)
    activations = activation_bytes(config.model, config.train)
    logits = logit_bytes(config.model, config.train)
    workspace = workspace_bytes(config.model, config.train.optimizer)
    process = process_bytes or PROCESS_BYTES
    return {
        "states": sum(states.values()),
        "activations": activations,
        "logits": logits,
        "workspace": workspace,
        "process": process,
        "peak": process + sum(states.values()) + max(activations + logits, workspace),
    }
