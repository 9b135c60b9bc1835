"""Shared fixtures, and the order of the slow tests when time is short.

Full data sets are found through FORETELL_DATA; tests that want them say so when it is not set.
"""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import pytest

LAST_RUN = "foretell/last_run"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of full data sets; a test that needs it is skipped where there is none."""
    folder = os.environ.get("FORETELL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FORETELL_DATA names no folder of full data sets")
    return Path(folder)


@pytest.fixture(scope="session")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared: 3,000 short lines of words and numbers."""
    from foretell.config import DataConfig, TokenizerConfig
    from foretell.data import prepare

    folder = tmp_path_factory.mktemp("text")
    written = (f"line {i} of {i * i % 97} and {i * 7919 % 1000}\n" for i in range(3000))
    (folder / "text.txt").write_text("".join(written))
    tokenizer = TokenizerConfig(vocab_size=320)
    prepare([str(folder / "text.txt")], folder / "data", tokenizer, DataConfig(), workers=1)
    return folder / "data"


@pytest.fixture(scope="session")
def climbed(tmp_path_factory: pytest.TempPathFactory, lines: Path) -> tuple[Path, dict[str, Any], list[dict[str, Any]]]:
    """A ladder of nine tiny rungs and its trained target: the folder, the result, the events with what was there."""
    from test_ladder import tiny
    from training import MACHINE

    from foretell.data import open_data
    from foretell.ladder.climb import run

    folder = tmp_path_factory.mktemp("ladders") / "unbroken"
    seen: list[dict[str, Any]] = []

    def watch(event: dict[str, Any]) -> None:
        seen.append({**event, "on_record": sorted(p.name for p in folder.glob("targets/*/*"))})

    result = run(tiny(), open_data(lines), folder, machine=MACHINE, climb=True, display=watch)
    return folder, result, seen


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small checkpoint files and small writes, so that a small checkpoint goes through everything a large one does."""
    from foretell.checkpoint import files, folder

    monkeypatch.setattr(folder, "SHARD_BYTES", 400)
    monkeypatch.setattr(files, "_CHUNK_BYTES", 256)


class Hourglass:
    """`--minutes N`: the least recently run first, and none is started once the minutes are over."""

    def __init__(self, config: pytest.Config, minutes: float) -> None:
        self.cache, self.shuffle = config.cache, config.getoption("--shuffle")
        self.last_run: dict[str, float] = self.cache.get(LAST_RUN, {}) if self.cache else {}
        self.ends = time.monotonic() + 60 * minutes
        self.left_out: list[str] = []
        self.at_work: str | None = None

    def _turn(self, item: pytest.Item) -> tuple[float, str]:
        digest = hashlib.sha256(f"{self.shuffle} {item.nodeid}".encode()).hexdigest()
        return self.last_run.get(item.nodeid, 0.0), digest

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items.sort(key=self._turn)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        if time.monotonic() > self.ends:
            self.left_out.append(item.nodeid)
            pytest.skip("left out: the minutes are over")
        self.at_work = item.nodeid
        self.last_run[item.nodeid] = time.time()
        if self.cache:
            self.cache.set(LAST_RUN, self.last_run)

    def pytest_runtest_logfinish(self) -> None:
        self.at_work = None

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.at_work:  # whoever started us ended us in the middle of it
            self.left_out.insert(0, f"{self.at_work} (cut off)")
        terminalreporter.line(f"left out: {len(self.left_out)} tests")
        for name in self.left_out:
            terminalreporter.line(f"  {name}")
        terminalreporter.line("")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--minutes", type=float, help="start no test after this many minutes; least recently run first")
    parser.addoption("--shuffle", default="", help="with --minutes: decides among tests that have never run")


def pytest_configure(config: pytest.Config) -> None:
    minutes = config.getoption("--minutes")
    if minutes is not None:
        config.pluginmanager.register(Hourglass(config, minutes))
