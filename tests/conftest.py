"""Shared fixtures. Full data sets are found through FORETELL_DATA; tests that want them say so when it is not set."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of full data sets; a test that needs it is skipped where there is none."""
    folder = os.environ.get("FORETELL_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("FORETELL_DATA names no folder of full data sets")
    return Path(folder)


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small checkpoint files and small writes, so that a small checkpoint goes through everything a large one does."""
    from foretell.checkpoint import files, folder

    monkeypatch.setattr(folder, "SHARD_BYTES", 400)
    monkeypatch.setattr(files, "_CHUNK_BYTES", 256)
