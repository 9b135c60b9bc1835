"""The step time from a full record: against a machine whose times follow a known law, and the fits alone.

The law is written down here once more, in seconds, FLOP/s and bytes/s, so that nothing of `plan/parts.py` is its own
witness. Nothing here is timed.
"""

import json
import math
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from foretell import calibrate, plan
from foretell import config as run_config
from foretell.calibrate import parts as measured
from foretell.config import ModelConfig, RunConfig
from foretell.models import families
from foretell.models.rope import rotary_tables
from foretell.plan import elementwise, fitted, models, time
from foretell.plan.parts import Parts, Speed, Step

FAST, SLOW = Speed(0.0045, 5e-6, 6e-4), Speed(0.0050, 8e-6, 5e-4)
HALF = {"float32": 1.0, "bfloat16": 0.5}


class Machine:
    """A machine that computes, moves bytes and starts operators at constant rates, each at a given speed."""

    def __init__(self, speed: Speed) -> None:
        self.flop, self.call = speed.product_seconds / (2 * 768**3), speed.operator_seconds
        self.near, self.far = speed.operator_seconds / (12 << 16), speed.stream_seconds / (12 << 22)

    def moved(self, total: float, array: float) -> float:
        far = array / (array + 3.2e7)
        return total * ((1 - far) * self.near + far * self.far)

    def product(self, dtype: str, tokens: int, width: int, out: int) -> float:
        return HALF[dtype] * 1.1 * 2 * tokens * width * out * self.flop + 1.5 * self.call

    def attention(self, dtype: str, f: dict[str, Any]) -> float:
        keys = f["context"] * (0.5 if f["kernel"] == "sdpa" else 0.625)
        scores = f["tokens"] * f["H"] * keys
        groups = f["tokens"] // f["context"] * f["K"]
        uneven = 1 + groups % 2 / groups if f["kernel"] == "products" else 1
        return HALF[dtype] * 14 * scores * f["E"] * self.flop * uneven + self.moved(60 * scores, 0) + 50 * self.call

    def layer(self, dtype: str, f: dict[str, Any]) -> float:
        D, H, K, E, F, n = (f[k] for k in ("D", "H", "K", "E", "F", "tokens"))
        widths = [(D, H * E), (D, K * E), (D, K * E), (H * E, D), (D, F), (D, F), (F, D)]
        products = 3 * sum(self.product(dtype, n, i, o) for i, o in widths)
        rest = self.moved(4 * n * (300 * D + 70 * F), 4 * n * D) + 150 * self.call
        return products + rest + self.attention(dtype, f)

    def head(self, dtype: str, f: dict[str, Any]) -> float:
        n, D, V, chunk = (f[k] for k in ("tokens", "D", "V", "chunk"))
        piece = min(chunk or n, n)
        pieces = n / piece
        logits = self.moved((60 if piece < n else 80) * n * V, 4 * piece * V)
        return 3 * pieces * self.product(dtype, piece, D, V) + logits + 20 * (pieces + 1) * self.call

    def dropout(self, numbers: int) -> float:
        return self.moved(120 * numbers, 4 * numbers) + 10 * self.call

    def update(self, f: dict[str, Any]) -> float:
        numbers = f["L"] * sum(r * c for r, c in matrices(f)) + f["V"] * f["D"]
        return self.moved(50 * numbers, 4 * numbers) + 3 * (11 * f["L"] + 2) * self.call

    def muon(self, dtype: str, f: dict[str, Any]) -> float:
        flops = sum(5 * (4 * min(m) ** 2 * max(m) + 2 * min(m) ** 3) for m in matrices(f))
        numbers = f["L"] * sum(r * c for r, c in matrices(f))
        tables = self.update({**f, "L": 0})
        return tables + HALF[dtype] * f["L"] * flops * self.flop + self.moved(300 * numbers, numbers) + 300 * self.call

    def step(self, dtype: str, f: dict[str, Any]) -> float:
        update = self.muon(dtype, f) if f["optimizer"] == "muon" else self.update(f)
        return f["L"] * self.layer(dtype, f) + self.head(dtype, {"chunk": None, **f}) + update

    def seconds(self, f: dict[str, Any]) -> float:
        dtype, part = f["dtype"], f["part"]
        if part == "product":
            return self.product(dtype, f["tokens"], f["in"], f["out"])
        if part in ("dropout", "update"):
            return self.dropout(f["numbers"]) if part == "dropout" else self.update(f)
        return float(f.get("times", 1) * getattr(self, part)(dtype, f))


def matrices(f: dict[str, Any]) -> list[tuple[int, int]]:
    D, q, kv, F = f["D"], f["H"] * f["E"], f["K"] * f["E"], f["F"]
    return [(q, D), (kv, D), (kv, D), (D, q), (F, D), (F, D), (D, F)]


def entries() -> list[dict[str, Any]]:
    """All shapes that a full calibration times, timed on that machine, now at one speed and now at the other."""
    result, speeds = [], cycle([FAST, SLOW, SLOW])
    for shape in measured.all_shapes(("float32", "bfloat16")):
        visits = [next(speeds) for _ in range(2)]
        facts = {**shape.facts, "seconds": [Machine(s).seconds(shape.facts) for s in visits]}
        names = ("product_seconds", "operator_seconds", "stream_seconds")
        result.append({**facts, **{n: [getattr(s, n) for s in visits] for n in names}})
    return result


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    rates = {"float32": {"peak": 2e11}, "bfloat16": {"peak": 4e11}}
    return {"flops_per_second": rates, "memory_bytes": 16e9, "threads": 2, "parts": json.loads(json.dumps(entries()))}


@pytest.fixture(scope="module")
def known(record: dict[str, Any]) -> Parts:
    return Parts(record["parts"], 2)


MODEL_KEYS = ("model_type", "sliding_window", "intermediate_size", "num_attention_heads", "num_experts")


def config(
    D: int = 320, L: int = 5, V: int = 6000, T: int = 256, B: int = 12, micro: int = 1, **train: Any
) -> RunConfig:
    model = {k: train.pop(k) for k in MODEL_KEYS if k in train}
    c = run_config.updated(
        RunConfig(),
        model={"hidden_size": D, "num_hidden_layers": L, "vocab_size": V, **model},
        train={
            "context": T,
            "micro_batch_size": B,
            "global_batch_tokens": B * T * micro,
            "steps": 10,
            "dtype": "float32",
            "attention": "sdpa",
            "compile": "off",
            **train,
        },
    )
    return plan.completed(c, None, {"memory_bytes": 16e9})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", ["sdpa", "products"])
@pytest.mark.parametrize("speed", [FAST, SLOW])
@pytest.mark.parametrize(
    ("sizes", "optimizer"),
    [
        ({}, "muon"),
        ({"D": 96, "L": 8, "V": 1500, "T": 512, "B": 3}, "adamw"),
        ({"D": 640, "L": 9, "V": 20000, "T": 1024, "B": 3}, "muon"),
        ({"intermediate_size": 1600, "num_attention_heads": 10, "T": 384}, "sgd"),
    ],
)
def test_shapes_that_were_not_measured_take_what_the_law_says(
    record: dict[str, Any], dtype: str, kernel: str, speed: Speed, sizes: dict[str, Any], optimizer: str
) -> None:
    c = config(**sizes, dtype=dtype, attention=kernel, optimizer=optimizer)
    facts = {**c.model.sizes._asdict(), "tokens": c.train.global_batch_tokens, "context": c.train.context}
    facts |= {"kernel": kernel, "optimizer": optimizer, "chunk": c.train.loss_chunk_tokens}
    truth = Machine(speed).step(dtype, facts)
    assert time.untried_step_seconds(c.model, c.train, record, speed)[0] == pytest.approx(truth, rel=0.05)


def test_a_step_is_the_sum_of_its_parts(known: Parts) -> None:
    """On a machine where it is, the coefficient of the sum is one, and what is missing is nothing."""
    m = config().model
    step = Step(models.of_model(m), 256, 12, 3, "float32", "products", "adamw", dropout=True)
    parts = known.of_step(step, FAST)
    assert known.step(step, FAST) == pytest.approx(sum(parts.values()), rel=0.02)
    one = known.of_step(step._replace(micro_batches=1), FAST)
    assert parts["layers"] == pytest.approx(3 * one["layers"])
    assert parts["head"] == pytest.approx(3 * one["head"])
    assert parts["optimizer"] == one["optimizer"]
    assert one["accumulation"] == 0 < parts["accumulation"]
    dropouts = 11 * Machine(FAST).dropout(12 * 256 * m.sizes.D)
    assert one["dropout"] == pytest.approx(dropouts, rel=0.05)
    assert known.of_step(step._replace(dropout=False), FAST)["dropout"] == 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kernel", ["sdpa", "products"])
def test_more_of_anything_takes_longer(record: dict[str, Any], dtype: str, kernel: str) -> None:
    usual = {"D": 256, "L": 4, "V": 4000, "T": 256, "B": 8, "micro": 1}
    for key, values in {
        "D": (64, 128, 256, 512, 1024),
        "L": (1, 2, 4, 8, 16),
        "V": (500, 2000, 8000, 32000),
        "T": (128, 256, 512, 1024, 2048),
        "B": (1, 2, 8, 32),
        "micro": (1, 2, 4),
    }.items():
        seconds = []
        for value in values:
            c = config(**{**usual, key: value}, dtype=dtype, attention=kernel)
            seconds.append(time.untried_step_seconds(c.model, c.train, record)[0])
        assert seconds == sorted(seconds), key
        assert all(math.isfinite(s) and s > 0 for s in seconds)


def test_the_quicker_kernel_and_the_dtype_of_the_record_are_taken_where_the_config_leaves_them_open(
    record: dict[str, Any],
) -> None:
    both = [time.untried_step_seconds(*tables(config(attention=k)), record)[0] for k in ("sdpa", "products")]
    assert time.untried_step_seconds(*tables(config(attention="auto")), record)[0] == min(both)
    half = time.untried_step_seconds(*tables(config(dtype="bfloat16")), record)[0]
    assert time.untried_step_seconds(*tables(config(dtype="auto")), record)[0] == half


def tables(c: RunConfig) -> tuple[Any, Any]:
    return c.model, c.train


def test_experts_and_compiled_steps_are_forecast_roughly(record: dict[str, Any]) -> None:
    dense, rough = time.untried_step_seconds(*tables(config()), record)
    compiled, width = time.untried_step_seconds(*tables(config(compile="on")), record)
    assert 0.3 * dense < compiled < dense
    assert width == time.ROUGH_PARTS_SPREAD > rough == time.PARTS_SPREAD
    several = [time.untried_step_seconds(*tables(config(num_experts=n)), record) for n in (2, 8, 32)]
    assert [s for s, _ in several] == sorted(s for s, _ in several)
    assert {w for _, w in several} == {time.ROUGH_PARTS_SPREAD}
    # Two experts of half the width, both chosen by every token, do what one does, and a little more.
    assert dense < several[0][0] < 1.6 * dense


@pytest.mark.parametrize("family", ["gpt2", "llama", "mistral", "qwen2", "gemma3_text"])
def test_another_family_is_forecast_from_the_same_parts_and_less_surely(record: dict[str, Any], family: str) -> None:
    own, other = config(), config(model_type=family)
    seconds, width = time.untried_step_seconds(*tables(other), record)
    assert width == time.ROUGH_PARTS_SPREAD
    assert time.standing(*tables(other), record, None) == "rough parts"
    assert time.standing(*tables(own), record, None) == "parts"
    assert time.standing(*tables(other), {**record, "parts": []}, None) == "roofline"
    assert time.standing(*tables(other), record, {"step_seconds": 1.0}) == "trial"
    # What the machine takes for the products of that family, which are most of a step, and not much more.
    m, n = other.model, other.train.needed("global_batch_tokens")
    at = Machine(
        Speed(**{k: known_speed(record)[k] for k in ("product_seconds", "operator_seconds", "stream_seconds")})
    )
    shapes = [(x.columns, x.rows) for _, y in models.of_model(m).kinds[:1] for x in y.matrices]
    products = 3 * m.sizes.L * sum(at.product("float32", n, i, o) for i, o in shapes)
    assert products < seconds < 3 * products


def known_speed(record: dict[str, Any]) -> dict[str, float]:
    return measured.median_speed(record["parts"])


def test_a_window_costs_what_its_mask_costs(record: dict[str, Any]) -> None:
    """Torch's kernel meets every key of a masked layer, whichever kernel the others take; a wide window hides none."""
    near, far = (config(model_type="mistral", sliding_window=w) for w in (64, 256))
    assert time.untried_step_seconds(*tables(near), record)[0] > time.untried_step_seconds(*tables(far), record)[0]
    free = config(model_type="llama")
    assert time.untried_step_seconds(*tables(far), record) == time.untried_step_seconds(*tables(free), record)


def test_a_record_that_lacks_a_part_is_answered_by_the_roofline(record: dict[str, Any]) -> None:
    m, t = tables(config(dtype="bfloat16"))
    expected = time.roofline_step_seconds(m, t, record)
    for part in ("product", "attention", "layer", "head", "muon", "step"):
        left = [e for e in record["parts"] if not (e["part"] == part and e["dtype"] == "bfloat16")]
        assert time.untried_step_seconds(m, t, {**record, "parts": left}) == (expected, time.ROOFLINE_SPREAD), part
        in_float32 = t.model_copy(update={"dtype": "float32"})
        assert time.untried_step_seconds(m, in_float32, {**record, "parts": left})[1] == time.PARTS_SPREAD
    without = [e for e in record["parts"] if e["part"] != "dropout"]
    assert time.untried_step_seconds(m, t, {**record, "parts": without})[1] == time.PARTS_SPREAD
    dropping = t.model_copy(update={"dropout": 0.1})
    assert time.untried_step_seconds(m, dropping, {**record, "parts": without}) == (expected, time.ROOFLINE_SPREAD)
    without = [e for e in record["parts"] if e["part"] != "update"]
    assert time.untried_step_seconds(m, t, {**record, "parts": without}) == (expected, time.ROOFLINE_SPREAD)
    assert time.untried_step_seconds(m, t, {**record, "parts": []}) == (expected, time.ROOFLINE_SPREAD)


def test_the_speed_of_late_is_what_a_forecast_is_made_for(record: dict[str, Any]) -> None:
    m, t = tables(config())
    now = {"product_seconds": 0.009, "operator_seconds": 1e-5, "stream_seconds": 1.2e-3}
    twice = time.untried_step_seconds(m, t, {**record, "speed": now})[0]
    assert twice == pytest.approx(2 * time.untried_step_seconds(m, t, record, FAST)[0])
    forecast = time.step_seconds(m, t, {**record, "speed": now}, None)
    assert forecast["low"] < twice < forecast["high"]
    assert forecast["value"] == pytest.approx(time.RUN_OVER_TRIAL * twice)
    assert time.step_seconds(m, t, record, {"step_seconds": 3.0})["value"] == pytest.approx(3 * time.RUN_OVER_TRIAL)


def test_a_forecast_from_parts_is_part_of_a_plan(record: dict[str, Any]) -> None:
    c = config()
    forecast = plan.forecast(c, machine=record)
    assert forecast["step_seconds"] == time.step_seconds(c.model, c.train, record, None)
    assert forecast["seconds"]["value"] > 9 * forecast["step_seconds"]["value"]


def test_a_record_of_the_first_version_is_read_and_answered_by_the_roofline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path))
    stored = (Path(__file__).parent / "data" / "machine-1.json").read_text(encoding="utf-8")
    calibrate.path().write_text(stored, encoding="utf-8")
    old = calibrate.record()
    assert old == json.loads(stored)
    assert old["format_version"] == 1 < calibrate.FORMAT_VERSION
    m, t = tables(config())
    assert time.parts(old) is None
    assert time.untried_step_seconds(m, t, old) == (time.roofline_step_seconds(m, t, old), time.ROOFLINE_SPREAD)
    assert "not measured" in str(list(calibrate.render(old).columns[1].cells))


def test_a_record_of_this_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORETELL_HOME", str(tmp_path))
    stored = (Path(__file__).parent / "data" / "machine-2.json").read_text(encoding="utf-8")
    calibrate.path().write_text(stored, encoding="utf-8")
    new = calibrate.record()
    assert new["format_version"] == calibrate.FORMAT_VERSION
    assert time.untried_step_seconds(*tables(config()), new)[1] == time.PARTS_SPREAD


matrix = st.integers(1, 5).flatmap(
    lambda k: st.lists(
        st.lists(st.floats(0, 10, allow_subnormal=False).map(lambda v: round(v, 3)), min_size=k, max_size=k),
        min_size=1,
        max_size=12,
    )
)


@given(matrix, st.data())
def test_non_negative_coefficients_are_least_squares(rows: list[list[float]], data: st.DataObject) -> None:
    """By the conditions of Karush, Kuhn and Tucker: no way down from x that stays non-negative."""
    a = np.array(rows)
    b = np.array(data.draw(st.lists(st.floats(-5, 5), min_size=len(a), max_size=len(a))))
    x = fitted.non_negative(a, b)
    assert (x >= 0).all()
    size = np.sqrt((a**2).sum(0))
    slope = a.T @ (a @ x - b)  # in units of the columns' lengths
    assert (slope >= -1e-3 * (1 + size) * (1 + np.linalg.norm(b))).all()
    assert np.abs(slope * x).max() <= 1e-3 * (1 + np.linalg.norm(b)) ** 2


def test_one_disturbed_timing_moves_a_fit_little() -> None:
    places = [[float(x), float(y)] for x in range(6) for y in range(4)]
    terms = [[2.0**x, 2.0**y] for x, y in places]
    seconds = [3 * a + 2 * b for a, b in terms]
    truth = fitted.fit(terms, places, seconds)
    seconds[13] *= 3
    disturbed = fitted.fit(terms, places, seconds)
    for term, place, s in zip(terms, places, seconds, strict=True):
        expected = 3 * term[0] + 2 * term[1]
        assert truth.seconds(term, place) == pytest.approx(expected, rel=1e-3)
        assert disturbed.seconds(term, place) == pytest.approx(expected, rel=0.06), s
    assert disturbed.left_out[13] > 1  # and says that it does not fit


def test_what_the_terms_miss_is_interpolated_and_forgotten_far_away() -> None:
    places = [[float(x)] for x in range(12)]
    terms = [[2.0**x] for (x,) in places]
    seconds = [2.0**x * (1.2 if x >= 6 else 1.0) for (x,) in places]
    f = fitted.fit(terms, places, seconds)
    assert f.seconds([2.0**9.5], [9.5]) == pytest.approx(1.2 * 2**9.5, rel=0.03)
    assert f.seconds([2.0**2.5], [2.5]) == pytest.approx(2**2.5, rel=0.03)
    assert f.seconds([2.0**40], [40.0]) == pytest.approx(f.coefficients[0] * 2**40, rel=1e-9)


class Counted(TorchDispatchMode):
    """Bytes that operators read and write, but for views, products and attention."""

    others = ("mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product")
    views = ("view", "t", "transpose", "expand", "alias", "slice", "split", "unsqueeze", "_unsafe_view", "detach")

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self.calls = 0

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = f(*args, **(kwargs or {}))
        name = f._schema.name.split("::")[1]
        if name not in self.views and not name.startswith(self.others):
            tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, torch.Tensor)]
            self.bytes += sum(x.numel() * x.element_size() for x in tensors)
            self.calls += 1
        return result


@pytest.mark.parametrize(
    "over",
    [
        {},
        {"intermediate_size": 640},
        {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 32},
        {"model_type": "llama"},
        {"model_type": "qwen2", "num_key_value_heads": 1},
        {"model_type": "gpt2", "intermediate_size": 320},
        {"model_type": "gemma3_text", "layer_types": ("full_attention",)},
    ],
)
def test_elementwise_bytes_are_those_of_the_operators(over: dict[str, Any]) -> None:
    counts, called = [], []
    for layers in (1, 2):
        if "layer_types" in over:
            over = {**over, "layer_types": ("full_attention",) * layers}
        c = ModelConfig(hidden_size=128, num_hidden_layers=layers, **over).resolved(512, 32)
        stack = [layer.train() for layer in families.parts(c, 0.0, "sdpa").layers]
        angles = rotary_tables(32, c.sizes.E, 1e4)
        x = torch.randn(16, 32, 128, requires_grad=True)
        with Counted() as counted:
            y: torch.Tensor = x
            for one in stack:
                y = one(y, None if one.rotary is None else angles, None, None)
            y.backward(torch.ones_like(y))
        counts.append(counted.bytes)
        called.append(counted.calls)
    layer = models.of_model(c).kinds[0][1]
    assert (counts[1] - counts[0]) / 512 == pytest.approx(elementwise.bytes_per_token(layer, 128), rel=0.01)
    assert called[1] - called[0] == pytest.approx(elementwise.operators(layer), rel=0.08)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every part at two small shapes."""
    monkeypatch.setattr(measured, "PRODUCT_TOKENS", (64, 128))
    monkeypatch.setattr(measured, "PRODUCT_WIDTHS", ((16, 32),))
    monkeypatch.setattr(measured, "LAYER_TOKENS", (128, 256))
    monkeypatch.setattr(measured, "LAYER_WIDTHS", (32,))
    monkeypatch.setattr(measured, "ATTENTION_SHAPES", ((64, 32, 4, 2, 8), (64, 64, 4, 2, 8)))
    monkeypatch.setattr(measured, "HEAD_SHAPES", ((64, 32, 64, None), (64, 32, 64, 16)))
    monkeypatch.setattr(measured, "MUON_SHAPES", ((32, 1, 64), (64, 1, 64)))
    monkeypatch.setattr(measured, "OTHER_SHAPES", ((32, 1, 64), (64, 1, 64)))
    monkeypatch.setattr(
        measured, "STEP_SHAPES", ((32, 1, 64, 32, 2, "muon", "products"), (32, 2, 64, 32, 2, "sgd", "sdpa"))
    )
    monkeypatch.setattr(measured, "DROPOUT_NUMBERS", (1000, 2000))
    monkeypatch.setattr(measured, "LEAST_SECONDS", 1e-4)


@pytest.mark.usefixtures("tiny")
def test_all_parts_are_measured_and_serve_a_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MOST_SECONDS", 1e9)  # however slow the machine is at the moment
    monkeypatch.setattr(measured, "ONCE_SECONDS", 1e9)
    found = measured.measure(("float32",))
    assert {e["part"] for e in found} == {
        *("product", "attention", "layer", "head", "dropout", "update", "muon", "step")
    }
    for e in found:
        counts = {len(e[k]) for k in ("seconds", "product_seconds", "operator_seconds", "stream_seconds")}
        assert counts == {measured.VISITS}, e
        assert all(s > 0 for s in e["seconds"])
    assert json.loads(json.dumps(found)) == found
    seconds, width = time.untried_step_seconds(*tables(config(D=64, L=2, V=128, T=32, B=4)), {"parts": found})
    assert width == time.PARTS_SPREAD
    assert 1e-5 < seconds < 100


@pytest.mark.usefixtures("tiny")
def test_where_time_runs_out_no_more_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "MOST_SECONDS", -1.0)
    assert measured.measure(("float32",)) == []
