"""SIGKILL at any moment, resume, and end with the very same bits."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from anynest.training import TrainConfig

RUNNER = Path(__file__).with_name("kill_runner.py")
POINTS = {
    "osgd": [
        "write:1",  # config.json is half written: there is no run yet
        "step:1",
        "step:4",
        "write:3",  # metrics.jsonl, then a checkpoint, then the next one
        "rename:2",
        "renamed:3",
        "validate:1",
        "prune:1",
        "write:4",
        "finish:1",
        "write:3",  # the final weights or what follows
    ],
    "greedy": ["step:3", "write:3", "renamed:2", "validate:1", "step:5", "write:2", "finish:1"],
}


def learned(folder: Path) -> list[dict[str, Any]]:
    """The epochs' lines without their times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if "second" not in k} for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.parametrize("method", POINTS)
def test_killed_run_ends_with_the_same_bits(
    tmp_path: Path, tiny: Callable[..., TrainConfig], method: str
) -> None:
    config = tiny(
        method={"name": method},
        optimizer={"ema": 0.9} if method == "greedy" else {},  # averages end each of its phases
        schedule={"epochs": 3 if method == "osgd" else 2},
        run={"save_batches": 2},
    )
    done = subprocess.run(
        [sys.executable, RUNNER, tmp_path, json.dumps(config.to_json()), *POINTS[method]],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ends = json.loads(done.stdout.splitlines()[-1])
    assert ends == [signal.SIGKILL] * len(POINTS[method]) + [0, 0], done.stderr
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert (killed / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()
    assert learned(killed) == learned(whole)
    epochs = [line["epoch"] for line in learned(killed)]
    assert epochs == list(range(1, len(epochs) + 1))
    left = [path for path in killed.rglob("*") if path.name.endswith(".tmp")]
    assert not left
    assert all(v.isfinite().all() for v in load_file(killed / "weights.safetensors").values())
