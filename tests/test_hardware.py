"""The hardware table, the fitted constants, and files of a user's own."""

import json
from pathlib import Path

import pytest

from foretell.errors import PlanError
from foretell.plan import efficiency, hardware
from foretell.plan.kernels import Constants

NAMES = ["a100-40gb", "a100-80gb", "b200", "epyc-9654", "h100-sxm", "h200", "mi300x"]

MINE = """
[mine]
title = "two boxes"
devices_per_node = 2
units = 10
memory_bytes = 8e9
memory_bytes_per_second = 1e11
watts = 100
node_watts = 300
price_per_hour = 0.1
failures_per_1000_device_days = 1
[mine.flops_per_second]
float32 = 1e12
bfloat16 = 2e12
[mine.reached]
product = 0.8
attention = 0.4
[mine.node_link]
devices = 2
bytes_per_second = 1e10
latency_seconds = 1e-6
[mine.network_link]
bytes_per_second = 1e9
latency_seconds = 1e-5
"""


def test_the_machines_that_are_there() -> None:
    assert sorted(hardware.read(hardware.BUILT_IN)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_is_in_proportion_and_says_where_it_is_from(name: str) -> None:
    h = hardware.load(name)
    rates = h.flops_per_second
    assert rates.float32 < rates.bfloat16 <= (rates.float8 or rates.bfloat16)
    assert rates.tf32 is None or rates.float32 < rates.tf32 <= rates.bfloat16
    assert h.product_rate("bfloat16") == h.peak("bfloat16") * h.reached.product
    assert h.memory_bytes_per_second > h.node_link.bytes_per_second > h.network_link.bytes_per_second
    assert h.node_watts >= h.devices_per_node * h.watts
    text = " ".join(h.sources).lower()
    missing = [
        w for w in ("peak", "memory", "link", "watts", "node", "price", "failures", "latencies") if w not in text
    ]
    assert missing == []
    assert "price: " in text
    assert any(year in text.partition("price: ")[2] for year in ("2026", "gpu.blog"))


@pytest.mark.parametrize(
    ("name", "dtype", "rate"),
    [
        ("a100-80gb", "bfloat16", 312e12),
        ("h100-sxm", "bfloat16", 989.5e12),
        ("h100-sxm", "float8", 1979e12),
        ("mi300x", "bfloat16", 1307.4e12),
        ("b200", "bfloat16", 2250e12),
    ],
)
def test_peaks_are_dense(name: str, dtype: str, rate: float) -> None:
    assert hardware.load(name).peak(dtype) == rate


def test_an_unknown_name_names_the_nearest_and_all() -> None:
    with pytest.raises(PlanError) as error:
        hardware.load("H100")
    assert "the nearest is h100-sxm" in str(error.value)
    assert all(name in str(error.value) for name in NAMES)


def test_a_dtype_it_has_not() -> None:
    with pytest.raises(PlanError, match=r"no products in float8; it has float32, tf32, bfloat16"):
        hardware.load("a100-80gb").peak("float8")


def test_a_file_of_ones_own_adds_to_the_table(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINE)
    assert hardware.load("mine", path).peak("bfloat16") == 2e12
    assert hardware.load("h200", path) == hardware.load("h200")
    with pytest.raises(PlanError, match=r"There are: a100-40gb, .*mine"):
        hardware.load("miner", path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("watts = 100", "wats = 100", r"\[mine\] (wats is no key .*did you mean watts|watts: field required)"),
        ("memory_bytes = 8e9", "memory_bytes = -1", r"\[mine\] memory_bytes: .*greater than 0"),
        ("units = 10\n", "", r"\[mine\] units: field required"),
        ("product = 0.8", "product = 1.8", r"\[mine\] reached.product: .*less than or equal to 1"),
        ("float32 = 1e12", "float16 = 1e12", r"\[mine\] flops_per_second"),
        ("[mine]", "[mine", "not valid TOML"),
        ("[mine]", "format_version = 9\n[mine]", "format_version 9"),
        ("[mine]", "mine2 = 3\n[mine]", r"\[mine2\]"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "wrong.toml"
    path.write_text(MINE.replace(old, new, 1))
    with pytest.raises(PlanError, match=said) as error:
        hardware.load("mine", path)
    assert str(path) in str(error.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="cannot be read"):
        hardware.load("mine", tmp_path / "none.toml")


def test_constants_by_name() -> None:
    for name in ("megatron", "pytorch"):
        c = efficiency.constants(name)
        assert 0 < c.product <= 1
        assert c.fastest < 1 < c.slowest
    with pytest.raises(PlanError, match=r"the nearest is megatron. There are: megatron, pytorch"):
        efficiency.constants("megatronn")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"product": -1.0}, "product is -1.0"),
        ({"product": "fast"}, "product is 'fast'"),
        ({"produkt": 1.0}, "did you mean product"),
        ({"product": None}, "product is None"),
    ],
)
def test_constants_of_ones_own(tmp_path: Path, change: dict[str, object], said: str) -> None:
    raw = json.loads(efficiency.BUILT_IN.read_text())
    entry = raw["sets"]["megatron"]["constants"]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(raw | {"sets": {"mine": {"constants": entry | {"corrections": [[64, 1, 2, 1.1]]}}}}))
    assert efficiency.constants("mine", path) == Constants(**entry, corrections=((64, 1, 2, 1.1),))
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps(raw | {"sets": {"mine": {"constants": entry | change}}}))
    with pytest.raises(PlanError, match=said):
        efficiency.constants("mine", wrong)
