"""Serving: caches as published, and bounds that a roofline cannot pass."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell.plan import efficiency, hardware, serving, shape
from foretell.plan.shape import Attention, Layer, Product, Shape

C = efficiency.constants("pytorch")
H100 = hardware.load("h100-sxm")
LLAMA_8B = shape.llama(4096, 32, 8, 32, 14336, 128256)
LLAMA_70B = shape.llama(8192, 64, 8, 80, 28672, 128256)
LLAMA_405B = shape.llama(16384, 128, 8, 126, 53248, 128256)
MIXTRAL = shape.llama(4096, 32, 8, 32, 14336, 32000, experts=8, top_k=2)


def latent() -> Shape:
    """The caches of DeepSeek-V3: 61 layers that keep a latent of 512 and a rotary key of 64."""
    a = Attention(128, 128, 192, value_dim=128, latent=512, rotary=64)
    layer = Layer((Product(7168, 1536, "whole"),), a, (0.0, 0.0), (0.0, 0.0), 10, 0)
    return Shape(7168, 129280, ((61, layer),))


@pytest.mark.parametrize(
    ("model", "kilobytes"),
    [(latent(), 70.272), (LLAMA_405B, 516.096), (shape.llama(8192, 64, 8, 80, 29568, 152064), 327.680)],
    ids=["DeepSeek-V3", "Llama 3.1 405B", "Qwen2.5 72B"],
)
def test_caches_as_published(model: Shape, kilobytes: float) -> None:
    """Table 1 of Zhao et al. (2025), Insights into DeepSeek-V3, bfloat16."""
    assert serving.cache_bytes(model, 1) == pytest.approx(1000 * kilobytes, abs=1e-6)


def test_devices_share_heads_but_not_a_latent() -> None:
    assert serving.cache_bytes(LLAMA_70B, 100, tp=8) == serving.cache_bytes(LLAMA_70B, 100) / 8
    assert serving.cache_bytes(LLAMA_70B, 100, tp=16) == serving.cache_bytes(LLAMA_70B, 100, tp=8)
    assert serving.cache_bytes(latent(), 100, tp=8) == serving.cache_bytes(latent(), 100)
    assert serving.cache_bytes(LLAMA_70B, 100, item_bytes=1) == serving.cache_bytes(LLAMA_70B, 100) / 2


def test_a_window_bounds_the_cache() -> None:
    layer = LLAMA_8B.layers[0][1]
    near = Layer(layer.products, Attention(32, 8, 128, window=4096), (0.0, 0.0), (0.0, 0.0), 10, 0)
    mixed = Shape(4096, 32000, ((16, layer), (16, near)))
    each = serving.cache_bytes_per_token(layer.attention)
    assert serving.cache_bytes(mixed, 10_000) == 16 * each * (10_000 + 4096)
    assert serving.cache_bytes(mixed, 1000) == 32 * each * 1000


@given(st.integers(100, 50_000), st.sampled_from([1, 2, 4, 8]))
def test_the_largest_batch_fits_and_the_next_does_not(tokens: int, tp: int) -> None:
    n = serving.largest_batch(LLAMA_8B, H100, tokens, tp)
    room = 0.9 * H100.memory_bytes - 2 * LLAMA_8B.parameters / tp
    each = serving.cache_bytes(LLAMA_8B, tokens, tp=tp)
    assert n * each <= room < (n + 1) * each


def test_what_does_not_fit() -> None:
    assert serving.largest_batch(LLAMA_70B, H100, 1000) == 0
    assert serving.largest_batch(LLAMA_70B, H100, 1000, tp=4) > 0


def test_one_sequence_reads_all_weights_a_token() -> None:
    found = serving.decode(LLAMA_8B, H100, C, batch=1, tokens=1000)
    most = H100.memory_bytes_per_second / (2 * (LLAMA_8B.parameters - 4096 * 128256))
    assert found["bound"] == "memory"
    assert 0.6 * most < found["tokens_per_second"]["value"] < most
    assert found["tokens_per_second"]["low"] < found["tokens_per_second"]["value"] < found["tokens_per_second"]["high"]


def test_more_sequences_share_the_weights_until_products_bound() -> None:
    rates = [serving.decode(LLAMA_8B, H100, C, n, 500)["tokens_per_second"]["value"] for n in (1, 8, 64)]
    assert 6 * rates[0] < rates[1] <= 8 * rates[0]
    assert rates[1] < rates[2] < 8 * rates[1]
    short = shape.llama(4096, 32, 8, 32, 14336, 128256)
    assert serving.decode(short, H100, C, 4096, 1)["bound"] == "compute"


def test_experts_are_read_as_they_are_chosen() -> None:
    dense = MIXTRAL.vocab * 4096 + 4096 + 32 * (2 * 4096 + 4096 * 48 * 128 + 4096 * 32 * 128 + 4096 * 8)
    expert = 32 * 3 * 4096 * 14336
    assert serving.touched_parameters(MIXTRAL, 1) == pytest.approx(dense + 2 * expert)
    assert serving.touched_parameters(MIXTRAL, 2) == pytest.approx(dense + 8 * expert * (1 - 0.75**2))
    assert serving.touched_parameters(MIXTRAL, 1000) == pytest.approx(dense + 8 * expert)


def test_a_prompt_runs_at_the_rate_of_products() -> None:
    one = serving.prefill(LLAMA_8B, H100, C, 1, 4096)
    flops = 2 * (LLAMA_8B.parameters - 2 * 4096 * 128256) * 4096
    least = flops / H100.product_rate("bfloat16")
    assert least < one["seconds"]["value"] < 2.5 * least
    four = serving.prefill(LLAMA_8B, H100, C, 1, 4096, tp=4)["seconds"]["value"]
    assert one["seconds"]["value"] / 4 < four < one["seconds"]["value"]
    assert one["tokens_per_second"]["value"] == pytest.approx(4096 / one["seconds"]["value"])
