"""The documents are true: every key, verb and option is described, every link leads somewhere, every command parses.

What the documents say is compared with the pydantic fields and with the typer app themselves. The objects shown for
`--json` are compared, key by key, with those of a run made here.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import typer
from pydantic.fields import FieldInfo

from foretell import config, errors
from foretell.cli import app
from foretell.config import RunConfig, Table

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("README*.md"), *(ROOT / "docs").glob("*.md")])
TABLES = {n: type(f.default) for n, f in RunConfig.model_fields.items() if isinstance(f.default, Table)}
VERBS: dict[str, Any] = {
    f"{name} {sub}".strip(): command
    for name, verb in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
    for sub, command in getattr(verb, "commands", {"": verb}).items()
}
KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
BOUNDS = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
SHAPE = ["model.hidden_size=64", "model.num_hidden_layers=1", "train.steps=2", "train.context=32"]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def section(text: str, title: str) -> str:
    """What stands under `## title`."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.M | re.S)
    assert found, f"no section `{title}`"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of the tables in `text`, without their heads."""
    found = []
    for table in re.findall(r"^\|.+\|\n\|(?: -+ \|)+\n((?:\|.+\|\n)*)", text, re.M):
        found += [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table.splitlines()]
    return found


def value_of(field: FieldInfo) -> str:
    """What config.md must say a key takes."""
    kind = field.annotation
    several = () if get_origin(kind) in (Literal, list, tuple) else get_args(kind)
    names: list[str] = []
    for k in several or (kind,):
        if get_origin(k) is Literal:
            names += [f"`{v}`" for v in get_args(k)]
        elif get_origin(k) is tuple:
            choices = ", ".join(f"`{v}`" for v in get_args(get_args(k)[0]))
            names.append(f"list of {choices or 'texts'}")
        elif isinstance(k, type) and issubclass(k, config.Table):
            names.append("table")
        elif get_origin(k) is list:
            names.append("list of whole numbers" if get_args(k) == (int,) else "list of texts")
        elif k is not type(None):
            names.append(KINDS[k])
    limits = [f"{s} {getattr(m, b):g}" for m in field.metadata for b, s in BOUNDS.items() if hasattr(m, b)]
    return ", ".join([*names, *limits])


@pytest.mark.parametrize("name", TABLES)
def test_every_key_is_described(name: str) -> None:
    described = {r[0].strip("`"): tuple(r[1:3]) for r in rows(section(page("config.md"), f"[{name}]"))}
    fields = TABLES[name].model_fields
    plain = {k: "unset" if f.default is None else f"`{json.dumps(f.default)}`" for k, f in fields.items()}
    assert described == {k: (value_of(f), plain[k]) for k, f in fields.items()}
    assert all(len(r) == 4 and r[3] for r in rows(section(page("config.md"), f"[{name}]")))


def test_every_table_and_the_version_are_described() -> None:
    assert [t.strip("[]") for t in re.findall(r"^## (\[\w+\])", page("config.md"), re.M)] == list(TABLES)
    assert f"`format_version` is {config.FORMAT_VERSION}." in page("config.md")


def test_the_rates_that_are_described_are_the_rates() -> None:
    from foretell.train import optim

    meaning = {r[0].strip("`"): r[3] for r in rows(section(page("config.md"), "[train]"))}
    assert meaning["lr"].endswith(", ".join(f"{name} {rate:g}" for name, rate in optim.DEFAULT_LR.items()))
    assert meaning["embedding_lr"].endswith(f"{optim.DEFAULT_EMBEDDING_LR:g}")


def test_every_variable_of_the_environment_is_described() -> None:
    code = (ROOT / "foretell" / "runtime.py").read_text(encoding="utf-8")
    read = set(re.findall(r'environ(?:\.get\(|\[)"(\w+)"', code)) - {"RANK", "TOKENIZERS_PARALLELISM"}
    assert len(read) > 4
    described = section(page("config.md"), "The environment")
    assert [v for v in sorted(read) if f"`{v}`" not in described] == []


def test_every_verb_is_described() -> None:
    assert re.findall(r"^## (.+)$", page("cli.md"), re.M) == list(VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_is_described(verb: str) -> None:
    described = {tuple(re.findall(r"`(-[\w-]+)`", r[0])): r for r in rows(section(page("cli.md"), verb))}
    options = {tuple(p.opts): p for p in VERBS[verb].params if p.param_type_name == "option"}
    assert described.keys() == options.keys()
    for names, option in options.items():
        told = described[names][1]
        if option.required:
            assert told == "required", names
        elif option.default is not None and option.default is not False:
            assert told == f"`{option.default}`", names
        else:
            assert not re.fullmatch(r"`[\d.]+`", told), names


def test_exit_codes_are_described() -> None:
    kinds = [e for e in vars(errors).values() if isinstance(e, type) and issubclass(e, errors.ForetellError)]
    codes = {str(e.exit_code) for e in kinds} | {str(errors.Interrupted("", s).exit_code) for s in (2, 15)}
    described = {c for r in rows(page("cli.md").partition("\n## ")[0]) for c in r[0].split(", ")}
    assert codes == described - {"0", "1", "141"}


def targets(text: str) -> list[str]:
    """Relative targets of links and pictures outside code."""
    prose = re.sub(r"```.*?```|`[^`]*`", "", text, flags=re.S)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [t for t in found if not re.match(r"[a-z]+:", t)]


def anchors(text: str) -> set[str]:
    """The names under which a heading can be reached, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_every_link_leads_somewhere(path: Path) -> None:
    missing = []
    for target in targets(path.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text(encoding="utf-8"))):
            missing.append(target)
    assert missing == []


def commands(text: str) -> Iterator[str]:
    """Every `foretell VERB ...` of a page: in code blocks, in indented ones, between backticks."""
    found = re.findall(r"`((?:\.venv/bin/)?foretell [^`\n]+)`", text)
    found += re.findall(r"^(?: {4,}|\s*\$ )((?:\.venv/bin/)?foretell .+)$", text, re.M)
    found += [
        line
        for block in re.findall(r"```\w*\n(.*?)```", text, re.S)
        for line in re.findall(r"^foretell .+$", block, re.M)
    ]
    for command in found:
        yield re.split(r"\s{3,}|\s#\s", command)[0].strip()


def problem(command: str) -> str:
    """Why the app would not take the command; empty where it would."""
    plain = re.sub(r"'[^']*'|[\[\]]", lambda m: m[0] if m[0][0] == "'" else "", command.replace("...", ""))
    words = shlex.split(plain)[1:]  # brackets are optional parts, but in quotes
    if words and words[0] in {"--help", "--version", "VERB"}:
        return ""
    words = [" ".join(words[:2]), *words[2:]] if " ".join(words[:2]) in VERBS else words
    verb = VERBS.get(words[0])
    if verb is None:
        return f"no verb {words[0]}"
    options = {o: p for p in verb.params for o in p.opts if p.param_type_name == "option"} | {"--help": None}
    rest = iter(words[1:])
    for word in rest:
        if word.startswith("-") and word != "-":
            if word not in options:
                return f"{verb.name} has no {word}"
            option = options[word]
            if option is not None and not option.is_flag and next(rest, None) is None:
                return f"{word} needs a value"
        elif override := re.fullmatch(r"(\w+)\.(\w+)=(.*)", word):
            try:
                config.load(None, [word])
            except errors.ConfigError as e:
                return f"{override[0]}: {e}"
    return ""


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_every_command_parses(path: Path) -> None:
    deliberate = {"foretell train train.stpes=3"}  # shows an error
    found = set(commands(path.read_text(encoding="utf-8"))) - deliberate
    assert {c: problem(c) for c in found if problem(c)} == {}


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("foretell trian --data x", "no verb"),
        ("foretell train --dat x", "has no --dat"),
        ("foretell train --data", "needs a value"),
        ("foretell train train.stpes=3", "unknown key"),
    ],
)
def test_a_wrong_command_would_be_found(command: str, why: str) -> None:
    assert list(commands(f"text\n\n    {command}\n")) == [command]
    assert why in problem(command)


def test_readmes_say_the_same() -> None:
    english, chinese = (ROOT / n for n in ("README.md", "README.zh-CN.md"))
    a, b = (p.read_text(encoding="utf-8") for p in (english, chinese))
    other = {"README.md", "README.zh-CN.md"}
    assert set(targets(a)) - other == set(targets(b)) - other
    assert set(commands(a)) == set(commands(b))
    assert re.findall(r"^@@\w+@@$", a, re.M) == re.findall(r"^@@\w+@@$", b, re.M)
    assert len(re.findall("^#+ ", a, re.M)) == len(re.findall("^#+ ", b, re.M))


def foretell(*arguments: str, cwd: Path) -> tuple[int, dict[str, Any]]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FORETELL_TUNED": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "foretell.cli", *arguments, "--json"]
    env["FORETELL_HOME"] = str(cwd / "home")
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    return done.returncode, json.loads(done.stdout)


def example(verb: str) -> dict[str, Any]:
    """The object that cli.md shows for a verb."""
    found = re.findall(r"```json\n(.*?)```", section(page("cli.md"), verb), re.S)
    assert len(found) == 1
    return json.loads(found[0])


def keys(value: Any, depth: int = 2) -> Any:
    """The shape of an object: its keys, and theirs."""
    if isinstance(value, list):
        return keys(value[0], depth) if value else []
    return {k: keys(v, depth - 1) for k, v in value.items()} if isinstance(value, dict) and depth else None


def test_the_objects_that_are_shown_are_those_that_come(tmp_path: Path) -> None:
    text = "".join(f"line {n}: {'abc def ghi'[n % 7 :]}\n" for n in range(800))
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    (tmp_path / "other.txt").write_text(text[:300], encoding="utf-8")
    (tmp_path / "blank.jsonl").write_text('{"text": " "}\n', encoding="utf-8")
    made = {}
    for verb, arguments in {
        "prepare": ["text.txt", "blank.jsonl", "--out", "data"],
        "calibrate": ["--quick"],
        "plan": ["--data", "data", *SHAPE],
        "train": ["--data", "data", "--name", "tiny", *SHAPE],
        "verify": ["runs/tiny"],
        "evaluate": ["runs/tiny", "--data", "text.txt", "--data", "other.txt"],
        "generate": ["runs/tiny", "--prompt", "line", "--max-new-tokens", "2"],
        "report": ["runs/tiny"],
    }.items():
        code, made[verb] = foretell(verb, *arguments, cwd=tmp_path)
        assert code in ({0, 3} if verb == "verify" else {0}), made[verb]
    for verb, told in made.items():
        shown = example(verb)
        if verb == "calibrate":  # how many shapes are timed depends on the machine
            shown["flops_per_second"] = told["flops_per_second"] = {}
        if verb == "prepare":
            shown["dropped"] = told["dropped"] = {}
        assert keys(shown) == keys(told), verb


@pytest.mark.parametrize(("seconds", "code"), [(10.0, 0), (30.0, 3)])
def test_a_missed_headline_is_exit_code_3(tmp_path: Path, seconds: float, code: int) -> None:
    plan = {"steps": 5, "seconds": {"value": 10.0, "low": 8.0, "high": 12.0}}
    (tmp_path / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
    (tmp_path / "measured.json").write_text(json.dumps({"steps": 5, "seconds": seconds}), encoding="utf-8")
    returned, told = foretell("verify", ".", cwd=tmp_path)
    assert returned == code
    assert told["headline_held"] is (code == 0)
