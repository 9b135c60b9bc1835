"""Attention by batched products: torch's own kernel and plain softmax in float64 are the judges."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import model

from foretell.models.attention import attend, causal_attention
from foretell.models.decoder import Decoder
from foretell.plan import activations, memory


def _inputs(B: int, H: int, K: int, T: int, E: int, dtype: torch.dtype) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(T)
    made = [torch.randn(B, T, heads, E, generator=g).to(dtype).transpose(1, 2) for heads in (H, K, K, H)]
    return [x.requires_grad_() for x in made[:3]] + made[3:]


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The formula, in float64, with keys and values repeated for the queries of their group."""
    groups = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double().repeat_interleave(groups, 1), v.double().repeat_interleave(groups, 1)
    T, S = q.shape[2], k.shape[2]
    scores = q @ k.mT / q.shape[-1] ** 0.5
    return scores.masked_fill(~torch.ones(T, S, dtype=torch.bool).tril(), float("-inf")).softmax(-1) @ v


@given(
    st.integers(1, 3),
    st.sampled_from([(1, 1), (4, 4), (4, 2), (6, 1)]),
    st.sampled_from([1, 2, 31, 128, 129, 300, 513, 700]),
    st.sampled_from([2, 16]),
)
@settings(max_examples=20, deadline=None)
def test_values_and_gradients_are_those_of_the_formula(B: int, heads: tuple[int, int], T: int, E: int) -> None:
    q, k, v, grad = _inputs(B, *heads, T, E, torch.float32)
    y, expected = causal_attention(q, k, v), _plain(q, k, v)
    torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
    ours = torch.autograd.grad(y, (q, k, v), grad)
    theirs = torch.autograd.grad(expected, (q, k, v), grad.double())
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b.to(a.dtype), rtol=1e-4, atol=1e-4)


def test_bfloat16_is_as_near_to_the_formula_as_torchs_kernel() -> None:
    q, k, v, grad = _inputs(2, 4, 2, 256, 32, torch.bfloat16)
    exact = torch.autograd.grad(_plain(q, k, v), (q, k, v), grad.double())
    torchs = torch.autograd.grad(attend(q, k, v, "sdpa"), (q, k, v), grad)
    by_products = torch.autograd.grad(attend(q, k, v, "products"), (q, k, v), grad)
    for ours, theirs, right in zip(by_products, torchs, exact, strict=True):
        assert (ours - right).norm() <= 1.6 * (theirs - right).norm()


def test_blocks_cover_each_row_once_and_skip_most_masked_keys() -> None:
    for T in (1, 2, 127, 128, 129, 256, 1000, 4096):
        blocks = list(memory.attention_blocks(T))
        assert [i for start, end in blocks for i in range(start, end)] == list(range(T))
        assert len(blocks) <= activations.MOST_BLOCKS
    assert sum((end - start) * end for start, end in memory.attention_blocks(4096)) == 0.625 * 4096**2


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_decoder_trains_alike_with_either_kernel(compiled: bool) -> None:
    """Same weights, same batch: loss and every gradient agree; outside training both use torch's kernel."""
    first = model(64, context=160)
    second = Decoder(first.config, kernel="products")
    second.load_state_dict(first.state_dict())
    ids = torch.randint(0, 64, (2, 160), generator=torch.Generator().manual_seed(0))
    for m in (first, second):
        m.train()
        forward = torch.compile(m) if compiled and m is second else m
        F.cross_entropy(forward(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()).backward()
    for (name, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-3, atol=1e-5, msg=name)
    with torch.no_grad():
        assert torch.equal(first.eval()(ids), second.eval()(ids))


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize("kind", ["keys", "each", "float", None])
def test_masked_products_are_what_torchs_kernel_gives(heads: tuple[int, int], kind: str | None) -> None:
    q, _, _, grad = _inputs(3, *heads, 7, 8, torch.float32)
    _, k, v, _ = _inputs(3, *heads, 11, 8, torch.float32)
    masks = {
        "keys": torch.arange(11)[None] < torch.tensor([11, 4, 1])[:, None],
        "each": torch.rand(3, 1, 7, 11) < 0.7,
        "float": torch.randn(1, 4, 7, 11),
    }
    mask = None if kind is None else masks[kind]
    if kind == "keys":
        assert mask is not None
        mask = mask[:, None, None]
    elif kind == "each":
        assert mask is not None
        mask = mask | (torch.arange(11) == 3)  # a softmax over nothing is not a number
    found = {}
    for kernel in ("products", "sdpa"):
        y = attend(q, k, v, kernel, mask, causal=False, scale=0.3)
        found[kernel] = [y, *torch.autograd.grad(y, (q, k, v), grad)]
    for ours, theirs in zip(found["products"], found["sdpa"], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_a_mask_says_all() -> None:
    q, k, v, _ = _inputs(1, 2, 2, 5, 4, torch.float32)
    mask = torch.eye(5, dtype=torch.bool)[None, None]
    torch.testing.assert_close(attend(q, k, v, "products", mask), v)
