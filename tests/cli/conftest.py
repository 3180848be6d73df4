"""A finished tiny run that the commands may look at."""

from pathlib import Path

import pytest

from anynest.cli import main

TINY = "--base-width 2 --growth 1x1,2x1 --data digits --batch-size 256 --device cpu --threads 1"


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """``anynest train`` for a run of a second or two; later flags win."""
    return ["train", *TINY.split(), "--epochs", "1"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny: list[str]) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main([*tiny, "--out", str(folder), "--quiet"]) == 0
    return folder
