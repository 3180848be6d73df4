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
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from ...data import AnySplit, Dataset, Loader
from ...nets import AnytimeNetwork
from ...predict.deadline_evaluation import (
    DeadlineResult,
    auto_deadlines,
    mean_latency,
    measure_deadlines,
)
from ...predict.prediction import Prediction
from ...predict.predictor import AnytimePredictor
from ...store import WeightsInfo, write_whole
from ...store.hardware import describe_environment
from ...training import ConfigError, DataConfig, Interrupted
from ...training.evaluation import Evaluation, evaluate
from ...training.output.reporting import ProgressBar
from ..console import Console
from ..durations import parse_duration, show_duration
from .deadlines_picture import draw_deadlines

WARM = 100  # predictions that the whole network's latency is the mean of


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of ``--deadlines``."""
    group = parser.add_argument_group(
        "deadlines", "each image predicted for real, alone, under every deadline"
    )
    group.add_argument(
        "--deadlines",
        metavar="LIST",
        help="such as 5ms,10ms,none; auto: seven from 0.5 to 1 times the mean latency of the whole "
        "network, then none",
    )
    group.add_argument("--backend", choices=("torch", "onnxruntime"), help="default: torch")
    group.add_argument("--threads", type=int, help="of the kernels (default: 1)")
    group.add_argument("--samples", type=int, metavar="N", help="images (default: all)")


def check(arguments: argparse.Namespace) -> None:
    """ConfigError for a flag of ``--deadlines`` without it, or with a value out of range."""
    if arguments.deadlines is not None:
        parse_deadlines(arguments.deadlines)
    for name in ("backend", "threads", "samples"):
        value = getattr(arguments, name)
        if isinstance(value, int) and value < 1:
            raise ConfigError(f"--{name} must be at least 1, found {value}")
        if arguments.deadlines is None and value is not None:
            raise ConfigError(f"--{name} has a meaning with --deadlines alone: give that too")


def parse_deadlines(text: str) -> list[float | None] | None:
    """Seconds, None for ``none``; None alone for ``auto``.

    >>> parse_deadlines("5ms,none"), parse_deadlines("auto")
    ([0.005, None], None)
    """
    if text.strip() == "auto":
        return None
    parts = [part.strip() for part in text.split(",")]
    return [None if part == "none" else parse_duration(part, "--deadlines") for part in parts]


def run(
    arguments: argparse.Namespace,
    info: WeightsInfo,
    model: AnytimeNetwork,
    config: DataConfig,
    data: Dataset,
    device: torch.device,
) -> int:
    """Measure, save, draw and print."""
    chosen = parse_deadlines(arguments.deadlines)
    backend, threads = arguments.backend or "torch", arguments.threads or 1
    whole: AnySplit = getattr(data, arguments.split)
    split = sample(whole, arguments.samples)
    console = Console(stderr=arguments.json, highlight=False)
    stages = evaluate_stages(console, model, config.evaluation_loader(split, data, device))
    one = replace(config, evaluation_batch_size=1)  # at a time, and prepared before the clock runs
    loader = one.evaluation_loader(split, data, torch.device("cpu"))
    place = str(device) if backend == "torch" else "cpu"
    with AnytimePredictor(model, backend, threads=threads, device=place, info=info) as predictor:

        def predict(x: Tensor, deadline: float | None) -> Prediction:
            return predictor.predict(x[0], deadline, when_nothing="guess")

        latency = mean_latency(predict, [x for x, _ in first(loader, WARM)])
        with ProgressBar(console, "predicting") as bar:
            results, finished = measure_deadlines(
                predict,
                pairs(loader),
                auto_deadlines(latency) if chosen is None else chosen,
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
    show(arguments, console, report, results, save(arguments, report) if finished else [])
    if not finished:
        raise Interrupted("stopped: what is shown is of fewer images; not saved", signal.SIGINT)
    return 0


def evaluate_stages(console: Console, model: AnytimeNetwork, loader: Loader) -> Evaluation:
    """Every stage's error, without a clock."""
    batches = count()
    with ProgressBar(console, "every stage, without a clock") as bar:
        return evaluate(model, loader, check=lambda: bar.report(next(batches), len(loader)))


def sample(split: AnySplit, wanted: int | None) -> AnySplit:
    """So many images spread evenly over the split; all for None."""
    if wanted is None or wanted == len(split):
        return split
    if wanted > len(split):
        raise ConfigError(
            f"--samples must be at most the split's {len(split)} images, found {wanted}"
        )
    return split.take(torch.arange(wanted) * len(split) // wanted, split.name)


def pairs(loader: Loader) -> Iterator[tuple[Tensor, int]]:
    """Images ``[1, C, H, W]`` and their labels; undecodable ones that may be left out are."""
    for images, labels in loader.batches(0):
        if len(labels):
            yield images, int(labels)


def first(loader: Loader, wanted: int) -> list[tuple[Tensor, int]]:
    """The first images."""
    return list(islice(pairs(loader), wanted))


def save(arguments: argparse.Namespace, report: dict[str, Any]) -> list[Path]:
    """The report and its picture in the run folder, where there is one; the paths."""
    folder = Path(arguments.weights)
    if not folder.is_dir():
        return []
    paths = [folder / "deadlines.json", folder / "deadlines.png"]
    write_whole(paths[0], (json.dumps(report, indent=2) + "\n").encode())
    draw_deadlines(report, paths[1])
    return paths


def show(
    arguments: argparse.Namespace,
    console: Console,
    report: dict[str, Any],
    results: list[DeadlineResult],
    written: list[Path],
) -> None:
    """A table, or JSON."""
    if arguments.json:
        print(json.dumps(report, indent=2), flush=True)
        return
    console.print(table(report, results))
    machine = report["environment"]
    console.print(
        f"{report['backend']}, threads {report['threads']}, one image at a time, on "
        f"{machine['accelerator'] or machine['processor']}, {machine['cores']} cores, "
        f"torch {machine['torch']}; the whole network takes "
        f"{show_duration(report['mean_latency'])} (mean). Where no stage was ready in time, the "
        "answer is a random guess.",
        soft_wrap=True,
    )
    for path in written:
        console.print(str(path), soft_wrap=True)


def counted_images(report: dict[str, Any]) -> str:
    """How many images the numbers are of; a part of the split is called one."""
    images, whole = report["images"], report["images_of_split"]
    if images == whole:
        return f"{images} images of the {report['split']} split"
    return f"reduced: {images} of the {whole} images of the {report['split']} split"


def table(report: dict[str, Any], results: list[DeadlineResult]) -> Table:
    """One row a deadline: accuracy, and the share of the answers by the stage they came from."""
    shown = Table(
        title=f"{report['model']}, {report['data']}\n{counted_images(report)}\n"
        "stages: % of the answers",
        title_justify="left",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    stages = len(results[0].stages) - 1
    shares = [f"stage\n{stage}" for stage in range(1, stages + 1)]
    for name in ("deadline", "accuracy", "s.e.", "guess", *shares, "p50\nms", "p99\nms"):
        shown.add_column(name, justify="right", no_wrap=True, vertical="bottom")
    for result in results:
        elapsed = result.to_json()["elapsed"]
        shown.add_row(
            "none" if result.deadline is None else show_duration(result.deadline),
            f"{100 * result.accuracy:.1f} %",
            f"{100 * result.standard_error:.1f}",
            *(f"{100 * count / result.images:.1f}" for count in result.stages),
            f"{1e3 * elapsed['p50']:.2f}",
            f"{1e3 * elapsed['p99']:.2f}",
        )
    known = [f"{100 * accuracy:.1f}" for accuracy in report["stage_accuracy"]]
    shown.caption = "accuracy % of each stage without a deadline: " + ", ".join(known)
    shown.caption_justify = "left"
    return shown
