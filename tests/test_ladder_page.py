"""The page of a ladder and the ladder on a run's page, from a real ladder's records, whole, under way and damaged."""

import json
import re
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_report import JSON, checked, make_run

from foretell import report
from foretell.errors import DataError

RECORDS = Path(__file__).parent.parent / "docs" / "records" / "ladder-code-small"
FIRST = "w64-l2-13803264-s0"
NAMES = sorted(p.name.removesuffix(".forecast.json") for p in RECORDS.glob("*.forecast.json"))


def make_ladder(folder: Path, *names: str) -> Path:
    """A ladder's folder with the recorded rungs, and the forecasts and scores of the targets of these names."""
    folder.mkdir(parents=True)
    shutil.copyfile(RECORDS / "rungs.csv", folder / "rungs.csv")
    for name in names:
        (own := folder / "targets" / name).mkdir(parents=True)
        for kind in ("forecast", "measured"):
            if (RECORDS / f"{name}.{kind}.json").exists():
                shutil.copyfile(RECORDS / f"{name}.{kind}.json", own / f"{kind}.json")
    return folder


@pytest.fixture
def ladder(tmp_path: Path) -> Path:
    return make_ladder(tmp_path / "code", FIRST)


def test_a_ladder_has_a_page(ladder: Path) -> None:
    path = report.write([ladder])
    assert path == ladder / "report.html"
    text, page = checked(path)
    assert {"ladder-0", "ladder-plot-0", "rungs-0", "repeat-0"} <= set(page.ids)
    shown = " ".join(page.words)
    for said in ("3.332", "3.224", "3.518", "3.190", "164 k", "13.8 M", "w16-s0-h1", "4.6566", "L = 2.753"):
        assert said in shown, said
    assert text.count('class="badge missed"') == 2  # of the loss and of bits per byte
    plot = text[text.index('<svg class="plot"') : text.index("</figure>")]
    assert len(re.findall(r'<circle class="dot hue\d"', plot)) == 15 + 1
    # The table says of every rung what `foretell ladder run` said: docs/ladder.md shows it.
    documented = (RECORDS.parent.parent / "ladder.md").read_text(encoding="utf-8")
    for name, error in re.findall(r"^ (w\d+-s\d-h\d) .* ([+-]\d\.\d\d%)$", documented, re.M):
        row = re.search(rf">{name}</th>.*?</tr>", text)
        assert row
        assert error.replace("-", "−") in row[0]


def test_the_target_of_a_climb_shows_the_ladder_on_its_own_page(ladder: Path) -> None:
    run = make_run(ladder / "targets" / FIRST / "run", steps=40)
    _, page = checked(report.write([run]))
    assert "ladder-plot-0" in page.ids
    assert "15 small runs" in " ".join(page.words)
    apart = make_run(ladder.parent / "apart", steps=40)
    assert "ladder-plot" not in checked(report.write([apart]))[0]
    both, _ = checked(report.write([run, apart], ladder.parent / "both.html"))
    assert len(re.findall(r'id="ladder-plot-\d"', both)) == 1


def test_several_targets_stand_under_each_other(tmp_path: Path) -> None:
    text, page = checked(report.write([make_ladder(tmp_path / "code", *NAMES)]))
    assert [i for i in page.ids if re.fullmatch(r"ladder-plot-\d", i)] == [f"ladder-plot-{i}" for i in range(3)]
    assert all(f"<h3>{name}</h3>" in text for name in NAMES)
    assert text.count('class="badge') == 2  # two of the three are not measured, and have no verdict


def test_a_ladder_under_way_says_how_far_it_is(ladder: Path) -> None:
    shutil.rmtree(ladder / "targets")
    lines = (ladder / "rungs.csv").read_text().splitlines(keepends=True)
    (ladder / "rungs.csv").write_text("".join(lines[:5]))
    (ladder / "ladder.json").write_text(json.dumps({"rungs": [{}] * 15}))
    text, page = checked(report.write([ladder]))
    shown = " ".join(page.words)
    assert "No forecast yet" in shown
    assert "4 of 15 rungs" in shown
    assert "ladder-plot" not in text
    assert "w16-s0-h1" in shown


def test_a_table_that_changed_after_the_forecast_is_said(ladder: Path) -> None:
    assert "is not the table" not in checked(report.write([ladder]))[0]
    with (ladder / "rungs.csv").open("a") as f:
        f.write((ladder / "rungs.csv").read_text().splitlines()[1] + "\n")
    assert "is not the table" in checked(report.write([ladder]))[0]


def test_a_ladder_stands_alone(ladder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a page of its own"):
        report.write([ladder, make_run(tmp_path / "run", steps=20)])


STRANGE = [b"", b"{", b"[]", b"null", b'{"forecast": 1e999}', b"[" * 100_000, b"\xff\xfe\x00", b'a,"b\x00\n']


@pytest.mark.parametrize("name", ["rungs.csv", "ladder.json", "forecast.json", "measured.json"])
def test_damaged_files_become_notes(ladder: Path, name: str) -> None:
    path = ladder / (name if name in ("rungs.csv", "ladder.json") else f"targets/{FIRST}/{name}")
    for content in STRANGE:
        path.write_bytes(content)
        text, _ = checked(report.write([ladder]))
        if content == b"{" and name != "rungs.csv":
            assert name in text


def test_nothing_of_a_ladder_becomes_markup(ladder: Path) -> None:
    attack = "</td></style><script>alert(1)</script><img src=x onerror=alert(1)>"
    text = (ladder / "rungs.csv").read_text().replace("w16-s0-h1", f'"{attack}"')
    (ladder / "rungs.csv").write_text(text)
    own = ladder / "targets" / FIRST / "forecast.json"
    own.write_text(json.dumps(json.loads(own.read_text()) | {"created": attack}))
    _, page = checked(report.write([ladder]))
    assert "img" not in page.seen


@settings(max_examples=40, deadline=None)
@given(
    place=st.sampled_from(
        ["forecast", "fit", "target", "bits_per_byte", "created", "compute_ratio", "fit.power", "fit.A"]
    ),
    value=JSON | st.floats(-1e300, 1e300),
)
def test_any_value_may_stand_anywhere(tmp_path_factory: pytest.TempPathFactory, place: str, value: object) -> None:
    folder = make_ladder(tmp_path_factory.mktemp("fuzz") / "code", FIRST)
    path = folder / "targets" / FIRST / "forecast.json"
    content = json.loads(path.read_text())
    outer, _, inner = place.partition(".")
    content[outer] = {**content[outer], inner: value} if inner else value
    path.write_text(json.dumps(content))
    checked(report.write([folder]))
