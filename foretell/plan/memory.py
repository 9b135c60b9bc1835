"""Peak resident memory of training on the CPU: the process, the model's states, what backward needs, logits.

Every term is a count of tensors alive at the peak, derived from the code of `models/core.py`, `train/loss.py` and
`train/optim.py` rather than a rule of thumb from another architecture:

- states: weights, gradients, and the optimiser's tensors (Muon one momentum, AdamW two moments, SGD one momentum);
- activations: what autograd saves for the backward pass, tensor by tensor (`activations.py`);
- attention by products takes some arrays of a block for a moment;
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

from foretell.config import ModelConfig, TrainConfig
from foretell.plan import activations, learning, models, moments
from foretell.plan.activations import FLOAT, HALF, MicroBatch, attention_blocks
from foretell.plan.architecture import Architecture
from foretell.plan.flops import bias_parameters, matrices, muon_matrices
from foretell.plan.learning import Part
from foretell.plan.moments import Held

# Interpreter with torch and this package loaded, where no calibration has measured it.
PROCESS_BYTES = 3.5e8
# torch.compile's modules, graphs and code in this process; what its kernels keep of the activations. Estimates.
COMPILER_BYTES = 2.5e8
COMPILED_SHARE = 0.85
# Held by the allocator beyond the live tensors: a share of them, and a constant (docs/plan.md).
HELD_SHARE, HELD_BYTES = 0.2, 2.2e7


def state_bytes(
    model: ModelConfig, optimizer: str, trained: int | None = None, added: int | None = None
) -> dict[str, int]:
    """Bytes of weights, gradients and optimiser tensors; all in float32.

    trained: of so many numbers, where not all learn (LoRA, frozen parts); added: numbers of adapters among them.
    """
    a = models.of_model(model)
    total = a.parameters["total"]
    if trained is not None:
        kept = (2 if optimizer == "adamw" else 1) * trained  # Muon's tables and norms are not told apart here
        weights = FLOAT * (total + (added or 0))
        return {"weights": weights, "gradients": FLOAT * trained, "optimizer": FLOAT * kept}
    updated = total - bias_parameters(model)
    in_matrices = sum(count * rows * columns for count, rows, columns, _ in muon_matrices(a))
    kept = {"sgd": updated, "adamw": 2 * updated, "muon": in_matrices + 2 * (updated - in_matrices)}[optimizer]
    return {"weights": FLOAT * total, "gradients": FLOAT * total, "optimizer": FLOAT * kept}


def run_state_bytes(model: ModelConfig, train: TrainConfig) -> dict[str, int]:
    """The same of a run."""
    return state_bytes(model, train.optimizer, train.trained_parameters, train.added_parameters)


def saved_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes of a checkpoint: what learns, and the optimiser's tensors."""
    states = run_state_bytes(model, train)
    return states["optimizer"] + (states["weights"] if train.trained_parameters is None else states["gradients"])


def _micro_batch(train: TrainConfig) -> MicroBatch:
    return MicroBatch(train.micro_batch_size or 1, train.context, train.dtype, train.attention, bool(train.dropout))


def saved_bytes_per_token(model: ModelConfig, dtype: str, dropout: bool = False) -> float:
    """Bytes that autograd keeps of one token, all layers and the last norm, up to the input of the head."""
    a, b = models.of_model(model), MicroBatch(1, 1, dtype, dropout=dropout)
    layers = sum(n * activations.token_bytes(y, a.hidden, b) for n, y in a.kinds)
    return layers + activations.outer_token_bytes(a, b)


def probability_bytes(model: ModelConfig, train: TrainConfig) -> float:
    """Bytes that attention keeps of a micro-batch beside these: probabilities for the log-sum-exp of rows, masks."""
    a, b = models.of_model(model), _micro_batch(train)
    return sum(n * activations.attention_extra_bytes(y, b) for n, y in a.kinds)


def _feed_forward_bytes_per_token(model: ModelConfig, dtype: str) -> float:
    """What autograd keeps of the last layer's feed-forward part and its norms."""
    a = models.of_model(model)
    layer = a.kinds[-1][1]
    norms = activations.norms_of_feed_forward(layer) * activations.norm_bytes(layer, a.hidden)
    return norms + activations.feed_forward_bytes(layer, a.hidden, MicroBatch(1, 1, dtype))


def attention_bytes(model: ModelConfig, train: TrainConfig) -> float | None:
    """Bytes over the other activations in the backward pass of the last layer's attention by products.

    Two arrays of the last block in float32, a third where the probabilities are kept in less; what Python still names
    of the one before; the gradients of queries so far, of keys and values, and of the block's output (that of the whole
    stands where the output was kept). The feed-forward part of that layer is gone by then: it may be less than 0. None
    where torch's kernel computes it.
    """
    if train.attention != "products" or activations.is_masked(models.of_model(model).kinds[-1][1], train.context):
        return None
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
    tokens, a = micro_batch_tokens(train), models.of_model(model)
    part = _counted(model, train)
    if part is not None:
        kept = learning.kept_bytes(a, part, _micro_batch(train))
        if part.head(a) and not moments.is_chunked(train):
            kept += tokens * a.hidden * (HALF if train.dtype == "bfloat16" else FLOAT)
        return kept + cast_bytes(model, train)
    kept = tokens * saved_bytes_per_token(model, train.dtype, bool(train.dropout)) + probability_bytes(model, train)
    kept += (train.micro_batch_size or 1) * activations.sequence_bytes(models.of_model(model), _micro_batch(train))
    if moments.is_chunked(train):  # the chunked loss keeps gradients in place of the head's input
        kept -= tokens * model.sizes.D * (HALF if train.dtype == "bfloat16" else FLOAT)
    return kept * (COMPILED_SHARE if train.compile == "on" else 1.0) + cast_bytes(model, train)


def _counted(model: ModelConfig, train: TrainConfig) -> Part | None:
    """What learns where not all does, if what is kept can be told by it; dropout and compilers mix what is kept."""
    a = models.of_model(model)
    plain = learning.is_counted(a) and not train.dropout and train.compile != "on"
    return learning.of(a, train) if plain else None


def cast_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes of the copies of weights that autocast makes for products, kept until their backward pass."""
    if train.dtype != "bfloat16":
        return 0
    a = models.of_model(model)
    head = 0 if moments.is_chunked(train) else a.outputs * a.hidden
    part = _counted(model, train)
    if part is not None:
        return HALF * (learning.cast_numbers(part) + head)
    return HALF * (_matrix_numbers(a) + head)


def _matrix_numbers(a: Architecture) -> int:
    """Numbers in the matrices of all layers."""
    return sum(count * rows * columns for count, rows, columns, _ in matrices(a))


def micro_batch_tokens(train: TrainConfig) -> int:
    """Tokens that one forward and backward pass holds at once."""
    return (train.micro_batch_size or 1) * train.context


def logit_bytes(model: ModelConfig, train: TrainConfig) -> float:
    """Bytes of the cross-entropy at its peak."""
    a = models.of_model(model)
    part = learning.of(a, train)
    return moments.loss_bytes(a, train, part is None or part.head(a))


def table_bytes(model: ModelConfig) -> int:
    """Bytes of the rotary tables: a cosine and a sine of every position."""
    return 2 * FLOAT * models.of_model(model).angles * model.needed("max_position_embeddings") * model.sizes.E


def workspace_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """Bytes the optimiser takes.

    Muon's iteration holds three of each matrix of a shape, and two squares; in bfloat16 the momenta and the update
    whole, one half between them, and the squares. torch's SGD adds the decay to a copy of the gradients.
    """
    if train.optimizer == "sgd" and train.weight_decay:
        a = models.of_model(model)
        return FLOAT * (_matrix_numbers(a) + a.parameters["embedding"] + a.parameters["head"])
    if train.optimizer != "muon":
        return 0
    matrix, square = (2 * FLOAT + HALF, 2 * HALF) if train.dtype == "bfloat16" else (3 * FLOAT, 2 * FLOAT)
    groups: dict[tuple[int, int, bool], int] = {}
    for count, rows, columns, stacked in muon_matrices(models.of_model(model)):
        groups[rows, columns, stacked] = groups.get((rows, columns, stacked), 0) + count
    return max(
        n * (matrix * rows * columns + square * min(rows, columns) ** 2) for (rows, columns, _), n in groups.items()
    )


def live_moments(m: ModelConfig, t: TrainConfig) -> dict[str, float]:
    """Bytes of live tensors over weights, optimiser and tables at each moment that may be a step's peak."""
    a, kept, gradients = models.of_model(m), activation_bytes(m, t), run_state_bytes(m, t)["gradients"]
    part = _counted(m, t)
    own = FLOAT * a.kinds[0][1].parameters if t.trained_parameters is None else gradients // m.sizes.L
    layers = m.sizes.L
    if part is not None:  # the first layer that has a backward pass, as one of those that have
        first, *_ = reached = [y for y in part.layers if y.hands_on]
        own, layers = FLOAT * first.numbers, len(reached)
    held = Held(kept, kept / layers, gradients, own, attention_bytes(m, t), workspace_bytes(m, t))
    return moments.moments(a, t, held, part)


def memory_bytes(m: ModelConfig, t: TrainConfig, process_bytes: float | None = None) -> dict[str, float]:
    """The parts, the peak of live tensors (`live`) and of resident memory (`peak`), in bytes, of completed tables."""
    states = run_state_bytes(m, t)
    kept, logits = activation_bytes(m, t), logit_bytes(m, t)
    workspace = workspace_bytes(m, t)
    process = (process_bytes or PROCESS_BYTES) + (COMPILER_BYTES if t.compile == "on" else 0.0)
    several = moments.several(t)
    live = max(live_moments(m, t).values())
    # Gradients and workspace find no room among the activations' holes, so they come on top of a peak they are not in.
    held = HELD_BYTES + HELD_SHARE * live + min(workspace, kept) + (0 if several else states["gradients"])
    # What is being written while training goes on; the save at the end finds room where activations and holes were.
    saves = t.save_every is None or t.steps is None or t.save_every < t.steps
    copy = saved_bytes(m, t)
    snapshot, most = (copy, live + held) if saves else (0, max(live + held, copy + HELD_BYTES))
    return {
        "states": sum(states.values()),
        "activations": kept,
        "logits": logits,
        "workspace": workspace,
        "snapshot": snapshot,
        "allocator": held,
        "process": process,
        "live": states["weights"] + states["optimizer"] + table_bytes(m) + live,
        "peak": process + states["weights"] + states["optimizer"] + table_bytes(m) + most + snapshot,
    }
