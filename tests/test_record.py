"""Recorded collectives: against torch's own ring buffer, what a layout must move, and what is kept as data."""

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import on
from runs import trained
from training import MACHINE

from foretell import config as run_config
from foretell import plan
from foretell.data import open_data, prepare
from foretell.distributed import record
from foretell.distributed.record import Collective
from foretell.train import begin

STORED = json.loads((Path(__file__).parent / "data" / "collectives.json").read_text())
ITEM_BYTES = {"Float": 4, "Double": 8, "Long": 8, "BFloat16": 2, "Byte": 1, "Char": 1, "Int": 4, "Bool": 1}
IN_GLOO = {"reduce_scatter": "all_reduce"}
OUTPUT_COUNTS = {"all_gather"}
QUICK = ["dp_shard", "hybrid", "tp", "cp", "pp", "int8 between copies"]


def stored(layout: str, rank: int = 0) -> list[Collective]:
    rows = STORED["layouts"][layout]["ranks"][f"rank-{rank:05d}"]
    return [Collective(kind, tuple(group), count, size) for kind, group, count, size in rows]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    (folder / "text.txt").write_text("".join(f"line {i} of {i * i % 97} and {i * 7919 % 1000}\n" for i in range(500)))
    prepare(
        [str(folder / "text.txt")], folder / "data", run_config.TokenizerConfig(kind="bytes"), run_config.DataConfig()
    )
    return folder / "data"


def with_ring_buffer(run: Path, data: Path) -> list[tuple[str, int, int]]:
    """What torch's ring buffer says of the step that is recorded: kind, count, bytes."""
    from torch._C._distributed_c10d import _dump_fr_trace_json

    from foretell.distributed.placed import Placed
    from foretell.train import loop

    taken, entries = loop.take_step, list[Any]()

    def take_step(job: Any, team: Placed, *rest: Any) -> Any:
        before = len(json.loads(_dump_fr_trace_json())["entries"])
        event = taken(job, team, *rest)
        if event["step"] == record.STEP:
            entries.extend(json.loads(_dump_fr_trace_json())["entries"][before:])
        return event

    loop.take_step = take_step
    try:
        trained(run, data, None)
    finally:
        loop.take_step = taken
    found = []
    for e in entries:
        kind = e["profiling_name"].removeprefix("gloo:")
        side = "output" if kind in OUTPUT_COUNTS else "input"
        counts = [_product(size) for size in e[f"{side}_sizes"]]
        item = ITEM_BYTES[e[f"{side}_dtypes"][0]]
        found.append((kind, sum(counts), item * sum(counts)))
    return found


def _product(size: list[int]) -> int:
    count = 1
    for n in size:
        count *= n
    return count


def begun(layout: str, data: Path, run: Path) -> int:
    of = STORED["layouts"][layout]
    c = run_config.updated(run_config.load(None, [*STORED["model"], *of["keys"]]), data={"source": str(data)})
    begin(c, open_data(data), run, of["processes"], machine=MACHINE)
    return int(of["processes"])


@pytest.mark.parametrize(
    "layout", [*QUICK, *(pytest.param(n, marks=pytest.mark.slow) for n in STORED["layouts"] if n not in QUICK)]
)
def test_a_run_keeps_what_torch_saw_and_it_is_what_is_kept_as_data(layout: str, data: Path, tmp_path: Path) -> None:
    ranks = begun(layout, data, tmp_path / "run")
    seen = on(ranks, with_ring_buffer, tmp_path / "run", data)
    for path in (tmp_path / "run" / "collectives").iterdir():
        rank = int(path.stem.removeprefix("rank-"))
        kept = record.read(path)
        # Gloo forms a reduce-scatter by an all-reduce, and its ring buffer has no sends between two ranks.
        expected = [(IN_GLOO.get(c.kind, c.kind), c.count, c.bytes) for c in kept if c.kind not in ("send", "recv")]
        assert seen[rank] == expected
        assert kept == stored(layout, rank)
    assert len(list((tmp_path / "run" / "collectives").iterdir())) == len(STORED["layouts"][layout]["ranks"])


def test_the_data_moves_what_its_layouts_must() -> None:
    """Counted from the shapes: what FSDP2 scatters, what copies add, what stages send."""
    c = run_config.load(None, STORED["model"])
    model = c.model.resolved(272, c.train.context)
    parameters = plan.parameters(model)["total"]
    sent = 512 * model.hidden_size  # the hidden states of all sequences of a batch, T = 32 each

    def count(layout: str, kind: str, rank: int = 0) -> int:
        return sum(c.count for c in stored(layout, rank) if c.kind == kind and c.bytes != 16)

    assert count("dp_shard", "reduce_scatter") == parameters
    assert count("dp_replicate", "all_reduce") == parameters
    assert count("hybrid", "reduce_scatter") == parameters
    assert count("hybrid", "all_reduce") == parameters // 2
    assert count("strict", "all_to_all") == count("strict", "all_gather") == parameters
    # Hidden states one way; of a tied table also the gradient that its two ends exchange.
    assert count("pp", "send") == sent + 272 * model.hidden_size * bool(model.tie_word_embeddings)
    # Hidden states pass in and out of attention and of the feed-forward part, forward and backward, in each layer; so
    # does what comes from the embedding and what goes to the head.
    assert count("tp", "reduce_scatter") == count("tp", "all_gather") == (4 * 4 + 2) * sent
