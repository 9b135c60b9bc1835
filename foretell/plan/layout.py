"""The one table of which weight is split how. `distributed` places weights by it, `plan` counts bytes from it.

Tensor parallelism (Shoeybi et al., 2019) splits a matrix by its output features (`column`, dim 0 of the weight) or by
its input features (`row`, dim 1); with sequence parallelism (Korthikanti et al., 2022) what stands between such pairs
works on a part of the sequence, so its weights are whole on every rank and their gradients are sums over the ranks.
Stacked experts have their number in front. FSDP2 (Zhao et al., 2023) cuts dim 0 of what is left into equal parts, the
last ones shorter; where it does not divide, its buffers are padded (`shard_rows`).

Pure data and arithmetic, without torch. Not here: what is sent when, and what it costs.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from foretell.config import ModelConfig, ParallelConfig
from foretell.config.model import ENCODER_DECODERS
from foretell.errors import ConfigError

# The order of the mesh: neighbours in the last axis are neighbours on the machine, so the busiest axis stands last.
# dp_shard is divided: `ep` of its ranks share the experts, `dp_outer` times.
AXES = ("pp", "dp_replicate", "dp_outer", "ep", "cp", "tp")


_SEVERAL = ("interleaved", "zero-bubble")
# Between copies: numbers that share a scale in int8, 4 bytes of scale on 256 of payload; and those that an outer step
# sends at once, 64 MB in float32.
BLOCK, BUCKET = 256, 2**24
Box = tuple[tuple[int, ...], tuple[int, ...]]  # offset and shape of a part in the whole


class Split(NamedTuple):
    """How one parameter is divided. Dims of the weight, or None where that axis leaves it whole.

    tp: dim that tensor parallelism splits. ep: dim that expert parallelism splits. summed: its gradient is a sum over
    the tensor-parallel ranks, each of which saw a part of the sequence or of the products.
    """

    tp: int | None
    ep: int | None = None
    summed: bool = False


COLUMN, ROW, WHOLE = Split(tp=0), Split(tp=1), Split(tp=None, summed=True)

# The first pattern that matches a parameter's name decides.
TABLE: tuple[tuple[str, Split], ...] = (
    (r"model\.embed_tokens\.weight|lm_head\.(weight|bias)", COLUMN),
    (r"model\.embed_(positions|types)\.weight", WHOLE),
    (r"model\.(encoder|decoder)\.relative_bias\.weight", Split(tp=1)),  # a column a head
    (r"head_dense\.(weight|bias)", WHOLE),
    (r".*\.(self|cross)_attn\.[qkv]_proj\.(weight|bias)", COLUMN),
    (r".*\.(self|cross)_attn\.o_proj\.weight", ROW),
    (r".*\.mlp\.(gate|up)_proj\.(weight|bias)", COLUMN),
    (r".*\.(o|down)_proj\.bias", WHOLE),
    (r".*\.mlp\.down_proj\.weight", ROW),
    (r".*\.mlp\.experts\.(gate|up)_proj", Split(tp=1, ep=0)),
    (r".*\.mlp\.experts\.down_proj", Split(tp=2, ep=0)),
    (r".*\.mlp\.gate\.weight", WHOLE),
    (r".*\.mlp\.expert_bias", Split(tp=None)),  # every rank sees all tokens that are routed
    (r".*norm\.(weight|bias)", WHOLE),
    # Adapters: the half that has the divided features of its product is divided with them.
    (r".*\.([qkv]|gate|up)_proj\.lora_A|.*\.(o|down)_proj\.lora_B", WHOLE),
    (r".*\.([qkv]|gate|up)_proj\.lora_B", COLUMN),
    (r".*\.(o|down)_proj\.lora_A", ROW),
)


class Degrees(NamedTuple):
    """The degrees of a layout, in the order of AXES, and what follows from them."""

    pp: int
    dp_replicate: int
    dp_outer: int
    ep: int
    cp: int
    tp: int

    @property
    def world_size(self) -> int:
        """Processes in all."""
        return self.pp * self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def dp_shard(self) -> int:
        """Processes that share the weights and have different sequences."""
        return self.dp_outer * self.ep

    @property
    def dp(self) -> int:
        """Parts into which the sequences of a batch are dealt."""
        return self.dp_replicate * self.dp_shard

    @property
    def fsdp(self) -> int:
        """Processes among which FSDP2 divides a weight: context parallelism shares its weights too."""
        return self.dp_shard * self.cp

    @property
    def expert_fsdp(self) -> int:
        """Processes among which FSDP2 divides an expert's weight."""
        return self.dp_outer * self.cp

    @property
    def experts_apart(self) -> bool:
        """Whether a layer's experts are an FSDP2 unit of their own: they are divided among fewer than the rest."""
        return self.ep > 1


def split(name: str) -> Split:
    """How the parameter of that name is divided. Raises KeyError for a name that no row of the table knows."""
    for pattern, how in TABLE:
        if re.fullmatch(pattern, name):
            return how
    raise KeyError(f"plan/layout.py has no row for the parameter {name}")


def is_table(name: str) -> bool:
    """Whether rows of a parameter are looked up, or it is the head: Muon leaves it to AdamW.

    Positions are not such a table: Muon learned them better (docs/log.md).
    """
    return any(table in name for table in ("embed_tokens", "embed_types", "relative_bias", "lm_head"))


def degrees(p: ParallelConfig, world_size: int) -> Degrees:
    """The degrees for so many processes. Raises ConfigError where their product is another number."""
    others = p.dp_replicate * p.tp * p.pp * p.cp
    named = f"dp_replicate {p.dp_replicate} x tp {p.tp} x pp {p.pp} x cp {p.cp}"
    if p.dp_shard is None and world_size % others:
        raise ConfigError(f"[parallel] {named} = {others} does not divide the {world_size} processes")
    dp_shard = p.dp_shard or world_size // others
    if others * dp_shard != world_size:
        raise ConfigError(
            f"[parallel] {named} x dp_shard {dp_shard} = {others * dp_shard}, but there are {world_size} processes; "
            f"start as many (--nproc {others * dp_shard}), or leave dp_shard out to use all"
        )
    if dp_shard % p.ep:
        raise ConfigError(f"parallel.ep ({p.ep}) must divide dp_shard ({dp_shard})")
    return Degrees(p.pp, p.dp_replicate, dp_shard // p.ep, p.ep, p.cp, p.tp)


def check(
    d: Degrees, p: ParallelConfig, model: ModelConfig, context: int, sequences: int, micro_batch_size: int
) -> None:
    """Raises ConfigError where a resolved model, the context or the batch cannot be divided so."""
    for what, size, axis, degree in _divisions(d, p, model, context, sequences):
        if size % degree:
            more = -(-size // degree) * degree
            raise ConfigError(f"{what} ({size:,}) must be a multiple of {axis} = {degree:,}; the next is {more:,}")
    if p.strict:
        _check_strict(d, p, sequences, micro_batch_size)
    if d.pp == 1:
        return
    if p.schedule == "zero-bubble" and p.recompute != "none":
        raise ConfigError(
            f"parallel.recompute={p.recompute} with schedule=zero-bubble forms a layer again for each of its weights, "
            "since zero bubble takes their gradients one by one: about ten forward passes for one; set "
            "schedule=interleaved, or recompute=none"
        )
    stages, batches = d.pp * stages_of_a_process(p), sequences // d.dp // micro_batch_size
    if stages > depth(model):
        both = " + num_decoder_layers" if model.model_type in ENCODER_DECODERS else ""
        raise ConfigError(
            f"model.num_hidden_layers{both} ({depth(model)}) is less than the {stages} stages that parallel.pp "
            f"({d.pp}) has with schedule={p.schedule}"
        )
    if biases(model) and stages > d.pp:
        raise ConfigError(
            f"parallel.schedule={p.schedule} has two stages a process, and t5 has its biases by distance on each; set "
            "schedule=1f1b or gpipe"
        )
    if batches < d.pp or (p.schedule in _SEVERAL and batches % d.pp):
        raise ConfigError(
            f"a step has {batches} micro-batches, and parallel.pp ({d.pp}) with schedule={p.schedule} wants "
            f"{'a multiple of' if p.schedule in _SEVERAL else 'at least'} {d.pp}: lower train.micro_batch_size "
            f"({micro_batch_size}) or raise train.global_batch_tokens"
        )


def _check_strict(d: Degrees, p: ParallelConfig, sequences: int, micro_batch_size: int) -> None:
    v = p.virtual_shards
    if d.world_size != d.dp_replicate:
        raise ConfigError(
            f"parallel.strict holds for copies alone: set dp_replicate ({d.dp_replicate}) to {d.world_size}, and "
            "dp_shard, tp, pp, cp and ep to 1"
        )
    if v & (v - 1) or v % d.dp_replicate or sequences % (v * micro_batch_size):
        raise ConfigError(
            f"parallel.virtual_shards ({v}) must be a power of two and a multiple of dp_replicate ({d.dp_replicate}), "
            f"and the {sequences} sequences a step a multiple of {v} x micro_batch_size ({micro_batch_size})"
        )
    if p.reduce != "float32" or p.local_steps > 1:
        raise ConfigError(
            "parallel.strict goes with neither compressed gradients nor local steps; leave one of them out"
        )


def _divisions(
    d: Degrees, p: ParallelConfig, m: ModelConfig, context: int, sequences: int
) -> Iterator[tuple[str, int, str, int]]:
    """(what, its size, the axes that divide it, their degree) of all that must come out even."""
    _, _, H, K, _, F, V = m.sizes
    yield "model.num_attention_heads", H, "parallel.tp", d.tp
    yield "model.num_key_value_heads", K, "parallel.tp", d.tp
    yield "model.intermediate_size", F, "parallel.tp", d.tp
    if m.num_experts:
        yield "model.num_experts", m.num_experts, "parallel.ep", d.ep
        yield "model.moe_intermediate_size", m.needed("moe_intermediate_size"), "parallel.tp", d.tp
    yield "model.vocab_size", V, "parallel.tp", d.tp
    pieces = 2 if d.cp > 1 and exchange(p, m) != "ulysses" else 1  # a rank has a piece of either end
    yield "train.context", context, "parallel.tp x cp" + " x 2" * (pieces - 1), d.tp * d.cp * pieces
    yield "sequences a step (train.global_batch_tokens / context)", sequences, "dp_replicate x dp_shard", d.dp
    if exchange(p, m) == "ulysses":
        yield "model.num_attention_heads", H, "parallel.tp x cp (context_exchange=ulysses)", d.tp * d.cp
        yield "model.num_key_value_heads", K, "parallel.tp x cp (context_exchange=ulysses)", d.tp * d.cp


def exchange(p: ParallelConfig, model: ModelConfig) -> str:
    """What context parallelism sends: `ulysses` where the heads of a tensor-parallel rank can be dealt to all of cp."""
    if p.context_exchange != "auto":
        return p.context_exchange
    shared = p.tp * p.cp
    return "ulysses" if model.sizes.H % shared == 0 and model.sizes.K % shared == 0 else "gather"


def depth(model: ModelConfig) -> int:
    """Layers of a resolved model; of an encoder-decoder those of both halves."""
    return model.sizes.L + (model.needed("num_decoder_layers") if model.model_type in ENCODER_DECODERS else 0)


def biases(model: ModelConfig) -> list[tuple[str, tuple[int, int]]]:
    """(name, shape) of the weights that all layers of a half have in common: T5's biases by distance."""
    if model.model_type != "t5":
        return []
    shape = (model.relative_attention_num_buckets or 32, model.sizes.H)
    return [(f"model.{half}.relative_bias.weight", shape) for half in ("encoder", "decoder")]


def stages_of_a_process(p: ParallelConfig) -> int:
    """Stages a process has: interleaved schedules take two (Narayanan et al., 2021)."""
    return 2 if p.pp > 1 and p.schedule in _SEVERAL else 1


def stage_layers(layers: int, stages: int) -> list[range]:
    """The layers of each stage, as even as can be; the odd ones go to the middle: embedding and head are work too."""
    least, more = divmod(layers, stages)
    fuller = set(sorted(range(stages), key=lambda s: (s in (0, stages - 1), s))[:more])
    ends = [0]
    for stage in range(stages):
        ends.append(ends[-1] + least + (stage in fuller))
    return [range(a, b) for a, b in itertools.pairwise(ends)]


def shard_rows(rows: int, ranks: int) -> list[range]:
    """The rows of each FSDP2 rank: ceil(rows / ranks) each, the last ones fewer or none. Buffers hold the ceiling."""
    return [rows_of(r, rows, ranks) for r in range(ranks)]


def rows_of(rank: int, rows: int, ranks: int) -> range:
    """The rows of one FSDP2 rank."""
    each = -(-rows // ranks)
    return range(min(rows, rank * each), min(rows, (rank + 1) * each))


def padded(shape: tuple[int, ...], ranks: int) -> int:
    """Numbers that a weight of that shape takes in FSDP2's buffers: every rank's part is as large as the largest."""
    return -(-shape[0] // ranks) * ranks * math.prod(shape[1:])


def before_fsdp(name: str, shape: tuple[int, ...], degrees: Degrees, place: dict[str, int]) -> Box:
    """The box of a parameter that the rank at `place` would hold without FSDP2."""
    how, offset, size = split(name), [0] * len(shape), list(shape)
    for dim, ranks, rank in ((how.tp, degrees.tp, place["tp"]), (how.ep, degrees.ep, place["ep"])):
        if dim is not None:
            size[dim] //= ranks
            offset[dim] = rank * size[dim]
    return tuple(offset), tuple(size)


def sharers(name: str, degrees: Degrees) -> int:
    """Processes among which FSDP2 divides what a rank has of a parameter."""
    return degrees.fsdp if split(name).ep is None else degrees.expert_fsdp


def box(name: str, shape: tuple[int, ...], degrees: Degrees, place: dict[str, int]) -> Box:
    """The box of a parameter that the rank at `place` holds."""
    offset, size = before_fsdp(name, shape, degrees, place)
    rank = place["dp_outer"] * degrees.cp + place["cp"]
    if split(name).ep is None:
        rank = (place["dp_outer"] * degrees.ep + place["ep"]) * degrees.cp + place["cp"]
    rows = rows_of(rank, size[0], sharers(name, degrees))
    return (offset[0] + rows.start, *offset[1:]), (len(rows), *size[1:])
