"""Runs of every kind of model and objective in pipelines and other layouts, on real text: losses, bytes, resume.

One process is the same run on one process. Foretold collectives are compared with recorded ones, one by one.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import on
from runs import losses, trained
from test_communication import agree
from training import MACHINE

from foretell import config as run_config
from foretell.config import DataConfig, RunConfig, TokenizerConfig
from foretell.data import open_data, prepare
from foretell.distributed import record
from foretell.plan.communication import collectives
from foretell.train import begin

TEXT = Path(__file__).parent / "data" / "text"
RUN = [
    *("model.hidden_size=64", "train.context=64", "train.micro_batch_size=2", "train.global_batch_tokens=512"),
    *("train.steps=4", "train.dtype=float32", "train.dropout=0", "train.eval_tokens=400", "train.optimizer=sgd"),
    *("train.lr=0.1", "train.compile=off", "train.eval_every=4", "train.save_every=4"),
]
HALVES = ["model.num_hidden_layers=2", "model.num_decoder_layers=2"]
KINDS: dict[str, list[str]] = {
    "bert": ["model.model_type=bert", "model.num_hidden_layers=4", "train.objective=masked"],
    "t5": ["model.model_type=t5", *HALVES, "train.objective=span_corruption"],
    "marian": ["model.model_type=marian", *HALVES, "train.objective=seq2seq"],
    "answers": ["model.num_hidden_layers=4", "model.num_key_value_heads=2"],
    "prefix": ["model.num_hidden_layers=4", "model.num_key_value_heads=2", "train.objective=prefix"],
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The text for each kind."""
    found = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind)
        source, keys, words = TEXT / "shakespeare.txt", dict[str, Any](), {"kind": "bytes"}
        if kind in ("bert", "t5"):
            words["objective"] = "masked" if kind == "bert" else "span_corruption"
        if kind == "marian":
            source, keys = TEXT / "tatoeba.tsv", {"source_key": "2", "target_key": "1"}
        if kind == "answers":
            source, keys = folder / "talks.jsonl", {"chat_template": "chatml"}
            talks = [{"prompt": f"天下 {n}?", "completion": f"It is {n} " + "so " * (n % 9)} for n in range(300)]
            source.write_text("".join(json.dumps(t) + "\n" for t in talks))
        tokens, data = TokenizerConfig.model_validate(words), DataConfig.model_validate(keys)
        prepare([str(source)], folder / "p", tokens, data, workers=1)
        found[kind] = folder / "p"
    return found


def run(
    kind: str,
    layout: dict[str, Any],
    ranks: int,
    prepared: dict[str, Path],
    folder: Path,
    stop_at: int | None = None,
) -> RunConfig:
    """Begin or go on with a run of 4 steps on so many ranks; its config."""
    own = open_data(prepared[kind])
    vocabulary = -(-own.tokenizer.vocab_size // 8) * 8
    keys = [*RUN, *KINDS[kind], f"model.vocab_size={vocabulary}", *(f"parallel.{k}={v}" for k, v in layout.items())]
    c = run_config.updated(run_config.load(None, keys), data={"source": str(own.path)})
    begin(c, own, folder, ranks, machine=MACHINE, resume=True, allow_drift=True)
    on(ranks, trained, folder, own.path, stop_at, deadline=180)
    return run_config.load(folder / "config.toml")


def bytes_agree(c: RunConfig, ranks: int, folder: Path) -> None:
    """What the first rank of each stage issued in step 2 is what was foretold of it."""
    files = sorted((folder / "collectives").iterdir())
    assert len(files) == c.parallel.pp
    for path in files:
        recorded = [(r.kind, r.group, r.count, r.bytes) for r in record.read(path)]
        place = int(path.stem[-5:]) // (ranks // c.parallel.pp)
        agree(collectives(c.model, c.train, c.parallel, ranks, pp_place=place), recorded)


FAST: list[tuple[str, dict[str, Any], int]] = [("answers", {"pp": 2}, 2)]
CASES: list[tuple[str, dict[str, Any], int]] = [
    *FAST,
    *((kind, {"pp": 2}, 2) for kind in ("bert", "t5", "marian", "prefix")),
    *((kind, {"pp": 2, "tp": 2}, 4) for kind in KINDS),
    *((kind, {"dp_shard": 2, "tp": 2}, 4) for kind in KINDS),
    *((kind, {"pp": 2, "dp_shard": 2}, 4) for kind in ("bert", "t5", "marian")),
    ("bert", {"cp": 2, "context_exchange": "ring"}, 2),
    ("answers", {"cp": 2}, 2),
    ("answers", {"pp": 2, "cp": 2, "context_exchange": "gather"}, 4),
]


@pytest.mark.parametrize(
    ("kind", "layout", "ranks"),
    [case if case in FAST else pytest.param(*case, marks=pytest.mark.slow) for case in CASES],
    ids=str,
)
def test_a_run_learns_as_one_process_and_sends_what_was_foretold(
    kind: str, layout: dict[str, Any], ranks: int, prepared: dict[str, Path], tmp_path: Path
) -> None:
    run(kind, {}, 1, prepared, tmp_path / "one")
    c = run(kind, layout, ranks, prepared, tmp_path / "several")
    expected = losses(tmp_path / "one")  # of steps, and of the validation behind them
    assert expected[3] < expected[0] - 0.03
    assert losses(tmp_path / "several") == pytest.approx(expected, rel=1e-5)
    bytes_agree(c, ranks, tmp_path / "several")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_a_run_goes_on_in_another_layout(kind: str, prepared: dict[str, Path], tmp_path: Path) -> None:
    """What stages have in common is saved once, and found again by all of them."""
    run(kind, {}, 1, prepared, tmp_path / "one")
    run(kind, {"pp": 2}, 2, prepared, tmp_path / "several", stop_at=1)
    run(kind, {"pp": 1}, 1, prepared, tmp_path / "several", stop_at=2)
    run(kind, {"pp": 2}, 2, prepared, tmp_path / "several")
    assert losses(tmp_path / "several") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
