"""The moments of an optimiser step on one device at which most tensors live, each in bytes over weights and optimiser.

Derived from the code of `train/loss.py`, `models/core.py`, `train/optim.py` and from what autograd frees when: a
node's saved tensors go when it has run; a gradient of a weight that is used twice (a tied table) waits, whole, for the
other one; under autocast it is formed in bfloat16 and then cast. N tokens of a micro-batch, D, F, V widths:

- loss: activations, and three arrays of N V (log-softmax, its gradient, the logits' gradient); in chunks, those of the
  chunk before and of this one, and the gradients of hidden states and head, which are doubled as they are handed on;
- head: the gradients of the logits, of the hidden states and of the head's weight, and its cast;
- layers: the backward pass of the last layer's feed-forward part (two arrays of N F, one where it has no gate) or of
  its attention by products, when nearly all activations live; the same of the first layer, when nearly all gradients
  live;
- table: all gradients, and the table's second one;
- step: all gradients, and what the optimiser takes.

With several micro-batches all gradients live at each of them. Not handled: what a kernel takes inside itself.
"""

from __future__ import annotations

from dataclasses import dataclass

from foretell.config import TrainConfig
from foretell.plan import activations, learning
from foretell.plan.activations import FLOAT, HALF
from foretell.plan.architecture import Architecture, Layer
from foretell.plan.learning import Part


@dataclass(frozen=True)
class Held:
    """What `memory.py` counts, in bytes.

    activations: kept of a micro-batch for the backward pass, casts of weights too, without the logits. layer: of these
    one layer's. gradients: of all weights. layer_gradients: one layer's. attention: what attention by products takes
    above the last layer's activations, None where it is not. workspace: the optimiser's.
    """

    activations: float
    layer: float
    gradients: float
    layer_gradients: float
    attention: float | None
    workspace: float


def is_chunked(train: TrainConfig) -> bool:
    """Whether the logits of a micro-batch are formed in chunks."""
    if train.objective in ("labels", "spans"):
        return False
    return train.loss_chunk_tokens is not None and train.loss_chunk_tokens < _scored(train)


def _tokens(train: TrainConfig) -> int:
    return (train.micro_batch_size or 1) * train.context


def _scored(train: TrainConfig) -> int:
    """Tokens of a micro-batch that are asked for, at most. Rows that differ in width leave holes: those count whole."""
    return train.most_scored or _tokens(train) if train.objective == "answers" else _tokens(train)


def _asked(a: Architecture, train: TrainConfig) -> int:
    """Places of a micro-batch at which the head works."""
    return a.asked(train.micro_batch_size or 1, _scored(train))


def several(train: TrainConfig) -> bool:
    """Whether a step has several micro-batches."""
    return _tokens(train) < (train.global_batch_tokens or 0)


def loss_bytes(a: Architecture, train: TrainConfig, learns: bool = True) -> float:
    """Bytes of the cross-entropy at its peak. learns: whether the head's weight does."""
    return max(_loss_moments(a, train, learns))


def _loss_moments(a: Architecture, train: TrainConfig, learns: bool) -> tuple[float, ...]:
    N, D, V = _asked(a, train), a.hidden, a.outputs
    if not is_chunked(train):
        return (3.0 * FLOAT * N * V,)
    chunk = train.loss_chunk_tokens or N
    short = train.dtype == "bfloat16"
    item = HALF if short else FLOAT
    # In float32 two arrays of a chunk, beside the one of the chunk before, which Python still names; in bfloat16 that
    # one's gradient too, and then the product for the head's weight and its cast.
    kept = (FLOAT + HALF if short else FLOAT) * chunk * V
    formed = max(2.0 * FLOAT * chunk * V, kept + 2.0 * FLOAT * min(chunk, N - chunk) * V)
    if short and learns:
        formed = max(formed, kept + (HALF + FLOAT) * V * D)
    # Hidden states, their copy, their gradient; the head's copy and its gradient.
    around = FLOAT * N * D + (2 * HALF if short else FLOAT) * N * D
    around += (HALF if short else 0) * V * D + (FLOAT * V * D if learns else 0)
    handed = 2.0 * item * (N * D + (V * D if learns else 0))
    cast = HALF * N * D + (HALF + FLOAT) * V * D if short and learns else 0.0
    return around + formed, handed, cast


def _head_moments(a: Architecture, train: TrainConfig, learns: bool) -> tuple[float, ...]:
    """After the loss: the head's backward pass, where the logits were formed whole."""
    N, D, V = _asked(a, train), a.hidden, a.outputs
    if is_chunked(train):
        return (0.0,)
    if not learns:
        return (float((HALF if train.dtype == "bfloat16" else FLOAT) * (N * V + N * D)),)
    # Of the states that no label is asked of, the gradients are there too, and are 0.
    whole = FLOAT * _tokens(train) * D if a.told == "labels" else 0
    if train.dtype == "bfloat16":
        return HALF * (N * V + N * D + V * D) + whole, HALF * N * D + (HALF + FLOAT) * V * D + whole
    return (float(FLOAT * (N * V + N * D + V * D)) + whole,)


def _feed_forward_bytes(a: Architecture, train: TrainConfig, part: Part | None) -> float:
    """What the backward pass of the last layer's feed-forward part has at once beside what was kept for it.

    The gradients of the gate's and the other branch, of the last weight, and of what the layer added to. A norm behind
    it is gone by then.
    """
    N, D, layer = _tokens(train), a.hidden, _last(a)
    if not layer.inner:
        return 0.0
    item = HALF if train.dtype == "bfloat16" else FLOAT
    gone = activations.norm_bytes(layer, D) if layer.behind else 0
    array, weight = float(item * N * layer.inner), FLOAT * D * layer.inner
    if part is not None:
        weight = FLOAT * part.layers[-1].largest_weight
    passed = array + weight
    if layer.gated:  # of several micro-batches, the last weight's is added to what is there before both are formed
        passed = max(passed, 2 * array) if several(train) else 2 * array + weight
    passed += (FLOAT + (HALF if item == HALF else 0)) * N * D - N * gone
    # Before it, an RMSNorm behind it, which torch's CPU takes apart: six arrays of N D, counted by its profiler.
    return max(passed, 6.0 * FLOAT * N * D) if layer.behind and layer.rms else passed


def _last(a: Architecture) -> Layer:
    return a.kinds[-1][1]


def _attention_bytes(a: Architecture, train: TrainConfig, held: Held) -> float:
    """The same of its attention by products: beside it the gradient of what the layer added to, and those of weights.

    With one micro-batch the gradients of the feed-forward part and of the output's projection have just been formed.
    """
    if held.attention is None:
        return 0.0
    layer, formed = _last(a), 0
    if not several(train) and layer.inner:
        formed = FLOAT * sum(m.weights for m in layer.matrices if not m.name.endswith(("q_proj", "k_proj", "v_proj")))
    return held.attention + FLOAT * _tokens(train) * a.hidden + formed


def moments(a: Architecture, train: TrainConfig, held: Held, part: Part | None = None) -> dict[str, float]:
    """Bytes over weights, optimiser and tables at each moment; the peak of the step is the largest.

    part: what learns, where not all does.
    """
    table, *others = (float(FLOAT * rows * width) for _, rows, width in a.tables)
    if part is not None:
        return _partly(a, train, held, part, table)
    tied, again = a.tied, several(train)
    there = held.gradients if again else 0.0
    # The head's gradient: waiting for the embedding's where they are one table, else already in its place.
    waiting = table if tied or not again else 0.0
    item = HALF if train.dtype == "bfloat16" else FLOAT
    # The last norm's and the head's part of the activations is gone by then.
    norm = activations.norm_bytes(_last(a), a.hidden) if a.told == "tokens" else 0
    gone = _asked(a, train) * (norm + (0 if is_chunked(train) else item * a.hidden))
    passing = max(_feed_forward_bytes(a, train, None), _attention_bytes(a, train, held))
    looked_up = sum(others) + (0.0 if tied else table)
    at_first = there if again else held.gradients - held.layer_gradients - looked_up
    extra = table * (tied + again)
    return {
        "loss": there + held.activations + loss_bytes(a, train),
        "head": there + held.activations + max(_head_moments(a, train, True)),
        "last layer": there + held.activations - gone + waiting + passing,
        "first layer": at_first + held.layer + (table if tied else 0.0) + passing,
        "table": held.gradients + extra + FLOAT * _tokens(train) * a.hidden,
        "step": held.gradients + held.workspace,
    }


def _partly(a: Architecture, train: TrainConfig, held: Held, part: Part, table: float) -> dict[str, float]:
    """The same where not all learns: a frozen head or table has no gradient, and below some layer nothing has."""
    again, learns, last = several(train), part.head(a), part.layers[-1]
    there = held.gradients if again else 0.0
    item = HALF if train.dtype == "bfloat16" else FLOAT
    kept = learning.norm_bytes(last.layer, a.hidden, part.norm, last.hands_on)
    gone = _tokens(train) * (kept + (item * a.hidden if learns and not is_chunked(train) else 0))
    waiting = table if learns and (a.tied or not again) else 0.0
    passing = max(_feed_forward_bytes(a, train, part), _attention_bytes(a, train, held))
    at_first = there if again else held.gradients - held.layer_gradients - (table if part.table else 0.0)
    found = {
        "loss": there + held.activations + loss_bytes(a, train, learns),
        "head": there + held.activations + max(_head_moments(a, train, learns)),
        "last layer": there + held.activations - gone + waiting + passing,
        "first layer": at_first + held.layer + (table if learns and a.tied else 0.0) + passing,
        "step": held.gradients + held.workspace,
    }
    if part.table:
        found["table"] = held.gradients + table * (a.tied + again) + FLOAT * _tokens(train) * a.hidden
    return found
