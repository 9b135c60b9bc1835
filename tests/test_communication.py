"""Foretold collectives against recorded ones, one by one: those kept as data, and fresh ones of other layouts."""

import json
import math
from collections import Counter
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
import torch
from counted import foretold, resolved, seen
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on
from runs import trained
from training import MACHINE

from foretell import config as run_config
from foretell import plan
from foretell.config import ModelConfig, ParallelConfig, TrainConfig
from foretell.data import open_data, prepare
from foretell.distributed import record, stages
from foretell.models.decoder import Decoder
from foretell.plan import layout, models
from foretell.plan.collective import Collective
from foretell.plan.communication import collectives, comm_bytes, wire_bytes
from foretell.plan.weights import stage_weights
from foretell.train import begin

STORED = json.loads((Path(__file__).parent / "data" / "collectives.json").read_text())
# Nothing of step 2 comes from a validation before it.
SMALL = [*STORED["model"], "train.eval_every=3", "train.global_batch_tokens=128"]
HALF = ["train.dtype=bfloat16"]
EXPERTS = ["model.num_experts=4", "model.num_experts_per_tok=2", "model.moe_intermediate_size=32"]


def parallel(**keys: Any) -> list[str]:
    return [f"parallel.{k}={v}" for k, v in keys.items()]


# Layouts that are not in the data: of all that changes what is sent, in pairs that meet nowhere there.
FRESH: dict[str, tuple[int, list[str]]] = {
    "bfloat16, rows that do not divide, tp, recomputed": (
        4,
        [*HALF, *parallel(dp_shard=2, tp=2, recompute="full"), "model.vocab_size=278", "model.intermediate_size=102"],
    ),
    "bfloat16, ring": (4, [*HALF, *parallel(cp=4, context_exchange="ring", recompute="full")]),
    "experts in a zero bubble": (4, [*EXPERTS, *parallel(pp=2, dp_shard=2, ep=2, schedule="zero-bubble")]),
    "DiLoCo": (4, parallel(dp_replicate=2, dp_shard=2, local_steps=2, reduce="bfloat16")),
    "recomputed with dropout, chunks of a loss": (
        2,
        ["train.dropout=0.1", "train.loss_chunk_tokens=24", *parallel(tp=2, recompute="full")],
    ),
    "bfloat16, ulysses, tp": (
        4,
        [*HALF, *parallel(cp=2, tp=2), "model.num_attention_heads=4", "model.num_key_value_heads=4"],
    ),
    "bfloat16, gather": (2, [*HALF, *parallel(cp=2, context_exchange="gather", recompute="full")]),
    "zero bubble, tp, shards": (8, [*HALF, *parallel(pp=2, tp=2, dp_shard=2, schedule="zero-bubble")]),
    "interleaved on four": (4, [*parallel(pp=4, schedule="interleaved"), "model.num_hidden_layers=9"]),
    "gpipe, shards": (4, parallel(pp=2, dp_shard=2, schedule="gpipe", recompute="full")),
    "experts, recomputed in part": (4, [*EXPERTS, *parallel(dp_shard=4, ep=2, recompute="selective")]),
    "experts, all at once": (
        8,
        [
            *(*EXPERTS, *HALF, "train.dropout=0.1", "model.num_attention_heads=8", "model.num_key_value_heads=4"),
            *parallel(tp=2, ep=2, dp_shard=2, cp=2, recompute="full"),
        ],
    ),
    "biased experts, tp": (2, [*EXPERTS, *parallel(tp=2), "model.balance=bias"]),
    "muon, tp": (4, [*parallel(tp=2), "train.optimizer=muon", "model.intermediate_size=104"]),
    "muon, experts, copies": (4, [*EXPERTS, *parallel(dp_replicate=2, ep=2), "train.optimizer=muon"]),
    "prefixes": (2, [*parallel(dp_shard=2), "train.objective=prefix"]),
    "int8, stages": (8, [*parallel(pp=4, dp_replicate=2, reduce="int8"), "train.global_batch_tokens=256"]),
}
QUICK = list(FRESH)[:3]


def agree(rows: list[Collective], recorded: list[tuple[str, tuple[int, ...], int, int]]) -> None:
    """Every size that is known as often as it was foretold, and no other; of the routed ones their number."""
    rows = [r for r in rows if not r.outside]
    known, got = foretold(rows), seen(recorded)
    assert not known - got, "foretold, but not recorded"
    left = got - known
    assert sum(left.values()) == sum(foretold(rows, routed=True).values()), f"recorded, but not foretold: {left}"
    assert {kind for kind, *_ in left} <= {r.kind for r in rows if r.routed}


def rows_of_rank(keys: list[str], processes: int, rank: int, evaluated: bool) -> list[Collective]:
    c = resolved(keys)
    place = rank // (processes // c.parallel.pp)
    return collectives(c.model, c.train, c.parallel, processes, pp_place=place, evaluated=evaluated)


@pytest.mark.parametrize("name", STORED["layouts"])
def test_the_recorded_layouts_are_foretold_exactly(name: str) -> None:
    of = STORED["layouts"][name]
    assert of["ranks"]
    for rank, recorded in of["ranks"].items():
        rows = rows_of_rank([*STORED["model"], *of["keys"]], of["processes"], int(rank[-5:]), evaluated=True)
        agree(rows, recorded)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("".join(f"line {i} of {i * i % 97} and {i * 7919 % 1000}\n" for i in range(500)))
    kind = run_config.TokenizerConfig(kind="bytes")
    prepare([str(folder / "text.txt")], folder / "data", kind, run_config.DataConfig())
    return folder / "data"


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FRESH])
def test_other_layouts_are_foretold_exactly(name: str, data: Path, tmp_path: Path) -> None:
    processes, keys = FRESH[name][0], [*SMALL, *FRESH[name][1]]
    c = run_config.updated(run_config.load(None, keys), data={"source": str(data)})
    begin(c, open_data(data), tmp_path / "run", processes, machine=MACHINE)
    on(processes, trained, tmp_path / "run", data, None)
    files = sorted((tmp_path / "run" / "collectives").iterdir())
    assert len(files) == c.parallel.pp
    for path in files:
        recorded = [(r.kind, r.group, r.count, r.bytes) for r in record.read(path)]
        agree(rows_of_rank(keys, processes, int(path.stem[-5:]), evaluated=False), recorded)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("extra", [{}, {"num_experts": 4, "balance": "bias"}, {"num_experts": 2}])
def test_weights_are_those_of_the_decoder(tied: bool, extra: dict[str, Any]) -> None:
    c = ModelConfig(hidden_size=64, num_hidden_layers=4, tie_word_embeddings=tied, **extra).resolved(128, 32)
    for count in (1, 3):
        for stage, layers in enumerate(layout.stage_layers(4, count)):
            with torch.device("meta"):
                model = Decoder(c)
            stages.prune(model, stage, count)
            listed = list(stage_weights(models.of_model(c), layers, stage == 0, stage == count - 1))
            assert Counter(listed) == Counter((name, tuple(p.shape)) for name, p in model.named_parameters())
    if count == 1:
        assert sum(math.prod(shape) for _, shape in listed) == plan.parameters(c)["total"]


LLAMA_8B = ModelConfig(
    model_type="llama",
    hidden_size=4096,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=8,
    intermediate_size=14336,
    vocab_size=128256,
    tie_word_embeddings=False,
).resolved(128256, 8192)
LLAMA_405B = LLAMA_8B.model_copy(
    update={"hidden_size": 16384, "num_hidden_layers": 126, "num_attention_heads": 128, "intermediate_size": 53248}
)


def batch(context: int, dp: int) -> TrainConfig:
    return TrainConfig(context=context, micro_batch_size=1, global_batch_tokens=context * dp, dtype="bfloat16")


def test_padded_gathers_of_llama() -> None:
    """As measured on a fake cluster with a plain Llama, all of it in bfloat16; our table and head are in float32."""
    shards = collectives(LLAMA_8B, batch(4096, 64), ParallelConfig(dp_shard=64), 64)
    both = collectives(LLAMA_405B, batch(8192, 2048), ParallelConfig(dp_shard=2048, tp=8), 16384)
    for rows, layers, gathered in ((shards, 32, 30.0197e9), (both, 126, 258.99e9)):
        layer, root = (r for r in rows if r.purpose == "weights")
        assert (layer.calls, layer.item_bytes, root.calls, root.item_bytes) == (2 * layers, 2, 1, 4)
        assert 2 * (layer.calls * layer.numbers + root.numbers) == pytest.approx(gathered, rel=2e-5)
    # Of 6,656 rows 8,192 are sent, of 128 rows 2,048, of 16,032 rows of the table 16,384.
    assert layer.numbers == 16384 * 31234
    assert root.numbers == 2 * 16384 * 16384 + 16384


def test_405b_is_foretold_in_few_rows() -> None:
    """One a kind of collective, not one a layer or a device: so it takes milliseconds (docs/communication.md)."""
    assert len(collectives(LLAMA_405B, batch(8192, 2048), ParallelConfig(dp_shard=2048, tp=8), 16384)) < 30


@settings(max_examples=25, deadline=None)
@given(
    pp=st.integers(2, 5),
    schedule=st.sampled_from(["1f1b", "gpipe", "interleaved", "zero-bubble"]),
    tp=st.sampled_from([1, 2]),
    shard=st.sampled_from([1, 2, 3]),
    tied=st.booleans(),
)
def test_what_stages_send_others_receive(pp: int, schedule: Any, tp: int, shard: int, tied: bool) -> None:
    model = ModelConfig(hidden_size=64, num_hidden_layers=11, tie_word_embeddings=tied).resolved(128, 32)
    p = ParallelConfig(pp=pp, tp=tp, dp_shard=shard, schedule=schedule)
    train = TrainConfig(context=32, micro_batch_size=1, global_batch_tokens=32 * pp * 2 * shard)
    every = [collectives(model, train, p, pp * tp * shard, pp_place=place) for place in range(pp)]
    sent, received = ([r.step_bytes for rows in every for r in rows if r.kind == k] for k in ("send", "recv"))
    assert sum(sent) == sum(received) > 0
    # Each boundary is passed by every micro-batch once each way.
    boundaries = pp * layout.stages_of_a_process(p) - 1
    passed = sum(r.step_bytes for rows in every for r in rows if r.kind == "send" and "tied" not in r.purpose)
    assert passed == 2 * boundaries * 2 * pp * 32 // tp * 64 * 4
    # All gradients are scattered once: with 128 and 64 rows over at most 3 ranks padding is small.
    if shard > 1:
        scattered = sum(
            r.numbers * r.calls for rows in every for r in rows if r.kind == "reduce_scatter" and r.axis == "fsdp"
        )
        whole = plan.parameters(model)["total"] + (model.vocab_size * 64 if tied else 0)
        assert whole / tp <= scattered <= 1.05 * whole / tp + 4 * 11 * 256


def test_sums_by_axis_and_what_a_ring_sends() -> None:
    c = resolved([*SMALL, *parallel(dp_replicate=2, dp_shard=2, local_steps=10)])
    rows = collectives(c.model, c.train, c.parallel, 4)
    met = [r for r in rows if r.purpose == "outer step"]
    assert [r.every for r in met] == [10]
    parameters = plan.parameters(c.model)["total"]
    sums, wire = comm_bytes(rows), wire_bytes(rows)
    assert sums["dp_replicate"] == {"all_reduce": 4 * parameters / 2 / 10}
    assert wire["dp_replicate"] == sums["dp_replicate"]["all_reduce"]  # 2 (n - 1) / n is 1 of two
    scattered, gathered = sums["fsdp"]["reduce_scatter"], sums["fsdp"]["all_gather"]
    assert scattered == 4 * parameters
    assert wire["fsdp"] == (scattered + gathered) / 2
    assert sums["world"]["all_reduce"] == 16 + 8 + 8


def test_only_what_tokens_choose_is_not_known() -> None:
    c = resolved([*SMALL, *EXPERTS, *parallel(dp_shard=4, ep=2)])
    routed = [r for r in collectives(c.model, c.train, c.parallel, 4) if r.routed]
    assert {r.purpose for r in routed} == {"outputs of experts", "gradients of tokens"}
    assert {(r.axis, r.kind, r.numbers) for r in routed} == {("ep", "all_to_all", 32 * 2 * 64)}
    dense = resolved([*SMALL, *parallel(dp_shard=4)])
    assert not any(r.routed for r in collectives(dense.model, dense.train, dense.parallel, 4))


def test_a_row_is_what_it_says() -> None:
    r = Collective("weights", "all_gather", "fsdp", 4, 3, 100, 2)
    assert (r.bytes, r.step_bytes, r.wire_bytes) == (200, 600, 450)
    assert astuple(r)[-3:] == (1, False, False)
