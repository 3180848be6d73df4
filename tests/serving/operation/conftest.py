"""Tiny trained runs."""

from pathlib import Path

import pytest

from anynest.cli import main

TINY = (
    "train --base-width 2 --growth 1x1,2x1,3x1 --data digits --batch-size 256 --device cpu "
    "--threads 1 --epochs 1 --quiet"
)


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs of one architecture with different weights."""
    folder = tmp_path_factory.mktemp("served")
    found = [folder / "first", folder / "second"]
    for seed, run in enumerate(found):
        assert main([*TINY.split(), "--seed", str(seed), "--out", str(run)]) == 0
    return found
