"""Published conventions of counting: their own tables, to the last digit where they are exact."""

import csv
from pathlib import Path

import pytest

from foretell.plan import conventions, shape

DATA = Path(__file__).parent / "data" / "cluster"
GIB = 2**30

MPT = {
    "125m": (12, 768),
    "350m": (24, 1024),
    "760m": (24, 1536),
    "1b": (24, 2048),
    "3b": (32, 2560),
    "7b": (32, 4096),
    "13b": (40, 5120),
    "30b": (48, 7168),
    "70b": (80, 8192),
}


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("parameters", "hidden", "layers", "flops"),
    [
        (190_354_176, 768, 12, 1_903_391_232),
        (371_262_464, 1024, 16, 3_443_922_944),
        (758_220_288, 1536, 16, 6_373_843_968),
        (1_279_395_840, 2048, 16, 10_109_071_360),
        (6_887_575_552, 4096, 32, 49_412_071_424),
    ],
)
def test_olmo_counts_to_the_last_digit(parameters: int, hidden: int, layers: int, flops: int) -> None:
    """allenai/OLMo-ladder 67a3f440f787, column flops_per_token."""
    assert conventions.olmo_flops_per_token(parameters, layers, hidden, 4096, 100_352) == flops


def test_llm_foundry_prints_the_palm_convention() -> None:
    table = rows("llmfoundry_mpt_h100.csv")
    assert len(table) == 77
    for row in table:
        layers, hidden = MPT[row["Model"]]
        flops = conventions.palm_flops_per_token(int(row["NumParams"]), layers, 1, hidden, int(row["SeqLen (T)"]))
        peak = 1979e12 if row["Precision"] == "amp_fp8" else 989.5e12
        found = 100 * conventions.mfu(flops, float(row["Throughput (T/s/GPU)"]), 1, peak)
        assert abs(found - float(row["MFU"])) < 0.15


@pytest.mark.parametrize("row", rows("korthikanti.csv"), ids=lambda row: row["model"])
def test_korthikanti_figures(row: dict[str, str]) -> None:
    n = {k: int(row[k]) for k in ("heads", "hidden", "layers", "tp", "pp", "micro_batch", "interleave", "seq_len")}

    def activations(**how: object) -> float:
        return conventions.korthikanti_activation_bytes(
            n["micro_batch"],
            n["seq_len"],
            n["hidden"],
            n["heads"],
            n["tp"],
            **how,  # type: ignore[arg-type]
        )

    def first_stage(each: float) -> float:
        return conventions.korthikanti_first_stage_bytes(each, n["layers"], n["pp"], n["interleave"]) / GIB

    states = conventions.megatron_state_bytes(12 * n["layers"] * n["hidden"] ** 2, n["tp"], n["pp"]) / GIB
    assert states == pytest.approx(float(row["fig1_params_optimizer_GiB"]), rel=1e-4)
    plain, least = activations(), activations(recompute="selective", sequence_parallel=True)
    assert first_stage(plain) == pytest.approx(float(row["fig1_act_GiB_tp_only"]), rel=1e-4)
    assert first_stage(least) == pytest.approx(float(row["fig1_act_GiB_seqpar_selective"]), rel=1e-4)
    # Figure 7 was read from a picture, to about a tenth of a point.
    for column, found in (
        ("fig7_act_pct_seqpar", activations(sequence_parallel=True)),
        ("fig7_act_pct_selective", activations(recompute="selective")),
        ("fig7_act_pct_seqpar_selective", least),
        ("fig7_act_pct_full_recompute", activations(recompute="full")),
    ):
        assert 100 * found / plain == pytest.approx(float(row[column]), abs=0.1)


def test_full_recomputation_keeps_its_input_and_sequence_parallelism_divides_it() -> None:
    whole = conventions.korthikanti_activation_bytes(1, 2048, 1024, 16, 4, "full")
    assert whole == 2 * 2048 * 1024
    assert conventions.korthikanti_activation_bytes(1, 2048, 1024, 16, 4, "full", True) == whole / 4


@pytest.mark.parametrize(("hidden", "heads", "layers", "vocab"), [(1024, 16, 24, 51_200), (12_288, 96, 96, 51_200)])
def test_megatron_formula_is_the_sum_of_products(hidden: int, heads: int, layers: int, vocab: int) -> None:
    """The closed form of SC21 against the products of the shape that the forecast times."""
    model = shape.gpt(hidden, heads, layers, vocab)
    once = 512 * 2048 * model.flops_per_token(2048, causal=False)
    assert conventions.megatron_step_flops(512, 2048, layers, hidden, vocab, recompute=False) == pytest.approx(once)
    head = 6 * vocab * hidden * 512 * 2048
    again = conventions.megatron_step_flops(512, 2048, layers, hidden, vocab)
    assert again == pytest.approx((once - head) * 4 / 3 + head)


@pytest.mark.parametrize("row", rows("megatron_sc21_table1.csv"), ids=lambda row: row["params_b"])
def test_sc21_agrees_with_itself(row: dict[str, str]) -> None:
    """Its aggregate is its rate a device times the devices, and its share is of 312 TFLOP/s: the reading is right."""
    total = float(row["tflops_per_gpu"]) * int(row["gpus"]) / 1000
    assert total == pytest.approx(float(row["aggregate_pflops"]), rel=0.01)
    assert 100 * float(row["tflops_per_gpu"]) / 312 == pytest.approx(float(row["pct_peak"]), abs=0.7)


def test_the_rule_of_six() -> None:
    assert conventions.kaplan_flops_per_token(7e9) == 42e9
