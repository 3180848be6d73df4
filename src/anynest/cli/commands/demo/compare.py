"""``anynest demo --compare``: SGD against OSGD on the digits, on one nested network."""

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ....training import TrainConfig, train
from ....training.output.reporting import clock, counted
from ...console import Console, make_table
from ...worker_processes import processes
from .compare_picture import draw

MODEL = "simultaneous_nested_sparse_resnet26"
METHODS = {
    "sgd-mean": "SGD (mean of losses)",
    "sgd-sum": "SGD (sum of losses)",
    "osgd": "OSGD",
}
Job = tuple[str, int, int, Path]  # method, seed, epochs, the demo's folder


def demo_config(
    method: str,
    seed: int,
    epochs: int,
    independent: int | None = None,
    image_size: int | None = None,
    growth: list[list[int]] | None = None,
) -> TrainConfig:
    """One run.

    Args:
        method: how the losses are combined.
        seed: of weights and batches.
        epochs: of training.
        independent: s: the plain network of stage s's size; None: the nested one.
        image_size: pixels per side; None: the data's.
        growth: (width, depth) of each stage; None: the registered ones.
    """
    return TrainConfig.from_json(
        {
            "model": {"name": MODEL, "independent": independent, "growth": growth},
            "data": {"source": "digits", "batch_size": 64, "image_size": image_size},
            "method": {"name": method},
            "schedule": {"epochs": epochs, "shape": "cosine"},
            "optimizer": {"lr": 0.1},
            "run": {"seed": seed, "device": "cpu", "threads": 1},
        }
    )


def run(console: Console, folder: Path, epochs: int, seeds: int) -> dict[str, Any]:
    """Train every method with every seed, draw, print; returns the report."""
    console.print(
        f"{MODEL} on scikit-learn's digits: {len(METHODS)} methods, {counted(seeds, 'seed')}, "
        f"{counted(epochs, 'epoch')} each, into {folder}"
    )
    report = compare(console, folder, epochs, seeds)
    show(console, report)
    return report


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
    with processes(len(jobs)) as pool:
        yield from pool.map(train_one, jobs)


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
