"""A step on a fake cluster: the collectives are those foretold, the memory is what real tensors take."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from counted import foretold, resolved, seen
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from ranks import on
from torch.distributed._tools.mem_tracker import MemTracker

from foretell.config import RunConfig
from foretell.distributed.live import Live, of_model
from foretell.distributed.placed import Placed
from foretell.distributed.trace import Trace
from foretell.errors import ConfigError
from foretell.models.decoder import Decoder
from foretell.plan import layout
from foretell.plan.communication import collectives
from foretell.train import optim
from foretell.train.alone import Alone
from foretell.train.loss import next_token_loss
from foretell.train.rehearsal import rehearse

MODEL = [
    *("model.hidden_size=64", "model.num_hidden_layers=2", "model.num_key_value_heads=2", "model.vocab_size=278"),
    *("train.context=32", "train.micro_batch_size=1", "train.steps=9", "train.dropout=0", "train.optimizer=adamw"),
    *("train.dtype=float32", "train.attention=sdpa"),
]
EXPERTS = ["model.num_experts=4", "model.num_experts_per_tok=2", "model.moe_intermediate_size=32"]
HALF = ["train.dtype=bfloat16"]


def config(sequences: int, *keys: str, **parallel: Any) -> RunConfig:
    batch = f"train.global_batch_tokens={32 * sequences}"
    return resolved([*MODEL, batch, *keys, *(f"parallel.{k}={v}" for k, v in parallel.items())])


CASES: dict[str, tuple[int, RunConfig]] = {
    "shards, tp": (32, config(32, *HALF, dp_shard=16, tp=2, recompute="full")),
    "experts": (64, config(32, *EXPERTS, *HALF, dp_shard=32, ep=4, cp=2)),
    "stages": (24, config(12, "model.num_hidden_layers=5", pp=4, dp_shard=3, cp=2, context_exchange="ring")),
    "copies": (24, config(12, dp_replicate=3, dp_shard=4, local_steps=2, reduce="int8", tp=2)),
    "strict": (4, config(16, *HALF, dp_replicate=4, strict="true")),
    "zero bubble": (
        16,
        config(8, *EXPERTS, "model.num_hidden_layers=4", pp=2, dp_shard=4, ep=2, tp=2, schedule="zero-bubble"),
    ),
    "outer step in buckets": (
        4,
        config(
            4,
            *("model.hidden_size=1536", "model.intermediate_size=6000", "model.num_hidden_layers=3"),
            *("model.vocab_size=30000", "model.tie_word_embeddings=false"),
            dp_replicate=2,
            dp_shard=2,
            local_steps=2,
        ),
    ),
    "interleaved": (16, config(16, "model.num_hidden_layers=8", pp=4, dp_shard=4, schedule="interleaved")),
    "muon": (8, config(8, "train.optimizer=muon", dp_shard=4, tp=2)),
    "gathered keys": (8, config(4, *HALF, "data.packing=within", cp=4, dp_shard=2, context_exchange="gather")),
    "heads": (8, config(4, *HALF, "model.num_attention_heads=8", "model.num_key_value_heads=4", cp=4, dp_shard=2)),
}
_HEADS = "model.num_key_value_heads=4"
CASES |= {
    "t5 in stages": (
        24,
        config(
            12,
            *("model.model_type=t5", _HEADS, "model.num_decoder_layers=2", "model.vocab_size=368", "train.context=64"),
            *("train.objective=span_corruption", "train.global_batch_tokens=1536", "train.optimizer=muon"),
            pp=3,
            dp_shard=4,
            tp=2,
        ),
    ),
    "bert in stages and parts": (
        16,
        config(
            *(8, "model.model_type=bert", _HEADS, *HALF, "train.objective=masked"),
            pp=2,
            cp=2,
            tp=2,
            dp_shard=2,
            recompute="full",
        ),
    ),
    "marian in a zero bubble": (
        8,
        config(
            *(8, "model.model_type=marian", _HEADS, "model.num_decoder_layers=2", "train.objective=seq2seq"),
            pp=2,
            tp=2,
            dp_shard=2,
            schedule="zero-bubble",
        ),
    ),
    "answers in stages": (
        8,
        config(
            *(8, *HALF, "train.objective=answers", "data.packing=within"),
            pp=2,
            tp=2,
            dp_shard=2,
        ),
    ),
}
QUICK = [*list(CASES)[:4], "t5 in stages"]


def agrees(c: RunConfig, world_size: int, traced: Trace, pp_place: int = 0) -> None:
    rows = collectives(c.model, c.train, c.parallel, world_size, pp_place=pp_place)
    found = seen((r.kind, r.group, r.count, r.bytes) for r in traced.collectives)
    # A fake cluster routes the same share of the tokens to every expert, as the formula does.
    assert found == foretold(rows) + foretold(rows, routed=True)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_a_traced_step_issues_what_is_foretold(name: str) -> None:
    world_size, c = CASES[name]
    place = c.parallel.pp - 1
    traced = rehearse(c, world_size, pp_place=place)
    agrees(c, world_size, traced, place)
    assert not dist.is_initialized()
    groups = {r.group for r in traced.collectives}
    own = place * world_size // c.parallel.pp
    assert all(own in g or len(g) == 1 for g in groups)
    assert max(map(len, groups)) == world_size


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_stage(place: int) -> None:
    c = config(6, "model.num_hidden_layers=7", pp=3, schedule="1f1b", dp_shard=2, tp=2)
    agrees(c, 12, rehearse(c, 12, pp_place=place), place)


@st.composite
def planned(draw: st.DrawFn) -> tuple[RunConfig, int, int]:
    """A config that can be divided as it says, its processes, and a place on the pipeline's axis."""

    def one_of(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    pp, tp, cp, shard, copies = (
        one_of(1, 1, 2, 3),
        one_of(1, 2, 4),
        one_of(1, 1, 2, 4),
        one_of(1, 2, 3, 64),
        one_of(1, 2),
    )
    mixture = draw(st.booleans())
    p = {"pp": pp, "tp": tp, "cp": cp, "dp_shard": shard, "dp_replicate": copies}
    p["ep"] = one_of(*(e for e in (1, 2, 4) if shard % e == 0)) if mixture else 1
    p["schedule"] = one_of("1f1b", "gpipe", "interleaved", "zero-bubble")
    p["recompute"], p["context_exchange"] = one_of("none", "selective", "full"), one_of("auto", "gather", "ring")
    p["reduce"], p["local_steps"] = one_of("float32", "bfloat16", "int8"), one_of(1, copies)
    heads = one_of(2, 4)
    keys = [
        *(f"model.num_key_value_heads={heads}", f"model.num_attention_heads={heads * one_of(1, 2)}"),
        *(f"model.head_dim={one_of(8, 10)}", f"model.intermediate_size={one_of(40, 52)}"),
        *(f"model.num_hidden_layers={one_of(1, 3, 7)}", f"model.vocab_size={one_of(96, 108)}"),
        *(f"model.tie_word_embeddings={one_of('true', 'false')}", f"train.dtype={one_of('float32', 'bfloat16')}"),
        *(f"train.optimizer={one_of('adamw', 'muon', 'sgd')}", f"train.dropout={one_of(0, 0.1)}"),
        *(f"train.attention={one_of('sdpa', 'products')}", f"data.packing={one_of('across', 'within')}"),
        *(f"train.loss_chunk_tokens={one_of(16, 24, 4096)}", *(EXPERTS if mixture else ())),
    ]
    c = config(copies * shard * (pp if pp > 1 else one_of(1, 2)), *keys, **p)
    ranks = pp * tp * cp * shard * copies
    try:
        sequences = c.train.needed("global_batch_tokens") // 32
        layout.check(layout.degrees(c.parallel, ranks), c.parallel, c.model, 32, sequences, 1)
    except ConfigError:
        assume(False)
    return c, ranks, draw(st.integers(0, pp - 1))


@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(planned())
def test_any_layout(plan: tuple[RunConfig, int, int]) -> None:
    c, ranks, place = plan
    steps = max(c.parallel.local_steps, 1 + (c.parallel.pp > 1))  # DiLoCo's meeting is in the last
    agrees(c, ranks, rehearse(c, ranks, pp_place=place, steps=steps), place)


@pytest.mark.slow
def test_llama_3_8b_on_64_ranks() -> None:
    keys = ("hidden_size=4096", "num_hidden_layers=32", "num_attention_heads=32", "num_key_value_heads=8")
    more = ("intermediate_size=14336", "vocab_size=128256", "tie_word_embeddings=false")
    shape = [f"model.{k}" for k in (*keys, *more)]
    c = config(64 * 128, *shape, *HALF, "train.context=4096", dp_shard=64)
    traced = rehearse(c, 64, steps=1)
    agrees(c, 64, traced)
    gathered = [r for r in traced.collectives if r.kind == "all_gather"]
    assert len(gathered) == 65
    # 30.02 GB in bfloat16 throughout; our table, head and last norm are gathered in float32.
    assert sum(r.bytes for r in gathered) == pytest.approx(30.0197e9 + 2 * 2 * 128256 * 4096, rel=1e-5)


def test_a_process_of_a_run_cannot_trace() -> None:
    with pytest.raises(ConfigError, match="not part of a run"):
        _in_a_group(lambda: rehearse(config(2, dp_shard=2), 2))
    with pytest.raises(ConfigError, match="layers"):
        rehearse(config(4, pp=4), 4)


def _in_a_group(work: Callable[[], object]) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        work()
    finally:
        dist.destroy_process_group()


def peak_on_a_rank(c: RunConfig) -> dict[str, int]:
    """The peak and its parts of a later step with real tensors, as `trace` takes them without.

    Of eight steps the least: gloo's threads let go of a tensor when they come to it, late on a busy machine.
    """
    from foretell.train import rehearsal

    placed = Placed(c.model, c.parallel, c.train.context, seed=0, dtype=getattr(torch, c.train.dtype))
    step, optimizers = rehearsal._begun(c, placed)
    peaks: list[tuple[int, int]] = []
    with Live(of_model(placed.chunks, optimizers)) as live:
        step()
        for _ in range(8):
            live.restart()
            step()
            peaks.append((live.peak, live.at))
        live.restart(lambda: of_model(placed.chunks, optimizers), min(peaks)[1])
        step()
    return {"peak": min(peaks)[0], **live.found}


@pytest.mark.parametrize(
    ("ranks", "c", "within"),
    [
        (2, config(4, dp_shard=2), 0.01),
        pytest.param(4, config(4, *HALF, dp_shard=2, tp=2), 0.01, marks=pytest.mark.slow),
        pytest.param(2, config(4, pp=2), 0.01, marks=pytest.mark.slow),
        pytest.param(2, config(4, *HALF, cp=2, context_exchange="ring"), 0.03, marks=pytest.mark.slow),
    ],
)
def test_fake_tensors_take_what_real_ones_take(ranks: int, c: RunConfig, within: float) -> None:
    real = on(ranks, peak_on_a_rank, c)[0]
    traced = rehearse(c, ranks, memory=True).memory
    assert traced.pop("copies") == 0
    assert sum(traced.values()) == 2 * traced["peak"]
    assert traced["peak"] == pytest.approx(real["peak"], rel=within)
    assert [traced[k] for k in ("parameters", "optimizer", "tables")] == [
        real[k] for k in ("parameters", "optimizer", "tables")
    ]
    assert real["optimizer"] == pytest.approx(2 * real["parameters"], rel=0.001)


def test_live_bytes_are_those_of_torch() -> None:
    model = Decoder(config(2).model)
    model.initialise(0)
    (optimizer,) = optim.build(model.named_parameters(), config(2).train)
    tokens = torch.zeros(2, 32, dtype=torch.int64)

    def step() -> None:
        next_token_loss(Alone(model), tokens, tokens, None, None).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    theirs = MemTracker()
    theirs.track_external(model, optimizer)
    with theirs:
        step()
    (expected,) = (s["Total"] for s in theirs.get_tracker_snapshot("peak").values())
    with Live(of_model(model, [optimizer])) as live:
        step()
        assert live.peak == expected
        held = live.now
        live.restart()
        step()  # from now on the tokens are known, too
        live.restart(lambda: of_model(model, [optimizer]), live.at)
        step()
    total = sum(p.nbytes for p in model.parameters())
    assert (live.now, live.peak) == (held, expected)
    assert live.found["parameters"] == total
    assert live.found["optimizer"] == pytest.approx(2 * total, rel=1e-3)
    assert sum(live.found.values()) == expected
