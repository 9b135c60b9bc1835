"""Sums over replicas against float64 and brute force: exact, compressed, resumed, local steps, and the strict tree."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import on as on_ranks
from torch import Tensor, nn

from foretell.distributed.collectives import Collectives
from foretell.distributed.replicate import BLOCK, OuterOptimizer, Reducer, attach, dequantised, quantised
from foretell.distributed.strict import StrictReducer, TreeSum, tree_sum
from foretell.errors import CheckpointError, ConfigError
from foretell.train.alone import Alone

LENGTHS = (1, 257, 5000)


def converted(value: Any, kind: type, convert: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return convert(value)
    if isinstance(value, (list, tuple)):
        return type(value)(converted(v, kind, convert) for v in value)
    if isinstance(value, dict):
        return {k: converted(v, kind, convert) for k, v in value.items()}
    return value


def as_arrays(function: Callable[..., Any], *arguments: Any) -> Any:
    return converted(function(*arguments), Tensor, lambda t: t.numpy())


def on(ranks: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """As `ranks.on`; tensors come as arrays, for torch would send them in memory that ends with the process."""
    return converted(on_ranks(ranks, as_arrays, function, *arguments), np.ndarray, torch.from_numpy)


def drawn(seed: int, length: int, spread: float = 2.0) -> Tensor:
    """Numbers of very different size, so that the order of additions shows."""
    g = torch.Generator().manual_seed(seed)
    return torch.randn(length, generator=g) * 10 ** (spread * torch.randn(length, generator=g))


def sums(method: str) -> dict[int, Tensor]:
    reducer = Reducer(method=method)
    found = {}
    for length in LENGTHS:
        found[length] = drawn(dist.get_rank(), length, spread=0.3)
        reducer.sum_(found[length], str(length))
    return found


# The largest error of one sum, of the largest absolute number summed: half a unit in the last place of the parts and of
# their sum (n numbers), twice.
@pytest.mark.parametrize(("method", "step"), [("float32", 2**-24), ("bfloat16", 2**-9), ("int8", 0.5 / 127)])
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_sums_are_as_exact_as_their_method(method: str, step: float, ranks: int) -> None:
    results = on(ranks, sums, method)
    for length in LENGTHS:
        parts = torch.stack([drawn(r, length, spread=0.3) for r in range(ranks)]).double()
        error = (results[0][length].double() - parts.sum(0)).abs().max()
        assert error <= 2.05 * ranks * step * parts.abs().max()
        assert all(torch.equal(results[0][length], r[length]) for r in results), "ranks differ"


def ring_or_parts() -> tuple[Tensor, Tensor]:
    """The bfloat16 sum of an ordinary all-reduce, and ours."""
    ring = drawn(dist.get_rank(), 20_000, 0.0).bfloat16()
    dist.all_reduce(ring)
    parts = drawn(dist.get_rank(), 20_000, 0.0)
    Reducer(method="bfloat16").sum_(parts, "")
    return ring.float(), parts


def test_adding_in_float32_beats_a_ring_in_bfloat16() -> None:
    ring, parts = on(4, ring_or_parts)[0]
    truth = sum(drawn(r, 20_000, 0.0).double() for r in range(4))
    assert (parts - truth).square().mean() < 0.9 * (ring - truth).square().mean()


def test_quantised_blocks() -> None:
    x = torch.cat((drawn(0, BLOCK, 0.0), torch.zeros(BLOCK), torch.full((BLOCK,), 1e-44), torch.ones(BLOCK)))
    x[-1], x[0] = float("nan"), 1000.0
    wire = quantised(x.view(2, -1))
    assert wire.shape == (2, 2 * (BLOCK + 4))
    y = dequantised(wire).flatten()
    assert y[0] == 1000.0
    assert (y[:BLOCK] - x[:BLOCK]).abs().max() <= 1000 / 254 * (1 + 1e-6)
    assert y[BLOCK : 3 * BLOCK].abs().max() == 0
    assert not y[-BLOCK:].isfinite().any()


def averaged(steps: int) -> list[Tensor]:
    """The running mean of `steps` int8 sums of the same gradients."""
    reducer, total, means = Reducer(method="int8"), torch.zeros(1000), []
    for step in range(1, steps + 1):
        values = drawn(dist.get_rank(), 1000)
        reducer.sum_(values, "layer")
        total += values
        means.append(total / step)
    return means


def test_what_int8_loses_it_adds_later() -> None:
    """The rest is bounded, so the bias of a mean over steps shrinks as one over the steps."""
    truth = drawn(0, 1000).double() + drawn(1, 1000).double()
    errors = [(m - truth).abs().max().item() for m in on(2, averaged, 64)[0]]
    bound = 2 * 2 * 0.5 / 127 * max(drawn(r, 1000).abs().max().item() for r in (0, 1))
    assert errors[0] > bound / 20  # there is something to lose
    for step in (1, 4, 16, 64):
        assert errors[step - 1] <= 1.1 * bound / step


def nan_passes() -> tuple[Tensor, Tensor]:
    reducer = Reducer(method="int8")
    bad, good = torch.ones(600), torch.ones(600)
    if dist.get_rank() == 1:
        bad[300] = float("nan")
    reducer.sum_(bad, "a")
    reducer.sum_(good, "a")
    return bad, good


def test_a_gradient_that_is_no_number_is_seen_by_all_and_only_once() -> None:
    for bad, good in on(2, nan_passes):
        assert bad.isnan().any()
        assert (good - 2).abs().max() < 0.05


def resumed(method: str) -> tuple[bool, int]:
    """Whether a reducer that is loaded with another's state gives the same bits; and how many tensors that was."""
    first, second = Reducer(method=method), Reducer(method=method)
    for step in range(3):
        first.sum_(drawn(dist.get_rank() + 10 * step, 700), "a")
    state = first.state_tensors()
    second.load_state_tensors({**state, "model.weight": torch.ones(1)})
    same = True
    for step in range(3, 6):
        a, b = drawn(dist.get_rank() + 10 * step, 700), drawn(dist.get_rank() + 10 * step, 700)
        first.sum_(a, "a")
        second.sum_(b, "a")
        same &= torch.equal(a, b)
    return same, len(state)


@pytest.mark.parametrize(("method", "tensors"), [("bfloat16", 0), ("int8", 2)])
def test_resuming_is_bit_identical(method: str, tensors: int) -> None:
    assert on(2, resumed, method) == [(True, tensors)] * 2


def wrong_state() -> str:
    reducer = Reducer(method="int8")
    reducer.sum_(torch.ones(600), "a")
    try:
        reducer.sum_(torch.ones(1600), "a")
    except CheckpointError as e:
        reducer.reset()
        reducer.sum_(torch.ones(1600), "a")
        return str(e)
    return ""


def test_a_rest_of_another_size_is_refused() -> None:
    assert all("(2, 512)" in m and "(2, 1024)" in m for m in on(2, wrong_state))


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'fp8'.*float32, bfloat16, int8"):
        Reducer(method="fp8")


def counted(method: str, length: int) -> tuple[dict[str, int], dict[str, int]]:
    reducer = Reducer(method=method)
    reducer.sum_(torch.ones(length), "a")
    return dict(reducer.collectives.comm_bytes), dict(reducer.collectives.wire_bytes)


def test_bytes_are_those_of_the_formula() -> None:
    """5,000 numbers on 4 ranks: 1,250 each, in int8 five blocks of 256 and their scales."""
    assert on(4, counted, "float32", 5000)[0] == ({"all_reduce": 20_000}, {"all_reduce": 2 * 3 * 5000})
    both = {"all_to_all": 2 * 5000, "all_gather": 2 * 5000}
    assert on(4, counted, "bfloat16", 5000)[2] == (both, {k: v * 3 // 4 for k, v in both.items()})
    both = {"all_to_all": 4 * 5 * 260, "all_gather": 4 * 5 * 260}
    assert on(4, counted, "int8", 5000)[3] == (both, {k: v * 3 // 4 for k, v in both.items()})
    assert on(1, counted, "int8", 5000) == [({}, {})]


# ---------------------------------------------------------------------------------------------------------------------
# FSDP2's hook


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(5, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).tanh()  # FSDP warns of a Linear that is a root: its output is a view

    def loss(self, x: Tensor) -> Tensor:
        return self(x).square().sum()


def rows_of(rank: int) -> Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(rank))


def sharded(shards: int) -> tuple[Small, Any]:
    """A model under FSDP2, and the group of the ranks that hold the same shards."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (dist.get_world_size() // shards, shards), mesh_dim_names=("replicate", "shard"))
    return fully_shard(Small(), mesh=mesh["shard"]), mesh["replicate"].get_group()


def hooked(shards: int) -> tuple[list[Tensor], dict[str, int]]:
    """Gradients of two accumulated micro-batches."""
    model, group = sharded(shards)
    reducer = Reducer(group)
    attach(model, reducer.hook)
    mine = rows_of(dist.get_rank())
    for half in (0, 1):
        model.set_requires_gradient_sync(half == 1)
        model.loss(mine[2 * half : 2 * half + 2]).backward()
    return [p.grad.full_tensor() for p in model.parameters()], dict(reducer.collectives.comm_bytes)


@pytest.mark.parametrize(("ranks", "shards"), [(2, 1), (2, 2), (4, 2)])
def test_the_hook_sums_over_replicas_once(ranks: int, shards: int) -> None:
    model = Small()
    model.loss(torch.cat([rows_of(r) for r in range(ranks)])).backward()
    for gradients, payload in on(ranks, hooked, shards):
        for p, g in zip(model.parameters(), gradients, strict=True):
            torch.testing.assert_close(g, p.grad)
        padded = {1: 35 + 7 + 21 + 3, 2: 4 * 5 + 4 + 2 * 7 + 2}[shards]  # rows padded to a multiple of the shards
        assert payload == ({"all_reduce": 4 * padded} if ranks > shards else {})


# ---------------------------------------------------------------------------------------------------------------------
# Local steps


def local_steps(outer: dict[str, float], rounds: int, every: int, method: str, shards: int) -> list[list[Tensor]]:
    """The parameters after each round of `every` SGD steps alone and an outer step."""
    model, group = (Small(), None) if shards == 0 else sharded(shards)
    optimizer = OuterOptimizer(model.named_parameters(), Reducer(group, method), **outer)
    replica, found = dist.get_rank() // max(1, shards), []
    for round_ in range(rounds):
        for step in range(every):
            model.loss(rows_of(100 * replica + every * round_ + step)).backward()
            with torch.no_grad():
                for p in model.parameters():
                    p -= 0.02 * p.grad
                    p.grad = None
        optimizer.step()
        found.append([(p.full_tensor() if shards else p).detach().clone() for p in model.parameters()])
    return found


def simulated(outer: dict[str, float], rounds: int, every: int, replicas: int = 2) -> list[list[Tensor]]:
    """The same in one process, with torch's SGD as the outer optimiser."""
    anchor = Small()
    torchs = torch.optim.SGD(anchor.parameters(), outer["lr"], outer["momentum"], nesterov=outer["momentum"] > 0)
    found = []
    for round_ in range(rounds):
        ends = []
        for replica in range(replicas):
            model = Small()
            model.load_state_dict(anchor.state_dict())
            for step in range(every):
                model.loss(rows_of(100 * replica + every * round_ + step)).backward()
                with torch.no_grad():
                    for p in model.parameters():
                        p -= 0.02 * p.grad
                        p.grad = None
            ends.append([p.detach() for p in model.parameters()])
        for p, *copies in zip(anchor.parameters(), *ends, strict=True):
            p.grad = p.detach() - torch.stack(copies).mean(0)
        torchs.step()
        found.append([p.detach().clone() for p in anchor.parameters()])
    return found


DILOCO, AVERAGE = {"lr": 0.7, "momentum": 0.9}, {"lr": 1.0, "momentum": 0.0}


@pytest.mark.parametrize(
    ("outer", "every", "shards", "ranks"),
    [(DILOCO, 3, 0, 2), (DILOCO, 3, 2, 4), (AVERAGE, 1, 0, 2), (AVERAGE, 3, 1, 2)],
)
def test_local_steps_are_those_of_a_simulation(outer: dict[str, float], every: int, shards: int, ranks: int) -> None:
    truth = simulated(outer, 4, every)
    results = on(ranks, local_steps, outer, 4, every, "float32", shards)
    for found in results:
        for ours, theirs in zip(found, truth, strict=True):
            torch.testing.assert_close(ours, theirs)
    for other in results[1:]:
        assert all(torch.equal(a, b) for x, y in zip(results[0], other, strict=True) for a, b in zip(x, y, strict=True))


def test_local_steps_with_int8_stay_near() -> None:
    truth = simulated(DILOCO, 6, 3)[-1]
    first, second = (r[-1] for r in on(2, local_steps, DILOCO, 6, 3, "int8", 0))
    start = [p.detach() for p in Small().parameters()]
    for ours, other, theirs, began in zip(first, second, truth, start, strict=True):
        assert torch.equal(ours, other)
        assert (ours - theirs).norm() < 0.03 * (theirs - began).norm()


def outer_resumed() -> bool:
    """Whether an outer optimiser, and its int8 reducer, go on bit for bit from their tensors."""

    def moved(p: Tensor, step: int) -> None:
        p += drawn(dist.get_rank() + 10 * step, p.numel(), 0.0)

    first = nn.Parameter(torch.zeros(300))
    a = OuterOptimizer([("w", first)], Reducer(method="int8"))
    with torch.no_grad():
        for step in (0, 1):
            moved(first, step)
            a.step()
        second = nn.Parameter(first.detach().clone())
        b = OuterOptimizer([("w", second)], Reducer(method="int8"))
        b.load_state_tensors(a.state_tensors())
        b.reducer.load_state_tensors(a.reducer.state_tensors())
        for p, optimizer in ((first, a), (second, b)):
            moved(p, 2)
            optimizer.step()
    return torch.equal(first, second) and sorted(a.state_tensors()) == ["outer.anchor.w", "outer.momentum.w"]


def test_local_steps_resume_bit_for_bit() -> None:
    assert on(2, outer_resumed) == [True, True]


# ---------------------------------------------------------------------------------------------------------------------
# The strict tree

V = 4


def brute(parts: list[Tensor]) -> Tensor:
    """The tree, level by level."""
    while len(parts) > 1:
        parts = [a + b for a, b in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0] + 0.0


def shards_here() -> range:
    here = V // dist.get_world_size()
    return range(dist.get_rank() * here, (dist.get_rank() + 1) * here)


def trees(length: int) -> tuple[Tensor, dict[str, int]]:
    collectives = Collectives()
    return tree_sum((drawn(v, length) for v in shards_here()), collectives), dict(collectives.wire_bytes)


def test_the_tree_is_the_same_bits_for_any_number_of_ranks() -> None:
    truth = brute([drawn(v, 5001) for v in range(V)])
    assert not torch.equal(truth, sum(drawn(v, 5001) for v in range(V))), "the order must show in these numbers"
    for ranks in (1, 2, 4):
        for total, wire in on(ranks, trees, 5001):
            assert torch.equal(total, truth)
            columns = -(-5001 // ranks)
            one_way = 4 * (ranks - 1) * columns
            assert wire == ({"all_to_all": one_way, "all_gather": one_way} if ranks > 1 else {})
    assert [t.item() for t, _ in on(2, trees, 1)] == [brute([drawn(v, 1) for v in range(V)]).item()] * 2


def test_the_counter_holds_the_logarithm() -> None:
    tree, most = TreeSum(), 0
    for v in range(16):
        tree.add(drawn(v, 50))
        most = max(most, len(tree._waiting))
    assert most == 4
    assert torch.equal(tree.total() + 0.0, brute([drawn(v, 50) for v in range(16)]))
    for v in range(3):
        tree.add(drawn(v, 50))
    with pytest.raises(ValueError, match="3 tensors"):
        tree.total()


def decoder_gradients(hook: bool) -> tuple[Tensor, Tensor]:
    """The flat gradient and the loss of a decoder over V virtual shards: plainly, or through FSDP2 and its hook."""
    from tiny import model as decoder_of
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    from foretell.train.loss import next_token_loss

    model, collectives = decoder_of(97, 16).train(), Collectives()
    if hook:
        mesh = init_device_mesh("cpu", (dist.get_world_size(), 1), mesh_dim_names=("replicate", "shard"))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh["shard"])
        attach(model, StrictReducer(Collectives(mesh["replicate"].get_group()), V).hook)
    losses, tree = [], TreeSum()
    for v in shards_here():
        tokens = torch.randint(97, (2, 17), generator=torch.Generator().manual_seed(v))
        loss = next_token_loss(Alone(model), tokens[:, :-1], tokens[:, 1:], None, None) / V
        loss.backward()
        losses.append(loss.detach())
        if not hook:
            tree.add(torch.cat([p.grad.flatten() for p in model.parameters()]))
            model.zero_grad()
    if hook:
        flat = torch.cat([p.grad.full_tensor().flatten() for p in model.model.layers.parameters()])
    else:
        flat = tree_sum([tree.total()], collectives)
    return flat, tree_sum(losses, collectives)


@pytest.mark.parametrize("hook", [False, True])
def test_a_decoders_gradient_is_the_same_bits_on_1_2_and_4_ranks(hook: bool) -> None:
    results = [r for ranks in (1, 2, 4) for r in on(ranks, decoder_gradients, hook)]
    flat, loss = results[0]
    assert flat.norm() > 0.01
    for f, value in results[1:]:
        assert f.numpy().tobytes() == flat.numpy().tobytes()
        assert value.item() == loss.item()


def accumulated() -> Tensor:
    """What a gradient holds after all virtual shards, each -0: the first one is put there, the others are added."""
    reducer, gradient = StrictReducer(Collectives(), V), None
    for _ in shards_here():
        part = torch.full((3,), -0.0)
        reducer.sum_(part, "a")
        gradient = part if gradient is None else gradient + part
    assert gradient is not None
    return gradient


def test_minus_nothing_is_nothing() -> None:
    """-0 equals 0 and is other bits: what is added to the zeros of earlier shards loses its sign, so all must."""
    assert [r.signbit().any().item() for ranks in (1, 2, 4) for r in on(ranks, accumulated)] == [False] * 7


def refused(make: Callable[[], object]) -> str:
    try:
        make()
    except ConfigError as e:
        return str(e)
    return ""


def strict(shards: int) -> str:
    return refused(lambda: StrictReducer(Collectives(), shards))


def test_ranks_must_divide_the_virtual_shards() -> None:
    for ranks, shards in ((2, 6), (2, 1), (3, 4)):
        assert f"{shards} virtual shards on {ranks} ranks" in on(ranks, strict, shards)[0]
    assert on(3, partial(refused, partial_tree))[0].endswith("not 3: take 2")


def partial_tree() -> None:
    tree_sum([torch.ones(3)], Collectives())
