"""``anynest export``."""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from ...data import AnySplit, Dataset
from ...engines.onnx.export.export import export
from ...engines.onnx.export.quantize import stage_errors
from ...engines.onnx.manifest import Manifest
from ...engines.open import open_session
from ...store import is_own, load, local_source, read_info
from ...training import ConfigError, DataConfig
from ...training.output.reporting import ProgressBar, percent
from ..console import Console, make_table, print_json
from ..run_data import open_data
from ..usage.export import CALIBRATION_IMAGES

BATCH_SIZE = 64  # of the measurement of errors
CPU = torch.device("cpu")


def run(arguments: argparse.Namespace) -> int:
    """Export, and print what was written."""
    if not is_own(arguments.weights) and not arguments.out:
        raise ConfigError(f"{arguments.weights} lies in no folder of yours: give --out FOLDER")
    arguments.weights = str(local_source(arguments.weights))
    info = read_info(arguments.weights)
    path = Path(arguments.weights)
    folder = Path(arguments.out or (path if path.is_dir() else path.parent) / "onnx")
    calibration, split = None, None
    console = Console(stderr=True)
    if arguments.int8:
        config, data = open_data(
            arguments.weights, info, arguments.data, BATCH_SIZE, arguments.workers or 0
        )
        if data.image_size != (arguments.image_size or info.image_size):
            raise ConfigError(
                f"--image-size must be {data.image_size}, the size of the images that --int8 "
                f"calibrates on, found {arguments.image_size or info.image_size}: leave "
                "--image-size out"
            )
        count = arguments.calibration_images or CALIBRATION_IMAGES
        with console.status("reading the images to calibrate on"):
            calibration = calibration_images(config, data, count)
        split = getattr(data, arguments.split or "test")
    network = load(path)
    with console.status("writing the graphs and comparing them with PyTorch"):
        manifest = export(
            network,
            folder,
            format=arguments.format,
            image_size=arguments.image_size,
            info=info,
            single_file=arguments.single_file,
            calibration=calibration,
            overwrite=arguments.force,
        )
    report = describe(folder, manifest)
    if split is not None:
        report["split"], report["images"] = split.name, len(split)
        for key, source in (("float_error", network), ("error", folder)):
            session = open_session(source, backend="onnxruntime")
            bits = "8 bits" if key == "error" else "32 bits"
            try:
                with ProgressBar(console, f"errors in {bits}") as bar:
                    report[key] = stage_errors(session, batches(config, data, split, bar))
            finally:
                session.close()
    if arguments.json:
        print_json(report)
    else:
        show(report)
    return 0


def batches(
    config: DataConfig, data: Dataset, split: AnySplit, bar: ProgressBar | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """A split's images and labels, not augmented."""
    loader = config.evaluation_loader(split, data, CPU)
    for done, batch in enumerate(loader.batches(0)):
        if bar is not None:
            bar.report(done, len(loader))
        yield batch


def calibration_images(config: DataConfig, data: Dataset, count: int) -> Tensor:
    """Training images ``[N, C, H, W]``, evenly spread over the split."""
    total = len(data.train)
    chosen = torch.arange(min(count, total)) * total // min(count, total)
    split = data.train.take(chosen, "train")
    return torch.cat([images for images, _ in batches(config, data, split)])


def describe(folder: Path, manifest: Manifest) -> dict[str, Any]:
    """What was written, as plain values."""
    return {
        "folder": str(folder),
        "model": manifest.model,
        "stages": manifest.num_stages,
        "files": [{"file": entry.file, "bytes": entry.size} for entry in manifest.files],
        "bytes": sum(entry.size for entry in manifest.files),
        "max_error": manifest.checked["max_error"],
        "int8": manifest.quantised is not None,
    }


def show(report: dict[str, Any]) -> None:
    """Print the files, and the errors in 8 bits."""
    console = Console()
    for entry in report["files"]:
        path = Path(report["folder"]) / entry["file"]
        console.print(f"{path}  {entry['bytes'] / 1e6:.3f} MB")
    console.print(
        f"{report['stages']} stages, {report['bytes'] / 1e6:.3f} MB; largest difference from "
        f"PyTorch's logits{' before quantisation' if report['int8'] else ''}: "
        f"{report['max_error']:.1e}"
    )
    if "error" in report:
        console.print(error_table(report))


def error_table(report: dict[str, Any]) -> Table:
    """Every stage's error in float32 and in 8 bits."""
    pairs = zip(report["float_error"], report["error"], strict=True)
    return make_table(
        f"error % on the {report['split']} split, {report['images']} images",
        ["stage", "float32", "int8", "difference"],
        [
            [str(stage), percent(before), percent(after), f"{100 * (after - before):+.2f}"]
            for stage, (before, after) in enumerate(pairs, start=1)
        ],
    )
