"""Ranks against one process on the joined batch: every method, on two and on four gloo ranks.

The cases are in rank_cases.py, and run in processes of their own, all of one world together.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from anynest.multitask import OSGD

CASES = Path(__file__).with_name("rank_cases.py")

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available() and hasattr(os, "fork")),
    reason="needs gloo and fork",
)


def run_world(world: int, folder: Path) -> dict[str, list[str]]:
    """Each case's errors, from one run of all; a run that hangs is ended with its processes."""
    process = subprocess.Popen(
        [sys.executable, CASES, str(world), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        output, _ = process.communicate(timeout=560)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    found: dict[str, list[str]] = json.loads(output.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_are_one_process(world: int, tmp_path: Path) -> None:
    """One test per world: distributed over test processes, each would start the ranks again."""
    found = run_world(world, tmp_path)
    assert len(found) > 20
    wrong = {case: errors for case, errors in found.items() if errors}
    assert not wrong, "\n".join(f"{case}: {' '.join(errors)}" for case, errors in wrong.items())


def test_a_group_must_be_one() -> None:
    with pytest.raises(TypeError, match="group must be a process group, found str"):
        OSGD(group="world")
    w = torch.nn.Parameter(torch.ones(2))
    assert OSGD(group=None).backward([w.sum()], [w], samples=3).sent_bytes == 0


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux's sockets")
def test_the_sockets_send_what_is_reckoned(tmp_path: Path) -> None:
    """What the kernel says was sent is (S + 1) P or so, and less than whole gradients take."""
    script = Path(__file__).parents[3] / "benchmarks" / "wire.py"
    command = [sys.executable, script, "--models", "heads-4", "--ranks", "2", "--steps", "1"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [*command, "--json", tmp_path / "wire.json"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads((tmp_path / "wire.json").read_text())["results"]
    rows = {row["step"]: row for row in result["rows"]}
    for row in rows.values():
        if row["counted"]:
            assert row["counted"] == pytest.approx(row["reckoned"], rel=0.01)
        if row["sockets"] is not None:
            assert row["sockets"] == pytest.approx(row["reckoned"], rel=0.02)
    ours, whole = rows["OSGD"], rows["OSGD, every gradient all-reduced"]
    assert ours["reckoned"] == 4 * (result["touched"] + result["parameters"]) / 2
    assert ours["reckoned"] < 0.65 * whole["reckoned"]


ONE_RANK = """
import os
import torch
import torch.distributed as dist
from anynest import OSGD

dist.init_process_group("gloo", rank=0, world_size=1, store=dist.HashStore())
weight = torch.nn.Parameter(torch.ones(4))
optimizer = torch.optim.SGD([weight], lr=0.1)
OSGD(group=dist.group.WORLD).backward([(weight**2).sum(), (weight**3).sum()], [weight])
optimizer.step()
dist.destroy_process_group()
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
print(sum("gloo" in name for name in names))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
def test_nothing_keeps_a_group_that_was_destroyed() -> None:
    """Its threads would otherwise outlive it, and now and then abort the process as it ends."""
    done = subprocess.run(
        [sys.executable, "-c", ONE_RANK], capture_output=True, text=True, timeout=500
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["0"]
