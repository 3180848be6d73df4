"""``anynest evaluate --deadlines``: accuracy under real deadlines, measured on this machine."""

import argparse
import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from itertools import count, islice
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from ...data import AnySplit, Dataset, Loader
from ...engines.model_source import resolve
from ...predict.deadline_evaluation import (
    DeadlineResult,
    mean_latency,
    measure_deadlines,
    paper_deadlines,
)
from ...predict.prediction import Prediction
from ...predict.predictor import AnytimePredictor
from ...store import WeightsInfo, write_whole
from ...store.hardware import describe_environment
from ...training import ConfigError, DataConfig, Interrupted
from ...training.evaluation import Evaluation, evaluate
from ...training.output.reporting import ProgressBar
from ..backend import find_backend
from ..console import Console, make_table, print_json
from ..durations import show_duration
from .deadlines_picture import draw_deadlines

LATENCY_IMAGES = 100  # predictions averaged for the latency of the whole network


def run(
    arguments: argparse.Namespace,
    info: WeightsInfo,
    model: Any,
    config: DataConfig,
    data: Dataset,
    device: torch.device,
) -> int:
    """Measure, save, draw and print."""
    threads = arguments.threads or 1
    backend, place = find_backend(resolve(model), arguments.backend, device)
    whole: AnySplit = getattr(data, arguments.split)
    split = sample(whole, arguments.samples)
    console = Console(stderr=arguments.json)
    stages = evaluate_stages(console, model, config.evaluation_loader(split, data, device))
    one = replace(config, evaluation_batch_size=1)  # decoded before the clock starts
    loader = one.evaluation_loader(split, data, torch.device("cpu"))
    with AnytimePredictor(model, backend, threads=threads, device=place, info=info) as predictor:

        def predict(x: Tensor, deadline: float | None) -> Prediction:
            return predictor.predict(x[0], deadline, on_timeout="guess")

        latency = mean_latency(predict, [x for x, _ in first(loader, LATENCY_IMAGES)])
        with ProgressBar(console, "predicting") as bar:
            results, finished = measure_deadlines(
                predict,
                pairs(loader),
                paper_deadlines(latency) if arguments.deadlines == "auto" else arguments.deadlines,
                model.num_stages,
                report=lambda done: bar.report(done, len(split)),
            )
    if not results[0].images:
        raise KeyboardInterrupt
    report = {
        "model": info.model,
        "data": data.label,
        "split": split.name,
        "images": results[0].images,
        "images_of_split": len(whole),
        "backend": backend,
        "threads": threads,
        "mean_latency": latency,
        "stage_accuracy": [1 - error for error in stages.error],
        "deadlines": [result.to_json() for result in results],
        "environment": describe_environment(device),
    }
    written = save(arguments, report) if finished else []
    if arguments.json:
        print_json(report)
    else:
        show(console, report, results, written)
    if not finished:
        raise Interrupted("stopped: the results are of fewer images and not saved", signal.SIGINT)
    return 0


def evaluate_stages(console: Console, model: Any, loader: Loader, split: str = "") -> Evaluation:
    """Every stage's error, without deadlines."""
    batches = count()
    with ProgressBar(console, "every stage, without deadlines") as bar:
        return evaluate(
            model, loader, split=split, check=lambda: bar.report(next(batches), len(loader))
        )


def sample(split: AnySplit, wanted: int | None) -> AnySplit:
    """``wanted`` images evenly spread over the split; None for all."""
    if wanted is None or wanted == len(split):
        return split
    if wanted > len(split):
        raise ConfigError(
            f"--samples must be at most the split's {len(split)} images, found {wanted}"
        )
    return split.take(torch.arange(wanted) * len(split) // wanted, split.name)


def pairs(loader: Loader) -> Iterator[tuple[Tensor, int]]:
    """Images ``[1, C, H, W]`` and their labels; skipped images give no pair."""
    for images, labels in loader.batches(0):
        if len(labels):
            yield images, int(labels)


def first(loader: Loader, wanted: int) -> list[tuple[Tensor, int]]:
    """The first images."""
    return list(islice(pairs(loader), wanted))


def save(arguments: argparse.Namespace, report: dict[str, Any]) -> list[Path]:
    """Save the report and its picture in the run folder, if there is one; returns the paths."""
    folder = Path(arguments.weights)
    if not folder.is_dir():
        return []
    paths = [folder / "deadlines.json", folder / "deadlines.png"]
    write_whole(paths[0], (json.dumps(report, indent=2) + "\n").encode())
    draw_deadlines(report, paths[1])
    return paths


def show(
    console: Console, report: dict[str, Any], results: list[DeadlineResult], written: list[Path]
) -> None:
    """Print a table, the conditions and the written paths."""
    console.print(result_table(report, results))
    machine = report["environment"]
    console.print(
        f"{report['backend']}, threads {report['threads']}, one image at a time, on "
        f"{machine['accelerator'] or machine['processor']}, {machine['cores']} cores, "
        f"torch {machine['torch']}; the whole network takes "
        f"{show_duration(report['mean_latency'])} (mean). If no stage is ready in time, the "
        "answer is a random guess."
    )
    for path in written:
        console.print(str(path))


def counted_images(report: dict[str, Any]) -> str:
    """The number of images; a part of the split is marked as reduced."""
    images, whole = report["images"], report["images_of_split"]
    if images == whole:
        return f"{images} images of the {report['split']} split"
    return f"reduced: {images} of the {whole} images of the {report['split']} split"


def result_table(report: dict[str, Any], results: list[DeadlineResult]) -> Table:
    """One row per deadline: accuracy, and the share of answers that came from each stage."""
    stages = len(results[0].stages) - 1
    names = ["deadline", "accuracy", "s.e.", "guess"]
    names += [f"stage\n{stage}" for stage in range(1, stages + 1)] + ["p50\nms", "p99\nms"]
    rows = []
    for result in results:
        elapsed = result.to_json()["elapsed"]
        row = [
            "none" if result.deadline is None else show_duration(result.deadline),
            f"{100 * result.accuracy:.1f} %",
            f"{100 * result.standard_error:.1f}",
        ]
        row += [f"{100 * count / result.images:.1f}" for count in result.stages]
        rows.append([*row, *(f"{1e3 * elapsed[key]:.2f}" for key in ("p50", "p99"))])
    known = ", ".join(f"{100 * accuracy:.1f}" for accuracy in report["stage_accuracy"])
    return make_table(
        f"{report['model']}, {report['data']}\n{counted_images(report)}\nstages: % of the answers",
        names,
        rows,
        padding=(0, 1, 0, 0),
        caption=f"accuracy % of each stage without a deadline: {known}",
        caption_justify="left",
    )
