"""Tables from lines: mean, deviation and n, the paper's numbers only where they belong."""

import io
import math
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from anynest.experiments.catalog.experiment import Run
from anynest.experiments.catalog.experiments import EXPERIMENTS
from anynest.experiments.catalog.paper import Printed
from anynest.experiments.catalog.protocols import FAST, MICRO, PAPER, Protocol
from anynest.experiments.results.tabulate import Entry, ErrorTable, table_of
from anynest.experiments.sweep import estimate as estimating
from anynest.training import TrainConfig
from anynest.training.step import TrainStep

CIFAR = "CIFAR-10"


def line(
    run: Run, protocol: Protocol, seed: int, errors: list[float], data: str = CIFAR
) -> dict[str, Any]:
    cell = run.cell(protocol, seed)
    return {
        "kind": "cell",
        "key": cell.key,
        "protocol": protocol.name,
        "data": data,
        "error": errors,
        "seconds": 10.0 + seed,
        "settings": cell.settings,
    }


def test_mean_deviation_n_and_what_is_missing() -> None:
    run = Run("width", "osgd")
    lines = [line(run, PAPER, s, [0.12, 0.09, 0.07 + 0.002 * s]) for s in (0, 2)]
    table = table_of(EXPERIMENTS["table1"], PAPER, 3, lines)
    entry = table.entry(run, 3)
    assert entry is not None
    assert entry.values == pytest.approx((7.0, 7.4))
    assert (entry.n, entry.mean) == (2, pytest.approx(7.2))
    assert entry.deviation == pytest.approx(math.sqrt(0.08))
    assert entry.paper == Printed(7.3, 0.3, "Table 1")
    assert entry.difference == pytest.approx((7.2 - 7.3) / math.hypot(0.3, math.sqrt(0.08)))
    assert entry.text() == "7.2 (0.3)"
    assert len(table.missing) == 4 * 6 * 3 - 2
    assert "width, osgd, seed 1" in table.missing
    assert table.data == (CIFAR,)
    empty = table.entry(Run("width", "greedy"), 1)
    assert empty is not None
    assert (empty.n, empty.text(), empty.difference) == (0, "-", None)
    json_row = next(r for r in table.to_json()["rows"] if r["variant"] == "osgd")
    assert json_row["stages"][0]["n"] == 0 or json_row["design"] == "width"


def test_the_papers_numbers_stand_beside_networks_of_its_size_alone() -> None:
    for protocol, wanted in ((PAPER, True), (FAST, True), (MICRO, False)):
        known = [line(Run("depth", "osgd"), protocol, 0, [0.1, 0.08, 0.07, 0.06])]
        table = table_of(EXPERIMENTS["table1"], protocol, 1, known)
        for design in (
            "depth",
            "width",
            "alternating",
            "simultaneous",
        ):  # micro's width nested network has the paper's growth, not its size
            entry = table.entry(Run(design, "osgd"), 1)
            assert entry is not None
            assert (entry.paper is not None) == wanted
    assert Entry(1, (7.0,), Printed(7.0, 0.1)).difference is None  # one seed has no deviation
    oracle = table_of(EXPERIMENTS["fig9"], PAPER, 1, known).entry(Run("width", "sgd-mean", 2), 1)
    assert oracle is not None
    assert oracle.paper is None


def shown(table: ErrorTable) -> list[str]:
    console = Console(file=io.StringIO(), width=80)
    table.show(console)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_the_papers_numbers_stand_below_ours_on_its_data_alone() -> None:
    name, errors = ("width", "osgd"), [0.12, 0.09, 0.07]
    for data, wanted in (
        (CIFAR, True),
        ("CIFAR-10 (JPEG-75)", True),
        ("CIFAR-100", False),
        ("digits", False),
    ):
        lines = [line(Run(*name), PAPER, s, [e + 0.002 * s for e in errors], data) for s in (0, 1)]
        table = table_of(EXPERIMENTS["table1"], PAPER, 2, lines)
        row = next(r for r in table.to_json()["rows"] if (r["design"], r["variant"]) == name)
        assert {(s["paper"] is None, s["difference"] is None) for s in row["stages"]} == {
            (not wanted, not wanted)
        }
        said = shown(table)
        ours = next(i for i, text in enumerate(said) if "7.1 (0.1)" in text)
        assert ("7.3 (0.3)" in said[ours + 1]) == wanted  # 7.3 (0.3) is the paper's
        assert any(" paper " in text for text in said if "│" in text) == wanted


def test_shown_with_protocol_and_data() -> None:
    run = Run("depth", "osgd")
    table = table_of(
        EXPERIMENTS["table1"], PAPER, 1, [line(run, PAPER, 0, [0.1, 0.08, 0.07, 0.06])]
    )
    console = Console(file=io.StringIO(), width=200)
    table.show(console)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "Table 1, depth" in said
    assert "CIFAR-10, protocol paper" in said
    assert "4 d8" in said
    assert "6.0" in said
    assert "missing: 23 of the cells" in said


def test_estimates_from_finished_cells_and_from_steps(
    tiny: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = Run("width", "osgd"), Run("width", "greedy")
    known = [line(run, tiny, seed, [0.5]) for seed in (0, 1)]
    cells = [run.cell(tiny, 2), other.cell(tiny, 0), other.cell(tiny, 1)]
    machine = {"device": "cpu", "threads": 1}
    data: Any = SimpleNamespace(train=range(200), image_size=8, in_channels=1, num_classes=10)
    measured = estimating.estimate(cells[1:2], [], data, machine)
    assert measured[cells[1].key] > 0
    steps: list[tuple[int, ...]] = []

    def seconds_per_step(config: TrainConfig, step: TrainStep, *rest: object) -> float:
        steps.append(tuple(step.phase.stages))
        return 0.5

    monkeypatch.setattr(estimating, "seconds_per_step", seconds_per_step)
    found = estimating.estimate(cells, known, data, machine)
    assert found[cells[0].key] == 10.5  # the median of its like
    # two phases of two epochs with four batches of 50 images
    assert found[cells[1].key] == found[cells[2].key] == 2 * 2 * 4 * 0.5
    assert len(steps) == 2  # measured once, each phase
