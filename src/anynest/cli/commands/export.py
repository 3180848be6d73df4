"""``anynest export``."""

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from ...data import AnySplit, Dataset
from ...engines.onnx.export.export import FORMATS, export
from ...engines.onnx.export.quantize import stage_errors
from ...engines.onnx.manifest import Manifest
from ...engines.open import open_session
from ...store import WeightsInfo, load, read_info
from ...training import ConfigError, DataConfig
from ...training.output.reporting import percent
from ..console import Console
from ..flags import Commands, add_import_flag, import_modules
from .evaluate import SPLITS, data_config, require_fit

EXAMPLES = """examples:
  anynest export runs/a --format onnx
  anynest export runs/a --out a-onnx --single-file
  anynest export runs/a --out a-int8 --int8 --calibration-images 1000"""
BATCH = 64  # images at once, where errors are measured
CALIBRATION_IMAGES = 512
CPU = torch.device("cpu")


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "export",
        help="ONNX files of a trained network, one a stage",
        description="Write a trained network as ONNX graphs, one a stage, with a manifest. Every "
        "graph is checked against PyTorch before it is there.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="RUN", help="a finished run's folder or weights file")
    parser.add_argument("--format", choices=FORMATS, default="onnx", help="default: onnx")
    parser.add_argument("--out", metavar="FOLDER", help="default: onnx/ in the run's folder")
    parser.add_argument(
        "--single-file",
        action="store_true",
        help="all stages in one file, the later ones in If branches",
    )
    parser.add_argument("--image-size", type=int, metavar="PIXELS", help="default: as trained")
    parser.add_argument("--force", action="store_true", help="replace an export in FOLDER")
    eight = parser.add_argument_group("8 bits")
    eight.add_argument(
        "--int8",
        action="store_true",
        help="quantise, calibrated on training images; prints what it costs in error",
    )
    eight.add_argument("--data", metavar="SOURCE", help="default: what the run was trained on")
    eight.add_argument(
        "--calibration-images", type=int, metavar="N", help=f"default: {CALIBRATION_IMAGES}"
    )
    eight.add_argument("--split", choices=SPLITS, help="to measure errors on (default: test)")
    eight.add_argument("--workers", type=int, help="processes that read image folders")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_import_flag(parser)
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Export, and say what was written."""
    import_modules(arguments)
    check(arguments)
    info = read_info(arguments.weights)
    path = Path(arguments.weights)
    folder = Path(arguments.out or (path if path.is_dir() else path.parent) / "onnx")
    calibration, split = None, None
    if arguments.int8:
        arguments.batch_size, arguments.workers = BATCH, arguments.workers or 0
        config, data = open_data(arguments, info)
        count = arguments.calibration_images or CALIBRATION_IMAGES
        calibration = calibration_images(config, data, count)
        split = getattr(data, arguments.split or "test")
    network = load(path)
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
            try:
                report[key] = stage_errors(session, batches(config, data, split))
            finally:
                session.close()
    if arguments.json:
        print(json.dumps(report, indent=2))
    else:
        show(report)
    return 0


def check(arguments: argparse.Namespace) -> None:
    """ConfigError for a flag of ``--int8`` without it, or with a value out of range."""
    count = arguments.calibration_images
    if count is not None and count < 1:
        raise ConfigError(f"--calibration-images must be at least 1, found {count}")
    for name in ("data", "calibration_images", "split", "workers"):
        if getattr(arguments, name) is not None and not arguments.int8:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is read for --int8 alone: give that too")


def open_data(arguments: argparse.Namespace, info: WeightsInfo) -> tuple[DataConfig, Dataset]:
    """The run's data, as the network knows them."""
    config = data_config(arguments, info)
    data = config.load()
    require_fit(info, data)
    size = arguments.image_size or info.image_size
    if data.image_size != size:
        raise ConfigError(
            f"--int8 calibrates on images of {data.image_size} pixels, and the export is for {size}: leave "
            "--image-size out"
        )
    return config, replace(data, mean=info.mean, std=info.std)


def batches(config: DataConfig, data: Dataset, split: AnySplit) -> Iterator[tuple[Tensor, Tensor]]:
    """A split's images and labels, not augmented."""
    return config.evaluation_loader(split, data, CPU).batches(0)


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
    """The files, and what 8 bits cost."""
    console = Console(highlight=False)
    for entry in report["files"]:
        path = str(Path(report["folder"]) / entry["file"])
        console.print(f"{path}  {entry['bytes'] / 1e6:.3f} MB", soft_wrap=True)
    console.print(
        f"{report['stages']} stages, {report['bytes'] / 1e6:.3f} MB; largest difference from "
        f"PyTorch's logits{' before quantisation' if report['int8'] else ''}: "
        f"{report['max_error']:.1e}",
        soft_wrap=True,
    )
    if "error" in report:
        console.print(error_table(report))


def error_table(report: dict[str, Any]) -> Table:
    """Every stage's error in float32 and in 8 bits."""
    table = Table(
        title=f"error % on the {report['split']} split, {report['images']} images",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for name in ("stage", "float32", "int8", "difference"):
        table.add_column(name, justify="right")
    pairs = zip(report["float_error"], report["error"], strict=True)
    for stage, (before, after) in enumerate(pairs, 1):
        table.add_row(str(stage), percent(before), percent(after), f"{100 * (after - before):+.2f}")
    return table
