"""Sweeps: done cells stay done, killed workers' cells go on, nothing is lost or counted twice."""

import json
import os
import re
import signal
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from anynest.data import Dataset
from anynest.experiments.catalog.cell import Cell, overlay
from anynest.experiments.catalog.experiment import Run
from anynest.experiments.catalog.protocols import Protocol
from anynest.experiments.results.evidence import Evidence
from anynest.experiments.results.records import add_results, read_results
from anynest.experiments.sweep import job as job_module
from anynest.experiments.sweep.job import (
    COSINE_EPOCHS,
    Job,
    describe,
    finished_record,
    load_once,
    revision,
    run_job,
    thinned_cosines,
)
from anynest.experiments.sweep.launcher import Event
from anynest.experiments.sweep.local_launcher import LocalLauncher
from anynest.experiments.sweep.sweep import Sweep
from anynest.store import RunError, RunFolderError, load
from anynest.training import DataConfig, DivergedError
from anynest.training.output.reporting import NullReporter
from anynest.training.output.run_folder import RunFolder

LABEL = "digits (200 training images)"


class Here:
    """A launcher in this process; ``stop_after`` jobs it is interrupted."""

    def __init__(self, stop_after: int = 10**6) -> None:
        self.stop_after = stop_after
        self.trained: list[str] = []

    def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        for number, job in enumerate(jobs):
            if number >= self.stop_after:
                raise KeyboardInterrupt
            self.trained.append(job.cell.key)
            yield Event("done", job, record=run_job(job))


def test_a_sweep_goes_on_where_it_stood(
    tmp_path: Path, cells: list[Cell], make_sweep: Callable[..., Sweep]
) -> None:
    said: list[str] = []
    sweep = make_sweep(cells, tmp_path, say=said.append)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(Here(stop_after=1))
    assert len(read_results(sweep.results)) == 1
    launcher = Here()
    lines = sweep.run(launcher)
    assert launcher.trained == [cell.key for cell in cells[1:]]
    assert [line["key"] for line in read_results(sweep.results)] == [c.key for c in cells]
    assert set(lines) == {cell.key for cell in cells}
    assert "3 cells, 1 done" in said
    assert said[-1].startswith("  2 of 2: oracle-width-1, sgd-mean, seed 0: error % per stage ")
    idle = Here()
    assert sweep.run(idle) == lines
    assert idle.trained == []


def test_a_line_tells_all_that_a_number_needs(tmp_path: Path, cells: list[Cell]) -> None:
    line = run_job(Job(cells[1], tmp_path, "digits", {"device": "cpu", "threads": 1}))
    cell = cells[1]
    assert (line["key"], line["protocol"], line["data"]) == (cell.key, "tiny", LABEL)
    assert (line["design"], line["variant"], line["seed"]) == ("width", "osgd", 0)
    summary = json.loads((cell.folder(tmp_path) / "summary.json").read_text())
    assert line["error"] == summary["test"]["error"]
    assert line["validation_error"] == summary["validation"]["error"] != line["error"]
    assert (line["test_images"], line["train_images"], line["epochs"]) == (360, 200, 2)
    assert len(line["multiply_adds"]) == len(line["parameters"]) == len(line["error"]) == 2
    assert line["parameters"][1] > line["parameters"][0]
    assert [entry["epoch"] for entry in line["cosines"]] == [1, 2]
    assert -1 <= line["cosines"][0]["cosines"][0][0] <= 1
    assert line["settings"] == cell.settings
    assert line["environment"]["threads"] == line["machine"]["threads"] == 1
    assert line["machine"]["precision"] == "float32"
    assert "seed" not in line["machine"]
    assert {"torch", "processor"} <= set(line["environment"])
    assert line["revision"] == revision()
    assert line["seconds"] > 0
    assert json.loads(json.dumps(line, allow_nan=False)) == line
    assert finished_record(cell, tmp_path) == line
    assert finished_record(cells[0], tmp_path) is None


def test_every_measure_is_told_under_its_own_name(tmp_path: Path, cells: list[Cell]) -> None:
    cell, machine = cells[1], {"device": "cpu", "threads": 1}
    before = run_job(Job(cell, tmp_path, "digits", machine))
    assert "top5_error" not in before
    folder = RunFolder(cell.folder(tmp_path))
    summary = json.loads(folder.summary.read_text())
    test = {"error": [0.4, 0.3], "top5_error": [0.2, 0.1], "loss": [1.5, 1.25], "images": 7}
    summary |= {"test": test, "epochs": 5, "training_seconds": 2.5}
    summary["train"] |= {"error": [0.0625, 0.03125]}
    folder.summary.write_text(json.dumps(summary))
    line = describe(cell, folder, load_once(cell.config("digits", machine).data))
    told = {key: line[key] for key in ("error", "top5_error", "loss")}
    assert told | {"images": line["test_images"]} == test
    assert (line["train_error"], line["epochs"]) == ([0.0625, 0.03125], 5)
    assert line["seconds"] == 2.5
    changed = {*test, "test_images", "train_error", "epochs", "seconds", "finished"}
    assert {k: v for k, v in line.items() if k not in changed} == {
        k: v for k, v in before.items() if k not in changed
    }


def test_the_test_split_is_never_told_as_the_one_held_out(
    tmp_path: Path, cells: list[Cell]
) -> None:
    settings = overlay(cells[1].settings, {"data": {"holdout": 0}})
    cell = replace(cells[1], settings=settings)
    line = run_job(Job(cell, tmp_path, "digits", {"device": "cpu", "threads": 1}))
    assert "validation_error" not in line


@pytest.mark.parametrize(
    ("measured", "told"), [(0, 0), (1, 1), (20, 20), (21, 10), (39, 19), (40, 20), (41, 13)]
)
def test_cosines_are_told_of_few_epochs_evenly_spaced(measured: int, told: int) -> None:
    history = [{"epoch": n, "cosines": [[1.0, 0.5], [0.5, 1.0]]} for n in range(1, measured + 1)]
    found = [entry["epoch"] for entry in thinned_cosines([{"epoch": 0, "cosines": None}, *history])]
    assert len(found) == told <= COSINE_EPOCHS
    step = found[0] if found else 1
    assert found == [step * n for n in range(1, told + 1)]
    assert measured - step < (found[-1] if found else 1) <= max(measured, 1)


def test_finished_folders_count_where_the_results_file_was_lost(
    tmp_path: Path, cells: list[Cell], make_sweep: Callable[..., Sweep]
) -> None:
    sweep = make_sweep(cells[:2], tmp_path)
    lines = sweep.run(Here())
    sweep.results.unlink()
    idle = Here()
    assert sweep.run(idle) == lines
    assert idle.trained == []
    assert len(read_results(sweep.results)) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "result.json is no result: it must be an object with kind"),
        ('{"kind": "cell", "key": "k", "protocol": "tiny", "data": "d"}', "design must be a text"),
        ("", "must hold JSON"),
    ],
)
def test_a_damaged_result_of_a_finished_folder_is_refused(
    tmp_path: Path, cells: list[Cell], make_sweep: Callable[..., Sweep], text: str, words: str
) -> None:
    sweep = make_sweep(cells[:1], tmp_path)
    (line,) = sweep.run(Here()).values()
    sweep.results.unlink()
    result = cells[0].folder(tmp_path) / "result.json"
    result.write_text(text)
    with pytest.raises(RunFolderError, match=words):
        sweep.run(Here())
    result.write_text(json.dumps({**line, "key": "k"}))
    with pytest.raises(RunFolderError, match="must be the result of cell"):
        sweep.run(Here())
    result.unlink()  # as the message says
    (again,) = sweep.run(Here()).values()
    assert again["error"] == line["error"]


def test_results_without_folders_count_unless_the_weights_are_wanted(
    tmp_path: Path, cells: list[Cell], make_sweep: Callable[..., Sweep]
) -> None:
    made = make_sweep(cells[:2], tmp_path / "a")
    made.run(Here())
    elsewhere = make_sweep(cells[:2], tmp_path / "b", results=made.results)
    idle = Here()
    elsewhere.run(idle)
    assert idle.trained == []
    wanting = make_sweep(
        cells[:2], tmp_path / "b", results=made.results, weights=frozenset([cells[1].key])
    )
    again = Here()
    wanting.run(again)
    assert again.trained == [cells[1].key]
    assert len(read_results(made.results)) == 2  # its line is there once


def test_lines_of_other_images_are_other_cells(
    tmp_path: Path, cells: list[Cell], make_sweep: Callable[..., Sweep]
) -> None:
    sweep = make_sweep(cells[:1], tmp_path)
    (line,) = sweep.run(Here()).values()
    add_results(tmp_path / "other.jsonl", [{**line, "data": "CIFAR-10"}])
    (tmp_path / "c").mkdir()
    fresh = make_sweep(cells[:1], tmp_path / "c", results=tmp_path / "other.jsonl")
    launcher = Here()
    fresh.run(launcher)
    assert launcher.trained == [cells[0].key]
    assert [entry["data"] for entry in read_results(tmp_path / "other.jsonl")] == [
        "CIFAR-10",
        LABEL,
    ]


def test_a_cell_goes_on_within_and_equals_an_uninterrupted_one(
    tmp_path: Path, cells: list[Cell]
) -> None:
    machine = {"device": "cpu", "threads": 1, "save_batches": 1}

    class Stop(NullReporter):
        count = 0

        def batch(self, label: str, images: int) -> None:
            self.count += 1
            if self.count == 6:  # of 8
                raise KeyboardInterrupt

    job = Job(cells[1], tmp_path / "cut", "digits", machine)
    with pytest.raises(KeyboardInterrupt):
        run_job(job, Stop())
    assert finished_record(cells[1], tmp_path / "cut") is None

    class Count(NullReporter):
        batches = 0

        def batch(self, label: str, images: int) -> None:
            self.batches += 1

    rest = Count()
    cut = run_job(job, rest)
    assert rest.batches <= 3
    whole = run_job(Job(cells[1], tmp_path / "whole", "digits", machine))
    assert cut["error"] == whole["error"]
    weights = [load(cells[1].folder(tmp_path / name)).state_dict() for name in ("cut", "whole")]
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights), strict=True))


def test_a_rate_that_diverges_has_a_record(tmp_path: Path, tiny: Protocol) -> None:
    """Its answers count as wrong, so that the other rates can be compared; it is trained once."""
    machine = {"device": "cpu", "threads": 1}
    cell = Run("width", "osgd+lr=1e30").cell(tiny, 0)
    record = run_job(Job(cell, tmp_path, "digits", machine))
    assert record["error"] == record["validation_error"] == [1.0, 1.0]
    assert re.search(r"loss of stage \d is (nan|inf)|not finite", record["diverged"])
    assert len(record["multiply_adds"]) == 2
    assert finished_record(cell, tmp_path) == record
    found = Evidence.of([record], tiny, LABEL)
    assert found.errors("width", "osgd+lr=1e30") == {0: [100.0, 100.0]}
    monkey = {**tiny.families["cifar"], "optimizer": {"name": "sgd", "lr": 1e30}}
    plain = Run("width", "osgd").cell(replace(tiny, families={**tiny.families, "cifar": monkey}), 0)
    with pytest.raises(DivergedError):  # the protocol's own rate: no result
        run_job(Job(plain, tmp_path, "digits", machine))


def test_images_may_move_while_a_cell_is_trained(
    tmp_path: Path, cells: list[Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    load_once = job_module.load_once

    def load(config: DataConfig) -> Dataset:
        read.append(config.source)
        return load_once(replace(config, source="digits"))

    class Stop(NullReporter):
        def batch(self, label: str, images: int) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(job_module, "load_once", load)
    machine = {"device": "cpu", "threads": 1, "save_batches": 1}
    with pytest.raises(KeyboardInterrupt):
        run_job(Job(cells[0], tmp_path, "here", machine), Stop())
    run_job(Job(cells[0], tmp_path, "there", machine))
    assert read == ["here", "there"]


def test_folders_may_move_but_hold_one_run(tmp_path: Path, cells: list[Cell]) -> None:
    machine = {"device": "cpu", "threads": 1}
    run_job(Job(cells[0], tmp_path / "a", "digits", machine))
    moved = tmp_path / "b"
    (tmp_path / "a").rename(moved)
    assert run_job(Job(cells[0], moved, "elsewhere", machine))["key"] == cells[0].key
    folder = cells[0].folder(moved)
    folder.rename(cells[1].folder(moved))
    with pytest.raises(RunFolderError, match="holds another run"):
        run_job(Job(cells[1], moved, "digits", machine))
    folder = RunFolder(cells[0].folder(moved / "c"))
    other = cells[0].config("digits", {**machine, "precision": "bf16"})
    folder.start(other)
    with pytest.raises(RunFolderError, match="holds another run"):
        run_job(Job(cells[0], moved / "c", "digits", machine))


def test_two_sweeps_in_one_folder_are_one_too_many(
    tmp_path: Path, cells: list[Cell], make_sweep: Callable[..., Sweep]
) -> None:
    inner = make_sweep(cells[:1], tmp_path)

    class Within(Here):
        def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
            with pytest.raises(RunFolderError, match="another sweep works in"):
                inner.run(Here())
            yield from super().run(jobs)

    make_sweep(cells[:1], tmp_path).run(Within())


@pytest.mark.slow
def test_workers_of_which_one_is_killed(
    tmp_path: Path, cells: list[Cell], make_sweep: Callable[..., Sweep]
) -> None:
    """Two real workers; one is killed within a cell. A cell that cannot be trained fails alone."""
    broken = Cell("tiny", "width", "broken", 0, {**cells[0].settings, "model": {"name": "none"}})
    launcher = LocalLauncher(2)
    events: list[Event] = []
    killed: list[Cell] = []

    class Watched:
        def run(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
            for event in launcher.run(jobs):
                events.append(event)
                if event.kind == "epoch" and event.epoch == 1 and not killed:
                    victims = [w for w in launcher.workers.values() if w.job == event.job]
                    killed.append(event.job.cell)
                    os.kill(victims[0].process.pid, signal.SIGKILL)
                yield event

    sweep = make_sweep([*cells, broken], tmp_path)
    with pytest.raises(RunError, match=r"1 cell failed: width, broken, seed 0: .*none"):
        sweep.run(Watched())
    keys = [line["key"] for line in read_results(sweep.results)]
    assert sorted(keys) == sorted(cell.key for cell in cells)
    again = [event.job.cell for event in events if event.kind == "again"]
    assert again == killed
    ended = [event.job.cell.key for event in events if event.kind in ("done", "failed")]
    assert sorted(ended) == sorted(cell.key for cell in [*cells, broken])
    (line,) = [entry for entry in read_results(sweep.results) if entry["key"] == killed[0].key]
    whole = run_job(Job(killed[0], tmp_path / "whole", "digits", {"device": "cpu", "threads": 1}))
    assert line["error"] == whole["error"]
    assert launcher.workers == {}


def test_a_worker_that_always_dies_fails_its_cell(
    tmp_path: Path, cells: list[Cell], make_sweep: Callable[..., Sweep]
) -> None:
    launcher = LocalLauncher(1, ["false"])
    with pytest.raises(RunError, match=r"2 cells failed: .*ended 3 times \(exit status 1\)"):
        make_sweep(cells[:2], tmp_path).run(launcher)
    assert read_results(tmp_path / "tiny.jsonl") == []


@pytest.mark.slow
def test_workers_do_not_import_from_the_current_folder(
    tmp_path: Path,
    cells: list[Cell],
    make_sweep: Callable[..., Sweep],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    make_sweep(cells[:1], tmp_path).run(LocalLauncher(1))
    assert [line["key"] for line in read_results(tmp_path / "tiny.jsonl")] == [cells[0].key]
