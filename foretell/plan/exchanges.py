"""What ranks send each other while a micro-batch passes through the layers: tensors of tokens, not of weights.

Tensor and sequence parallelism with a loss over parts of the vocabulary (`distributed/tensor.py`), context parallelism
(`context.py`, `ring.py`), expert parallelism (`experts.py`) and the stages of a pipeline (`pipeline.py`). Under
bfloat16 only what comes out of a product is bfloat16: the residual stream, norms, and queries and keys once they are
rotated are float32, and so is their gradient.
"""

from __future__ import annotations

from collections.abc import Iterator

from foretell.plan import layout
from foretell.plan.collective import FLOAT, LONG, Collective, Rank
from foretell.plan.rows import PARTLY


def tensor_parallel(r: Rank) -> Iterator[Collective]:
    """Sequences are gathered before attention and feed-forward part, and their outputs scattered behind them.

    A layer that runs again scatters once less where nothing behind the last product is needed: without dropout, and
    without a norm there.
    """
    if r.d.tp == 1:
        return
    D, n = r.model.sizes.D, r.micro_batches

    def row(purpose: str, kind: str, calls: int, item: int, positions: int = r.positions) -> Collective:
        return Collective(purpose, kind, "tp", r.d.tp, calls * n, positions * D, item, routed=r.drawn)

    for g in r.groups:
        parts, runs = g.parts, g.layers * r.runs()
        again = (runs - g.layers) * (parts if r.train.dropout or g.layer.behind else parts - 1)
        yield row("sequence", "all_gather", parts * runs, FLOAT, g.positions)
        yield row("sequence", "reduce_scatter", parts * g.layers + again, r.item, g.positions)
        entered = left = parts * g.layers
        if r.part is not None and len(r.a.stacks) == 1:  # two stacks are counted as if all learned
            entered = r.backward(lambda own: own.into_attention) + r.backward(lambda own: own.into_feed_forward)
            left = r.backward(lambda own: own.attends) + r.backward(lambda own: own.hands_on)
        yield row("sequence, backward", "reduce_scatter", entered, FLOAT, g.positions)
        yield row("sequence, backward", "all_gather", left, r.item, g.positions)
        if any(a.memory for a in g.layer.attentions):
            yield row("memory", "all_gather", g.chunks, FLOAT, r.source_positions)
            yield row("memory, backward", "reduce_scatter", g.chunks, FLOAT, r.source_positions)
    if r.has_embedding:
        for positions in r.handed:
            yield row("embedding", "reduce_scatter", 1, FLOAT, positions)
            backward = 1 if r.part is None or r.part.table else 0
            yield row("embedding, backward", "all_gather", backward, FLOAT, positions)
    if r.has_head:
        # A head of several products ends with a norm of what a product gave.
        item = r.item if len(r.a.head) > 1 else FLOAT
        yield row("head", "all_gather", 1, item)
        yield row("head, backward", "reduce_scatter", 1, item)
        yield from _vocabulary_parallel(r)


def _vocabulary_parallel(r: Rank) -> Iterator[Collective]:
    """Of every token that is asked for the largest logit, then two sums; chunk by chunk."""
    scored = r.sequences * r.row.scored // r.d.cp
    known = r.row.exact and (r.d.cp == 1 or r.train.objective not in PARTLY)
    chunk = min(r.train.loss_chunk_tokens or scored, scored)
    whole, rest = divmod(scored, chunk)
    for tokens, times in ((chunk, whole), (rest, 1)):
        if tokens:
            calls = times * r.micro_batches
            for purpose, numbers in (("largest logits", tokens), ("sums of logits", 2 * tokens)):
                yield Collective(purpose, "all_reduce", "tp", r.d.tp, calls, numbers, FLOAT, routed=not known)


def context_parallel(r: Rank) -> Iterator[Collective]:
    """Heads against parts of the sequence, keys and values of all, or keys and values from rank to rank."""
    if r.d.cp == 1:
        return
    _, _, H, K, E, _, _ = r.model.sizes
    q, kv = (r.positions * heads // r.d.tp * E for heads in (H, K))
    calls, forward = r.backward(lambda own: own.attends) * r.micro_batches, r.forward_runs() * r.micro_batches
    how, layer = layout.exchange(r.parallel, r.model), r.a.kinds[0][1]
    # Queries and keys that come straight from a product are of its type.
    own = FLOAT if layer.rotary or layer.norms_of_heads else r.item
    if how == "ulysses":
        for what, numbers, item in (("q", q, own), ("k", kv, own), ("v", kv, r.item), ("output", q, r.item)):
            yield Collective(f"heads: {what}", "all_to_all", "cp", r.d.cp, forward + calls, numbers, item)
    elif how == "gather":
        numbers = 2 * kv * r.d.cp
        yield Collective("keys and values", "all_gather", "cp", r.d.cp, forward, numbers, own)
        yield Collective("keys and values, backward", "reduce_scatter", "cp", r.d.cp, calls, numbers, own)
    else:
        turns = r.d.cp - 1
        for kind in ("send", "recv"):
            yield Collective("keys and values", kind, "cp", 2, (forward + calls) * turns, 2 * kv, r.item)
            yield Collective("their gradients", kind, "cp", 2, calls * r.d.cp, 2 * kv, FLOAT)


def experts(r: Rank) -> Iterator[Collective]:
    """Tokens to the experts that they chose and back, and the statistics of the choice.

    How many tokens come to a rank depends on what they choose. Two of four sizes are known: all copies of this rank's
    tokens leave, and the gradients of all come back; the other two are those of the tokens that came.
    """
    N = r.model.num_experts
    if N is None:
        return
    calls = r.layers * r.micro_batches
    if r.model.router_aux_loss_coef:
        ranks = r.d.dp * r.d.cp
        yield Collective("balance", "all_reduce", "tokens", ranks, 2 * calls, 2 * N + 1, FLOAT)
    if r.d.ep == 1:
        return
    forward = r.forward_runs("mlp.") * r.micro_batches
    copies = r.positions * r.model.needed("num_experts_per_tok") * r.model.sizes.D
    ep = r.d.ep
    yield Collective("counts of tokens", "all_to_all", "ep", ep, forward, N, LONG)
    yield Collective("tokens to experts", "all_to_all", "ep", ep, forward, copies, r.item)
    yield Collective("outputs of experts", "all_to_all", "ep", ep, forward, copies, r.item, routed=True)
    yield Collective("gradients to experts", "all_to_all", "ep", ep, calls, copies, r.item)
    yield Collective("gradients of tokens", "all_to_all", "ep", ep, calls, copies, r.item, routed=True)


def between_stages(r: Rank) -> Iterator[Collective]:
    """Hidden states to the next stage, their gradients to the one before; of an encoder-decoder of both its rows."""
    if r.d.pp == 1:
        return
    behind, before = (sum(not end for end in ends) for ends in zip(*((c.last, c.first) for c in r.chunks), strict=True))
    for purpose, sent, received in (("hidden states", behind, before), ("their gradients", before, behind)):
        for kind, stages in (("send", sent), ("recv", received)):
            for positions in r.handed if stages else ():
                numbers = positions // r.d.tp * r.model.sizes.D
                yield Collective(purpose, kind, "pp", 2, stages * r.micro_batches, numbers, FLOAT)
