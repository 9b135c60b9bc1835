"""Log-likelihoods of continuations, against a plain loop: one forward pass a token, nothing padded, nothing shared."""

import random

import pytest
import torch
import torch.nn.functional as F
from tiny import model

from foretell.errors import DataError
from foretell.evaluate.likelihood import Pair, loglikelihoods
from foretell.models import products
from foretell.models.decoder import Decoder

FAMILIES = {
    "qwen3": {},
    "gpt2": {"model_type": "gpt2"},
    "gemma3": {"model_type": "gemma3_text", "sliding_window": 20, "num_hidden_layers": 3},
}


@torch.no_grad()
def plain(m: Decoder, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    line, total, greedy = [*context, *continuation], 0.0, True
    longest = m.config.needed("max_position_embeddings")
    line = line[-(longest + 1) :]
    for place in range(len(line) - len(continuation), len(line)):
        logits = m(torch.tensor([line[:place]]))[0, -1].double()
        total += float(logits.log_softmax(0)[line[place]])
        greedy &= int(logits.argmax()) == line[place]
    return total, greedy


def pairs(V: int, seed: int) -> list[Pair]:
    """Contexts with one to six continuations, of one token and more, some the same, some too long together."""
    rng = random.Random(seed)
    found: list[Pair] = []
    for _ in range(20):
        context = [rng.randrange(V) for _ in range(rng.choice([1, 2, 9, 30, 60, 80]))]
        for _ in range(rng.choice([1, 1, 2, 6])):
            found.append((context, [rng.randrange(V) for _ in range(rng.choice([1, 1, 3, 8]))]))
    return found + found[:2]


@pytest.mark.parametrize("family", FAMILIES)
def test_each_score_is_that_of_a_plain_loop(family: str) -> None:
    m = model(97, **FAMILIES[family])
    asked = pairs(97, 1)
    # Some that are the likeliest, or few would be.
    asked += [(c, [int(m(torch.tensor([list(c)[-64:]]))[0, -1].argmax())]) for c, _ in asked[:5]]
    got, wanted = loglikelihoods(m, asked), [plain(m, list(c), list(t)) for c, t in asked]
    assert [g for g, _ in got] == pytest.approx([w for w, _ in wanted], abs=2e-5)
    assert [g for _, g in got] == [w for _, w in wanted]
    assert 5 <= sum(g for _, g in got) < len(got)


@pytest.mark.parametrize("family", FAMILIES)
def test_neither_batch_nor_neighbours_move_a_score(family: str) -> None:
    m = model(97, **FAMILIES[family])
    asked = pairs(97, 2)
    alone = [loglikelihoods(m, [p])[0] for p in asked]
    for batch_size in (1, 3, 16, 64, None):
        got = loglikelihoods(m, asked, batch_size=batch_size)
        assert [g for g, _ in got] == pytest.approx([a for a, _ in alone], abs=2e-5)
        assert [g for _, g in got] == [a for _, a in alone]
    backwards = loglikelihoods(m, asked[::-1])[::-1]
    assert [g for g, _ in backwards] == pytest.approx([a for a, _ in alone], abs=2e-5)


def test_continuations_of_one_context_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    m = model(97)
    seen: list[int] = []
    inner = m.hidden
    monkeypatch.setattr(m, "hidden", lambda ids, *rest: (seen.append(ids.numel()), inner(ids, *rest))[1])
    context = list(range(20))
    loglikelihoods(m, [(context, [1, 2, 3]), (context, [4, 5]), (context, [6]), (context, [7])])
    assert seen == [20 + 2 + 1]


def test_what_cannot_be_scored_is_said() -> None:
    m = model(97)
    for wrong in (([], [1]), ([1], []), ([1], [2] * 65)):
        with pytest.raises(DataError, match=r"pair 1: .*at most 64"):
            loglikelihoods(m, [([1], [2]), wrong])
    assert loglikelihoods(m, []) == []
    loglikelihoods(m.train(), [([1], [2])])
    assert m.training


def test_onednn_forms_the_same_products() -> None:
    torch.manual_seed(0)
    x, weight, bias = torch.randn(3, 40, 65), torch.randn(33, 65), torch.randn(33)
    for given in ((x, weight), (x, weight, bias)):
        wanted = F.linear(*(g.double() for g in given))
        with torch.no_grad(), products.OneDnn():
            got = F.linear(*given)
        assert got.shape == wanted.shape
        assert torch.allclose(got.double(), wanted, atol=1e-4)


def test_onednn_leaves_alone_what_it_is_not_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, ...]] = []
    real = torch.ops.mkldnn._linear_pointwise
    monkeypatch.setattr(
        torch.ops.mkldnn, "_linear_pointwise", lambda *a: (calls.append(tuple(a[0].shape)), real(*a))[1]
    )
    layer = torch.nn.Linear(8, 4)
    with products.OneDnn():
        layer(torch.randn(32, 8)).sum().backward()  # a gradient
        with torch.no_grad():
            layer(torch.randn(2, 8))  # too few rows
            layer.double()(torch.randn(32, 8).double())
            assert calls == []
            layer.float()(torch.randn(32, 8))
    assert calls == [(32, 8)]
    assert layer.weight.grad is not None
