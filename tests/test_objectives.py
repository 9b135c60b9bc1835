"""What a row asks for: pure functions of (seed, step, row), with the shares that the papers give."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import CHINESE, ENGLISH

from foretell import config as run_config
from foretell import tokenizer
from foretell.config import DataConfig, TokenizerConfig
from foretell.data import Data, objectives, open_data, prepare
from foretell.data.objectives import UNSCORED, Rows
from foretell.errors import ConfigError, DataError
from foretell.train import objectives as learning

TEXT = (Path(__file__).parent / "data" / "text" / "shakespeare.txt").read_text(encoding="utf-8")
KINDS = ["next_token", "masked", "span_corruption", "fill_in_the_middle", "prefix"]
WHERE: dict[str, Any] = {"seed": 7, "step": 3, "batch_size": 16, "context": 64}


def made(folder: Path, objective: str | None) -> Data:
    (folder / "a.txt").write_text(TEXT[:60_000] + CHINESE * 40, encoding="utf-8")
    for n in range(30):
        (folder / f"{n}.txt").write_text(f"{n} {ENGLISH * 2}", encoding="utf-8")
    words = TokenizerConfig.model_validate({"kind": "bytes", "objective": objective})
    prepare([str(folder)], folder.parent / f"p-{objective}", words, DataConfig(), workers=1)
    return open_data(folder.parent / f"p-{objective}")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Data]:
    found: dict[str, Data] = {}
    for kind in KINDS:
        folder = tmp_path_factory.mktemp(kind) / "text"
        folder.mkdir()
        found[kind] = made(folder, kind if kind in objectives.SPECIAL else None)
    return found


def flat(rows: Rows) -> list[np.ndarray]:
    return [a for a in rows if a is not None]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_know_its_batch(kind: str, data: dict[str, Data]) -> None:
    whole = objectives.rows(kind, data[kind], "train", **WHERE)
    some = objectives.rows(kind, data[kind], "train", **WHERE, rows=[9, 2])
    for a, b in zip(flat(whole), flat(some), strict=True):
        assert np.array_equal(a[[9, 2]], b)
    other = objectives.rows(kind, data[kind], "train", **{**WHERE, "step": 4})
    assert not np.array_equal(whole.inputs, other.inputs)


def test_next_token_is_the_loader_s(data: dict[str, Data]) -> None:
    from foretell.data import batch

    found = objectives.rows("next_token", data["next_token"], "train", **WHERE)
    for a, b in zip(flat(found), batch(data["next_token"], "train", **WHERE), strict=True):
        assert np.array_equal(a, b)


def test_masked_hides_as_bert_does(data: dict[str, Data]) -> None:
    own = data["masked"]
    mask = own.tokenizer.inner.token_to_id("[MASK]")
    plain = objectives.rows("next_token", own, "train", **{**WHERE, "batch_size": 400})
    rows = objectives.rows("masked", own, "train", **{**WHERE, "batch_size": 400})
    asked = rows.targets != UNSCORED
    assert (asked.sum(1) == round(0.15 * 64)).all()
    assert np.array_equal(rows.targets[asked], plain.targets[asked])
    assert np.array_equal(rows.inputs[~asked], plain.targets[~asked])
    assert (rows.targets != own.tokenizer.eot_id).all()
    hidden = (rows.inputs[asked] == mask).mean()
    same = (rows.inputs[asked] == rows.targets[asked]).mean()
    assert hidden == pytest.approx(0.8, abs=0.02)
    assert same == pytest.approx(0.1, abs=0.02)
    assert len(np.unique(np.nonzero(asked)[1])) == 64


def test_spans_put_together_are_the_text(data: dict[str, Data]) -> None:
    own = data["span_corruption"]
    plain = objectives.rows("next_token", own, "train", **WHERE).targets
    rows = objectives.rows("span_corruption", own, "train", **WHERE)
    sentinels, end = objectives.special_ids(own.tokenizer, "span_corruption"), own.tokenizer.eot_id
    noise, spans = objectives.span_counts(64)
    assert rows.source is not None
    assert rows.source_real is not None
    assert rows.source.shape[1] % 8 == rows.targets.shape[1] % 8 == 0
    for n in range(16):
        target = rows.targets[n][rows.targets[n] != UNSCORED].tolist()
        assert len(target) == noise + spans + 1
        assert rows.inputs[n][: len(target)].tolist() == [end, *target[:-1]]
        stretches: dict[int, list[int]] = {}
        for token in target[:-1]:
            if token in sentinels:
                last = stretches.setdefault(token, [])
            else:
                last.append(token)
        assert list(stretches) == sentinels[:spans]
        source = rows.source[n][rows.source_real[n]].tolist()
        assert source.pop() == end
        whole = [t for token in source for t in stretches.get(token, [token])]
        assert whole == plain[n].tolist()


def test_a_middle_goes_behind_what_stands_around_it(data: dict[str, Data]) -> None:
    own = data["fill_in_the_middle"]
    before, between, behind = objectives.special_ids(own.tokenizer, "fill_in_the_middle")
    plain = objectives.rows("next_token", own, "train", **{**WHERE, "batch_size": 300})
    rows = objectives.rows("fill_in_the_middle", own, "train", **{**WHERE, "batch_size": 300})
    kinds: Counter[str] = Counter()
    for n in range(300):
        line, text = [rows.inputs[n][0], *rows.targets[n]], [plain.inputs[n][0], *plain.targets[n]]
        assert np.array_equal(rows.inputs[n][1:], rows.targets[n][:-1])
        if own.tokenizer.eot_id in text[1:]:
            continue
        if before not in line:
            kinds["plain"] += 1
            assert line == text
            continue
        at = line.index(before)
        if between not in line:
            continue
        p, m, s = at, line.index(between), line.index(behind)
        kinds["psm" if p + 1 < s or line[p + 1] != behind else "spm"] += 1
        if line[p + 1] == behind:  # end first, then the beginning and the middle
            joined, tail = line[m + 1 :], line[s + 1 : m]
        else:
            joined, tail = line[p + 1 : s] + line[m + 1 :], line[s + 1 : m]
        head = text[at:]
        assert joined == head[: len(joined)]
        assert tail == head[len(head) - len(tail) :] or not tail
    assert min(kinds["plain"], kinds["psm"], kinds["spm"]) > 20


def test_what_stands_in_a_prefix_is_not_asked_for(data: dict[str, Data]) -> None:
    own = data["prefix"]
    plain = objectives.rows("next_token", own, "train", **WHERE)
    rows = objectives.rows("prefix", own, "train", **WHERE)
    assert rows.prefix is not None
    assert np.array_equal(rows.inputs, plain.inputs)
    for n, p in enumerate(rows.prefix.tolist()):
        # Target t is input t + 1: the first that is asked for stands behind what is seen.
        assert (rows.targets[n, : p - 1] == UNSCORED).all()
        assert np.array_equal(rows.targets[n, p - 1 :], plain.targets[n, p - 1 :])
    assert len(set(rows.prefix.tolist())) > 8


def pairs(folder: Path, lines: str, name: str = "a.tsv", **keys: str) -> Data:
    (folder / name).write_text(lines, encoding="utf-8")
    config = DataConfig.model_validate({"source_key": "1", "target_key": "2", **keys})
    prepare([str(folder / name)], folder / "p", TokenizerConfig(kind="bytes"), config, workers=1)
    return open_data(folder / "p")


def test_pairs_come_back_whole_each_once_an_epoch(tmp_path: Path) -> None:
    known = {(f"source {n} 狗{'x' * (n % 7)}", f"Ziel {n} 猫") for n in range(90)}
    own = pairs(tmp_path, "".join(f"{a}\t{b}\n" for a, b in sorted(known)))
    assert own.has_pairs
    seen: list[tuple[str, str]] = []
    for split in ("train", "valid", "test"):
        n = objectives.count(own, split, "seq2seq", 64)
        rows = objectives.rows("seq2seq", own, split, seed=1, step=0, batch_size=n, context=64)
        assert rows.source is not None
        assert rows.source_real is not None
        for i in range(n):
            target = rows.targets[i][rows.targets[i] != UNSCORED]
            source = rows.source[i][rows.source_real[i]]
            assert target[-1] == source[-1] == rows.inputs[i][0] == own.tokenizer.eot_id
            assert np.array_equal(rows.inputs[i][1 : len(target)], target[:-1])
            seen.append((own.tokenizer.decode(source.tolist()), own.tokenizer.decode(target.tolist())))
    assert len(seen) == len(set(seen)) == 90
    assert set(seen) == known


def test_pairs_of_a_batch_go_by_length_whatever_part_of_it_is_asked_for(tmp_path: Path) -> None:
    lines = [f"s{n} {'x' * (n * 7 % 23)}\tz{n} {'y' * (n * 5 % 19)}\n" for n in range(90)]
    own = pairs(tmp_path, "".join(lines))
    n = objectives.count(own, "train", "seq2seq", 64)
    where: dict[str, Any] = {"seed": 1, "batch_size": 32, "context": 64}
    seen = Counter[bytes]()
    for step in range(n):  # 32 epochs in n batches
        whole = objectives.rows("seq2seq", own, "train", step=step, **where)
        assert whole.source_real is not None
        lengths = whole.source_real.sum(1) + (whole.targets != UNSCORED).sum(1)
        assert (np.diff(lengths) >= 0).all()
        assert len(set(lengths)) > 5
        seen.update(row.tobytes() for row in whole.targets)
        some = objectives.rows("seq2seq", own, "train", step=step, rows=[9, 2], **where)
        for a, b in zip(flat(whole), flat(some), strict=True):
            assert np.array_equal(a[[9, 2]], b)
    assert set(seen.values()) == {32}
    part = whole.part(slice(0, 8)).trimmed(1)
    assert part.source is not None
    assert part.source.shape[1] == whole.source_real[:8].sum(1).max() < whole.source_real.shape[1]
    assert whole.part(slice(0, 8)).trimmed().inputs.shape[1] % objectives.MULTIPLE == 0


def test_one_source_stands_in_one_split(tmp_path: Path) -> None:
    lines = "".join(f"source {n}\ttarget {n} {k}\n" for n in range(60) for k in range(3))
    own = pairs(tmp_path, lines)
    of: dict[str, set[str]] = {}
    for split in ("train", "valid", "test"):
        n = objectives.count(own, split, "seq2seq", 64)
        rows = objectives.rows("seq2seq", own, split, seed=1, step=0, batch_size=n, context=64)
        assert rows.source is not None
        for row in rows.source.tolist():
            of.setdefault(own.tokenizer.decode(row), set()).add(split)
    assert len(of) == 60
    assert all(len(splits) == 1 for splits in of.values())


def test_pairs_are_read_from_json_lines_by_key(tmp_path: Path) -> None:
    lines = (
        "".join(f'{{"en": "good {n}", "zh": "好 {n}"}}\n' for n in range(60))
        + '{"en": "alone"}\n{"en": "", "zh": "x"}\n'
    )
    own = pairs(tmp_path, lines, "a.jsonl", source_key="en", target_key="zh")
    assert own.index["funnel"]["quarantined"] == 2
    assert sum(s["documents"] for s in own.index["splits"].values()) == 60


def test_what_a_tokenizer_lacks_is_said_with_the_way_out(data: dict[str, Data], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tokenizer\.objective=masked"):
        objectives.rows("masked", data["next_token"], "train", **WHERE)
    with pytest.raises(DataError, match=r"data\.source_key"):
        objectives.rows("seq2seq", data["next_token"], "train", **WHERE)
    assert objectives.with_special(data["masked"].tokenizer, "masked") == []
    assert tokenizer.load(data["masked"].path).kind == "bytes"


@pytest.mark.parametrize(
    ("keys", "word"),
    [
        (["model.model_type=bert"], "masked"),
        (["model.model_type=t5", "train.objective=masked"], "span_corruption or seq2seq"),
        (["train.objective=seq2seq"], "next_token or fill_in_the_middle or prefix"),
        (["train.label_smoothing=0.1", "parallel.tp=2"], r"label_smoothing \(0\.1\) cannot be had with parallel\.tp"),
        (["model.model_type=t5", "train.objective=span_corruption", "parallel.cp=2"], r"parallel\.cp \(2\)"),
        (["model.model_type=t5", "train.objective=span_corruption", "train.context=4096"], "2,000"),
    ],
)
def test_what_cannot_be_learned_is_refused(keys: list[str], word: str, data: dict[str, Data]) -> None:
    with pytest.raises(ConfigError, match=word):
        learning.check(run_config.load(None, keys), data["span_corruption"])
