"""``anynest reproduce`` as a process: stopped by Ctrl-C, killed, and brought to its end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anynest.experiments.results.records import read_results

RUNNER = Path(__file__).parent / "sweep_runner.py"


def start(out: Path) -> subprocess.Popen[str]:
    command = ["reproduce", "few", "--protocol", "slow", "--data", "digits", "--seeds", "1"]
    return subprocess.Popen(
        [sys.executable, str(RUNNER), *command, "--out", str(out), "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "ANYNEST_TEST_HOLD": str(out / "hold")},
    )


def checkpoints(out: Path) -> set[Path]:
    return set((out / "slow").glob("*/checkpoints/*.ckpt"))


def wait_for_new_checkpoint(out: Path, seconds: float = 300) -> None:
    before = checkpoints(out)
    until = time.monotonic() + seconds
    while checkpoints(out) <= before:
        assert time.monotonic() < until, "no checkpoint was written"
        time.sleep(0.02)


def worker_of(parent: int) -> int:
    """The only child of a sweep."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[1]) == parent:
            return int(status.parent.name)
    raise AssertionError("the sweep has no worker")


@pytest.mark.slow
def test_stopped_killed_and_finished(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    hold = out / "hold"  # no cell finishes while it exists
    hold.touch()
    first = start(out)
    wait_for_new_checkpoint(out)
    os.killpg(first.pid, signal.SIGINT)  # as a terminal does: the sweep, and all in its group
    said, _ = first.communicate(timeout=300)
    assert first.returncode == 130, said
    assert "stopped with 2 cells left; the same command goes on" in said
    assert "Traceback" not in said
    assert read_results(out / "slow.jsonl") == []

    second = start(out)
    wait_for_new_checkpoint(out)
    worker = worker_of(second.pid)
    os.kill(second.pid, signal.SIGKILL)  # the sweep alone: its worker must find out
    second.communicate(timeout=300)
    until = time.monotonic() + 300
    while Path(f"/proc/{worker}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{worker}").exists(), "the worker outlived its sweep"

    hold.unlink()
    last = start(out)
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said
    records = read_results(out / "slow.jsonl")
    assert len({record["key"] for record in records}) == len(records) == 2
    assert {record["epochs"] for record in records} == {5}
    assert "Table 0, even" in said
