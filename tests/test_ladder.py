"""The ladder: its design, its chains of lengths, its going on after a kill, its forecast on record before the target.

The truth for a chain is the same run uninterrupted; for a killed ladder it is one that was not. All ladders here are
real ones, of models of some thousand parameters.
"""

import csv
import hashlib
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from training import CONTEXT, MACHINE

from foretell import config as run_config
from foretell import plan, report
from foretell.config import RunConfig, TrainConfig
from foretell.data import open_data
from foretell.data.claims import Claims
from foretell.errors import ConfigError, Interrupted
from foretell.ladder import design, fit_table, foretold
from foretell.ladder.climb import run as climb_ladder
from foretell.ladder.folder import read_design
from foretell.plan import flops
from foretell.train import train
from foretell.train.schedule import lr_factor

TINY = [
    *("model.hidden_size=48", "model.num_hidden_layers=2", "train.tokens=2400", "train.context=16"),
    *("train.global_batch_tokens=32", "train.lr=0.02", "ladder.widths=[16, 24, 32]", "ladder.rung_flops=6e8"),
    *("ladder.repeats=0", "train.dtype=float32"),
]
STORED = Path(__file__).parent / "data" / "ladder-1.json"
CORPUS = {"tokens": 5e8, "vocab_size": 1024, "bytes_per_token": 2.5}
Events = list[dict[str, Any]]


def tiny(*more: str) -> RunConfig:
    return run_config.load(None, [*TINY, *more])


def climb(folder: Path, data: Path, c: RunConfig | None = None, **options: Any) -> tuple[dict[str, Any], Events]:
    events: Events = []
    result = climb_ladder(c or tiny(), open_data(data), folder, machine=MACHINE, display=events.append, **options)
    return result, events


def without(whole: Path, folder: Path, width: int) -> Path:
    """A copy of a ladder that has not trained one of its sizes yet, and has no forecast."""
    shutil.copytree(whole, folder)
    for run in folder.glob(f"rungs/w{width}-*"):
        shutil.rmtree(run)
    shutil.rmtree(folder / "targets")
    return folder


def table(folder: Path) -> list[dict[str, str]]:
    """rungs.csv without its clock."""
    with (folder / "rungs.csv").open() as f:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(f)]


def test_the_result_has_the_fields_of_the_verb(climbed: tuple[Path, dict[str, Any], Events]) -> None:
    folder, result, _ = climbed
    assert len(result["rungs"]) == 9
    assert {"E", "A", "B", "alpha", "beta"} <= set(result["fit"])
    forecast, measured = result["forecast"], result["measured"]
    assert forecast["low"] < forecast["value"] < forecast["high"]
    assert result["error_percent"] == pytest.approx(100 * (measured / forecast["value"] - 1))
    assert result["held"] == (forecast["low"] <= measured <= forecast["high"])
    largest = max(row["flops"] for row in result["rungs"])
    assert result["compute_ratio"] == pytest.approx(result["target"]["flops"] / largest)
    own = json.loads(next(folder.glob("targets/*/run/measured.json")).read_text())
    assert own["loss"] == measured


def test_every_rung_is_scored_on_the_same_text(climbed: tuple[Path, dict[str, Any], Events]) -> None:
    folder = climbed[0]
    results = [json.loads(p.read_text()) for p in folder.glob("**/measured.json")]
    scored = [r["validation"] for r in results if "validation" in r]
    assert len(scored) == 10
    assert len({(s["tokens"], s["bytes"], s["context"]) for s in scored}) == 1


def test_the_forecast_is_on_record_before_the_target_starts(climbed: tuple[Path, dict[str, Any], Events]) -> None:
    folder, _, seen = climbed
    (target,) = folder.glob("targets/*")
    told = next(i for i, e in enumerate(seen) if e["event"] == "forecast")
    assert not any("run" in e["on_record"] for e in seen[:told])
    assert seen[told]["on_record"] == ["forecast.json"]
    record, score = (json.loads((target / n).read_text()) for n in ("forecast.json", "measured.json"))
    assert record["created"] <= score["started"] <= score["finished"]
    assert score["forecast_sha256"] == hashlib.sha256((target / "forecast.json").read_bytes()).hexdigest()
    assert record["rungs_sha256"] == hashlib.sha256((folder / "rungs.csv").read_bytes()).hexdigest()
    promised = json.loads((target / "run" / "plan.json").read_text())["loss"]
    assert promised == {k: record["forecast"][k] for k in ("value", "low", "high")}


def test_the_run_of_the_target_is_judged_by_the_ladder(climbed: tuple[Path, dict[str, Any], Events]) -> None:
    folder, result, _ = climbed
    (run,) = folder.glob("targets/*/run")
    verified = plan.verify(*(plan.stored(run / name) for name in ("plan.json", "measured.json")))
    (loss,) = [q for q in verified["quantities"] if q["name"] == "loss"]
    assert (loss["predicted"], loss["held"]) == (result["forecast"]["value"], result["held"])
    assert loss["error_percent"] == pytest.approx(result["error_percent"])
    assert report.write([run]).stat().st_size > 10_000
    assert 'id="ladder-plot-0"' in (run / "report.html").read_text(encoding="utf-8")


def test_what_is_finished_is_not_trained_again(climbed: tuple[Path, dict[str, Any], Events], lines: Path) -> None:
    folder, result, _ = climbed
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    again, events = climb(folder, lines, climb=True)
    assert again == result
    assert [e["event"] for e in events] == ["forecast"]
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == files


def test_checkpoints_go_when_nothing_needs_them(climbed: tuple[Path, dict[str, Any], Events]) -> None:
    folder = climbed[0]
    assert list(folder.glob("rungs/*/checkpoints")) == []
    assert len(list(folder.glob("rungs/*/model/model.safetensors"))) == 9


@pytest.mark.parametrize("name", ["w32-s0-h2", "w32-s0-h3"])
def test_a_rung_from_the_trunk_is_the_uninterrupted_run(
    climbed: tuple[Path, dict[str, Any], Events], lines: Path, tmp_path: Path, name: str
) -> None:
    folder = climbed[0]
    stored = read_design(folder)
    assert stored is not None
    (rung,) = [r for r in stored.rungs if r.name == name]
    alone = train(design.run_of(stored.base, rung), open_data(lines), tmp_path / name, machine=MACHINE)
    assert alone["resumed_from"] is None
    assert json.loads((folder / "rungs" / name / "measured.json").read_text())["resumed_from"] > 0
    weights = [run / "model" / "model.safetensors" for run in (folder / "rungs" / name, tmp_path / name)]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    courses = [
        [
            (e["step"], e["loss"], e["lr"])
            for e in map(json.loads, (run / "log.jsonl").read_text().splitlines())
            if e["event"] == "step"
        ]
        for run in (folder / "rungs" / name, tmp_path / name)
    ]
    assert courses[0] == courses[1]


def _ladder_until(folder: Path, data: Path, rung: str, step: int, signum: int) -> None:
    """The body of a process that gets a signal in the midst of a rung."""
    import torch

    torch.set_num_threads(1)
    at = {"rung": ""}

    def watch(event: dict[str, Any]) -> None:
        if event["event"] == "rung":
            at["rung"] = event["name"]
        if event["event"] == "step" and (at["rung"], event["step"]) == (rung, step):
            os.kill(os.getpid(), signum)

    try:
        climb_ladder(tiny(), open_data(data), folder, machine=MACHINE, display=watch)
    except Interrupted as e:
        print(e)
        raise SystemExit(e.exit_code) from None


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_a_killed_ladder_goes_on_to_the_same_table(
    climbed: tuple[Path, dict[str, Any], Events], lines: Path, tmp_path: Path, signum: int, code: int
) -> None:
    whole, result, _ = climbed
    folder = without(whole, tmp_path / "ladder", 32)
    process = CONTEXT.Process(target=_ladder_until, args=(folder, lines, "w32-s0-h2", 30, signum))
    process.start()
    process.join(120)
    assert process.exitcode == code
    before = [row["rung"] for row in table(folder)]
    assert before == [f"w{w}-s0-h{h}" for w in (16, 24) for h in (1, 2, 3)] + ["w32-s0-h1"]
    again, events = climb(folder, lines)
    assert table(folder) == table(whole)
    assert [e["name"] for e in events if e["event"] == "rung"] == ["w32-s0-h2", "w32-s0-h3"]
    resumed = json.loads((folder / "rungs" / "w32-s0-h2" / "measured.json").read_text())["resumed_from"]
    assert resumed == 30 if code == 130 else 0 < resumed <= 30
    assert again["forecast"] == result["forecast"]
    assert again["measured"] is None


def test_another_target_uses_the_rungs_again(climbed: tuple[Path, dict[str, Any], Events], lines: Path) -> None:
    folder, result, _ = climbed
    c = run_config.load(None, ["model.hidden_size=64", "model.num_hidden_layers=3", "train.tokens=3200"])
    other, events = climb(folder, lines, c)
    assert [e["event"] for e in events] == ["forecast"]
    assert other["target"]["tokens"] == 3200
    assert other["fit"] == result["fit"]
    assert other["forecast"]["value"] != result["forecast"]["value"]
    assert (other["target"]["global_batch_tokens"], other["target"]["hidden_size"]) == (32, 64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.weight_decay=0.1", r"train.weight_decay: 0.01 then, 0.1 now"),
        ("train.context=32", "16 then, 32 now"),
        ("train.lr=0.03", "train.lr: 0.02 then, 0.03 now"),
        ("train.warmup_steps=9", "unset then, 9 now"),
    ],
)
def test_another_recipe_is_another_ladder(
    climbed: tuple[Path, dict[str, Any], Events], lines: Path, change: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        climb(climbed[0], lines, tiny(change))


def test_the_stored_example_is_read_whole(tmp_path: Path) -> None:
    shutil.copyfile(STORED, tmp_path / "ladder.json")
    stored = read_design(tmp_path)
    assert stored is not None
    assert [r.name for r in stored.rungs] == ["w16-s0-h1", "w16-s0-h2", "w16-s0-h3"]
    assert [r.origin for r in stored.rungs] == [None, "w16-s0-h1", "w16-s0-h2"]
    assert stored.base.ladder.widths == [16, 24, 32, 48]
    assert all(design.tokens_of(design.run_of(stored.base, r)) == r.tokens for r in stored.rungs)
    newer = json.loads(STORED.read_text()) | {"format_version": 2}
    (tmp_path / "ladder.json").write_text(json.dumps(newer))
    with pytest.raises(ConfigError, match="format_version 2"):
        read_design(tmp_path)


def test_a_folder_of_something_else_is_left_alone(lines: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="no ladder"):
        climb(tmp_path, lines)
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_what_another_process_holds_is_waited_for(
    climbed: tuple[Path, dict[str, Any], Events], lines: Path, tmp_path: Path
) -> None:
    folder = without(climbed[0], tmp_path / "ladder", 32)
    holding = Claims(folder / ".claims").held("w32-s0")
    assert holding.__enter__() is not None
    events = []

    def watch(event: dict[str, Any]) -> None:
        events.append(event["event"])
        if event["event"] == "waiting":
            holding.__exit__(None, None, None)

    climb_ladder(tiny(), open_data(lines), folder, machine=MACHINE, display=watch)
    assert [e for e in events if e in ("waiting", "rung")] == ["waiting", *["rung"] * 3]
    assert table(folder) == table(climbed[0])


@settings(deadline=None)
@given(st.floats(60, 1e6), st.floats(0.05, 0.5))
def test_a_longer_run_is_the_shorter_one_until_that_decays(steps: float, decay: float) -> None:
    trunk, whole = design._lengths(steps, decay)
    assert trunk % design.SAVES == 0
    assert abs(trunk / (1 - decay) - whole) <= 2
    c = TrainConfig(warmup_steps=5, decay_fraction=decay)
    at = [0, 3, trunk // 2, trunk - 1]
    assert [lr_factor(s, whole, c) for s in at] == [lr_factor(s, 4 * whole, c) for s in at]
    assert lr_factor(whole - 1, whole, c) < 1


def test_the_design_follows_the_target() -> None:
    asked = run_config.load(None, ["model.hidden_size=512", "model.num_hidden_layers=8", "train.tokens=1000000000"])
    target = design.settled(asked, CORPUS, {})
    rungs = design.rungs(target, asked.train)
    most = design.cost(target) / 30
    assert all(r.flops <= 1.03 * most for r in rungs)
    longest = [r for r in rungs if r.name.endswith("h3") and r.seed == 0]
    assert len(longest) == 5
    assert all(r.flops >= 0.97 * most for r in longest)
    sizes = [r.parameters for r in longest]
    assert sizes == sorted(sizes)
    assert 5 < sizes[-1] / sizes[0] < 12
    ratios = [r.tokens / r.parameters for r in longest]
    assert ratios[-1] < 1e9 / flops.parameters(target.model)["total"] < ratios[0]
    assert {r.seed for r in rungs} == {0, 1, 2}
    for r in rungs:
        c = plan.completed(design.run_of(target, r), CORPUS, {})
        assert flops.parameters(c.model)["total"] == r.parameters
        assert design.tokens_of(c) == r.tokens
        assert design.cost(c) == r.flops


@pytest.mark.parametrize(("longest", "tokens", "said"), [(4e6, 2e7, True), (1e7, 2e7, False), (4e6, 3e6, False)])
def test_rungs_that_end_before_copying_is_learned_are_a_caution(longest: float, tokens: float, said: bool) -> None:
    text = foretold.caution(longest, tokens)
    assert (text is not None) == said
    assert text is None or ("4,000,000" in text and "20,000,000" in text and "ladder.rung_flops" in text)


def test_seeds_of_every_size_and_repeats_of_the_middle() -> None:
    asked = ["model.hidden_size=512", "model.num_hidden_layers=8", "train.tokens=1000000000"]
    c = run_config.load(None, [*asked, "ladder.seeds=2", "ladder.repeats=1", "ladder.widths=[64, 96, 128]"])
    found = design.rungs(design.settled(c, CORPUS, {}), c.train)
    trunks = {(r.hidden_size, r.seed) for r in found}
    assert trunks == {(w, s) for w in (64, 96, 128) for s in (0, 1)} | {(96, 2)}
    assert len(found) == 3 * len(trunks)


def test_a_target_too_small_for_a_ladder_is_said_so() -> None:
    c = run_config.load(None, ["model.hidden_size=16", "model.num_hidden_layers=2", "train.tokens=200000"])
    with pytest.raises(ConfigError, match=r"rungs of [12] sizes only"):
        design.rungs(design.settled(c, CORPUS, {}), c.train)


@pytest.mark.parametrize("widths", ["[16, 16, 24]", "[0, 16, 24]", "[-16, 16, 24]"])
def test_widths_that_are_no_ladder_are_said_so(widths: str) -> None:
    c = tiny(f"ladder.widths={widths}")
    with pytest.raises(ConfigError, match="at least 3 different ones of 8 or more"):
        design.rungs(design.settled(c, CORPUS, {}), c.train)


def test_no_target_is_said_so() -> None:
    with pytest.raises(ConfigError, match="has no target"):
        design.settled(run_config.load(None, []), CORPUS, {})


def test_a_budget_sizes_the_target() -> None:
    c = design.settled(
        run_config.load(None, ["train.budget=1e13", "model.hidden_size=64", "model.num_hidden_layers=2"]), CORPUS, {}
    )
    assert design.cost(c) == pytest.approx(1e13, rel=0.1)


@pytest.mark.parametrize(("shape", "middle"), [("linear", 0.5), ("sqrt", 1 - 0.5**0.5)])
def test_shapes_of_the_decay(shape: str, middle: float) -> None:
    c = TrainConfig.model_validate({"warmup_steps": 0, "decay_fraction": 0.2, "decay_shape": shape})
    assert [lr_factor(s, 1000, c) for s in (0, 799, 800, 900)] == pytest.approx([1, 1, 1, middle])
    assert 0 < lr_factor(999, 1000, c) < 0.01


def test_a_run_with_a_budget_is_sized_by_the_ladder(
    climbed: tuple[Path, dict[str, Any], Events], lines: Path, tmp_path: Path
) -> None:
    """`foretell train --budget 3e9 --ladder FOLDER`, to the end: the ladder's law and recipe, and the verdict by it."""
    folder = climbed[0]
    given = ["train.budget=3e9", f"train.ladder={folder}", "train.context=16"]
    train(run_config.load(None, given), open_data(lines), tmp_path / "run", machine=MACHINE)
    own, stored = run_config.load(tmp_path / "run" / "config.toml"), plan.stored(tmp_path / "run" / "plan.json")
    assert (own.train.decay_fraction, own.train.dtype) == (0.2, "float32")
    assert stored["loss_from"] == "ladder"
    size, unique = stored["parameters"]["total"], min(stored["tokens"], stored["corpus"]["tokens"])
    (said,) = fit_table(folder / "rungs.csv", [(size, stored["tokens"], unique)])["forecasts"]
    assert stored["loss"] == pytest.approx({k: said[k] for k in ("value", "low", "high")})
    assert stored["flops_total"] == pytest.approx(3e9, rel=0.1)
    verified = plan.verify(stored, plan.stored(tmp_path / "run" / "measured.json"))
    assert any(q["name"] == "loss" for q in verified["quantities"])
