"""The picture of the ladder: everything is in it, inside its frame, in both languages, and nothing leaves the page."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from foretell.ladder import table
from foretell.plan import law
from foretell.report import ladder

DATA = Path(__file__).parent / "data" / "laws"


@pytest.fixture(scope="module")
def olmo() -> tuple[list[law.Row], law.Fit, dict[str, float], float]:
    rows = table.read(DATA / "olmo_ladder.csv", {"loss": "c4"}).rows
    runs, target = rows[:-1], rows[-1]
    place = {"parameters": target.parameters, "tokens": target.tokens}
    forecast = {**place, **law.forecast(runs, target.parameters, target.tokens)}
    return runs, law.fit(runs, form="coupled"), forecast, target.loss


def shares(markup: str, name: str) -> list[float]:
    return [float(v) for v in re.findall(rf'{name}="([-\d.]+)%"', markup)]


def test_runs_target_and_interval_are_in_the_picture(olmo) -> None:
    rows, fit, forecast, measured = olmo
    markup = ladder.figure(rows, fit, forecast, measured)
    plot = markup[markup.index('<svg class="plot"') : markup.index("</figure>")]
    assert len(re.findall(r'<circle class="dot hue\d"', plot)) == len(rows) + 1
    assert plot.count('class="mark') == 1
    assert all(0 <= v <= 100 for name in ("cx", "cy") for v in shares(plot, name))
    # The measured loss lies inside the interval, so its dot stands between the bar's ends, at the same compute.
    bar = re.search(r'class="mark.*?x1="([\d.]+)%".*?y1="([\d.]+)%" y2="([\d.]+)%"', plot)
    dot = re.search(rf'class="dot hue{ladder.TARGET_HUE}" cx="([\d.]+)%" cy="([\d.]+)%"', plot)
    assert bar
    assert dot
    assert dot[1] == bar[1]
    assert float(bar[2]) < float(dot[2]) < float(bar[3])
    # More compute stands further right: a tenfold is the same way everywhere.
    assert {"1e19", "1e20", "1e21", "1e22"} <= set(re.findall(r">(1e\d+)<", plot))


def test_without_a_measurement_the_forecast_stands_alone(olmo) -> None:
    rows, fit, forecast, _ = olmo
    markup = ladder.figure(rows, fit, forecast)
    assert "measured" not in markup
    assert markup.count("190 M") >= 2  # once in each language


def test_many_sizes_share_a_colour(olmo) -> None:
    _, fit, forecast, _ = olmo
    rows = [law.Row(1e8 * 1.3**i, 2e9 * 1.3**i, 4 - i / 9) for i in range(12)]
    plot = ladder.figure(rows, fit, forecast)
    assert {"0"} == set(re.findall(r'class="dot hue(\d)"', plot))


def test_both_languages_and_clean_markup(olmo) -> None:
    rows, fit, forecast, measured = olmo
    markup = ladder.figure(rows, fit, forecast, measured)
    assert "缩放阶梯" in markup
    assert "The ladder" in markup
    assert not re.search(r"<script|javascript:|https?://|\bon\w+=", markup)
    opened: list[str] = []

    class Strict(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list) -> None:
            opened.append(tag)

        def handle_startendtag(self, tag: str, attrs: list) -> None:
            pass

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Strict().feed(markup)
    assert opened == []


def test_repeated_text_is_counted_at_its_worth(olmo) -> None:
    _, _, forecast, _ = olmo
    rows = [
        law.Row(n, n * s, 1.8 + 400 * n**-0.34 + 900 * law.worth(n * s, n * s / e, 12.0) ** -0.32, n * s / e)
        for n in (2e7, 6e7, 2e8)
        for s in (10, 40)
        for e in (1, 8)
    ]
    fit = law.fit(rows, form="tied")
    once = ladder.figure(rows, fit, {**forecast, "unique_tokens": forecast["tokens"]})
    often = ladder.figure(rows, fit, {**forecast, "unique_tokens": forecast["tokens"] / 50})
    path = re.compile(r'class="line plan hue0" d="([^"]+)"')
    assert path.findall(once)[-1] != path.findall(often)[-1]
    assert path.findall(once)[0] == path.findall(often)[0]  # the one in the legend
