"""A protocol so small that a cell takes a fraction of a second."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any

import pytest

from anynest.cli.commands import reproduce
from anynest.experiments.catalog import protocols
from anynest.experiments.catalog.cell import Cell
from anynest.experiments.catalog.experiment import Run, cells_of
from anynest.experiments.catalog.protocols import Protocol
from anynest.experiments.sweep.job import Job, run_job
from anynest.experiments.sweep.launcher import Event
from anynest.experiments.sweep.sweep import Sweep

SETTINGS = {
    "data": {"batch_size": 50, "limit": 200, "holdout": 50, "evaluation_batch_size": 360},
    "optimizer": {"name": "sgd", "lr": 0.05},
    "schedule": {"epochs": 2, "shape": "constant"},
}
LABEL = "digits (200 training images)"


def small(growth: list[list[int]], base: str = "width_nested_resnet10") -> dict[str, object]:
    """A tiny member of a family."""
    return {
        "name": base,
        "growth": growth,
        "base_width": 1,
    }


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Protocol:
    """Registered for the test under the name "tiny"; every design has three small stages at most."""
    width, depth = [[1, 1], [2, 1]], [[1, 1], [1, 2]]
    sparse = "depth_nested_sparse_resnet14"
    protocol = Protocol(
        "tiny",
        "for tests",
        {"cifar": SETTINGS, "imagenet": SETTINGS},
        models={
            "width": small(width),
            "even": small(width, "even_width_resnet10"),
            "depth": small(depth, sparse),
            "eann": small(depth, "cascade_sparse_resnet26"),
            "alternating": small([[1, 1], [2, 1], [2, 2]], "alternating_nested_sparse_resnet14"),
            "simultaneous": small([[1, 1], [2, 2]], "simultaneous_nested_sparse_resnet26"),
        },
    )
    monkeypatch.setitem(protocols.PROTOCOLS, "tiny", protocol)
    return protocol


class InProcessLauncher:
    """Runs jobs in this process."""

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        for job in jobs:
            yield Event("done", job, record=run_job(job))


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """``anynest reproduce`` trains in this process: a worker takes seconds to start."""
    monkeypatch.setattr(reproduce, "make_launcher", lambda arguments: InProcessLauncher())


@pytest.fixture
def runs() -> list[Run]:
    """Three runs of one small network."""
    return [Run("width", "sgd-mean"), Run("width", "osgd"), Run("width", "sgd-mean", 1)]


@pytest.fixture
def make_sweep() -> Callable[..., Sweep]:
    """Makes a sweep of given cells on the digits."""

    def make(cells: list[Cell], out: Path, **changes: Any) -> Sweep:
        machine = {"device": "cpu", "threads": 1, "save_batches": 1}
        given = {"results": out / "tiny.jsonl", "label": LABEL, "machine": machine, **changes}
        return Sweep(cells, out, source="digits", **given)

    return make


@pytest.fixture
def cells(tiny: Protocol, runs: list[Run]) -> list[Cell]:
    """Three cells."""
    return cells_of(runs, tiny, 1)
