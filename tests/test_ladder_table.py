"""Tables of runs as people write them, what `foretell ladder fit` makes of them, and what it says of wrong ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foretell import ladder
from foretell.errors import ConfigError, DataError, ForetellError, PlanError
from foretell.ladder import table
from foretell.plan.law import Row

ROOT = Path(__file__).parent.parent
DATA = Path(__file__).parent / "data" / "laws"


def written(folder: Path, text: str, name: str = "runs.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "head",
    ["params,tokens,loss", "N,D,L", "Model Size;training_tokens;val_loss", "num_params\ttoken_num\tBPB", "﻿n,d,l"],
)
def test_columns_are_known_by_the_names_people_use(tmp_path: Path, head: str) -> None:
    separator = next(s for s in ",;\t" if s in head)
    path = written(
        tmp_path, f"{head}\n{separator.join(['1.4B', '3e10', '2.5'])}\n\n{separator.join(['7e6', '1T', '3'])}\n"
    )
    assert table.read(path).rows == [Row(1.4e9, 3e10, 2.5), Row(7e6, 1e12, 3.0)]


def test_columns_may_be_told(tmp_path: Path) -> None:
    path = written(tmp_path, "name,params,tokens,loss,loss_c4=val,seed,unique_tokens\na,1e8,2e9,3.5,3.1,7,1e9\n")
    assert table.read(path).rows == [Row(1e8, 2e9, 3.5, 1e9, 7)]
    read = table.read(path, ladder.pairs("--columns", ["loss=loss_c4=val"]))
    assert read.rows == [Row(1e8, 2e9, 3.1, 1e9, 7)]
    assert read.columns["loss"] == "loss_c4=val"


def test_only_wanted_lines_are_read(tmp_path: Path) -> None:
    path = written(
        tmp_path, "n,d,loss,data,k=1\n1e8,2e9,3.5,rpj,1.0\n1e8,2e9,3.4,c4,1\n1e8,4e9,,rpj,1\n2e8,4e9,3.2,rpj,2\n"
    )
    read = table.read(path, where={"data": "rpj"})
    assert [r.loss for r in read.rows] == [3.5, 3.2]
    assert (read.left_out, read.passed_over) == (1, 1)
    assert [r.loss for r in table.read(path, where=ladder.pairs("--where", ["k=1=1"])).rows] == [3.5, 3.4]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        ("params,tokens\n1,2\n", r"no column for loss; name it with --columns loss=COLUMN. .*has params, tokens"),
        ("params,tokens,loss\n1e8,2e9,3\n1e8,-2e9,3\n", r"line 3: tokens \(tokens\) is -2e9; it must be above 0"),
        ("params,tokens,loss\n1e8,two,3\n", r"line 2: tokens \(tokens\) is 'two', not a number"),
        ("params,tokens,loss\n\n1e8,2e9,0\n", r"line 3: loss \(loss\) is 0; it must be above 0"),
        ("params,tokens,loss\n1e8,,3\n", r"line 2: tokens \(tokens\) is ''"),
        ("params,tokens,loss\n1e8,2e9\n", "line 2: 2 cells under 3 columns"),
        ("n,n,d,loss\n1,1,1,1\n", "two columns are named 'n'"),
        ("params,tokens,loss\n1e8,1e999,3\n", "line 2: tokens"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(DataError, match=why):
        table.read(written(tmp_path, text))


@pytest.mark.parametrize(
    ("columns", "where", "why"),
    [
        ({"loss": "losss"}, {}, "no column 'losss'; the nearest is 'loss'; the table has params, tokens, loss"),
        ({"los": "loss"}, {}, "no quantity 'los'; did you mean loss?"),
        ({}, {"set": "c4"}, "no column 'set' for --where; the table has"),
    ],
)
def test_a_wrong_column_is_told(tmp_path: Path, columns: dict[str, str], where: dict[str, str], why: str) -> None:
    with pytest.raises(ForetellError, match=why):
        table.read(written(tmp_path, "params,tokens,loss\n1e8,2e9,3\n"), columns, where)


def test_bytes_that_are_no_text_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_bytes(b"params,tokens,loss\n\xff\xfe,1,2\n")
    with pytest.raises(DataError, match="not UTF-8 text"):
        table.read(tmp_path / "x.csv")


@given(st.floats(1e-6, 1e15, allow_nan=False))
def test_numbers_are_read_as_written(value: float) -> None:
    assert table.number(repr(value)) == pytest.approx(value)
    assert table.number(f" {value:.4e} ") == pytest.approx(value, rel=1e-3)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1.4B", 1.4e9), ("300m", 3e8), ("4T", 4e12), ("13 k", 13e3), ("1,300,000", 1.3e6), ("6_800", 6800), (".5", 0.5)],
)
def test_numbers_with_units(text: str, value: float) -> None:
    assert table.number(text) == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "B", "1.4X", "1e", "--3", "inf", "nan", "1 2", "0x10"])
def test_what_is_no_number(text: str) -> None:
    assert table.number(text) is None


def test_targets() -> None:
    assert ladder.target("7B,4T") == (7e9, 4e12, None)
    assert ladder.target("7e9,4e12,1e12") == (7e9, 4e12, 1e12)
    for wrong in ("7B", "7B,", "7B,0", "a,b", "1,2,3,4"):
        with pytest.raises(ConfigError, match="it must be PARAMETERS,TOKENS"):
            ladder.target(wrong)
    with pytest.raises(ConfigError, match="it must be KEY=VALUE"):
        ladder.pairs("--where", ["rpj"])


def foretell(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "foretell.cli", "ladder", "fit", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)})


def test_the_verb_forecasts_the_olmo_ladder(tmp_path: Path) -> None:
    """Sixteen runs of others, and their target, 83 times the largest: forecast with an interval that holds."""
    path = DATA / "olmo_ladder.csv"
    options = [
        "--columns",
        "loss=c4",
        "--where",
        "target=0",
        "--target",
        "6887575552,3945065873408",
        "--target",
        "1B,20B",
    ]
    done = foretell(str(path), *options, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["fit"]["alpha"] == pytest.approx(0.1036, rel=1e-3)
    assert told["rows"] == 16
    assert told["passed_over"] == 1
    forecast = told["forecast"]
    assert forecast == told["forecasts"][0]
    assert forecast["low"] < 2.482918 < forecast["high"]
    assert forecast["compute_ratio"] == pytest.approx(83, abs=0.1)
    assert forecast["law"] == pytest.approx(2.482918 * (1 - 0.0198), rel=1e-3)
    shown = foretell(str(path), *options, cwd=tmp_path).stdout
    assert f"{forecast['value']:.4f}" in shown
    assert "starts agree" in shown


def test_accuracies_come_with_the_forecast() -> None:
    told = ladder.fit_table(
        DATA / "olmo_ladder.csv",
        [(6887575552, 3945065873408, None)],
        columns={"loss": "hellaswag_bpb", "accuracy": "hellaswag"},
        where={"target": "0"},
    )
    share = told["forecast"]["accuracy"]
    assert share["low"] < share["value"] < share["high"]
    assert share["value"] == pytest.approx(0.832, abs=0.05)


def test_too_few_rows_are_counted(tmp_path: Path) -> None:
    path = written(tmp_path, "params,tokens,loss\n1e8,2e9,3.1\n2e8,4e9,2.9\n")
    done = foretell(str(path), "--json", cwd=tmp_path)
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"] == "2 rows are too few for the chinchilla law: it needs at least 6"
    with pytest.raises(PlanError, match="2 rows"):
        ladder.fit_table(path)
