"""Ten faults at three phases on three ranks: the run goes on by itself, to the losses of an undisturbed one."""

import json
import sys
from pathlib import Path
from typing import Any

import faulty
import pytest
from runs import KEYS, layout, losses, session
from training import MACHINE

from foretell import config as run_config
from foretell.data import open_data
from foretell.distributed import launch
from foretell.errors import Interrupted
from foretell.train import begin

RANKS, STEPS = 3, 40
ASKED = {"SIGINT", "SIGTERM"}  # end the run, which is saved
SILENT = {"SIGSTOP", "interpreter held"}
WORKER = Path(faulty.__file__)
SHAPE = [*layout(dp_shard=RANKS), f"train.steps={STEPS}", "train.global_batch_tokens=384", "train.optimizer=adamw"]


@pytest.fixture(scope="module")
def undisturbed(lines: Path, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    session(run, lines, RANKS, SHAPE)
    return losses(run)


def check(folder: Path, data: Path, faults: list[dict[str, Any]], undisturbed: list[float]) -> list[str]:
    """Let the faults come true one after another; what was said of hangs."""
    run, plan, said = folder / "run", folder / "faults", list[str]()
    plan.mkdir(parents=True)
    (plan / "faults.json").write_text(json.dumps(faults))
    c = run_config.updated(run_config.load(None, [*KEYS, *SHAPE]), data={"source": str(data)})
    begin(c, open_data(data), run, RANKS, machine=MACHINE)
    command = [sys.executable, str(WORKER), str(run), str(data), str(plan)]
    asked = sum(f["fault"] in ASKED for f in faults)
    for _ in range(asked):
        with pytest.raises(Interrupted, match="everything is saved"):
            launch.run(command, RANKS, len(faults), run, said.append)
    launch.run(command, RANKS, len(faults), run, said.append)
    assert (run / "measured.json").exists()
    assert {p.name for p in plan.iterdir()} == {"faults.json", *map(str, range(len(faults)))}
    assert losses(run) == pytest.approx(undisturbed, rel=1e-6)
    return said


def phases(fault: str) -> list[str]:
    saving = "snapshot" if fault in faulty._RAISING else "writing"
    return ["forward", "all-reduce", saving]


def test_a_killed_a_stopped_and_a_held_rank(lines: Path, tmp_path: Path, undisturbed: list[float]) -> None:
    faults = [
        {"fault": "SIGKILL", "phase": "all-reduce", "rank": 2, "step": 7},
        {"fault": "SIGSTOP", "phase": "writing", "rank": 0, "step": 16},
        {"fault": "interpreter held", "phase": "forward", "rank": 1, "step": 23},
    ]
    said = check(tmp_path, lines, faults, undisturbed)
    assert [s.split(" (")[0] for s in said] == ["rank 0", "rank 1"]
    for message, (silent, others) in zip(said, [(0, (1, 2)), (1, (0, 2))], strict=True):
        assert "has not answered for 5." in message
        kept = Path(message.rsplit(": ", 1)[1])
        for rank in others:
            record = json.loads((kept / f"collectives-{rank}.json").read_text())
            assert record["entries"][-1]["profiling_name"].startswith("gloo:")
            assert "take_step" in (kept / f"stacks-{rank}.txt").read_text()
        assert not (kept / f"collectives-{silent}.json").exists()
    assert "faulty.py" in (kept / "stacks-1.txt").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("fault", faulty.FAULTS)
def test_each_fault_at_each_phase_on_each_rank(
    lines: Path, tmp_path: Path, undisturbed: list[float], fault: str
) -> None:
    places = [(phase, rank) for phase in phases(fault) for rank in range(RANKS)]
    # Saves come every five steps; their files are written while the next steps are done, so that step or later.
    steps = [3, 7, 12, 16, 18, 22, 25, 30, 35]
    faults = [{"fault": fault, "phase": p, "rank": r, "step": s} for (p, r), s in zip(places, steps, strict=True)]
    said = check(tmp_path, lines, faults, undisturbed)
    assert [int(s.split()[1]) for s in said] == ([rank for _, rank in places] if fault in SILENT else [])
