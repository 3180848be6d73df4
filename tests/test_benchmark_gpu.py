"""The GPU benchmark's dry run on a CPU: the same code at small size."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anynest import list_methods

BENCHMARK = Path(__file__).parents[1] / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_the_dry_run(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARK), "--dry-run", "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "out" / "report.json").read_text())["parts"]
    assert {name: part["state"] for name, part in parts.items()} == {
        "numerics": "passed",
        "nccl": "passed",
        "captured": "skipped",
        "latency": "measured",
        "memory": "skipped",
        "throughput": "measured",
        "train": "skipped",
    }
    errors = parts["numerics"]["errors"]
    assert all(any(f", {method}" in name for name in errors) for method in list_methods())
    assert sum("engine" in name for name in errors) == 5  # stages of two networks
    # float32 against float64: neither the same numbers nor others
    assert 1e-9 < max(errors.values()) < 1e-4
    assert {row["method"] for row in parts["throughput"]["rows"]} == {"sgd", "exact", "lazy"}
    assert {row["backend"] for row in parts["latency"]["rows"]} == {"torch", "onnxruntime"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_it_says_what_to_do(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(BENCHMARK), "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert "there is no CUDA device here; --dry-run takes the CPU" in done.stderr
