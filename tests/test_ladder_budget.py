"""A budget sized by a ladder's own law: against the law written out, on a real ladder's records and on made ones."""

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

from foretell import config as run_config
from foretell import ladder, plan
from foretell.config import RunConfig
from foretell.errors import ConfigError
from foretell.plan import flops, law, rungs, size

ROOT = Path(__file__).parent.parent
RECORDS = ROOT / "docs" / "records" / "ladder-code-small"
STORED = json.loads((Path(__file__).parent / "data" / "ladder-1.json").read_text(encoding="utf-8"))
MACHINE = {"memory_bytes": 16e9, "flops_per_second": {"float32": {"peak": 1e11}}, "process_bytes": 3.4e8}
MACHINE |= {"memory_bytes_per_second": {"copy": 1e10, "read": 1e10}, "op_seconds": 6e-6}
CORPUS = {"tokens": 165_000_000, "vocab_size": 1024, "bytes_per_token": 2.37, "xz_bits_per_byte": 1.5, "bytes": 4e8}


def folder_of(path: Path, count: int) -> Path:
    """A ladder's folder with the stored design, of so many rungs, and without its table."""
    path.mkdir(parents=True)
    (path / "ladder.json").write_text(json.dumps({**STORED, "rungs": STORED["rungs"][:1] * count}))
    return path


@pytest.fixture
def real(tmp_path: Path) -> Path:
    """The ladder on source code of docs/ladder.md."""
    folder = folder_of(tmp_path / "code", 15)
    shutil.copyfile(RECORDS / "rungs.csv", folder / "rungs.csv")
    return folder


def made(path: Path, e: float, a: float, alpha: float, b: float, beta: float, **repeated: Any) -> Path:
    """A ladder whose losses are exactly those of a law; with `repeats`, some rungs read their text several times."""
    rows = []
    for n in (2e4, 4e4, 8e4, 16e4):
        for d in (4e5, 1.2e6, 3.6e6):
            for epochs in repeated.get("epochs", (1,)):
                fresh = law.worth(d, d / epochs, repeated.get("constant"))
                nats = e + a / n**alpha + b / fresh**beta
                row = {"rung": f"{n:g}-{d:g}-{epochs}", "parameters": n, "tokens": d, "loss": nats}
                rows.append(row | {"unique_tokens": d / epochs, "seed": 0, "bits_per_byte": nats * 0.6})
    folder = folder_of(path, len(rows))
    with (folder / "rungs.csv").open("w", newline="") as f:
        writer = csv.DictWriter(f, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return folder


def sized(folder: Path | None, budget: str = "2e14", corpus: dict[str, Any] = CORPUS, *keys: str) -> RunConfig:
    named = [f"train.ladder={folder}"] if folder else []
    c = plan.with_recipe(run_config.load(None, [f"train.budget={budget}", *named, *keys]), STORED["fingerprint"])
    return plan.size_for_budget(plan.parse_budget(budget), machine=MACHINE, corpus=corpus, probe=None, config=c)


def best(budget: float, loss: Any, corpus: dict[str, Any] = CORPUS) -> tuple[int, int]:
    """(width, layers) of the lowest loss, from the formula alone, in the ladder's shape of 32 wide a layer."""
    found = {}
    for width in size.WIDTHS:
        layers = max(2, round(width / 32))
        if layers in size.LAYERS:
            model = run_config.ModelConfig(hidden_size=width, num_hidden_layers=layers).resolved(1024, 256)
            tokens = budget / flops.flops_per_token(model, 256)["causal"]
            found[loss(flops.parameters(model)["total"], tokens, min(tokens, corpus["tokens"]))] = (width, layers)
    return found[min(found)]


def test_the_laws_own_optimum_is_taken(tmp_path: Path) -> None:
    laws = {
        "size counts": (1.8, 900.0, 0.55, 60.0, 0.35),
        "text counts": (1.8, 20.0, 0.35, 6000.0, 0.55),
    }
    chosen = {}
    for name, (e, a, alpha, b, beta) in laws.items():
        c = sized(made(tmp_path / name, e, a, alpha, b, beta))
        chosen[name] = c.model.hidden_size
        expected = best(2e14, lambda n, d, u, e=e, a=a, x=alpha, b=b, y=beta: e + a / n**x + b / d**y)
        assert (c.model.hidden_size, c.model.num_hidden_layers) == expected
        tokens = c.train.needed("steps") * c.train.needed("global_batch_tokens")
        whole = c.model.resolved(1024, 256)
        assert flops.flops_per_token(whole, 256)["causal"] * tokens == pytest.approx(2e14, rel=0.02)
        rule = size.batch_tokens(tokens, 256)
        assert 0.59 < c.train.needed("global_batch_tokens") / rule < 1.7
    assert chosen["size counts"] > chosen["text counts"]


@pytest.mark.parametrize("constant", [None, 4.0])
def test_repeated_text_counts_at_its_worth(tmp_path: Path, constant: float | None) -> None:
    """A tenth of the tokens to be had: then a larger model is worth more, by Muennighoff's formula written out."""
    few = {**CORPUS, "tokens": 2_000_000}
    repeated = {"epochs": (1, 4, 12), "constant": constant} if constant else {}
    folder = made(tmp_path / "ladder", 1.8, 120.0, 0.42, 400.0, 0.42, **repeated)
    worth = constant or 15.39  # of the paper, where no rung says

    def loss(n: float, d: float, u: float) -> float:
        fresh = u + u * worth * (1 - math.exp(-(d / u - 1) / worth))
        return 1.8 + 120 / n**0.42 + 400 / fresh**0.42

    scarce, plenty = sized(folder, "2e14", few), sized(folder, "2e14")
    assert scarce.model.hidden_size == best(2e14, loss, few)[0]
    assert scarce.model.hidden_size > plenty.model.hidden_size  # type: ignore[operator]


def test_a_real_ladder_decides_and_foretells(real: Path) -> None:
    fit = json.loads((RECORDS / "w64-l2-13803264-s0.forecast.json").read_text())["fit"]
    c = sized(real, "1.6e13")
    expected = best(1.6e13, lambda n, d, u: fit["E"] + fit["A"] / n ** fit["alpha"] + fit["B"] / d ** fit["beta"])
    assert (c.model.hidden_size, c.model.num_hidden_layers) == expected
    # The forecast of a target is what `foretell ladder fit` says from the same table.
    keys = ["model.hidden_size=64", "model.num_hidden_layers=2", "train.tokens=13803264", f"train.ladder={real}"]
    keys.append("train.global_batch_tokens=6912")
    found = plan.forecast(
        run_config.load(None, keys), machine=MACHINE, corpus=CORPUS, fingerprint=STORED["fingerprint"]
    )
    (said,) = ladder.fit_table(RECORDS / "rungs.csv", [(164_224, 13_803_264, 13_803_264)])["forecasts"]
    assert found["loss"] == pytest.approx({k: said[k] for k in ("value", "low", "high")})
    assert found["bits_per_byte"]["high"] / found["loss"]["high"] == pytest.approx(
        2.840108586770224 / 4.656610051349618
    )
    assert found["loss_from"] == "ladder"
    assert "loss_curve" not in found


def test_the_ladders_recipe_is_taken_and_another_refused(real: Path) -> None:
    c = plan.with_recipe(run_config.load(None, [f"train.ladder={real}"]), STORED["fingerprint"])
    own = STORED["base"]["train"]
    assert {k: getattr(c.train, k) for k in ("decay_fraction", "optimizer", "dropout", "context")} == {
        k: own[k] for k in ("decay_fraction", "optimizer", "dropout", "context")
    }
    assert (c.train.steps, c.train.global_batch_tokens, c.train.warmup_steps, c.train.lr) == (None, None, None, None)
    assert c.evaluate.max_tokens == 422_000
    with pytest.raises(ConfigError, match=r"train.decay_fraction: 0.2 there, 0.5 now"):
        plan.with_recipe(run_config.load(None, [f"train.ladder={real}", "train.decay_fraction=0.5"]), None)
    with pytest.raises(ConfigError, match="trained on other data"):
        plan.with_recipe(run_config.load(None, [f"train.ladder={real}"]), "another")


def test_what_is_no_finished_ladder_is_said_so(real: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no ladder\.json"):
        rungs.read(str(tmp_path / "nothing"))
    lines = (real / "rungs.csv").read_text().splitlines(keepends=True)
    (real / "rungs.csv").write_text("".join(lines[:5]))
    with pytest.raises(ConfigError, match=r"has finished 4 of its 15 rungs.*--name code"):
        rungs.read(str(real))
    (real / "rungs.csv").write_text("rung\nx\n")
    with pytest.raises(ConfigError, match="is damaged"):
        rungs.read(str(real))
    (real / "ladder.json").write_text(json.dumps({**STORED, "format_version": 2}))
    with pytest.raises(ConfigError, match="format_version 2"):
        rungs.read(str(real))
