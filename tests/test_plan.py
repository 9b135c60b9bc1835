"""The forecast: counts against the built model, memory against torch's own count, laws that must hold for any sizes.

Truth comes from elsewhere: numel and torch's FlopCounterMode for counts, the profiler for live memory, the VmHWM of
another process for resident memory, and hand-computed values for the budget, the verdict and the law.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell import config as run_config
from foretell import plan
from foretell.config import ModelConfig, RunConfig, TrainConfig
from foretell.errors import ConfigError, PlanError
from foretell.models.decoder import Decoder
from foretell.plan import fit, flops, memory, scaling, size
from foretell.plan import time as seconds_of
from foretell.train import loop, optim
from foretell.train.alone import Alone
from foretell.train.loss import next_token_loss

MACHINE = {
    "processor": "a",
    "threads": 2,
    "torch": "b",
    "memory_bytes": 16e9,
    "flops_per_second": {"float32": {"peak": 1e11}, "bfloat16": {"peak": 1e9}},
    "memory_bytes_per_second": {"copy": 1e10, "read": 1e10},
    "op_seconds": 6e-6,
    "process_bytes": 3.4e8,
    "checkpoint_bytes_per_second": 3e8,
}
CORPUS = {
    "bytes": 11_600_000,
    "tokens": 3_300_000,
    "documents": 600,
    "unique_tokens": 5000,
    "bytes_per_token": 3.5,
    "xz_bits_per_byte": 1.6,
    "vocab_size": 5000,
}
PROBE = {
    "bits_per_byte": 2.1,
    "loss": 5.2,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "tokens": 163_840,
    "steps": 80,
    "step_seconds": 0.15,
}
RESOLVED = ModelConfig(hidden_size=64, num_hidden_layers=2).resolved(300, 32)

shapes = st.builds(
    lambda heads, kv, width, layers, ff, vocab, tied: ModelConfig(
        hidden_size=heads * width,
        num_hidden_layers=layers,
        num_attention_heads=heads * kv,
        num_key_value_heads=kv,
        head_dim=width,
        intermediate_size=ff,
        tie_word_embeddings=tied,
    ).resolved(vocab, 16),
    st.integers(1, 3),
    st.integers(1, 2),
    st.sampled_from([8, 16, 24]),
    st.integers(1, 3),
    st.integers(1, 90),
    st.integers(2, 200),
    st.booleans(),
)


@given(shapes)
@settings(max_examples=20, deadline=None)
def test_parameters_equal_the_built_model(model: ModelConfig) -> None:
    built = Decoder(model)
    count = flops.parameters(model)
    assert count["total"] == sum(p.numel() for p in built.parameters())
    tables = {built.model.embed_tokens.weight.data_ptr(), built.lm_head.weight.data_ptr()}
    assert count["non_embedding"] == sum(p.numel() for p in built.parameters() if p.data_ptr() not in tables)
    places = ("embedding", "attention", "feed_forward", "norms", "head")
    assert sum(count[k] for k in places) == count["total"]


@given(shapes, st.integers(1, 3), st.sampled_from([4, 16]))
@settings(max_examples=15, deadline=None)
def test_flops_equal_an_operator_level_count(model: ModelConfig, batch: int, context: int) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    built = Decoder(model)
    built.initialise(0)
    ids = torch.randint(0, model.vocab_size or 1, (batch, context))
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        next_token_loss(Alone(built), ids, ids, None, None).backward()
    assert counter.get_total_flops() == batch * context * flops.flops_per_token(model, context)["full"]


def test_causal_attention_is_counted_query_by_query() -> None:
    context = 32
    pairs = sum(query + 1 for query in range(context))  # keys that each query meets
    H, E, L = RESOLVED.num_attention_heads or 0, RESOLVED.head_dim or 0, RESOLVED.num_hidden_layers or 0
    counts = flops.flops_per_token(RESOLVED, context)
    linear = counts["full"] - 3 * 4 * L * H * E * context
    assert counts["causal"] * context == linear * context + 3 * 4 * L * H * E * pairs
    assert counts["causal"] - counts["without_head"] == 3 * 2 * 64 * 300


def test_muon_products_equal_an_operator_level_count() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        for name, p in Decoder(RESOLVED).named_parameters():
            if p.ndim == 2 and ".layers." in name:
                optim.orthogonalise(torch.randn(1, *p.shape))
    assert counter.get_total_flops() == flops.optimizer_flops(RESOLVED, "muon")
    assert flops.optimizer_flops(RESOLVED, "adamw") == 0


@pytest.mark.parametrize("optimizer", ["muon", "adamw", "sgd"])
def test_states_equal_the_optimisers_tensors(optimizer: str) -> None:
    model = Decoder(RESOLVED)
    model.initialise(0)
    optimizers = optim.build(model.named_parameters(), TrainConfig(optimizer=optimizer))
    ids = torch.zeros(1, 8, dtype=torch.int64)
    next_token_loss(Alone(model), ids, ids, None, None).backward()
    gradients = sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    for o in optimizers:
        o.step()
    kept = sum(t.nbytes for t in optim.state_tensors(model.named_parameters(), optimizers).values() if t.ndim)
    states = memory.state_bytes(RESOLVED, optimizer)
    assert states == {"weights": gradients, "gradients": gradients, "optimizer": kept}


@given(shapes, st.sampled_from(["float32", "bfloat16"]), st.sampled_from(["sdpa", "products"]))
@settings(max_examples=16, deadline=None)
def test_activations_equal_what_autograd_saves(model: ModelConfig, dtype: str, kernel: str) -> None:
    """Every distinct storage that autograd keeps up to the head, but for weights and their casts, and the tokens."""
    built = Decoder(model, kernel=kernel)
    B, T = 211, 2  # no weight has these sizes
    ids = torch.randint(0, model.vocab_size or 1, (B, T))
    own = {t.untyped_storage().data_ptr() for t in (*built.parameters(), *built.buffers())}
    seen: dict[int, torch.Tensor] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        key = t.untyped_storage().data_ptr()
        if key not in own and t.shape[0] in (B, B * T, B * model.sizes.K) and t.is_floating_point():
            seen[key] = t
        return t

    with loop.autocast(getattr(torch, dtype)), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        hidden = built.hidden(ids).flatten(0, 1)
        built.lm_head(hidden)  # keeps its input
    kept = sum(t.untyped_storage().nbytes() for t in seen.values())
    train = TrainConfig(context=T, micro_batch_size=B, dtype=dtype, attention=kernel)
    assert kept == B * T * memory.saved_bytes_per_token(model, dtype) + memory.probability_bytes(model, train)


def _live_peak_bytes(model: ModelConfig, train: TrainConfig) -> int:
    """The peak of live tensors of the second step above what lives before it, by torch's profiler."""
    from torch._C._profiler import _EventType
    from torch.profiler import ProfilerActivity, profile

    built = Decoder(model, kernel=train.attention)
    built.initialise(0)
    optimizers = optim.build(built.named_parameters(), train)
    micro, context = train.micro_batch_size or 1, train.context

    def step() -> None:
        for _ in range((train.global_batch_tokens or 0) // (micro * context)):
            ids = torch.zeros(micro, context, dtype=torch.int64)
            next_token_loss(Alone(built), ids, ids, None, train.loss_chunk_tokens).backward()
        torch.nn.utils.clip_grad_norm_(built.parameters(), 1.0, foreach=True)
        for o in optimizers:
            o.step()
            o.zero_grad(set_to_none=True)

    step()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        step()
    events: list[tuple[int, int]] = []

    def walk(node: object) -> None:
        if node.tag == _EventType.Allocation:
            events.append((node.start_time_ns, node.extra_fields.alloc_size))
        for child in node.children:
            walk(child)

    for root in prof.profiler.kineto_results.experimental_event_tree():
        walk(root)
    live = most = 0
    for _, change in sorted(events):
        live += change
        most = max(most, live)
    return most


@pytest.mark.parametrize(
    ("width", "micro", "batches", "chunk", "optimizer", "kernel"),
    [
        (64, 8, 1, None, "muon", "sdpa"),
        (64, 4, 2, None, "muon", "sdpa"),
        (64, 8, 1, 64, "muon", "sdpa"),
        (128, 4, 1, None, "adamw", "sdpa"),
        (256, 1, 1, None, "muon", "sdpa"),  # the optimiser's workspace is the peak
        (128, 4, 1, None, "adamw", "products"),
        (64, 4, 2, 64, "muon", "products"),  # the products of one block are the peak
    ],
)
def test_live_memory_is_within_one_percent_of_torchs_own_count(
    width: int, micro: int, batches: int, chunk: int | None, optimizer: str, kernel: str
) -> None:
    context = 256 if kernel == "products" else 64
    model = ModelConfig(hidden_size=width, num_hidden_layers=2).resolved(512, context)
    train = TrainConfig(
        context=context,
        micro_batch_size=micro,
        global_batch_tokens=context * micro * batches,
        loss_chunk_tokens=chunk,
        optimizer=optimizer,
        attention=kernel,
        dtype="float32",
        compile="off",
    )
    states = memory.state_bytes(model, optimizer)
    before = states["weights"] + states["optimizer"] + memory.table_bytes(model)
    expected = memory.memory_bytes(model, train)["live"] - before
    assert _live_peak_bytes(model, train) == pytest.approx(expected, rel=0.01)


_RESIDENT = """
import sys, json
from pathlib import Path
import torch
from foretell import config, data, plan, runtime
from foretell.train import trial
torch.set_num_threads(1)
prepared = data.open_data(Path(sys.argv[1]))
def sized(width, layers, context, batch, chunk):
    train = dict(steps=3, context=context, global_batch_tokens=batch, loss_chunk_tokens=chunk)
    train |= dict(dtype="float32", compile="off")
    c = config.updated(config.RunConfig(), model=dict(hidden_size=width, num_hidden_layers=layers), train=train)
    return plan.completed(c, prepared.corpus)
trial.trial(sized(64, 1, 16, 32, None), prepared, "float32", False, 1)
runtime.reset_peak_memory()
machine = {"process_bytes": runtime.resident_memory_bytes()}
c = sized(*json.loads(sys.argv[2]))
parts = plan.plan(c, machine=machine, corpus=prepared.corpus)["memory_bytes"]
forecast = {k: v - parts["snapshot"] for k, v in parts["peak"].items()}  # a trial saves nothing
trial.trial(c, prepared, "float32", False, 1)
print(json.dumps([forecast, runtime.peak_memory_bytes()]))
"""


@pytest.fixture(scope="module")
def small_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from foretell.data import prepare

    folder = tmp_path_factory.mktemp("plan")
    words = [f"line {i} of {i * i % 97} and {i * 7919 % 1000}\n" for i in range(4000)]
    (folder / "text.txt").write_text("".join(words))
    prepare(
        [str(folder / "text.txt")], folder / "data", run_config.TokenizerConfig(), run_config.DataConfig(), workers=1
    )
    return folder / "data"


@pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is read from /proc")
@pytest.mark.parametrize("shape", [[128, 2, 128, 2048, None], [256, 4, 128, 2048, 256]])
def test_resident_memory_stays_in_its_interval(small_data: Path, shape: list) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _RESIDENT, str(small_data), json.dumps(shape)],
        capture_output=True,
        text=True,
        check=True,
    )
    forecast, measured = json.loads(done.stdout.splitlines()[-1])
    assert forecast["low"] < measured < forecast["high"], f"{measured / forecast['value']:.3f} of the forecast"


@pytest.mark.parametrize(
    ("text", "seconds", "count"),
    [
        ("90s", 90, None),
        ("10m", 600, None),
        ("1h30m", 5400, None),
        ("1.5 h", 5400, None),
        ("2 hours", 7200, None),
        ("1d", 86400, None),
        ("3 min", 180, None),
        ("1e15", None, 1e15),
        ("2E17 FLOPs", None, 2e17),
        ("1e+12flops", None, 1e12),
    ],
)
def test_budgets(text: str, seconds: float | None, count: float | None) -> None:
    assert plan.parse_budget(text) == plan.Budget(seconds=seconds, flops=count)


@pytest.mark.parametrize(
    "text", ["", "10", "0s", "ten minutes", "10 m x", "-5m", "20 USD", "$20", "1e400", "nan", "10mm"]
)
def test_what_is_no_budget_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="budget"):
        plan.parse_budget(text)


def _completed(**train: object) -> RunConfig:
    config = run_config.updated(
        RunConfig(), model={"hidden_size": 128, "num_hidden_layers": 2}, train={"steps": 100, **train}
    )
    return plan.completed(config, CORPUS, MACHINE)


def test_completing_fills_every_size_and_keeps_what_is_set() -> None:
    c = _completed(eval_every=7, save_every=9, eval_tokens=77, global_batch_tokens=4096, micro_batch_size=2)
    assert (c.train.eval_every, c.train.save_every, c.train.eval_tokens) == (7, 9, 77)
    assert (c.train.global_batch_tokens, c.train.micro_batch_size, c.train.steps) == (4096, 2, 100)
    filled = _completed()
    for key in ("global_batch_tokens", "micro_batch_size", "eval_every", "save_every", "eval_tokens", "steps"):
        assert getattr(filled.train, key) is not None, key
    assert filled.model.vocab_size == CORPUS["vocab_size"]
    assert plan.completed(filled, CORPUS, MACHINE) == filled


def test_completing_names_what_clashes_and_what_would_do() -> None:
    with pytest.raises(ConfigError, match=r"5,000.*256.*nearest: 5,120"):
        _completed(global_batch_tokens=5000)
    with pytest.raises(ConfigError, match=r"4,096.*3 x context 256 = 768; nearest: 3,840"):
        _completed(global_batch_tokens=4096, micro_batch_size=3)
    with pytest.raises(ConfigError, match=r"--budget"):
        plan.completed(run_config.updated(RunConfig(), model={"hidden_size": 64, "num_hidden_layers": 1}), CORPUS)
    with pytest.raises(ConfigError, match="hidden_size"):
        plan.completed(run_config.updated(RunConfig(), train={"steps": 3}), CORPUS)


def test_logits_are_chunked_only_where_they_would_be_large() -> None:
    assert _completed(global_batch_tokens=4096).train.loss_chunk_tokens is None
    big = _completed(global_batch_tokens=256 * 1024, micro_batch_size=1024)
    assert big.train.loss_chunk_tokens is not None
    logits = memory.logit_bytes(big.model, big.train)
    assert logits < 0.1 * memory.logit_bytes(big.model, big.train.model_copy(update={"loss_chunk_tokens": None}))


def test_micro_batches_shrink_until_they_fit() -> None:
    small = {**MACHINE, "memory_bytes": 8e8}
    config = run_config.updated(
        RunConfig(),
        model={"hidden_size": 256, "num_hidden_layers": 4},
        train={"steps": 9, "global_batch_tokens": 16384},
    )
    roomy, tight = (plan.completed(config, CORPUS, m).train.micro_batch_size for m in (MACHINE, small))
    assert roomy == 64
    assert tight is not None
    assert tight < 64
    assert 64 % tight == 0


budgets = st.floats(60, 36_000).map(lambda s: plan.Budget(seconds=s))


@given(budgets, st.sampled_from([None, PROBE]))
@settings(max_examples=8, deadline=None)
def test_a_budget_is_met_by_the_forecast(budget: plan.Budget, probe: dict | None) -> None:
    plenty = {**CORPUS, "tokens": 10**11}  # no budget reads it eight times
    config = plan.size_for_budget(budget, machine=MACHINE, corpus=plenty, probe=probe, config=RunConfig())
    config = plan.completed(config, plenty, MACHINE)
    trial = {"step_seconds": 0.3, "first_step_seconds": 0.9}
    config = plan.steps_for_budget(budget, machine=MACHINE, corpus=plenty, probe=probe, trial=trial, config=config)
    forecast = plan.plan(config, machine=MACHINE, corpus=plenty, probe=probe, trial=trial)
    step = 0.3 / (budget.seconds or 1)
    assert forecast["seconds"]["value"] / (budget.seconds or 1) == pytest.approx(size.AIM, abs=0.02 + step)
    assert forecast["seconds"]["high"] < 1.25 * (budget.seconds or 1)
    assert forecast["steps"] == config.train.steps


def test_a_flop_budget_is_spent_on_the_model() -> None:
    config = run_config.updated(RunConfig(), train={"budget": "1e14"})
    forecast = plan.forecast(config, machine=MACHINE, corpus=CORPUS)
    assert forecast["flops_total"] == pytest.approx(1e14, rel=0.01)
    more = plan.forecast(run_config.updated(config, train={"budget": "1e16"}), machine=MACHINE, corpus=CORPUS)
    assert more["parameters"]["total"] > forecast["parameters"]["total"]
    assert more["bits_per_byte"]["value"] < forecast["bits_per_byte"]["value"]


def test_of_forecasts_that_are_alike_the_largest_model_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def sized() -> tuple[int, float]:
        budget = plan.Budget(seconds=1800)
        c = plan.size_for_budget(budget, machine=MACHINE, corpus=CORPUS, probe=PROBE, config=RunConfig())
        c = plan.completed(c, CORPUS, MACHINE)
        forecast = plan.plan(c, machine=MACHINE, corpus=CORPUS, probe=PROBE)
        return forecast["parameters"]["non_embedding"], forecast["bits_per_byte"]["value"]

    larger, loss = sized()
    monkeypatch.setattr(size, "ALIKE", 0.0)
    best, lowest = sized()
    assert larger > best
    assert lowest <= loss <= 1.02 * lowest


def test_sizes_are_sane_and_respect_what_is_set() -> None:
    budget = plan.Budget(seconds=240)
    sized = plan.size_for_budget(budget, machine=MACHINE, corpus=CORPUS, probe=PROBE, config=RunConfig())
    total = flops.parameters(plan.completed(sized, CORPUS, MACHINE).model)["total"]
    assert 2e5 < total < 8e6
    wide = run_config.updated(RunConfig(), model={"hidden_size": 320}, train={"global_batch_tokens": 8192})
    kept = plan.size_for_budget(budget, machine=MACHINE, corpus=CORPUS, probe=PROBE, config=wide)
    assert kept.model.hidden_size == 320
    assert kept.train.global_batch_tokens == 8192
    fixed = run_config.updated(RunConfig(), train={"steps": 5})
    assert plan.size_for_budget(budget, machine=MACHINE, corpus=CORPUS, probe=PROBE, config=fixed) is fixed


def test_a_budget_in_which_nothing_learns_is_refused() -> None:
    slow = {**MACHINE, "flops_per_second": {"float32": {"peak": 1e9}}}
    with pytest.raises(PlanError, match="2 s"):
        plan.size_for_budget(plan.Budget(seconds=2), machine=slow, corpus=CORPUS, probe=None, config=RunConfig())


laws = st.sampled_from([scaling.prior(), scaling.PROVISIONAL])
count = st.floats(1e4, 1e10)


@given(laws, count, count, st.floats(1.05, 10), st.sampled_from([2048, 16384]))
def test_more_parameters_or_tokens_never_raise_the_forecast(
    law: dict, n: float, tokens: float, factor: float, batch: int
) -> None:
    def value(n: float, tokens: float, batch: float, unique: float = 1e6) -> float:
        return scaling.predicted(law, n, tokens, batch, unique, 2.0, 1.8)

    assert value(n * factor, tokens, batch) <= value(n, tokens, batch)
    assert value(n, tokens * factor, batch) <= value(n, tokens, batch)
    assert value(n, tokens, batch) <= value(n, tokens, batch * factor)
    assert value(n, tokens, batch, 1e7) <= value(n, tokens, batch, 1e6)
    assert value(n, tokens, batch) > 0


@given(laws, st.floats(0.5, 8), st.floats(0.3, 8))
def test_the_law_passes_through_the_probe(law: dict, reached: float, xz: float) -> None:
    at_probe = scaling.predicted(
        law, scaling.PROBE_PARAMETERS, scaling.PROBE_TOKENS, scaling.PROBE_BATCH, math.inf, reached, xz
    )
    assert at_probe == pytest.approx(reached)


def test_the_probe_is_what_the_law_thinks_it_is() -> None:
    from foretell.train import trial

    model = trial.PROBE_MODEL.resolved(1000, trial.PROBE_TRAIN.context)
    assert flops.parameters(model)["non_embedding"] == scaling.PROBE_PARAMETERS
    assert trial.PROBE_TRAIN.global_batch_tokens == scaling.PROBE_BATCH
    assert (trial.PROBE_TRAIN.steps or 0) * scaling.PROBE_BATCH == scaling.PROBE_TOKENS
    assert trial.PROBE_TRAIN.context == scaling.PROBE_CONTEXT


def test_repeated_tokens_are_worth_what_the_paper_says() -> None:
    assert scaling.worth(5e5, 1e6, 15.4) == 5e5
    # Four epochs: 1 + 15.4 * (1 - exp(-3 / 15.4)) epochs of fresh text.
    assert scaling.worth(4e6, 1e6, 15.4) == pytest.approx(1e6 * 3.7263, rel=1e-3)
    assert scaling.worth(1e12, 1e6, 15.4) == pytest.approx(1e6 * 16.4)


def _synthetic(law: dict, texts: int) -> list[dict]:
    rows = []
    for i in range(texts):
        text = {"xz_bits_per_byte": 1.2 + 0.3 * i, "tokens": 1_000_000 * (1 + i), "bytes": 1}
        reached = 1.6 + 0.25 * i
        for n, tokens, batch in [
            (1e5, 5e5, 2048),
            (8e5, 2.5e5, 2048),
            (8e5, 1e6, 2048),
            (1.6e6, 5e5, 8192),
            (3e6, 4e6, 4096),
        ]:
            value = scaling.predicted(law, n, tokens, batch, text["tokens"], reached, text["xz_bits_per_byte"])
            rows.append(
                {
                    "corpus": f"text{i}",
                    "text": text,
                    "probe": {"bits_per_byte": reached},
                    "non_embedding": n,
                    "tokens": tokens,
                    "batch_tokens": batch,
                    "bits_per_byte": value,
                    "curve": [[k / 10, value * (1 + 0.05 * (10 - k))] for k in range(1, 11)],
                }
            )
    return rows


def test_the_fit_finds_the_law_that_made_the_runs() -> None:
    truth = {**scaling.PROVISIONAL, "alpha": 0.28, "beta": 0.31, "a": 0.3, "floor_xz": 0.3, "floor_probe": 0.2}
    rows = _synthetic(truth, 6)
    errors = [e for o in fit.leave_one_out(rows).values() for e in o["with_probe"]]
    assert max(map(abs, errors)) < 0.004
    law = fit.fit(rows)
    assert law["beta"] == pytest.approx(0.31, abs=0.05)
    spreads = fit.spreads(rows, fit.leave_one_out(rows), law)
    assert spreads["noise"] < 0.006
    assert [p["share"] for p in spreads["course"]] == [k / 10 for k in range(1, 11)]


@pytest.mark.parametrize(
    ("epochs", "expected"), [(0.5, 0.0), (3.0, 0.0), (3.5, 0.1), (6.0, 0.1), (7.0, 0.2), (50.0, 0.2)]
)
def test_dropout_follows_the_epochs_unless_it_is_set(epochs: float, expected: float) -> None:
    corpus = {**CORPUS, "tokens": 1_000_000}
    asked = {"steps": round(epochs * 1_000_000 / 4000), "global_batch_tokens": 4000, "context": 250}
    config = run_config.updated(RunConfig(), model={"hidden_size": 64, "num_hidden_layers": 2}, train=asked)
    assert plan.completed(config, corpus, MACHINE).train.dropout == expected
    assert plan.completed(config, None, MACHINE).train.dropout == 0.0
    config = run_config.updated(config, train={"dropout": 0.35})
    assert plan.completed(config, corpus, MACHINE).train.dropout == 0.35


def test_a_budget_of_time_reads_a_small_text_eight_times_at_most_and_says_so() -> None:
    corpus = {**CORPUS, "tokens": 100_000}
    budget = "2h"
    sized = plan.size_for_budget(
        plan.parse_budget(budget), machine=MACHINE, corpus=corpus, probe=PROBE,
        config=run_config.updated(RunConfig(), train={"budget": budget}),
    )  # fmt: skip
    c = plan.completed(sized, corpus, MACHINE)
    trial = {"step_seconds": 0.01, "low": 0.01, "high": 0.01}
    c = plan.steps_for_budget(
        plan.parse_budget(budget), machine=MACHINE, corpus=corpus, probe=PROBE, trial=trial, config=c
    )
    assert (c.train.steps or 0) * (c.train.global_batch_tokens or 0) <= 8 * 100_000
    assert c.train.dropout == 0.2
    assert plan.plan(c, machine=MACHINE, corpus=corpus, probe=PROBE, trial=trial)["text_used_up"]
    plenty = plan.completed(c, {**corpus, "tokens": 10**9}, MACHINE)
    assert not plan.plan(plenty, machine=MACHINE, corpus={**corpus, "tokens": 10**9})["text_used_up"]


def test_student_quantiles() -> None:
    for degrees, known in [(5, 2.015), (8, 1.860), (10, 1.812), (30, 1.697)]:
        assert fit.student_95(degrees) == pytest.approx(known, rel=0.002)


def test_the_shipped_prior_was_fitted_on_other_texts_under_the_default_recipe() -> None:
    law = scaling.prior()
    runs = [json.loads(r) for r in (Path(plan.__file__).parent / "runs.jsonl").read_text().splitlines()]
    mine = [r for r in runs if r["recipe"] == law["recipe"]]
    assert law["texts"] >= 6
    assert len(mine) >= law["runs"]
    assert not {"python-library", "stdlib", "demo"} & {r["corpus"] for r in mine}
    assert 0 < law["alpha"] < 1
    assert 0 < law["beta"] < 1


MEASURED = {
    "seconds": 250.0,
    "memory_bytes": {"peak": 5.2e8},
    "bits_per_byte": 1.9,
    "steps": 100,
    "stopped": "finished",
    "mfu": None,
}
PREDICTED = {
    "seconds": {"value": 200.0, "low": 180.0, "high": 260.0},
    "memory_bytes": {"peak": {"value": 5e8, "low": 4.5e8, "high": 5.5e8}},
    "bits_per_byte": {"value": 2.0, "low": 1.9, "high": 2.1},
    "steps": 100,
    "mfu": {"value": 0.5, "low": 0.4, "high": 0.6},
}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "no such file"),
        ("{", "damaged"),
        ("[]", "damaged"),
        ("{}", "damaged"),
        ('{"steps": 1, "format_version": 99}', "format_version 99"),
    ],
)
def test_a_stored_forecast_that_cannot_be_read_is_refused(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "plan.json").write_text(content)
    with pytest.raises(ConfigError, match=says):
        plan.stored(tmp_path / "plan.json")


def test_verdicts() -> None:
    found = plan.verify(PREDICTED, MEASURED)
    by_name = {q["name"]: q for q in found["quantities"]}
    assert by_name["seconds"]["error_percent"] == pytest.approx(25.0)
    assert by_name["bits_per_byte"]["error_percent"] == pytest.approx(-5.0)
    assert by_name["bits_per_byte"]["held"] is True  # the bound itself is inside
    assert by_name["steps"]["held"] is None
    assert "mfu" not in by_name
    assert found["held_share"] == 1.0
    assert found["headline_held"]


def test_the_prior_is_the_fit_of_the_runs_beside_it() -> None:
    place = Path(plan.__file__).parent
    rows = [json.loads(line) for line in (place / "runs.jsonl").read_text().splitlines()]
    law = json.loads((place / "prior.json").read_text())
    assert (law["runs"], law["texts"]) == (len(rows), len({r["corpus"] for r in rows}))
    fitted = fit.fit(rows)
    for key in ("a", "alpha", "beta", "floor_xz", "floor_probe", "repeat", "critical_batch"):
        assert fitted[key] == pytest.approx(law[key], rel=1e-4)


@pytest.mark.parametrize(
    ("changed", "held"),
    [
        ({"seconds": 261.0}, False),
        ({"memory_bytes": {"peak": 6e8}}, False),
        ({"bits_per_byte": 2.2}, False),
        ({"stopped": "stopped at step 9 of 10: over the guard"}, False),
        ({"steps": 90}, True),
        ({"seconds": None}, True),
    ],
)
def test_only_a_headline_outside_its_interval_fails(changed: dict, held: bool) -> None:
    assert plan.verify(PREDICTED, {**MEASURED, **changed})["headline_held"] is held


def test_the_plan_is_json_and_renders() -> None:
    from rich.console import Console

    from foretell.cli import tables

    forecast = plan.forecast(run_config.updated(RunConfig(), train={"budget": "4m"}), machine=MACHINE, corpus=CORPUS)
    assert json.loads(json.dumps(forecast)) == forecast
    for name in ("seconds", "bits_per_byte", "loss", "step_seconds"):
        assert forecast[name]["low"] < forecast[name]["value"] < forecast[name]["high"]
    console = Console(record=True, width=110, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(tables.forecast(forecast))
    console.print(tables.verdict(plan.verify(PREDICTED, MEASURED)))
    text = console.export_text()
    assert "bits per byte" in text
    assert "[3m 00s, 4m 20s]" in text


def test_a_machine_nobody_measured_still_gets_a_forecast() -> None:
    config = _completed()
    bare = plan.plan(config, machine={"threads": 1}, corpus=CORPUS)
    known = plan.plan(config, machine=MACHINE, corpus=CORPUS)
    width = {k: v["seconds"]["high"] / v["seconds"]["low"] for k, v in {"bare": bare, "known": known}.items()}
    assert width["bare"] > width["known"]
    assert seconds_of.peak_flops_per_second(MACHINE) == 1e11


def test_a_forecast_loads_no_torch() -> None:
    code = (
        "import sys; from foretell import plan, config; "
        "c = config.updated(config.RunConfig(), train={'budget': '4m'}); "
        "plan.forecast(c, machine={'threads': 2, 'flops_per_second': {'float32': {'peak': 1e11}}}); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False"]


def test_golden_plan() -> None:
    """Counts of one config, by hand: any change of convention must be seen."""
    config = run_config.updated(
        RunConfig(),
        model={"hidden_size": 128, "num_hidden_layers": 2},
        train={"steps": 10, "global_batch_tokens": 4096, "dtype": "float32", "compile": "off"},
    )
    p = plan.plan(plan.completed(config, CORPUS, MACHINE), machine=MACHINE, corpus=CORPUS)
    layer = 128 * 128 * 2 + 2 * 64 * 128 + 3 * 128 * 384
    norms = 2 * (2 * 128 + 2 * 32) + 128
    assert p["parameters"]["total"] == 2 * layer + norms + 5000 * 128
    assert p["flops_per_token"] == 3 * (2 * 2 * layer + 2 * 128 * 5000 + 2 * 4 * 128 * 257 / 2)
    assert p["flops_total"] == p["flops_per_token"] * 40960
    assert p["tokens"] == 40960
    assert p["memory_bytes"]["states"] == 4 * (3 * 2 * layer + 4 * (norms + 5000 * 128))


def test_an_unsteady_trial_widens_the_interval_but_never_past_the_guard() -> None:
    c = _completed()
    widths = []
    for high in (0.30, 0.33, 0.45, 3.0):
        trial = {"step_seconds": 0.3, "low": 0.29, "high": high, "first_step_seconds": 0.4}
        seconds = seconds_of.run_seconds(c, MACHINE, trial)
        widths.append(seconds["high"] / seconds["value"])
    assert widths == sorted(widths)
    assert widths[0] < widths[2]
    assert widths[-1] * size.AIM < 1.25


def test_the_probes_steps_correct_the_roofline() -> None:
    c = _completed()
    slow, fast = (seconds_of.run_seconds(c, MACHINE, None, {**PROBE, "step_seconds": s}) for s in (0.3, 0.15))
    assert slow["value"] == pytest.approx(2 * fast["value"], rel=0.05)


def test_time_grows_with_the_work() -> None:
    small, large = _completed(global_batch_tokens=2048), _completed(global_batch_tokens=8192)
    a, b = (seconds_of.run_seconds(c, MACHINE, None)["value"] for c in (small, large))
    assert a < b < 4 * a
