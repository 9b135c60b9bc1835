"""The report: whole, safe, bilingual and small, from run folders that are complete, still going, damaged or hostile."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import random
import re
import string
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretell import report
from foretell.errors import DataError
from foretell.report import curve, numbers, run, wordmap, words

PACKAGE = Path(report.__file__).parent


def make_run(folder: Path, *, steps: int = 1200, seed: int = 0, upto: int | None = None, miss: bool = False) -> Path:
    """A made-up but plausible run of a small model on source code. `upto`: the run died at that step."""
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    batch, ratio, speed = 4096, 1 / (math.log(2) * 3.42), 21_400 * (0.8 if miss else 1.0)
    seconds, bits = steps * batch / 22_000, 1.62 + 0.04 * seed

    def law(step: float) -> float:
        return bits / ratio - 0.05 + 26 / (step + 8) ** 0.72

    loss_curve = [
        {
            "step": s,
            "tokens": s * batch,
            "value": law(s) * ratio,
            "low": law(s) * ratio * 0.955,
            "high": law(s) * ratio * 1.045,
        }
        for s in sorted({max(1, round(steps ** (i / 40))) for i in range(41)})
    ]
    low_high = lambda v, r: {"value": v, "low": v * (1 - r), "high": v * (1 + r)}  # noqa: E731
    plan = {
        "created": "2026-03-02T10:14:07Z",
        "parameters": {"total": 6_821_120, "non_embedding": 4_723_968, "embedding": 2_097_152},
        "flops_per_token": 31_400_000.0,
        "flops_total": 31_400_000.0 * steps * batch,
        "tokens": steps * batch,
        "steps": steps,
        "step_seconds": low_high(batch / 22_000, 0.08),
        "seconds": low_high(seconds, 0.08),
        "tokens_per_second": low_high(22_000, 0.08),
        "mfu": low_high(0.61, 0.08),
        "memory_bytes": {"states": 109e6, "activations": 420e6, "logits": 67e6, "peak": low_high(1.12e9, 0.15)},
        "loss": low_high(law(steps), 0.045),
        "bits_per_byte": low_high(law(steps) * ratio, 0.045),
        "loss_curve": loss_curve,
        "fits": True,
    }
    lines, last = [], upto or steps
    clock, loss = 0.0, 0.0
    for s in range(1, last + 1):
        clock += batch / (speed * rng.uniform(0.95, 1.03))
        loss = law(s) * (1 + rng.gauss(0, 0.018)) + (0.9 if s == 400 else 0)
        warm, cool = min(1, s / 24), min(1.0, 2 * (1 - s / steps))
        event = {
            "event": "step",
            "step": s,
            "loss": loss,
            "lr": 0.02 * warm * cool,
            "tokens": s * batch,
            "seconds": clock,
        }
        event |= {"grad_norm": 0.3 + 5 / s + abs(rng.gauss(0, 0.05)) + (2.6 if s == 400 else 0)}
        event |= {"tokens_per_second": speed * rng.uniform(0.94, 1.03), "mfu": 0.6 * rng.uniform(0.95, 1.03)}
        lines.append(event)
        if s % (steps // 10) == 0:
            valid = law(s) * 1.006
            lines.append({"event": "eval", "step": s, "loss": valid, "bits_per_byte": valid * ratio, "tokens": 65_536})
    text = "".join(json.dumps(e) + "\n" for e in lines)
    (folder / "log.jsonl").write_text(text if upto is None else text[:-30], encoding="utf-8")
    (folder / "config.toml").write_text(CONFIG.format(steps=steps, seed=seed), encoding="utf-8")
    _put(folder, "plan", plan)
    _put(folder, "machine", MACHINE)
    _put(folder, "data", DATA)
    if upto is None:
        final = law(steps) * 1.006
        measured = {"seconds": clock + 3, "step_seconds": clock / steps, "tokens_per_second": steps * batch / clock}
        measured |= {"mfu": 0.594, "memory_bytes": {"peak": 1.07e9}, "parameters": plan["parameters"], "steps": steps}
        measured |= {"tokens": steps * batch, "flops_total": plan["flops_total"], "loss": final, "train_loss": loss}
        measured |= {"bits_per_byte": final * ratio, "flops_per_token": plan["flops_per_token"]}
        _put(folder, "measured", measured)
        _put(folder, "eval", EVAL)
        _put(folder, "samples", SAMPLES)
        _put(folder, "map", MAP)
    return folder


def _put(folder: Path, name: str, content: object) -> None:
    (folder / f"{name}.json").write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


CONFIG = """format_version = 1

[model]
hidden_size = 256
num_hidden_layers = 6
num_attention_heads = 4
num_key_value_heads = 2
head_dim = 64
intermediate_size = 704
vocab_size = 8192
max_position_embeddings = 256
rope_theta = 10000.0
tie_word_embeddings = true

[train]
steps = {steps}
global_batch_tokens = 4096
context = 256
optimizer = "muon"
seed = {seed}
"""
MACHINE = {
    "processor": "Example Processor 8 @ 2.6 GHz",
    "threads": 2,
    "memory_bytes": 8_250_000_000,
    "python": "3.11.9",
    "torch": "2.13.0",
    "created": "2026-03-01",
    "flops_per_second": {"float32": 1.31e11, "bfloat16": 7.94e11},
    "memory_bytes_per_second": 2.1e10,
}
DATA = {
    "funnel": {
        "files": 1184,
        "documents_in": 1184,
        "documents_out": 1102,
        "quarantined": 3,
        "quarantine": [
            {"source": f"lib/data_{i}.bin", "offset": 17 * i, "reason": "not UTF-8 at byte 17"} for i in range(3)
        ],
        "dropped": {"duplicate": 61, "empty": 18},
        "duplicates": 61,
        "bytes_in": 20_120_331,
        "bytes_out": 19_440_112,
        "tokens": 5_684_242,
    },
    "splits": {
        "train": {"tokens": 5_113_001, "documents": 990, "bytes": 17_486_463},
        "valid": {"tokens": 284_120, "documents": 56, "bytes": 971_690},
        "test": {"tokens": 287_121, "documents": 56, "bytes": 981_959},
    },
    "tokenizer": {"kind": "bpe", "vocab_size": 8192, "digest": "ab" * 32},
    "bytes_per_token": 3.42,
}
EVAL = {
    "loss": 3.911,
    "perplexity": 49.95,
    "word_perplexity": 1830.2,
    "bits_per_byte": 1.650,
    "accuracy": 0.371,
    "tokens": 287_121,
    "bytes": 981_959,
    "documents": 56,
    "ci": {
        "loss": [3.84, 3.98],
        "perplexity": [46.6, 53.6],
        "bits_per_byte": [1.618, 1.683],
        "accuracy": [0.362, 0.38],
    },
    "tasks": {
        "qa": {
            "f1": 46.8,
            "ci": {"f1": [41.0, 52.5]},
            "how": {"f1": "rules:squad"},
            "rules": {"nearest sentence": {"f1": 16.6}},
            "items": 200,
            "items_given": 296,
            "samples": [{"source": "谁？", "answer": "<b>猫</b>", "wanted": ["猫"], "f1": 100.0}],
        }
    },
}
SAMPLES = {
    "samples": [
        {
            "prompt": "def read_lines(path):\n",
            "completion": '    """The lines of a file."""\n    with open(path) as f:\n        return list(f)\n',
            "tokens_per_second": 412.0,
        },
        {
            "prompt": "class Queue:\n    def __init__(self, maxsize=0):\n",
            "completion": "        self.maxsize = maxsize\n        self._init(maxsize)\n",
            "tokens_per_second": 405.1,
        },
        {
            "prompt": "The module provides",
            "completion": " a simple interface to the parser, and",
            "tokens_per_second": 398.0,
        },
        {"prompt": "从前有一座山,", "completion": "山里有一座庙,庙里有个老和尚。", "tokens_per_second": 401.0},
    ],
    "python": {"parses": 37, "of": 50},
}

MAP_WORDS = ["the", "of", "宝玉", "黛玉", "a&b", " the", "\n", "x"]
MAP = {
    "format_version": 1,
    "name": "vectors",
    "kind": "glove",
    "of": 4321,
    "dim": 100,
    "words": MAP_WORDS,
    "places": {k: [round((i * f) % 1, 4) for i in range(16)] for k, f in (("tsne", 0.37), ("pca", 0.61))},
    "group": [n % 8 for n in range(8)],
    "near": [[(n + 1) % 8, (n + 2) % 8] for n in range(8)],
}

VOID = {"meta", "br", "input", "img", "hr", "link", "line", "rect", "circle", "path", "polyline", "polygon", "use"}


class Page(HTMLParser):
    """The tags of a page, checked for being closed in order, with what might load or run something."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.handlers: list[str] = []
        self.seen: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "action", "data", "poster", "srcset", "xlink:href"}:
                self.links.append(value or "")
            if name.startswith("on") or name == "style":
                self.handlers.append(name)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def checked(path: Path) -> tuple[str, Page]:
    """The page at `path`, whatever it shows: well-formed, unique ids, nothing loaded, only our own style and script."""
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert [n for n in page.links if not n.startswith("#")] == []
    assert page.handlers == []
    assert page.seen.count("script") == page.seen.count("style") == 1
    for tag in ("style", "script"):
        content = text.split(f"<{tag}>", 1)[1].split(f"</{tag}>", 1)[0]
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in text
    assert not re.search(r"\b(nan|inf|None|NaN)\b(?![^<]*</(?:pre|script)>)", re.sub(r"<script>.*?</script>", "", text))
    return text, page


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("runs") / "first")


def test_a_finished_run(whole: Path, tmp_path: Path) -> None:
    path = report.write([whole], tmp_path / "r.html")
    text, page = checked(path)
    sections = {i.rpartition("-")[0] for i in page.ids if i.endswith("-0")}
    wanted = {"curves", "against", "evaluation", "samples", "map", "funnel", "model", "machine", "repeat"}
    assert wanted <= sections
    assert len(text.encode()) < 400_000
    assert "{{" not in text, "a place of the skeleton was not filled"
    for shown in ("6.82 M", "37", "Example Processor 8", "从前有一座山", "duplicate"):
        assert shown in text or shown in " ".join(page.words), shown


def test_the_page_says_what_was_forecast_and_measured(whole: Path) -> None:
    plan = json.loads((whole / "plan.json").read_text())["bits_per_byte"]
    measured = json.loads((whole / "measured.json").read_text())["bits_per_byte"]
    line = report.closing(whole)
    assert line.startswith("Forecast ")
    numbers_said = re.findall(r"\d\.\d\d\b", line)
    assert f"{plan['value']:.2f}" in numbers_said
    assert f"{measured:.2f}" in numbers_said
    assert "\n" not in line


def test_a_run_that_died_says_how_far_it_came(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "dead", upto=300)
    text, _ = checked(report.write([folder]))
    assert "299" in text  # the line of step 300 was cut short
    assert "1,200" in text
    assert "measured.json" in text
    assert report.closing(folder).startswith("Forecast ")


def test_a_miss_is_called_a_miss(tmp_path: Path, whole: Path) -> None:
    missed, _ = checked(report.write([make_run(tmp_path / "slow", miss=True)]))
    held, _ = checked(report.write([whole], tmp_path / "held.html"))
    assert missed.count('class="badge missed"') > held.count('class="badge missed"')
    assert held.count('class="badge held"') > missed.count('class="badge held"')


def test_several_runs_stand_beside_each_other(tmp_path: Path) -> None:
    folders = [make_run(tmp_path / f"run-{i}", seed=i) for i in range(3)]
    text, page = checked(report.write(folders))
    assert (tmp_path / "report.html").exists()
    assert page.seen.count("details") >= 3
    assert all(f"run-{i}" in text for i in range(3))


def test_too_many_or_no_runs(tmp_path: Path) -> None:
    for n in (0, 9):
        with pytest.raises(DataError, match=f"not {n}"):
            report.write([tmp_path] * n)
    with pytest.raises(DataError, match="not a run folder"):
        report.write([tmp_path])
    with pytest.raises(DataError, match="no such run folder"):
        report.write([tmp_path / "nothing"])


def test_nothing_of_a_run_becomes_markup(tmp_path: Path) -> None:
    """A hostile run folder: every text in it tries to leave its place. `checked` counts the scripts."""
    attack = (
        "</script></style></pre>\"'><script>alert(1)</script><img src=http://x onerror=alert(1)>{{style}}\x00\ud800"
    )
    folder = make_run(tmp_path / "run <b>&amp;'")
    samples = {"samples": [{"prompt": attack, "completion": attack}], "python": {"parses": attack, "of": 1}}
    _put_escaped(folder, "samples", samples)
    _put_escaped(folder, "machine", {attack: attack, "processor": attack})
    data = {"funnel": {**DATA["funnel"], "dropped": {attack: 3}, "quarantine": [{"source": attack, "reason": attack}]}}
    _put_escaped(folder, "data", data)
    _put_escaped(folder, "map", {**MAP, "name": attack, "kind": attack, "words": [attack] * 8})
    (folder / "config.toml").write_text("x = 'y' # " + attack.replace("\ud800", ""), encoding="utf-8")
    with (folder / "log.jsonl").open("a") as f:
        f.write(json.dumps({"event": "step", "step": 1201, "skipped": attack, "loss": None}) + "\n")
    text, page = checked(report.write([folder]))
    assert "alert(1)" in "".join(page.words), "the text itself is shown"
    assert "<script>alert" not in text
    assert "img" not in page.seen


def _put_escaped(folder: Path, name: str, content: object) -> None:
    (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")


STRANGE = ["", "{", "[]", "null", "7", '"text"', '{"seconds": 1e999}', "[" * 100_000, "\ufeff{}", '{"plan": NaN}']


@pytest.mark.parametrize("name", run.JSON_FILES)
def test_damaged_files_become_notes(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run", steps=40)
    for content in STRANGE:
        (folder / name).write_text(content, encoding="utf-8")
        text, _ = checked(report.write([folder]))
        try:
            json.loads(content.removeprefix("\ufeff"))
        except (ValueError, RecursionError):
            assert name in text


@pytest.mark.parametrize("name", ["log.jsonl", "config.toml"])
def test_any_bytes_may_stand_in_the_others(tmp_path: Path, name: str) -> None:
    folder = make_run(tmp_path / "run", steps=40)
    for content in (
        b"",
        b"\xff\xfe\x00",
        b"[[[[",
        b'{"event": "step", "step": -1}\n{"event": "step", "step": "x"}',
        b"7\n",
    ):
        (folder / name).write_bytes(content)
        checked(report.write([folder]))


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["value", "low", "high", "seconds", "bits_per_byte", "funnel", "x"]), inner)
    ),
    max_leaves=12,
)
PLACES = [
    "plan.seconds",
    "plan.loss_curve",
    "plan.memory_bytes",
    "plan.bits_per_byte",
    "measured.bits_per_byte",
    "measured.memory_bytes",
    "eval.ci",
    "eval.loss",
    "eval.tasks",
    "eval.tasks.qa",
    *(f"eval.tasks.qa.{key}" for key in ("f1", "ci", "how", "rules", "samples", "items", "items_given")),
    "data.funnel",
    "data.splits",
    "samples.samples",
    "samples.python",
    "machine.flops_per_second",
    "plan.created",
    "plan.parameters",
    *(f"map.{key}" for key in MAP),
]


@settings(max_examples=40, deadline=None)
@given(place=st.sampled_from(PLACES), value=JSON)
def test_any_value_may_stand_anywhere(tmp_path_factory: pytest.TempPathFactory, place: str, value: object) -> None:
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    make_run(folder, steps=20)
    name, *path = place.split(".")
    content = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    within = content
    for key in path[:-1]:
        within = within[key]
    within[path[-1]] = value
    _put_escaped(folder, name, content)
    checked(report.write([folder]))


def map_on(text: str) -> dict:
    """What the one map of a page hands to its script."""
    return json.loads(html.unescape(text.split('data-map="')[1].split('"')[0]))


def test_a_run_that_began_from_vectors_shows_their_map(whole: Path, tmp_path: Path) -> None:
    text, page = checked(report.write([whole], tmp_path / "r.html"))
    assert map_on(text) == {k: MAP[k] for k in ("words", "places", "group", "near")}
    assert "4,321" in text
    assert page.words.count("宝玉") == 1  # in the picture that needs no script
    other = make_run(tmp_path / "other", steps=40)
    (other / "map.json").unlink()
    assert 'data-map="' not in checked(report.write([other], tmp_path / "s.html"))[0]
    several, _ = checked(report.write([whole, other, whole], tmp_path / "t.html"))
    assert several.count('data-map="') == 2


SPOILT = {
    "a place outside": {"places": {**MAP["places"], "pca": [2.0] * 16}},
    "a place too few": {"places": {**MAP["places"], "tsne": [0.5] * 15}},
    "a projection too few": {"places": {"tsne": MAP["places"]["tsne"]}},
    "a group that has no colour": {"group": [8] * 8},
    "a neighbour that is no word": {"near": [[8]] * 8},
    "a neighbour by truth": {"near": [[True]] * 8},
    "a word that is a number": {"words": [1, *MAP_WORDS[1:]]},
    "more words than places": {"words": [*MAP_WORDS, "y"]},
    "one word": {"words": ["x"], "places": {"tsne": [0, 0], "pca": [0, 0]}, "group": [0], "near": [[]]},
}


@pytest.mark.parametrize("change", SPOILT.values(), ids=SPOILT)
def test_a_map_that_is_none_is_not_drawn(tmp_path: Path, change: dict) -> None:
    assert wordmap.taken(MAP) is not None
    assert wordmap.taken({**MAP, **change}) is None
    (tmp_path / "meta.json").write_text("{}")
    _put(tmp_path, "map", {**MAP, **change})
    with pytest.raises(DataError, match=r"cannot be read.*foretell vectors map"):
        report.write([tmp_path])


def test_the_page_of_vectors(whole: Path, tmp_path: Path) -> None:
    folder = tmp_path / "made"
    folder.mkdir()
    _put(folder, "meta", {"kind": "glove", "units": "words", "dim": 100, "window": 5, "training_seconds": 61.5})
    with pytest.raises(DataError, match="is not there"):
        report.write([folder])
    _put(folder, "map", MAP)
    text, page = checked(report.write([folder]))
    assert {"map-0", "vectors-0"} <= set(page.ids)
    assert map_on(text)["words"] == MAP_WORDS
    assert "GloVe" in text
    with pytest.raises(DataError, match="folder of vectors, which has a page of its own"):
        report.write([whole, folder])
    _put(folder, "map", {**MAP, "format_version": 2})
    with pytest.raises(DataError, match="format_version 2 is newer"):
        report.write([folder])


def test_a_resumed_log_counts_the_later_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=20)
    with (folder / "log.jsonl").open("a") as f:
        f.write(json.dumps({"event": "step", "step": 20, "loss": 0.125}) + "\n")
    assert run.read(folder).steps[-1]["loss"] == 0.125
    assert len(run.read(folder).steps) == 20


def test_a_long_run_stays_a_small_page(tmp_path: Path) -> None:
    path = report.write([make_run(tmp_path / "long", steps=20_000)])
    assert path.stat().st_size < 600_000


def test_words_come_in_both_languages() -> None:
    chinese = re.compile("[\u4e00-\u9fff]")
    for key, pair in words.words().items():
        places = [sorted(f[1] for f in string.Formatter().parse(t) if f[1]) for t in pair]
        assert places[0] == places[1], key
        assert pair.en, key
        if pair.en != pair.zh:
            assert chinese.search(pair.zh), key
            assert not chinese.search(pair.en) or "switch" in key, key


def test_every_sentence_the_code_names_exists_and_is_used() -> None:
    source = "".join(p.read_text(encoding="utf-8") for p in PACKAGE.glob("*.py")) + (PACKAGE / "script.js").read_text()
    named = set(re.findall(r"""(?:say|text|stress)\(\s*["']([a-z_.]+[a-z_])["']""", source))
    assert named <= set(words.words())
    built = set(re.findall(r"""["']([a-z]+\.)["'{]""", source))  # say("chart." + name)
    built |= {"field.", *(f"{kind}." for kind in re.findall(r"""label\([^()]+, "(\w+)"\)""", source))}
    unused = {k for k in words.words() if k not in source and k.partition(".")[0] + "." not in built}
    assert unused == set()


points = st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=3000).map(
    lambda ys: [(float(i), y) for i, y in enumerate(ys)]
)


@given(points=points, most=st.integers(4, 400))
def test_thinning_keeps_ends_and_extremes(points: list[tuple[float, float]], most: int) -> None:
    thinned = curve.thin(points, most)
    assert len(thinned) <= max(most, 4)
    assert thinned[0] == points[0]
    assert thinned[-1] == points[-1]
    assert thinned == sorted(thinned)
    assert max(y for _, y in thinned) == max(y for _, y in points)
    assert min(y for _, y in thinned) == min(y for _, y in points)


@given(st.lists(st.floats(1e-9, 1e12), min_size=1, max_size=20), st.booleans())
def test_scales_hold_their_values_and_ticks(values: list[float], log: bool) -> None:
    s = curve.scale(values, log=log)
    assert all(-1e-9 <= s.at(v) <= 1 + 1e-9 for v in values)
    ticks = curve.ticks(s)
    assert ticks == sorted(set(ticks))
    assert all(-1e-6 <= s.at(t) <= 1 + 1e-6 for t in ticks)
    assert len(ticks) <= 12


def test_smoothing_keeps_a_line_a_line() -> None:
    line = [(float(i), 2.0 * i) for i in range(500)]
    inner = curve.smooth(line)[20:-40]
    assert all(y == pytest.approx(2 * x) for x, y in inner)


@pytest.mark.parametrize(
    ("seconds", "en", "zh"),
    [
        (0.0042, "4.20 ms", "4.20 毫秒"),
        (59.94, "59.9 s", "59.9 秒"),
        (59.96, "1m 00s", "1分00秒"),
        (242, "4m 02s", "4分02秒"),
        (3599.6, "1h 00m", "1小时00分"),
        (86_400, "1d 00h", "1天00小时"),
    ],
)
def test_durations(seconds: float, en: str, zh: str) -> None:
    assert numbers.duration(seconds) == (en, zh)


@given(st.floats(-1e15, 1e15).filter(lambda x: x == 0 or abs(x) > 1e-12))
def test_numbers_keep_three_digits(x: float) -> None:
    shown = float(numbers.significant(x).replace(",", ""))
    assert shown == pytest.approx(x, rel=5.1e-3)
    assert numbers.size(abs(x)).split()[-1] in {"bytes", "kB", "MB", "GB", "TB", "PB"}


def test_a_report_needs_a_place_it_may_write(whole: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        report.write([whole], tmp_path / "file" / "r.html")
