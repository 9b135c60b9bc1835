"""Mixtures of experts: the formula by brute force, transformers' balance loss, and what parallelism may rely on."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import on
from tiny import bpe, model
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from training import TINY, session

from foretell import config as run_config
from foretell import evaluate, generate
from foretell.config import ModelConfig, TrainConfig
from foretell.data import open_data, prepare
from foretell.errors import ConfigError
from foretell.models import hf
from foretell.models.decoder import Decoder
from foretell.models.grouped import grouped_outer, grouped_product
from foretell.models.moe import LOAD_SCALE, Experts, MoE, with_balance
from foretell.plan import flops, memory, size
from foretell.plan.budget import parse_budget
from foretell.train import loop, optim
from foretell.train.alone import Alone
from foretell.train.loss import next_token_loss

EXPERTS = {"num_experts": 4, "moe_intermediate_size": 24, "router_aux_loss_coef": 0.1}
ids = torch.randint(0, 300, (6, 16), generator=torch.Generator().manual_seed(5))


def config(**changes: Any) -> ModelConfig:
    return ModelConfig(**{"hidden_size": 32, "num_hidden_layers": 2, **EXPERTS, **changes}).resolved(300, 64)


def layer(**changes: Any) -> MoE:
    torch.manual_seed(3)
    built = MoE(config(**changes)).double()
    if built.expert_bias is not None:
        built.expert_bias.data.uniform_(-0.3, 0.3)
    return built


def by_hand(m: MoE, x: Tensor) -> Tensor:
    """Token by token, as the paper says it."""
    rows = []
    for token in x.flatten(0, 1):
        p = m.gate(token).softmax(-1)
        score = p if m.expert_bias is None else p + m.expert_bias
        chosen = sorted(range(m.num_experts), key=lambda e: -score[e].item())[: m.top_k]
        total = sum(p[e] for e in chosen) if m.normalised else 1.0
        y = torch.zeros_like(token)
        for e in chosen:
            inner = F.silu(m.experts.gate_proj[e] @ token) * (m.experts.up_proj[e] @ token)
            y = y + p[e] / total * (m.experts.down_proj[e] @ inner)
        rows.append(y)
    return torch.stack(rows).view_as(x)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 7), st.booleans(), st.sampled_from(["loss", "bias"]))
@settings(max_examples=25, deadline=None)
def test_it_is_the_formula_with_its_gradient(N: int, k: int, T: int, normalised: bool, balance: str) -> None:
    m = layer(num_experts=N, num_experts_per_tok=min(k, N), norm_topk_prob=normalised, balance=balance)
    x = torch.randn(2, T, 32, dtype=torch.float64, requires_grad=True)
    ours, theirs = m(x), by_hand(m, x)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)  # probabilities are formed in float32
    direction = torch.randn_like(x)
    inputs = [x, m.gate.weight, *m.experts.parameters()]
    found, expected = (torch.autograd.grad(y, inputs, direction, allow_unused=True) for y in (ours, theirs))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("counts", [[3, 0, 4], [0, 0, 7], [0, 0, 0]])
def test_grouped_products_are_products_of_groups(counts: list[int]) -> None:
    x = torch.randn(sum(counts), 5, dtype=torch.float64, requires_grad=True)
    w = torch.randn(3, 6, 5, dtype=torch.float64, requires_grad=True)
    sizes = torch.tensor(counts)
    y = grouped_product(x, w, sizes)
    assert torch.equal(y, torch.cat([rows @ matrix.T for rows, matrix in zip(x.split(counts), w, strict=True)]))
    assert torch.autograd.gradcheck(lambda x, w: grouped_product(x, w, sizes), (x, w)) or not len(x)
    torch.library.opcheck(grouped_product, (x, w, sizes))
    torch.library.opcheck(grouped_outer, (y.detach(), x.detach(), sizes))


def test_grouped_products_agree_with_torchs() -> None:
    counts = torch.tensor([8, 0, 24, 32])
    x, w = (torch.randn(n, dtype=torch.bfloat16, requires_grad=True) for n in ((64, 16), (4, 24, 16)))
    ours = grouped_product(x, w, counts)
    theirs = F.grouped_mm(x, w.mT, offs=counts.cumsum(0).to(torch.int32))
    direction = torch.randn_like(ours)
    for a, b in zip(
        (ours, *torch.autograd.grad(ours, (x, w), direction)),
        (theirs, *torch.autograd.grad(theirs, (x, w), direction)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_an_exchange_may_spread_the_experts() -> None:
    """Two halves of the experts apart, as two ranks hold them: the same output and gradients."""
    m = layer()
    x = torch.randn(3, 5, 32, dtype=torch.float64, requires_grad=True)
    inputs = [x, m.gate.weight]
    direction = torch.randn_like(x)
    expected = m(x), torch.autograd.grad(m(x), inputs, direction)
    seen = []

    def exchange(experts: Experts, tokens: Tensor, counts: Tensor) -> Tensor:
        seen.append(counts)
        halves = []
        for rank, rows in enumerate(tokens.split([int(counts[:2].sum()), int(counts[2:].sum())])):
            half = Experts(2, 32, 24).double()
            for name, p in half.named_parameters():
                p.data.copy_(getattr(experts, name)[2 * rank : 2 * rank + 2])
            halves.append(half(rows, counts[2 * rank : 2 * rank + 2]))
        return torch.cat(halves)

    m.exchange = exchange
    assert torch.equal(m(x), expected[0])
    assert all(map(torch.equal, torch.autograd.grad(m(x), inputs, direction), expected[1]))
    assert seen[0].sum() == 15 * m.top_k
    assert seen[0].shape == (4,)


def on_a_rank(c: ModelConfig) -> tuple[float, dict[str, Any]]:
    """Loss and gradients with half of the batch and half of the experts; all of them on the whole batch's scale."""
    import torch.distributed as dist
    import torch.distributed._functional_collectives as collectives

    rank, ranks = dist.get_rank(), dist.get_world_size()
    m = Decoder(c).train()
    m.initialise(0)
    spread(m)
    local = (c.num_experts or 0) // ranks

    def across(rows: Tensor, out: list[int], into: list[int]) -> Tensor:
        return collectives.all_to_all_single_autograd(rows, out, into, dist.group.WORLD)

    def exchange(experts: Experts, tokens: Tensor, counts: Tensor) -> Tensor:
        sent = counts.view(ranks, local)
        got = torch.empty_like(sent)
        dist.all_to_all_single(got, sent.contiguous())
        out, into = got.sum(1).tolist(), sent.sum(1).tolist()
        rows = across(tokens, out, into)
        by_expert = torch.arange(local).repeat(ranks).repeat_interleave(got.flatten()).argsort(stable=True)
        y = experts(rows.index_select(0, by_expert), got.sum(0))
        return across(y.index_select(0, by_expert.argsort()), into, out)

    for part in m.modules():
        if isinstance(part, MoE):
            for name, p in list(part.experts.named_parameters()):
                setattr(part.experts, name, torch.nn.Parameter(p[rank * local : (rank + 1) * local].detach().clone()))
            part.exchange, part.reduce = exchange, lambda s: collectives.all_reduce(s, "sum", dist.group.WORLD)
    own = ids.chunk(ranks)[rank]
    loss = next_token_loss(Alone(m), own, own, None, None)
    loss.backward()
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    gradients = {n: p.grad / ranks for n, p in m.named_parameters() if p.grad is not None}
    for name, g in gradients.items():
        if ".experts." not in name:
            dist.all_reduce(g)
    return mean.item() / ranks, {n: g.numpy() for n, g in gradients.items()}


def spread(m: Decoder) -> None:
    """Every matrix random: outputs that begin at zero would hide what the experts do."""
    generator = torch.Generator().manual_seed(1)
    for p in m.parameters():
        if p.ndim > 1:
            p.data.normal_(0.0, p.shape[-1] ** -0.5, generator=generator)


@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_experts_on_two_ranks_learn_as_on_one(balance: str) -> None:
    """The contract of `exchange` and `reduce` on gloo: loss, gradients and loads of the whole batch."""
    c = config(balance=balance)
    results = on(2, on_a_rank, c)
    m = Decoder(c).train()
    m.initialise(0)
    spread(m)
    loss = next_token_loss(Alone(m), ids, ids, None, None)
    loss.backward()
    for rank, (found, arrays) in enumerate(results):
        gradients = {n: torch.from_numpy(a) for n, a in arrays.items()}
        assert found == pytest.approx(loss.item(), rel=1e-5)
        for name, p in m.named_parameters():
            if ".experts." in name:
                torch.testing.assert_close(gradients[name], p.grad[2 * rank : 2 * rank + 2], rtol=1e-4, atol=1e-6)
            elif name.endswith("expert_bias"):
                assert torch.equal(2 * gradients[name], p.grad)
            else:
                torch.testing.assert_close(gradients[name], p.grad, rtol=1e-4, atol=1e-6)


def balance_of(m: Decoder, x: Tensor) -> Tensor:
    _, loss = with_balance(m, lambda: m.hidden(x))
    assert loss is not None
    return loss


def test_the_balance_loss_is_that_of_transformers_layer_by_layer() -> None:
    qwen = pytest.importorskip("transformers.models.qwen3_moe.modeling_qwen3_moe")
    m = model(300, **EXPERTS, num_experts_per_tok=2)
    logits: list[Tensor] = []
    for part in m.modules():
        if isinstance(part, MoE):
            part.gate.register_forward_hook(lambda module, given, out: logits.append(out))
    ours = balance_of(m, ids)
    theirs = sum(qwen.load_balancing_loss_func((g,), 4, 2) for g in logits) / len(logits) * 0.1
    torch.testing.assert_close(ours, theirs)
    routers = [p for n, p in m.named_parameters() if n.endswith("gate.weight")]
    found, expected = (torch.autograd.grad(loss, routers, retain_graph=True) for loss in (ours, theirs))
    assert all(g.abs().max() > 0 for g in found)
    torch.testing.assert_close(found, expected)


def test_statistics_reduced_over_parts_balance_the_whole() -> None:
    """Each part, with the sums of the others put in by `reduce`, has the loss of the whole and part of its gradient."""
    m = layer()
    x = torch.randn(8, 32, dtype=torch.float64)

    def loss_of(part: Tensor) -> tuple[Tensor, Tensor]:
        m.statistics = []
        m(part)
        loss = m.balance_loss(m.statistics[0])
        return loss, torch.autograd.grad(loss, m.gate.weight)[0]

    whole, gradient = loss_of(x)
    sums = []
    m.reduce = lambda s: sums.append(s.detach()) or s
    for part in x.split(3):
        loss_of(part)
    shares = []
    for i, part in enumerate(x.split(3)):
        others = sum(s for j, s in enumerate(sums) if j != i)
        m.reduce = lambda s, others=others: s + others
        loss, share = loss_of(part)
        assert loss.item() == pytest.approx(whole.item(), rel=1e-6)
        shares.append(share)
    torch.testing.assert_close(sum(shares), gradient, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("balance", ["loss", "bias"])
def test_layers_that_run_again_in_the_backward_pass_are_counted_once(balance: str) -> None:
    m = model(300, **EXPERTS, balance=balance).train()

    def step() -> tuple[Tensor, list[Tensor]]:
        loss = next_token_loss(Alone(m), ids, ids, None, None)
        return loss, list(torch.autograd.grad(loss, list(m.parameters())))

    loss, gradients = step()
    for block in m.model.layers:
        run = block.forward
        block.forward = lambda *a, run=run: checkpoint(run, *a, use_reentrant=False)
    again, recomputed = step()
    assert torch.equal(loss, again)
    assert all(map(torch.equal, gradients, recomputed))
    assert all(part.statistics is None for part in m.modules() if isinstance(part, MoE))


def test_the_bias_hears_the_load_of_all_micro_batches_and_only_the_choice_hears_the_bias() -> None:
    m = model(300, **EXPERTS, balance="bias").train()
    first = m.model.layers[0].mlp
    counts: list[Tensor] = []
    here = first.exchange
    first.exchange = lambda experts, tokens, c: counts.append(c) or here(experts, tokens, c)
    for part in ids.split(2):
        (next_token_loss(Alone(m), part, part, None, None) / 3).backward()
    error = sum(counts).float() - 6 * 16 * first.top_k / 4
    assert torch.equal(first.expert_bias.grad, LOAD_SCALE * error)
    before = first.expert_bias.detach().clone()
    for optimizer in optim.build(m.named_parameters(), TrainConfig(balance_step=0.01)):
        optimizer.step()
    assert torch.equal(first.expert_bias, before - 0.01 * error.sign())
    # In the gradient's norm the load errors are nothing.
    without = [p for n, p in m.named_parameters() if not n.endswith("expert_bias")]
    norms = [torch.nn.utils.get_total_norm([p.grad for p in ps]) for ps in (without, list(m.parameters()))]
    assert torch.equal(*norms)


@pytest.mark.parametrize("way", ["loss", "bias"])
def test_balancing_balances(way: str) -> None:
    """A router that prefers one expert comes to use all."""
    torch.manual_seed(0)
    m = MoE(config(balance=way, num_experts_per_tok=1, router_aux_loss_coef=1.0 if way == "loss" else 0.0))
    mean = torch.randn(32)
    x = mean + torch.randn(512, 32)
    m.gate.weight.data[0] += 0.3 * mean / mean.norm()
    optimizers = optim.build(
        m.named_parameters(), TrainConfig(optimizer="sgd", lr=0.1, weight_decay=0.0, balance_step=0.003)
    )
    most = []
    for _ in range(250):
        m.statistics = []
        y = m(x)
        most.append((m.statistics[0][:4].max() / 128).item())
        (m.balance_loss(m.statistics[0]) + 0.0 * y.sum()).backward()
        for o in optimizers:
            o.step()
            o.zero_grad()
    assert most[0] > 2
    assert sum(most[-10:]) / 10 < 1.5


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The documentation of this project, which is real text."""
    folder = tmp_path_factory.mktemp("moe")
    pages = sorted((Path(__file__).parent.parent / "docs").glob("*.md"))
    (folder / "text.txt").write_text("\n".join(p.read_text(encoding="utf-8") for p in pages), encoding="utf-8")
    tokens = run_config.TokenizerConfig(vocab_size=512)
    prepare([str(folder / "text.txt")], folder / "data", tokens, run_config.DataConfig(), workers=1)
    return folder / "data"


SPARSE = [*TINY, "model.num_experts=4", "model.moe_intermediate_size=32", "train.balance_step=0.01"]


@pytest.mark.parametrize("more", [["train.dtype=float32"], ["train.dtype=bfloat16", "model.balance=bias"]])
def test_training_on_text_learns_and_its_folder_works(more: list[str], text: Path, tmp_path: Path) -> None:
    ended = session(tmp_path / "run", text, [*SPARSE, *more])
    assert ended.code == 0, ended.stderr
    losses = _losses(tmp_path / "run")
    assert losses[0] == pytest.approx(math.log(512), abs=0.1)  # whatever the documentation says today
    assert sum(losses[-4:]) / 4 < losses[0] - 1.0
    trained, own = hf.load(tmp_path / "run" / "model")
    assert isinstance(trained.model.layers[0].mlp, MoE)
    scores = evaluate.evaluate_split(trained, open_data(text), "valid")
    assert ended.result is not None
    assert scores["loss"] == pytest.approx(ended.result["loss"], rel=1e-3)
    moved = [p.abs().max() > 0 for n, p in trained.named_parameters() if n.endswith("expert_bias")]
    assert moved == ([True, True] if len(more) == 2 else [])
    assert own.vocab_size == 512


def _losses(run: Path) -> list[float]:
    from foretell.train import log

    return [e["loss"] for e in log.read(run / "log.jsonl") if e["event"] == "step"]


def test_a_resumed_run_is_bit_equal(text: Path, tmp_path: Path) -> None:
    overrides = [*SPARSE, "model.balance=bias", "train.steps=12"]
    session(tmp_path / "whole", text, overrides)
    assert session(tmp_path / "cut", text, overrides, die=(7, 9)).code == -9
    assert session(tmp_path / "cut", text, overrides, resume=True).code == 0
    whole, cut = ((tmp_path / n / "model" / hf.WEIGHTS).read_bytes() for n in ("whole", "cut"))
    assert whole == cut


def test_generation_with_a_cache_is_that_without() -> None:
    m, own = model(bpe().vocab_size, **EXPERTS, balance="bias"), bpe()
    prompts = ["The quick brown", "It's"]  # the shorter one is padded
    completed = generate.generate(m, own, prompts, max_new_tokens=12, temperature=0.0)
    for prompt, row in zip(prompts, completed, strict=True):
        tokens = [own.bos_id, *own.encode(prompt)]
        start = len(tokens)
        with torch.no_grad():
            while (len(tokens) < start + 12 and tokens[-1] != own.eot_id) or len(tokens) == start:
                tokens.append(int(m(torch.tensor([tokens]))[0, -1].argmax()))
        assert row["completion"] == own.decode([t for t in tokens[start:] if t != own.eot_id])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_experts_per_tok": 5}, r"num_experts_per_tok \(5\) exceeds model.num_experts \(4\)"),
        ({"num_experts": None}, "model.moe_intermediate_size is set, but model.num_experts is not"),
    ],
)
def test_experts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(**changes)


def test_a_budget_sizes_dense_models_only() -> None:
    c = run_config.load(None, ["model.num_experts=4", "train.budget=1m"])
    with pytest.raises(ConfigError, match="dense models only"):
        size.size_for_budget(parse_budget("1m"), machine={}, corpus=None, probe=None, config=c)


shapes = st.builds(
    lambda D, L, N, k, inner, normal, balance: config(
        hidden_size=D,
        num_hidden_layers=L,
        num_experts=N,
        num_experts_per_tok=min(k, N),
        moe_intermediate_size=inner,
        norm_topk_prob=normal,
        balance=balance,
    ),
    *(st.sampled_from([32, 48]), st.integers(1, 2), st.integers(1, 7), st.integers(1, 3), st.integers(1, 40)),
    *(st.booleans(), st.sampled_from(["loss", "bias"])),
)


@given(shapes)
@settings(max_examples=15, deadline=None)
def test_the_plan_counts_what_is_built(c: ModelConfig) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    built = Decoder(c)
    built.initialise(0)
    count = flops.parameters(c)
    assert count["total"] == sum(p.numel() for p in built.parameters())
    assert (
        sum(count[k] for k in ("embedding", "attention", "feed_forward", "norms", "head", "router")) == count["total"]
    )
    idle = (c.num_experts or 0) - (c.num_experts_per_tok or 0)
    assert count["total"] - count["active"] == idle * sum(
        p[0].numel() for n, p in built.named_parameters() if ".experts." in n
    )
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        next_token_loss(Alone(built), ids, ids, None, None).backward()
    assert counter.get_total_flops() == ids.numel() * flops.flops_per_token(c, 16)["full"]
    for name in ("muon", "adamw", "sgd"):
        optimizers = optim.build(built.named_parameters(), TrainConfig(optimizer=name))
        with FlopCounterMode(display=False) as counter:
            for o in optimizers:
                o.step()
        assert counter.get_total_flops() == flops.optimizer_flops(c, name)
        kept = sum(t.nbytes for t in optim.state_tensors(built.named_parameters(), optimizers).values() if t.ndim)
        assert memory.state_bytes(c, name)["optimizer"] == kept


@given(shapes, st.sampled_from(["float32", "bfloat16"]))
@settings(max_examples=15, deadline=None)
def test_activations_equal_what_autograd_saves(c: ModelConfig, dtype: str) -> None:
    built = Decoder(c)
    B, T = 211, 2  # no weight has these sizes
    rows = {B, B * T, B * T * (c.num_experts_per_tok or 0)}
    x = torch.randint(0, 300, (B, T))
    own = {t.untyped_storage().data_ptr() for t in (*built.parameters(), *built.buffers(), x)}
    seen: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        if t.untyped_storage().data_ptr() not in own and t.ndim and t.shape[0] in rows:
            seen[t.untyped_storage().data_ptr()] = t
        return t

    with loop.autocast(getattr(torch, dtype)), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        built.lm_head(built.hidden(x).flatten(0, 1))
    kept = sum(t.untyped_storage().nbytes() for t in seen.values())
    assert kept == B * T * memory.saved_bytes_per_token(c, dtype)


@pytest.mark.parametrize(
    ("micro", "batches", "optimizer", "balance"), [(8, 1, "muon", "loss"), (16, 2, "adamw", "bias")]
)
def test_live_memory_is_within_three_percent_of_torchs_own_count(
    micro: int, batches: int, optimizer: str, balance: str
) -> None:
    from test_plan import _live_peak_bytes

    c = config(hidden_size=64, balance=balance, moe_intermediate_size=64)
    train = TrainConfig(
        context=64,
        micro_batch_size=micro,
        global_batch_tokens=64 * micro * batches,
        optimizer=optimizer,
        attention="sdpa",
        dtype="float32",
        compile="off",
    )
    states, expected = memory.state_bytes(c, optimizer), memory.memory_bytes(c, train)["live"]
    assert _live_peak_bytes(c, train) == pytest.approx(expected - states["weights"] - states["optimizer"], rel=0.03)


def test_muon_makes_each_matrix_of_a_stack_orthogonal() -> None:
    """One step on a stack is the step on each of its matrices alone."""
    torch.manual_seed(0)
    stack = torch.nn.Parameter(torch.randn(3, 24, 8))
    alone = [torch.nn.Parameter(p.detach().clone()) for p in stack]
    stack.grad = torch.randn(3, 24, 8)
    for p, g in zip(alone, stack.grad, strict=True):
        p.grad = g.clone()
    for params in ([stack], alone):
        optim.Muon(params, 0.1, 0.9, 0.01).step()
    torch.testing.assert_close(stack.detach(), torch.stack([p.detach() for p in alone]))


def test_initial_weights() -> None:
    m = Decoder(config(hidden_size=64, num_experts=8, balance="bias", initializer_range=0.03))
    m.initialise(0)
    mlp = m.model.layers[1].mlp
    assert mlp.experts.down_proj.abs().max() == 0
    assert mlp.expert_bias.abs().max() == 0
    assert mlp.experts.gate_proj.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert mlp.gate.weight.std().item() == pytest.approx(0.03, rel=0.1)
