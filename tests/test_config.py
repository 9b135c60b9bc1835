"""The config: what is written is what is read, what is wrong is named with its nearest key, nothing is ignored."""

import tomllib
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from foretell import config
from foretell.config import DataConfig, ModelConfig, RunConfig, Table
from foretell.errors import ConfigError

STORED = Path(__file__).parent / "data" / "config-1.toml"
TABLES = {n: type(f.default) for n, f in RunConfig.model_fields.items() if isinstance(f.default, Table)}
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


def values(field: FieldInfo) -> st.SearchStrategy[Any]:
    """Any value that a field takes, from its type and its bounds."""
    bounds = {name: getattr(m, name) for m in field.metadata for name in ("gt", "ge", "lt", "le") if hasattr(m, name)}
    low, high = bounds.get("gt", bounds.get("ge")), bounds.get("lt", bounds.get("le"))
    known: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        str: TEXT,
        list[str]: st.lists(TEXT, max_size=3),
        list[int]: st.lists(st.integers(-(2**62), 2**62), min_size=3, max_size=5),
        NoneType: st.none(),
    }

    def one(kind: Any) -> st.SearchStrategy[Any]:
        if get_origin(kind) is Literal:
            return st.sampled_from(get_args(kind))
        if get_origin(kind) is tuple:
            return st.lists(one(get_args(kind)[0]), max_size=3)
        if isinstance(kind, type) and issubclass(kind, Table):
            needed = {n for n, f in kind.model_fields.items() if f.is_required()}
            found = _fields(kind)
            own = {n: s for n, s in found.items() if n not in needed}
            return st.fixed_dictionaries({n: found[n] for n in needed}, optional=own)
        if kind is int:
            return st.integers(low if low is None or "ge" in bounds else low + 1, 2**62)
        if kind is float:
            edges = {"exclude_min": "gt" in bounds, "exclude_max": "lt" in bounds}
            return st.floats(low, 1e300 if high is None else high, **{k: v for k, v in edges.items() if v})
        return known[kind]

    kinds = [field.annotation] if get_origin(field.annotation) is Literal else get_args(field.annotation)
    return st.one_of([one(k) for k in kinds or [field.annotation]])


def tables() -> st.SearchStrategy[dict[str, dict[str, Any]]]:
    whole = {n: st.fixed_dictionaries({}, optional=_fields(t)) for n, t in TABLES.items()}
    return st.fixed_dictionaries({}, optional=whole)


def _fields(table: type[Table]) -> dict[str, st.SearchStrategy[Any]]:
    return {name: values(f) for name, f in table.model_fields.items()}


# A whole config is a large thing to draw; on a busy machine that alone would fail the test.
patient = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


@patient
@given(tables())
def test_what_is_written_is_read(raw: dict[str, Any]) -> None:
    c = config.validate(raw)
    text = config.dumps(c)
    assert config.validate(tomllib.loads(text)) == c
    assert config.dumps(config.validate(tomllib.loads(text))) == text


@patient
@given(tables())
def test_overrides_say_the_same_as_a_file(raw: dict[str, Any]) -> None:
    c = config.validate(raw)
    lines: list[str] = []
    for name, table in tomllib.loads(config.dumps(c)).items():
        if isinstance(table, dict):
            lines += [f"{name}.{k}={config._toml(v)}" for k, v in table.items()]
    assert config.load(None, lines) == c


def test_the_stored_example_is_read_whole() -> None:
    """A config of format 1 as it was written in 2026. It names every key there is, so that a renamed key shows here."""
    raw = tomllib.loads(STORED.read_text(encoding="utf-8"))
    c = config.load(STORED)
    assert c.model.intermediate_size == 704
    assert c.data.source == ["texts/a b.txt", "文集"]
    assert c.evaluate.stride == 128
    written = tomllib.loads(config.dumps(c))
    assert all(written[table].items() >= keys.items() for table, keys in raw.items() if isinstance(keys, dict))


@pytest.mark.parametrize("version", ["2", "99", "0", "-1", '"1"', "1.0", "true"])
def test_other_format_versions_are_refused_by_name(tmp_path: Path, version: str) -> None:
    path = tmp_path / "run.toml"
    path.write_text(f"format_version = {version}\n")
    with pytest.raises(ConfigError, match="format_version") as e:
        config.load(path)
    assert "run.toml" in str(e.value)
    assert ("newer" in str(e.value)) == (version in {"2", "99"})


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("train.stepz=10", "train.steps"),
        ("train.learning_rate=1", "train.embedding_lr"),
        ("model.hiden_size=64", "model.hidden_size"),
        ("trian.steps=10", "train"),
        ("data.sources=x", "data.source"),
        ("tokenizer.vocabsize=300", "tokenizer.vocab_size"),
    ],
)
def test_an_unknown_key_names_its_nearest(override: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as e:
        config.load(None, [override])
    assert f"unknown key `{override.partition('.')[0]}" in str(e.value)
    assert f"nearest: `{nearest}`" in str(e.value)


def test_every_wrong_key_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as e:
        config.load(None, ["train.steps=0", "train.dropout=1.5", "model.width=3"])
    lines = str(e.value).splitlines()
    assert len(lines) == 3
    assert any("`train.steps` = 0" in line for line in lines)
    assert any("`train.dropout` = 1.5" in line for line in lines)


@pytest.mark.parametrize(
    "bad", ["train.lr=nan", "train.lr=inf", "model.rope_theta=inf", "train.lr=-1", "train.steps=1.5"]
)
def test_numbers_that_are_none_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match=bad.partition("=")[0]):
        config.load(None, [bad])


@pytest.mark.parametrize("bad", ["train.steps", "steps=3", "a.b.c=1", "=3", ".steps=3", "train.=3", ""])
def test_what_is_no_override_is_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="is not an override"):
        config.load(None, [bad])


@pytest.mark.parametrize("name", ["2024", "1e3", "true", "2024-01-01", "a b", "文集", "nan", "x\ny = 3", "C:\\texts"])
def test_a_source_may_look_like_something_else(name: str) -> None:
    assert config.load(None, [f"data.source={name}"]).data.source == name


def test_lists_and_quotes_in_overrides() -> None:
    assert config.load(None, ['data.source=["a", "b"]']).data.source == ["a", "b"]
    assert config.load(None, ['data.source="2024"']).data.source == "2024"
    assert config.load(None, ["train.budget=90"]).train.budget == "90"


def test_later_overrides_win_over_earlier_and_over_the_file() -> None:
    assert config.load(STORED).train.steps == 1200
    assert config.load(STORED, ["train.steps=5", "train.steps=7"]).train.steps == 7


@pytest.mark.parametrize("content", [b"a = ", b"\xff\xfe", b"[train]\n[train]\n", b"train = 3"])
def test_files_that_are_no_config(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"run\.toml"):
        config.load(path)


def test_places_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path)
    (tmp_path / "x.toml").write_text("train = 3\n")
    with pytest.raises(ConfigError, match="is a value, not a table"):
        config.load(tmp_path / "x.toml", ["train.steps=3"])


def test_a_config_does_not_change() -> None:
    c = RunConfig()
    with pytest.raises(ValueError, match="frozen"):
        c.train.steps = 3
    changed = config.updated(c, train={"steps": 3})
    assert (c.train.steps, changed.train.steps) == (None, 3)
    with pytest.raises(ConfigError, match=r"train\.steps"):
        config.updated(c, train={"steps": -3})


@given(st.integers(1, 64).map(lambda n: 32 * n), st.integers(1, 48), st.integers(2, 4096))
def test_sizes_left_open_fit_together(hidden_size: int, layers: int, context: int) -> None:
    c = ModelConfig(hidden_size=hidden_size, num_hidden_layers=layers).resolved(1000, context)
    H, K, E, F = c.num_attention_heads, c.num_key_value_heads, c.head_dim, c.intermediate_size
    assert None not in (H, K, E, F)
    assert hidden_size == H * E
    assert H % K == 0
    assert E % 2 == 0
    assert F % 64 == 0
    assert 0 <= F - 8 * hidden_size / 3 < 64
    assert c.resolved(1000, context) == c
    assert (c.vocab_size, c.max_position_embeddings) == (1000, context)


def test_the_design_says_how_64_derives() -> None:
    c = ModelConfig(hidden_size=64, num_hidden_layers=1).resolved(256, 8)
    assert (c.num_attention_heads, c.num_key_value_heads) == (4, 2)


@pytest.mark.parametrize(
    ("sizes", "numbers"),
    [
        ({"hidden_size": 100, "num_attention_heads": 3}, ["100", "3"]),
        ({"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 3}, ["4", "3"]),
        ({"hidden_size": 64, "head_dim": 15}, ["15"]),
        ({"hidden_size": 64, "vocab_size": 100}, ["100", "256"]),
        ({"hidden_size": 64, "max_position_embeddings": 16}, ["16", "32"]),
        ({}, ["hidden_size", "--budget"]),
    ],
)
def test_sizes_that_do_not_fit_are_told_with_both_numbers(sizes: dict[str, int], numbers: list[str]) -> None:
    with pytest.raises(ConfigError) as e:
        ModelConfig(**({"num_hidden_layers": 2} | sizes)).resolved(256, 32)
    assert all(n in str(e.value) for n in numbers)


def test_every_key_says_what_it_is() -> None:
    silent = [f"{n}.{k}" for n, t in TABLES.items() for k, f in t.model_fields.items() if not f.description]
    assert silent == []
    assert DataConfig.model_fields["source"].description
