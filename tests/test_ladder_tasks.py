"""`foretell ladder score` on a real, tiny ladder: rungs asked, forecasts on record before targets are, what holds."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_ladder import tiny
from test_report import checked
from training import MACHINE
from typer.testing import CliRunner

from foretell import report
from foretell.cli import app
from foretell.data import open_data
from foretell.errors import ConfigError, PlanError
from foretell.evaluate import questions
from foretell.ladder import tasks
from foretell.ladder.climb import run as climb_ladder
from foretell.models import source
from foretell.plan import downstream

RUNGS = 9
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def foretold(tmp_path_factory: pytest.TempPathFactory, climbed: tuple[Path, Any, Any], lines: Path) -> Path:
    """A ladder of nine rungs with one target trained and one foretold only."""
    folder = Path(shutil.copytree(climbed[0], tmp_path_factory.mktemp("ladders") / "graded"))
    for own in (folder / "targets").iterdir():  # of other tests
        if not (own / "measured.json").exists():
            shutil.rmtree(own)
    climb_ladder(tiny("train.tokens=3200"), open_data(lines), folder, machine=MACHINE)
    return folder


@pytest.fixture
def ladder(foretold: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(foretold, tmp_path / "graded"))


@pytest.fixture
def cloze(tmp_path: Path) -> Path:
    """Which of two letters follows a word: some are always likelier than others, and the gold is either."""
    file = tmp_path / "letters.jsonl"
    records = [
        {"context": f"the {a}", "choices": [b, c], "gold": i % 2}
        for i, (a, b, c) in enumerate(zip(LETTERS, LETTERS[1:], LETTERS[5:], strict=False))
    ]
    file.write_text("".join(json.dumps(r) + "\n" for r in records))
    return file


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_rungs_are_asked_and_targets_foretold_and_scored(ladder: Path, cloze: Path) -> None:
    told = tasks.score(ladder, cloze)
    asked = questions.read(cloze)
    assert (told["task"], told["kind"], told["items"], told["chance"]) == ("letters", "endings", len(asked), 0.5)
    assert len(told["rungs"]) == RUNGS
    for r in told["rungs"]:
        assert r["loss"] == read(ladder / "rungs" / r["rung"] / "measured.json")["loss"]
    name = told["rungs"][4]["rung"]
    model, tokenizer = source.load(ladder / "rungs" / name)
    assert told["rungs"][4]["correct"] == sum(questions.right(model, tokenizer, asked))  # type: ignore[arg-type]
    models = [downstream.Graded(r["loss"], r["correct"], r["items"]) for r in told["rungs"]]
    trained, open_one = sorted(told["targets"], key=lambda t: t["measured"] is None)
    for t in (trained, open_one):
        own = ladder / "targets" / t["name"]
        loss = {k: read(own / "forecast.json")["forecast"][k] for k in ("value", "low", "high")}
        assert t["accuracy"] == downstream.forecast(models, 0.5, loss, len(asked))[0]  # from the rungs alone
        assert t["loss_forecast"] == loss
        assert read(own / "task-letters.json")["accuracy"] == t["accuracy"]
    assert (open_one["measured"], open_one["held"]) == (None, None)
    assert trained["held"] == (trained["accuracy"]["low"] <= trained["measured"] <= trained["accuracy"]["high"])
    own = ladder / "targets" / trained["name"]
    record = (own / "task-letters.json").read_bytes()
    assert read(own / "scored-letters.json")["task_forecast_sha256"] == hashlib.sha256(record).hexdigest()
    assert read(own / "task-letters.json")["created"] <= read(own / "scored-letters.json")["scored"]


def test_what_is_on_record_is_kept_and_what_is_missing_is_asked(ladder: Path, cloze: Path) -> None:
    whole = tasks.score(ladder, cloze)
    records = {p: p.read_bytes() for p in ladder.glob("targets/*/*-letters.json")}
    assert len(records) == 3
    stored = read(ladder / "tasks" / "letters.json")
    lost = whole["rungs"][7]["rung"]
    del stored["rungs"][lost]
    (ladder / "tasks" / "letters.json").write_text(json.dumps(stored))
    seen: list[dict[str, Any]] = []
    again = tasks.score(ladder, cloze, display=seen.append)
    assert [e["name"] for e in seen if e["event"] == "asked"] == [lost]
    assert {r["rung"]: r["correct"] for r in again["rungs"]} == {r["rung"]: r["correct"] for r in whole["rungs"]}
    assert {p: p.read_bytes() for p in records} == records


def test_other_questions_want_another_name(ladder: Path, cloze: Path) -> None:
    tasks.score(ladder, cloze, limit=12)
    with pytest.raises(ConfigError, match=r"the task letters was 12 other questions than the 21 given now"):
        tasks.score(ladder, cloze)
    assert tasks.score(ladder, cloze, task="all")["items"] == 21
    with pytest.raises(ConfigError, match="becomes a file's name"):
        tasks.score(ladder, cloze, task="a/b")


def test_too_few_rungs_and_no_ladder_are_said(ladder: Path, cloze: Path, tmp_path: Path) -> None:
    for run in sorted((ladder / "rungs").iterdir())[:5]:
        (run / "measured.json").unlink()
    with pytest.raises(PlanError, match="4 models"):
        tasks.score(ladder, cloze)
    with pytest.raises(ConfigError, match="is no ladder"):
        tasks.score(tmp_path / "nothing", cloze)


def test_the_verb_and_the_page(ladder: Path, cloze: Path) -> None:
    words = ["ladder", "score", str(ladder), "--data", str(cloze), "--task", "字母"]
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code in (0, 3), done.output
    told = json.loads(done.stdout)
    assert (done.exit_code == 3) == any(t["held"] is False for t in told["targets"])
    text, page = checked(Path(told["report"]))
    assert {"graded-0", "graded-plot-0"} <= set(page.ids)
    shown = " ".join(page.words)
    assert "字母" in shown
    assert f"{RUNGS} small runs were asked 21 questions; guessing gets 50" in shown
    plot = text[text.index('<svg class="plot"', text.index('id="graded-plot-0"')) :]
    plot = plot[: plot.index("</figure>")]
    assert plot.count('<circle class="dot') == RUNGS + 1  # and the target that was trained
    assert plot.count('<g class="mark') == 2
    plain = CliRunner().invoke(app, words)
    assert plain.exit_code == done.exit_code
    assert "by the measured loss" in plain.stdout
    assert "not yet" in plain.stdout
    (ladder / "tasks" / "字母.json").write_text("{")
    text, page = checked(report.write([ladder]))
    assert "graded-plot-0" not in page.ids
    assert "tasks/字母.json" in " ".join(page.words)
