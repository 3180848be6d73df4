"""Commands as real processes: signals, closed streams, files of the current folder."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anynest.cli import main
from anynest.cli.commands.demo.command import next_commands
from anynest.cli.dispatch import parse
from anynest.experiments.sweep.local_launcher import LocalLauncher

ANYNEST = [sys.executable, "-m", "anynest"]
Out = pytest.CaptureFixture[str]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX")


def start(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*ANYNEST, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def newest_step(folder: Path) -> int:
    steps = [int(path.stem.split("-")[1]) for path in folder.glob("checkpoints/step-*.ckpt")]
    return max(steps, default=0)


def wait_for_checkpoint(folder: Path, process: "subprocess.Popen[str]") -> None:
    """Wait until the process has written a checkpoint."""
    before, deadline = newest_step(folder), time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if newest_step(folder) > before:
            return
        time.sleep(0.01)
    raise AssertionError(f"no checkpoint: {process.communicate()}")


@pytest.mark.slow
def test_killed_interrupted_and_resumed(tmp_path: Path, tiny: list[str]) -> None:
    """SIGKILL, --resume, Ctrl-C, the command that it names: the same bits at the end."""
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    longer = [*tiny, "--batch-size", "64", "--epochs", "12", "--save-batches", "5"]
    process = start(*longer, "--out", str(cut), "--quiet")
    wait_for_checkpoint(cut, process)
    process.kill()
    process.communicate()
    process = start("train", "--resume", str(cut))
    wait_for_checkpoint(cut, process)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate(timeout=120)
    assert process.returncode == 130, shown
    command = shown.strip().split("go on with: ")[-1]
    assert command == f"anynest train --resume {cut}"
    assert main(command.split()[1:]) == 0
    assert main([*longer, "--out", str(whole), "--quiet"]) == 0
    assert (cut / "weights.safetensors").read_bytes() == (
        whole / "weights.safetensors"
    ).read_bytes()


INTERRUPTED_IMPORT = """
import os, signal, sys, time

class Interrupt:
    def find_spec(self, name, path=None, target=None):
        if name == MODULE:
            try:
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(1)
            except KeyboardInterrupt:
                raise ImportError("as some packages do") from None

sys.meta_path.insert(0, Interrupt())
from anynest.cli import main
sys.exit(main(["evaluate", "no_such_run"]))
"""


@pytest.mark.parametrize("module", ["argparse", "anynest.training", "torch", "torch._C"])
def test_ctrl_c_while_a_package_is_imported(module: str) -> None:
    code = f"MODULE = {module!r}\n{INTERRUPTED_IMPORT}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (130, "anynest: stopped\n", "")


@pytest.mark.parametrize(
    ("command", "status", "shown"),
    [
        ("models >&-", 0, ""),
        ("models width_nested_resnet10 >&- <&-", 0, ""),
        ("models --json >&- 2>&-", 0, ""),
        ("models --frobnicate 2>&-", 2, ""),
        ("models 2>&1 | true", 0, ""),
        ("models width_nested_resnet10 2>&1 | true", 0, ""),
        ("models > /dev/full", 2, "anynest: [Errno 28] No space left on device\n"),
        ("models --frobnicate 2> /dev/full", 2, ""),
    ],
)
def test_closed_and_full_streams(command: str, status: int, shown: str) -> None:
    if "/dev/full" in command and not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    line = f"set -o pipefail; {sys.executable} -m anynest {command}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (status, shown, "")


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with modules named as the standard library's; the file they write."""
    marker = tmp_path / "imported"
    for name in ("json", "pickle", "random", "socket", "struct", "tempfile", "threading"):
        (tmp_path / f"{name}.py").write_text(f"open({str(marker)!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(tmp_path)
    return marker


def test_workers_of_a_sweep_ignore_the_current_folder(hostile: Path) -> None:
    worker = LocalLauncher(1).start()
    assert worker.process.stdin is not None
    worker.process.stdin.close()
    assert worker.process.wait(120) == 0
    assert not hostile.exists()
    assert worker.process.stdout is not None
    worker.process.stdout.close()


@pytest.mark.slow
def test_demo(hostile: Path, capsys: Out) -> None:
    before = os.environ.get("PYTHONSAFEPATH")
    assert main(["demo", "--epochs", "1", "--out", "demo", "--json"]) == 0
    assert os.environ.get("PYTHONSAFEPATH") == before
    report = json.loads(capsys.readouterr().out)
    networks = report["networks"]
    assert list(networks) == ["nested", "plain-1", "plain-2", "plain-3"]
    deadlines = [result["deadline"] for result in networks["nested"]]
    assert deadlines == sorted(deadlines)
    for results in networks.values():
        assert [result["deadline"] for result in results] == deadlines
        for result in results:
            answers = result["guessed"] + sum(result["stages"])
            assert answers == result["images"] == report["images"] == 180
    assert [len(result["stages"]) for result in networks["plain-3"]] == [1] * len(deadlines)
    shown = report["example"]
    assert [round(sum(stage["probabilities"]), 3) for stage in shown["stages"]] == [1, 1, 1]
    assert Path(report["picture"]).read_bytes().startswith(b"\x89PNG")
    assert not hostile.exists()
    text = "\n".join(line for line, _ in next_commands(Path("demo/nested"), report))
    predict, profile, serve = text.splitlines()
    assert parse(shlex.split(serve)[1:])
    command, _, deadline = predict.rpartition(" ")
    assert deadline.endswith("ms")
    assert main([*shlex.split(command)[1:], "60s", "--json"]) == 0
    assert "label" in capsys.readouterr().out
    assert main([*shlex.split(profile)[1:], "--rounds", "1"]) == 0


@pytest.mark.slow
def test_demo_compares_methods(hostile: Path, capsys: Out) -> None:
    before = dict(os.environ)
    line = "demo --compare --epochs 1 --seeds 1 --out demo"
    assert main(line.split()) == 0
    assert dict(os.environ) == before  # later child processes find the modules beside a script
    shown = capsys.readouterr().out
    assert "OSGD" in shown
    assert "1 seed, 1 epoch each" in shown
    assert "deviation" not in shown
    assert "(0.0)" not in shown
    assert "reduced run" in shown
    assert shown.rstrip().endswith("picture: demo/demo.png")
    assert Path("demo/demo.png").read_bytes().startswith(b"\x89PNG")
    assert not hostile.exists()
