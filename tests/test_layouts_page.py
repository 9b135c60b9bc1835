"""The picture of a search: every layout in its place, the line of the memory between what fits and what does not."""

import re
from pathlib import Path
from typing import Any

import pytest
from test_report import checked
from typer.testing import CliRunner

from foretell import config as run_config
from foretell.cli import app
from foretell.errors import ConfigError
from foretell.plan import search
from foretell.report import layouts

KEYS = ["model.preset=llama3-8b", "cluster.hardware=a100-80gb", "cluster.nodes=2", "train.global_batch_tokens=1048576"]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    return search.search(run_config.load(None, KEYS), picture=True)


def test_the_points_are_what_the_search_walked_through(found: dict[str, Any]) -> None:
    plain = search.search(run_config.load(None, KEYS))
    assert "points" not in plain
    assert plain["layouts"] == found["layouts"]
    assert plain["left_out"] == found["left_out"]
    fitting = [p for p in found["points"] if p["fits"]]
    others = [p for p in found["points"] if not p["fits"]]
    assert fitting
    assert others
    assert max(p["memory_bytes"] for p in fitting) <= found["room_bytes"] < min(p["memory_bytes"] for p in others)
    assert min(fitting, key=lambda p: p["step_seconds"]["value"])["command"] == found["layouts"][0]["command"]


def test_the_page_shows_them(found: dict[str, Any], tmp_path: Path) -> None:
    text, page = checked(layouts.write(found, tmp_path / "new" / "plot.html"))
    plot = text[text.index('<svg class="plot"') : text.index("</figure>")]
    dots = re.findall(
        r'<title>([^<]+)</title><circle class="dot hue(\d)" cx="([\d.]+)%" cy="([\d.]+)%" r="3.5"/>', plot
    )
    assert len(dots) == len(found["points"])
    line = re.search(r'class="line plan hue8" d="M(\d+) ', plot)
    assert line
    room = 100 * float(line[1]) / 2000
    for title, hue, x, y in dots:
        assert title.startswith("dp ")
        assert 0 <= float(x) <= 100
        assert 0 <= float(y) <= 100
        assert (float(x) <= room + 0.05) if hue == "0" else (float(x) >= room - 0.05)
    # The fastest is the highest share from the top among what fits, and the one with its name beside it.
    mark = re.search(r'class="mark.*?cx="([\d.]+)%" cy="([\d.]+)%".*?class="name"[^>]*>([^<]+)<', plot)
    assert mark
    assert float(mark[2]) == max(float(y) for _, hue, _, y in dots if hue == "0")
    assert mark[3].startswith("dp ")
    shown = " ".join(page.words)
    assert found["layouts"][0]["command"] in shown
    for why in found["left_out"]:
        assert why in shown


def test_the_verb_writes_it(tmp_path: Path) -> None:
    out = tmp_path / "plot.html"
    result = CliRunner().invoke(app, ["plan", *KEYS, "--search", "--plot", str(out), "--json"])
    assert result.exit_code == 0
    assert f'"plot": "{out}"' in result.stdout
    assert '"points"' not in result.stdout
    checked(out)


def test_what_is_no_page_and_no_search_is_said_so(tmp_path: Path) -> None:
    picture = CliRunner().invoke(app, ["plan", *KEYS, "--search", "--plot", str(tmp_path / "plot.png")])
    assert isinstance(picture.exception, ConfigError)
    assert "name it plot.html" in str(picture.exception)
    alone = CliRunner().invoke(app, ["plan", *KEYS, "--plot", "plot.html"])
    assert "give --search too" in str(alone.exception)
