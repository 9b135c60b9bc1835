"""The wheel: everything that is needed is inside, and it works from an empty folder, away from the source."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "foretell"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that no build folder stays in the source. Nothing is fetched."""
    source = tmp_path_factory.mktemp("source")
    shutil.copytree(PACKAGE, source / "foretell", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", source / "tests", ignore=shutil.ignore_patterns("__pycache__", "data"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "-w", str(out), str(source)], check=True, stdin=subprocess.DEVNULL)
    (found,) = out.glob("foretell-*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of commands of an environment that has the wheel, and sees the dependencies of this one."""
    where = tmp_path_factory.mktemp("environment") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(where)], check=True)
    python = where / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, str(wheel)], check=True, stdin=subprocess.DEVNULL)
    site = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    # A path named in a .pth file is searched, but the .pth files inside it are not read: our source stays unseen.
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (Path(site) / "dependencies.pth").write_text("\n".join(sorted(here)) + "\n")
    return where / "bin"


def run(command: list[str | Path], cwd: Path) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "FORETELL_TUNED"}}
    env |= {"FORETELL_HOME": str(cwd / "home")}
    return subprocess.run(
        command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def test_every_file_of_the_package_is_inside(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = {str(p.relative_to(ROOT)) for p in PACKAGE.rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {n for n in inside if n.startswith("foretell/")} == wanted
    assert {Path(n).suffix for n in wanted} >= {".py", ".json", ".html", ".css", ".js"}
    assert "foretell/py.typed" in inside


def test_nothing_else_is_inside(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    other = [n for n in archive.namelist() if not n.startswith("foretell/")]
    assert all(".dist-info/" in n for n in other)
    assert any(n.endswith("licenses/LICENSE") for n in other)
    told = Parser().parsestr(archive.read(next(n for n in other if n.endswith("/METADATA"))).decode())
    assert told["License-Expression"] == "Apache-2.0"
    assert told["Requires-Python"] == ">=3.11"
    # A range and never one version: torch's builds for other machines have to fit too.
    torch = [r for r in told.get_all("Requires-Dist", []) if r.startswith("torch")]
    assert len(torch) == 1
    assert "==" not in torch[0]


def test_it_is_the_wheel_that_runs(installed: Path, tmp_path: Path) -> None:
    done = run([installed / "python", "-c", "import foretell; print(foretell.__file__)"], tmp_path)
    assert done.stdout.startswith(str(installed.parent)), done.stdout + done.stderr
    done = run([installed / "foretell", "--help"], tmp_path)
    assert done.returncode == 0, done.stderr
    assert " train " in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_forecast_needs_nothing_but_the_wheel(installed: Path, tmp_path: Path) -> None:
    sizes = ["model.hidden_size=64", "model.num_hidden_layers=2", "train.steps=50"]
    done = run([installed / "foretell", "plan", *sizes, "--json"], tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["parameters"]["total"] > 0
    assert told["seconds"]["low"] < told["seconds"]["value"] < told["seconds"]["high"]


def test_the_demo_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    done = run([installed / "foretell", "demo", "--budget", "20s", "--json"], tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    page = tmp_path / told["report"]
    assert page.stat().st_size > 20_000
    assert told["python"]["of"] == 50
    assert told["bits_per_byte"] < 8
    assert told["closing"].startswith("Forecast ")
