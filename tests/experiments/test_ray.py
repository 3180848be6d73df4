"""A sweep on a real Ray cluster of two workers on this machine, one of which is killed."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anynest.experiments.catalog.cell import Cell, overlay
from anynest.experiments.results.records import read_results
from anynest.experiments.sweep.job import Job, run_job
from anynest.experiments.sweep.launcher import Event
from anynest.experiments.sweep.ray_launcher import RayLauncher, import_ray
from anynest.experiments.sweep.sweep import Sweep
from anynest.training import ConfigError


def test_without_ray_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'anynest\[ray\]'"):
        import_ray()


def kill_a_worker(out: Path, cells: list[Cell], seconds: float = 300) -> Cell:
    """Kill the process that trains some cell, which has a checkpoint; that cell."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for cell in cells:
            folder = cell.folder(out)
            if any(folder.glob("checkpoints/*.ckpt")) and not (folder / "summary.json").exists():
                for pid in holders(folder / "run.lock"):
                    os.kill(pid, signal.SIGKILL)
                    return cell
        time.sleep(0.01)
    raise AssertionError("no cell was under way")


def holders(path: Path) -> list[int]:
    """The processes that have a file open."""
    found = []
    for handle in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(handle) == str(path):
                found.append(int(handle.parts[2]))
    return found


@pytest.fixture
def long_cells(cells: list[Cell]) -> list[Cell]:
    """Long enough to be caught at work."""
    longer = {"schedule": {"epochs": 30}}
    return [replace(cell, settings=overlay(cell.settings, longer)) for cell in cells[:4]]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # Ray's own
def test_a_worker_is_killed_in_mid_sweep(
    tmp_path: Path,
    long_cells: list[Cell],
    monkeypatch: pytest.MonkeyPatch,
    make_sweep: Callable[..., Sweep],
) -> None:
    pytest.importorskip("ray", reason="the launcher for clusters needs the extra: anynest[ray]")
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    strangers = tmp_path / "current"
    strangers.mkdir()
    (strangers / "safetensors.py").write_text("raise RuntimeError('from the current folder')")
    monkeypatch.chdir(strangers)  # workers import nothing from it
    cells, launcher = long_cells, RayLauncher(2)
    events: list[Event] = []
    victim: list[Cell] = []

    class Watched:
        def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
            for event in launcher.run(jobs):
                events.append(event)
                if event.kind == "begun" and len(events) == 2:  # two are under way
                    victim.append(kill_a_worker(tmp_path, cells))
                yield event

    broken = Cell("tiny", "width", "broken", 0, {**cells[0].settings, "model": {"name": "none"}})
    sweep = make_sweep([*cells, broken], tmp_path)
    with pytest.raises(RuntimeError, match="1 cell failed: width, broken, seed 0"):
        sweep.run(Watched())
    lines = read_results(sweep.results)
    assert sorted(line["key"] for line in lines) == sorted(cell.key for cell in cells)
    assert [event.job.cell for event in events if event.kind == "again"] == victim
    ended = [event.job.cell.key for event in events if event.kind in ("done", "failed")]
    assert len(ended) == len(set(ended)) == len(cells) + 1
    (line,) = [entry for entry in lines if entry["key"] == victim[0].key]
    machine: dict[str, Any] = {"device": "cpu", "threads": 1}
    whole = run_job(Job(victim[0], tmp_path / "whole", "digits", machine))
    assert line["error"] == whole["error"]
