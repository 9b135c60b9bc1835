"""The shape of the project, as rules that a machine can check: who imports whom, what is never used, how long is long.

Everything is read from the syntax trees of the package, so that an import inside a function counts like any other.
"""

import ast
import inspect
import re
import subprocess
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "foretell"

# A line imports only lines below it. Both `cli` and `cli/` are meant by a name.
ORDER = [
    "cli",
    "demo",
    "report",
    "ladder",
    "serve",
    "compress",
    "explain",
    "calibrate",
    "train",
    "privacy",
    "evaluate",
    "tasks",
    "generate",
    "embed",
    "distributed",
    "vectors",
    "checkpoint",
    "models",
    "data",
    "plan",
    "tokenizer",
    "metrics",
    "config",
    "runtime",
    "errors",
]

# Never torch, not even inside a function.
WITHOUT_TORCH = ["plan", "metrics", "config", "errors", "report", "tokenizer", "data"]
# What may import it inside functions, so that `foretell --help` answers at once.
TORCH_LATER = ["cli", "runtime"]

READS_THE_ENVIRONMENT = ["runtime.py"]

# Files that may use what is dangerous, each with its reason. Empty is best.
MAY_BE_DANGEROUS: dict[str, str] = {"data/intake.py": "np.load of arrays alone: allow_pickle=False"}
DANGEROUS_CALLS = {"eval", "exec", "torch.load", "torch.save", "numpy.load", "np.load", "os.system"}
DANGEROUS_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "jinja2"}
DANGEROUS_WORDS = {"trust_remote_code", "allow_pickle"}
# Calls that look dangerous by their last name only: nn.Module.eval() is not eval().
BARE = {"eval", "exec"}

NAMES_THAT_SAY_NOTHING = {"utils", "common", "helpers", "misc", "manager", "util", "helper"}

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
MOST_LINES_OF_A_FUNCTION = 60
MOST_LINES_OF_A_FILE = 400
MOST_LINES_TO_THE_FIRST_STEP = 350


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def module_name(path: Path) -> str:
    """foretell/data/readers.py -> foretell.data.readers"""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part(module: str) -> str:
    """The line of ORDER a module stands on; empty for the package itself."""
    pieces = module.split(".")
    return pieces[1] if len(pieces) > 1 else ""


def imported(path: Path, top_level_only: bool = False) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, absolute, with the line. `from foretell import x` gives foretell.x."""
    package = module_name(path) if path.name == "__init__.py" else module_name(path).rpartition(".")[0]
    for node in _import_nodes(tree(path), top_level_only):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        else:
            base = node.module or ""
            if node.level:
                up = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*up, base]).rstrip(".")
            for alias in node.names:
                yield (f"{base}.{alias.name}" if base.split(".")[0] == "foretell" else base), node.lineno


def _import_nodes(node: ast.AST, top_level_only: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)):
            yield child
        elif _is_type_checking(child) or (top_level_only and isinstance(child, FUNCTION)):
            continue
        else:
            yield from _import_nodes(child, top_level_only)


def _is_type_checking(node: ast.AST) -> bool:
    """`if TYPE_CHECKING:` runs nothing, so what it imports is no dependency."""
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree(path)):
        if isinstance(node, FUNCTION):
            yield node


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def tracked() -> list[Path]:
    """The files git tracks; in a tree without git, what stands there."""
    git = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if git.returncode == 0 and git.stdout:
        return [ROOT / name for name in git.stdout.decode().split("\0") if name and (ROOT / name).is_file()]
    kept = ["foretell", "tests", "docs", "configs", "benchmarks", ".ci"]
    inside = [p for folder in kept for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    return inside + [p for p in ROOT.iterdir() if p.is_file()]


def test_every_part_has_its_line() -> None:
    parts = {part(module_name(p)) for p in sources()} - {""}
    assert parts <= set(ORDER)


def test_imports_go_down_the_list() -> None:
    wrong = []
    for path in sources():
        own = part(module_name(path))
        for name, line in imported(path):
            other = part(name)
            if name.split(".")[0] != "foretell" or other in {own, "", "__version__"}:
                continue
            if not own or other not in ORDER or ORDER.index(other) < ORDER.index(own):
                wrong.append(f"{where(path, line)}: {own or 'foretell'} imports {other}")
    assert wrong == []


def test_models_know_nothing_of_other_processes() -> None:
    distributed = [
        where(path, line)
        for path in (PACKAGE / "models").rglob("*.py")
        for name, line in imported(path)
        if name.startswith("torch.distributed")
    ]
    assert distributed == []


def imports_torch(path: Path, top_level_only: bool) -> list[str]:
    return [where(path, n) for m, n in imported(path, top_level_only) if m.split(".")[0] in {"torch", "transformers"}]


def test_no_torch_where_none_belongs() -> None:
    wrong = []
    for path in sources():
        own = part(module_name(path))
        if own in WITHOUT_TORCH or own in TORCH_LATER or not own:
            wrong += imports_torch(path, top_level_only=own in TORCH_LATER)
    assert wrong == []


def test_these_modules_load_with_torch_forbidden() -> None:
    """The truth behind the last test: also what they import by way of others must do without torch."""
    names = [module_name(p) for p in sources() if part(module_name(p)) in {*WITHOUT_TORCH, "runtime", ""}]
    names += [n for n in ("foretell.cli",) if n not in names]
    program = (
        "import importlib, sys\n"
        "sys.modules['torch'] = None\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "print(len([m for m in sys.modules if m.startswith('torch.')]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "0"


def test_only_runtime_reads_the_environment() -> None:
    names = {"environ", "environb", "getenv", "getenvb", "putenv"}
    wrong = []
    for path in sources():
        if path.name in READS_THE_ENVIRONMENT and path.parent == PACKAGE:
            continue
        for node in ast.walk(tree(path)):
            attribute = isinstance(node, ast.Attribute) and node.attr in names
            alias = isinstance(node, ast.ImportFrom) and node.module == "os" and names & {a.name for a in node.names}
            if attribute or alias:
                wrong.append(where(path, node.lineno))
    assert wrong == []


def dangers(module: ast.Module) -> Iterator[tuple[int, str]]:
    for node in ast.walk(module):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in DANGEROUS_CALLS or (name.rpartition(".")[0] == "builtins" and name.split(".")[-1] in BARE):
                yield node.lineno, name
            yield from ((node.lineno, k.arg) for k in node.keywords if k.arg in DANGEROUS_WORDS)
            if any(k.arg == "shell" and ast.unparse(k.value) != "False" for k in node.keywords):
                yield node.lineno, "shell="
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
            yield from ((node.lineno, n) for n in names if n.split(".")[0] in DANGEROUS_MODULES)


def test_nothing_dangerous() -> None:
    found = [
        f"{where(path, line)}: {what}"
        for path in sources()
        if str(path.relative_to(PACKAGE)) not in MAY_BE_DANGEROUS
        for line, what in dangers(tree(path))
    ]
    assert found == []
    assert all((PACKAGE / name).exists() for name in MAY_BE_DANGEROUS), "the allow-list names a file that is gone"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(p)",
        "exec(text)",
        "f(x, trust_remote_code=False)",
        "np.load(p, allow_pickle=True)",
        "run(c, shell=True)",
    ],
)
def test_dangers_are_seen(source: str) -> None:
    assert list(dangers(ast.parse(source)))


def test_a_model_may_be_put_in_evaluation_mode() -> None:
    assert not list(dangers(ast.parse("model.eval()\nre.compile(x)")))


def config_tables() -> dict[str, type]:
    """The class of each table of the config file."""
    from foretell.config import RunConfig, Table

    return {n: type(f.default) for n, f in RunConfig.model_fields.items() if isinstance(f.default, Table)}


def table_names(function: ast.AST, tables: dict[str, type]) -> dict[str, str]:
    """Local names that hold a table: arguments of its type, and what is assigned from `something.table`."""
    classes = {cls.__name__: table for table, cls in tables.items()}
    names = {}
    for node in ast.walk(function):
        if isinstance(node, ast.arg) and node.annotation is not None and ast.unparse(node.annotation) in classes:
            names[node.arg] = classes[ast.unparse(node.annotation)]
        if isinstance(node, ast.Assign):
            for target in node.targets:
                pairs = [(target, node.value)]
                if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                    pairs = list(zip(target.elts, node.value.elts, strict=False))
                for name, value in pairs:
                    if isinstance(name, ast.Name) and isinstance(value, ast.Attribute) and value.attr in tables:
                        names[name.id] = value.attr
    return names


def fields_read(module: ast.Module, tables: dict[str, type]) -> tuple[set[str], set[tuple[str, str]]]:
    """Every attribute that is read, and those of which it is plain which table they are read from."""
    plain, owned = set(), set()
    for function in [module, *(n for n in ast.walk(module) if isinstance(n, FUNCTION))]:
        names = table_names(function, tables)
        for node in ast.walk(function):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                plain.add(node.attr)
                base = node.value
                if isinstance(base, ast.Attribute) and base.attr in tables:
                    owned.add((base.attr, node.attr))
                elif isinstance(base, ast.Name) and base.id in names:
                    owned.add((names[base.id], node.attr))
    return plain, owned


def test_every_config_field_is_read() -> None:
    """Only what is used exists: a key that nothing reads would be silently ignored.

    A name that several tables have (`context`) must be seen to be read from each of them.
    """
    tables = config_tables()
    found = [fields_read(tree(p), tables) for p in sources() if p.parent != PACKAGE / "config"]
    plain, owned = set().union(*(f[0] for f in found)), set().union(*(f[1] for f in found))
    if "sizes" in plain:  # one property reads all that it names
        getter = tables["model"].sizes.fget  # type: ignore[attr-defined]
        plain |= {
            n.value
            for n in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(getter))))
            if isinstance(n, ast.Constant) and isinstance(n.value, str)
        }
    fields = [(table, key) for table, cls in tables.items() for key in cls.model_fields]  # type: ignore[attr-defined]
    shared = {key for _, key in fields if sum(key == other for _, other in fields) > 1}
    unread = {f"{t}.{k}" for t, k in fields if ((t, k) not in owned if k in shared else k not in plain)}
    assert unread == set()


def test_functions_are_short() -> None:
    long = [
        f"{where(path, f.lineno)}: {f.name} has {f.end_lineno - f.lineno + 1} lines"
        for path in sources()
        for f in functions(path)
        if f.end_lineno is not None and f.end_lineno - f.lineno + 1 > MOST_LINES_OF_A_FUNCTION
    ]
    assert long == []


def test_files_are_short() -> None:
    lines = {p: len(p.read_text(encoding="utf-8").splitlines()) for p in sources()}
    assert {where(p, n) for p, n in lines.items() if n > MOST_LINES_OF_A_FILE} == set()


def test_names_say_something() -> None:
    everything = [*sources(), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert [str(p) for p in everything if NAMES_THAT_SAY_NOTHING & {p.stem, p.parent.name}] == []


def test_the_first_step_is_near_the_top() -> None:
    """A reader of train/loop.py meets the optimiser's step within one sitting."""
    lines = (PACKAGE / "train" / "loop.py").read_text(encoding="utf-8").splitlines()
    steps = [i for i, line in enumerate(lines, 1) if re.search(r"\boptimizer\.step\(", line)]
    assert steps
    assert steps[0] <= MOST_LINES_TO_THE_FIRST_STEP


def test_public_things_say_what_they_are() -> None:
    """Every module, and every public function and class of one, has a docstring. Methods may go without."""
    silent = []
    for path in sources():
        module = tree(path)
        if not ast.get_docstring(module):
            silent.append(where(path, 1))
        for node in module.body:
            public = isinstance(node, (*FUNCTION, ast.ClassDef)) and node.name[0] != "_"
            if public and not ast.get_docstring(node):
                silent.append(f"{where(path, node.lineno)}: {node.name}")
    assert silent == []


# Put together from halves, so that this file does not hold what it looks for.
FORBIDDEN_TEXT = {
    "a path of one machine": re.compile(r"/(?:root|home/\w+|Users/\w+|work)/(?=\w|\.)"),
    "the name of a registry's host": re.compile(
        r"\b(?:pypi\.(?:org|python)|files\.python" + r"hosted|test\.pypi|download\.py" + r"torch|index-" + r"url)\b"
    ),
    "a private key or token": re.compile(r"-----BEGIN [A-Z ]*PRIVATE" + r" KEY|\bhf_[A-Za-z0-9]{30,}"),
}


def test_tracked_files_name_no_machine() -> None:
    found = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        if path == Path(__file__):
            continue
        for what, pattern in FORBIDDEN_TEXT.items():
            if hit := pattern.search(text):
                found.append(f"{where(path, text.count(chr(10), 0, hit.start()) + 1)}: {what}: {hit.group()}")
    assert found == []


def test_fixtures_stay_small() -> None:
    assert sum(p.stat().st_size for p in tracked() if (ROOT / "tests" / "data") in p.parents) <= 2_000_000


def test_what_pyproject_names_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = [project["project"]["readme"], *project["project"]["license-files"]]
    assert [n for n in named if not (ROOT / n).is_file()] == []
    for script in project["project"]["scripts"].values():
        module, _, function = script.partition(":")
        file = ROOT.joinpath(*module.split("."))
        file = file / "__init__.py" if file.is_dir() else file.with_suffix(".py")
        assert function in {f.name for f in functions(file)}


def test_every_data_file_goes_into_the_wheel() -> None:
    """tests/test_wheel.py looks into one; this tells at once when a new kind of file is not package data."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["foretell"]
    taken = {p for pattern in patterns for p in PACKAGE.glob(pattern)}
    files = {p for p in PACKAGE.rglob("*") if p.is_file() and p.suffix != ".py" and "__pycache__" not in p.parts}
    assert files - taken == set()


def test_every_extra_an_error_names_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = set(project["project"]["optional-dependencies"])
    named = {
        (where(path, node.lineno), argument.value)
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "MissingExtra"
        for argument in node.args[1:2]
        if isinstance(argument, ast.Constant)
    }
    assert [n for n in named if n[1] not in extras] == []


def test_the_version_stands_in_one_place() -> None:
    from foretell import __version__

    assert re.fullmatch(r"\d+\.\d+\.\d+(\.?(dev|a|b|rc)\d+)?", __version__)
    exported = [n.targets[0].id for n in tree(PACKAGE / "__init__.py").body if isinstance(n, ast.Assign)]  # type: ignore[attr-defined]
    assert exported == ["__version__"]
