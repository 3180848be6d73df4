"""``anynest demo``: SGD against OSGD on the digits, in a minute or two on two cores."""

import argparse
import multiprocessing
import os
import signal
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from ...store.hardware import usable_cores
from ...training import Interrupted, TrainConfig, train
from ...training.output.reporting import clock, counted
from ...training.output.run_folder import RunFolder
from ..console import Console, make_table, print_json
from .demo_picture import draw

MODEL = "simultaneous_nested_sparse_resnet26"
METHODS = {
    "sgd-mean": "SGD (mean of losses)",
    "sgd-sum": "SGD (sum of losses)",
    "osgd": "OSGD",
}
Job = tuple[str, int, int, Path]  # method, seed, epochs, the demo's folder


def demo_config(method: str, seed: int, epochs: int) -> TrainConfig:
    """One run of the demo."""
    return TrainConfig.from_json(
        {
            "model": {"name": MODEL},
            "data": {"source": "digits", "batch_size": 64},
            "method": {"name": method},
            "schedule": {"epochs": epochs, "shape": "cosine"},
            "optimizer": {"lr": 0.1},
            "run": {"seed": seed, "device": "cpu", "threads": 1},
        }
    )


def run(arguments: argparse.Namespace) -> int:
    """Train every method with every seed, then print and draw."""
    console = Console(stderr=arguments.json)
    folder = Path(arguments.out or f"runs/demo-{datetime.now():%Y%m%d-%H%M%S}")
    RunFolder(folder).require_unused()
    epochs, seeds = arguments.epochs, arguments.seeds
    console.print(
        f"{MODEL} on scikit-learn's digits: {len(METHODS)} methods, {counted(seeds, 'seed')}, "
        f"{counted(epochs, 'epoch')} each, into {folder}"
    )
    try:
        report = compare(console, folder, epochs, seeds)
    except (KeyboardInterrupt, Interrupted) as error:
        raise Interrupted(
            f"stopped; finished runs remain in {folder}, but a demo does not resume: the next one "
            "needs another folder",
            signal.SIGINT,
        ) from error
    if arguments.json:
        print_json(report)
    else:
        show(console, report)
    return 0


def compare(console: Console, folder: Path, epochs: int, seeds: int) -> dict[str, Any]:
    """Train every method with every seed, and draw; returns the report."""
    began = time.monotonic()
    jobs = [(method, seed, epochs, folder) for seed in range(seeds) for method in METHODS]
    results: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for number, (job, summary) in enumerate(zip(jobs, train_all(jobs), strict=True), start=1):
        results[job[0]].append(summary)
        elapsed = time.monotonic() - began
        console.print(
            f"  {number} of {len(jobs)}: {job[0]}, seed {job[1]}, "
            f"{summary['training_seconds']:.1f} s of training; "
            f"{clock(elapsed / number * (len(jobs) - number))} left"
        )
    picture = folder / "demo.png"
    report = {
        "model": MODEL,
        "epochs": epochs,
        "seeds": seeds,
        "images": results["osgd"][0]["test"]["images"],
        "error": {m: [s["test"]["error"] for s in runs] for m, runs in results.items()},
        "seconds": time.monotonic() - began,
        "picture": str(picture),
        "environment": results["osgd"][0]["environment"],
    }
    draw(report, METHODS, folder, picture)
    return report


def train_all(jobs: list[Job]) -> Iterator[dict[str, Any]]:
    """Yield every run's summary, in order. Runs are processes of one thread each: on such a small
    network a second thread gains little."""
    processes = min(len(jobs), usable_cores())
    context = multiprocessing.get_context("spawn")
    with safe_path(), ProcessPoolExecutor(processes, mp_context=context) as pool:
        try:
            yield from pool.map(train_one, jobs)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


@contextmanager
def safe_path() -> Iterator[None]:
    """Interpreters started within import no modules of the current folder, such as a json.py."""
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def train_one(job: Job) -> dict[str, Any]:
    """Train one run; called in a process of its own."""
    method, seed, epochs, folder = job
    return train(demo_config(method, seed, epochs), folder / f"{method}-seed{seed}").summary


def show(console: Console, report: dict[str, Any]) -> None:
    """Print the table, its limits and the picture's path."""
    seeds = report["seeds"]
    worth = f"mean of {seeds} seeds (standard deviation)" if seeds > 1 else "1 seed"
    rows = []
    for index in range(len(report["error"]["osgd"][0])):
        row = [str(index + 1)]
        for method in METHODS:
            errors = [100 * run[index] for run in report["error"][method]]
            spread = f" ({statistics.stdev(errors):.1f})" if seeds > 1 else ""
            row.append(f"{statistics.mean(errors):.1f}{spread}")
        rows.append(row)
    title = f"test error %, {report['images']} images, {worth}"
    console.print(make_table(title, ["stage", *METHODS.values()], rows))
    noise = (
        "differences of the size of the deviation mean nothing"
        if seeds > 1
        else "1 seed does not tell a difference from chance"
    )
    console.print(
        "A reduced run: small images, a small network, "
        f"{counted(report['epochs'], 'epoch')}. One image is "
        f"{100 / report['images']:.1f} %; {noise}. "
        "sgd-sum is the control: OSGD sums the losses, and the paper's SGD averages them."
    )
    environment = report["environment"]
    console.print(
        f"{clock(report['seconds'])} on {environment['processor']}, {environment['cores']} cores, "
        f"one thread per run, torch {environment['torch']}"
    )
    console.print(f"picture: {report['picture']}")
