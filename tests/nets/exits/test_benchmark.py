"""The benchmark runs, and the page's table is what it prints."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(*arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", str(ROOT / "benchmarks/exits.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout


@pytest.mark.slow
def test_ratios(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    small = ("--rounds", "1", "--repeat", "1", "--batches", "1", "--json", str(file))
    printed = run("--networks", "vit12", *small)
    rows = json.loads(file.read_text())["rows"]
    assert [row["what"] for row in rows] == ["inference", "first", "training"]
    assert all(row["ms"] > 0 and row["base_ms"] > 0 for row in rows)
    assert printed.count("| vit12 | torch | 1 |") == 3


@pytest.mark.slow
def test_backbones_of_the_page(torchvision: object, timm: object, transformers: object) -> None:
    lines = run("--backbones", "MLP", "LSTM").strip().splitlines()
    page = (ROOT / "docs/exits.md").read_text().splitlines()
    assert len(lines) == 4
    for line in lines:
        assert line in page
