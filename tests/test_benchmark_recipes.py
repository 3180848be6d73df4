"""The study of recipes trains each once, resumes, and writes the tables that its records give."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "recipes.py"


def call(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_the_study(tmp_path: Path) -> None:
    out, page = tmp_path / "r.jsonl", tmp_path / "page.md"
    small = ["--out", str(out), "--methods", "sgd-sum", "--epochs", "1", "--limit", "64"]
    call(*small, "--seeds", "1")
    first = out.read_text().splitlines()
    assert "10 runs, 5 done" in call(*small, "--seeds", "2")
    rows = out.read_text().splitlines()
    assert rows[:5] == first
    records = [json.loads(row) for row in rows]
    assert len({(r["recipe"], r["seed"]) for r in records}) == len(records) == 10
    methods = {r["recipe"]: r["settings"]["method"]["distill"] for r in records}
    assert methods == {
        "none": 0.0,
        "--distill 0.5": 0.5,
        "--ema 0.99": 0.0,
        "--no-decay-norms": 0.0,
        "all three": 0.5,
    }
    page.write_text("before\n<!-- r.jsonl: begin -->\nold\n<!-- r.jsonl: end -->\nafter\n")
    call("--read", str(out), "--into", str(page))
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("<!-- r.jsonl: end -->\nafter\n")
    assert "old" not in text
    row = next(line for line in text.splitlines() if line.startswith("| `--ema 0.99`"))
    errors = {
        recipe: [100 * r["error"][0] for r in records if r["recipe"] == recipe]
        for recipe in ("none", "--ema 0.99")
    }
    mean = statistics.mean(errors["--ema 0.99"])
    assert f"| {mean:.2f} ({statistics.stdev(errors['--ema 0.99']):.2f}) |" in row
    assert f"| {mean - statistics.mean(errors['none']):+.2f} [" in row
