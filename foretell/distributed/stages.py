"""A stage of a pipeline: a model without the layers, embedding or head that others have, under the names of the whole.

Between stages of a decoder or an encoder travel hidden states. An encoder-decoder is one row of layers, those of the
encoder first, and a pair travels: states of the source, and of the target. A stage of the encoder changes the first and
hands the second on; a stage of the decoder changes the second, reads the first, which is the memory by then, and hands
it on. So the first stage alone looks tokens up, all boundaries are alike, and gradients of the memory add up on their
way back.

T5's biases by distance belong to all layers of a half, so every stage with such a layer has them, and their gradients
are added (`Placed.finish_gradients`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from foretell.models.decoder import Decoder
from foretell.models.encoder import Encoder
from foretell.models.model import Model
from foretell.models.seq2seq import Seq2Seq
from foretell.plan import layout


class Seen(NamedTuple):
    """What a stage must know of a micro-batch besides what it is handed.

    places: positions (B, T) of this rank. mask: of attention over them, or None. source_mask: (B, S) boolean, of an
    encoder-decoder. lengths: S and T of the whole source and target.
    """

    places: Tensor
    mask: Tensor | None
    source_mask: Tensor | None = None
    lengths: tuple[int, int] = (0, 0)


def prune(model: Model, stage: int, stages: int) -> None:
    """Leave of a model only what is one stage's."""
    inner = model.model
    stacks: list[Any] = [inner.encoder, inner.decoder] if isinstance(model, Seq2Seq) else [inner]
    own, before = layout.stage_layers(sum(len(s.layers) for s in stacks), stages)[stage], 0
    for stack in stacks:
        depth = len(stack.layers)
        _keep(stack, range(max(0, own.start - before), min(depth, own.stop - before)), depth)
        before += depth
    if stage > 0:
        inner.embed_tokens = inner.dropout = nn.Identity()  # type: ignore[assignment]
        if isinstance(model, Encoder):
            model.model.embed_positions = model.model.embed_types = None  # type: ignore[assignment]
            model.model.embed_norm = nn.Identity()  # type: ignore[assignment]
        elif isinstance(model, Seq2Seq):
            model.model.positions = None
        else:
            model.model.embed_positions, model.model.embed_scale = None, 1.0
    if stage < stages - 1:
        model.lm_head = nn.Identity()  # type: ignore[assignment]
        if isinstance(model, Encoder):
            model.head_dense = model.head_norm = nn.Identity()  # type: ignore[assignment]


def _keep(stack: nn.Module, here: range, depth: int) -> None:
    """Leave of a stack of so many layers these alone, and what goes with them."""
    layers = stack.layers
    assert isinstance(layers, nn.ModuleList)
    for n in [n for n in layers._modules if int(n) not in here]:
        del layers._modules[n]
    if depth - 1 not in here and hasattr(stack, "norm"):
        stack.norm = nn.Identity()
    if not len(layers):  # of the two halves one may have none here
        stack.relative_bias = None  # type: ignore[assignment]


def is_again(model: Model, name: str) -> bool:
    """Whether an earlier stage of the pipeline has the parameter of that name, too, and this one a copy."""
    half, _, leaf = name.rpartition(".relative_bias.")
    if leaf == "weight":
        return "0" not in model.get_submodule(f"{half}.layers")._modules
    return name == "lm_head.weight" and model.config.tie_word_embeddings


def passed(model: Model, handed: tuple[Tensor, ...], seen: Seen, first: bool, last: bool) -> tuple[Tensor, ...]:
    """What one stage makes of what it is handed: token ids the first, hidden states the others.

    Of an encoder-decoder the source's and the target's. The last gives what the head's product takes, of the target.
    """
    if isinstance(model, Seq2Seq):
        return _passed_on(model, handed, seen, first, last)
    (x,) = handed
    if isinstance(model, Decoder):
        return (model.model(x, seen.places, seen.mask, None),)
    x = model.model(model.model.embedded(x, positions=seen.places) if first else x, seen.mask)
    return (model.transformed(x) if last else x,)


def _passed_on(model: Seq2Seq, handed: tuple[Tensor, ...], seen: Seen, first: bool, last: bool) -> tuple[Tensor, ...]:
    (source, target), inner, (S, T) = handed, model.model, seen.lengths
    if first:
        source, target = inner.embedded(source), inner.embedded(target)
    # What is handed on as it came is a tensor of its own: schedules detach in place what a stage gives.
    memory = inner.encoder(source, seen.source_mask, S) if len(inner.encoder.layers) else source.clone()
    if len(inner.decoder.layers):
        target = inner.decoder(target, memory, seen.source_mask, None, None, T)
    elif not first:
        target = target.clone()
    return (model.scaled(target),) if last else (memory, target)
