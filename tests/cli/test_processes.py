"""Commands as real processes: signals, pipes, the demo."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ANYNEST = [sys.executable, "-m", "anynest"]


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*ANYNEST, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for_checkpoint(folder: Path, process: "subprocess.Popen[str]", count: int) -> None:
    """Until the run has come ``count`` batches far, at least."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        steps = [int(p.stem.split("-")[1]) for p in folder.glob("checkpoints/step-*.ckpt")]
        if steps and max(steps) >= count:
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint: {process.communicate()}")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_killed_interrupted_and_resumed(tmp_path: Path, tiny: list[str]) -> None:
    """SIGKILL from outside, --resume, Ctrl-C, the command it names: the same bits at the end."""
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    longer = [*tiny, "--batch-size", "64", "--epochs", "8", "--save-batches", "5"]
    beside = start(*longer, "--out", str(whole), "--quiet")
    process = start(*longer, "--out", str(cut), "--quiet")
    wait_for_checkpoint(cut, process, 15)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    process = start("train", "--resume", str(cut))
    wait_for_checkpoint(cut, process, 60)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    command = shown.strip().split("go on with: ")[-1]
    assert command == f"anynest train --resume {cut}"
    process = start(*command.split()[1:], "--json")
    out, shown = process.communicate(timeout=120)
    assert process.returncode == 0, shown
    assert len(json.loads(out)["test"]["error"]) == 2
    assert beside.communicate(timeout=120)
    assert beside.returncode == 0
    assert (cut / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()


def test_a_closed_pipe_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [*ANYNEST, "models", "width_nested_resnet10"], stdout=writer, stderr=subprocess.PIPE
    )
    os.close(writer)
    assert done.returncode == 0
    assert done.stderr == b""


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    process = start("demo", "--epochs", "1", "--seeds", "1", "--out", str(folder))
    out, shown = process.communicate(timeout=240)
    assert process.returncode == 0, shown
    assert "OSGD" in out
    assert "1 seed, 1 epoch each" in out
    assert "deviation" not in out
    assert "(0.0)" not in out
    assert "reduced run" in out
    assert out.rstrip().endswith(f"picture: {folder / 'demo.png'}")
    assert (folder / "demo.png").read_bytes().startswith(b"\x89PNG")
