"""``anynest evaluate``."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table

from ...data import AnySplit, Dataset
from ...store import RunFolderError, WeightsInfo, load, read_info, weights_file
from ...training import ConfigError, DataConfig, read_config
from ...training.environment import find_device
from ...training.evaluation import Evaluation, evaluate
from ...training.output.reporting import percent
from ..console import Console
from ..flags import Commands, add_import_flag, import_modules
from . import deadlines

EXAMPLES = """examples:
  anynest evaluate runs/a
  anynest evaluate runs/a/weights.safetensors --data digits --split validation --json
  anynest evaluate runs/a --deadlines auto
  anynest evaluate runs/a --deadlines 5ms,10ms,none --samples 500"""
SPLITS = ("train", "validation", "test")


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "evaluate",
        help="the error of every stage on a split",
        description="Measure loss and error of every stage of a trained network, or the accuracy "
        "of its answers under real deadlines.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", metavar="PATH", help="a finished run's folder or weights file")
    parser.add_argument("--data", metavar="SOURCE", help="default: what the run was trained on")
    parser.add_argument("--split", choices=SPLITS, default="test", help="default: test")
    parser.add_argument("--batch-size", type=int, default=512, help="images at once")
    parser.add_argument("--workers", type=int, default=0, help="processes that read image folders")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    parser.add_argument("--json", action="store_true", help="print JSON")
    deadlines.add_flags(parser)
    add_import_flag(parser)
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate, and print a table or JSON."""
    import_modules(arguments)
    deadlines.check(arguments)
    info = read_info(arguments.weights)
    config = data_config(arguments, info)
    device = find_device(arguments.device)
    model = load(arguments.weights).to(device)
    data = config.load()
    require_fit(info, data)
    data = replace(data, mean=info.mean, std=info.std)  # the images as the network knows them
    split: AnySplit = getattr(data, arguments.split)
    if arguments.deadlines is not None:
        return deadlines.run(arguments, info, model, config, data, device)
    loader = config.evaluation_loader(split, data, device)
    result = evaluate(model, loader, split=split.name)
    if arguments.json:
        print(json.dumps({"model": info.model, "data": data.label, **result.to_json()}, indent=2))
    else:
        Console().print(table(info, data.label, result))
    return 0


def data_config(arguments: argparse.Namespace, info: WeightsInfo) -> DataConfig:
    """The run's own data, or what ``--data`` names."""
    path = Path(arguments.weights)
    own = (path if path.is_dir() else path.parent) / "config.json"
    if own.is_file() and weights_file(own.parent) == weights_file(path):
        config = read_config(own).data
        if arguments.data is not None and arguments.data != config.source:
            config = replace(config, source=arguments.data)
    elif arguments.data is not None:
        config = DataConfig(source=arguments.data)
    else:
        raise ConfigError(f"{path} does not say where its data lie ({info.data}): give --data")
    return replace(config, evaluation_batch_size=arguments.batch_size, workers=arguments.workers)


def require_fit(info: WeightsInfo, data: Dataset) -> None:
    """RunFolderError where the network was trained for other classes or channels."""
    if data.classes != info.classes:
        raise RunFolderError(
            f"the data must have the network's {len(info.classes)} classes "
            f"({', '.join(info.classes[:3])}, ...), found {len(data.classes)} "
            f"({', '.join(data.classes[:3])}, ...): give the data it was trained for"
        )
    if data.in_channels != len(info.mean):
        raise RunFolderError(
            f"the images must have {len(info.mean)} channels, found {data.in_channels}: "
            "give the data the network was trained for"
        )


def table(info: WeightsInfo, label: str, result: Evaluation) -> Table:
    """One row a stage."""
    shown = Table(
        title=f"{info.model}, {label}\n{result.split} split, {result.images} images",
        box=SIMPLE_HEAD,
        min_width=40,
    )
    columns = ["stage", "loss", "error %"] + (["top-5 error %"] if result.top5_error else [])
    for name in columns:
        shown.add_column(name, justify="right")
    for index, (loss, error) in enumerate(zip(result.loss, result.error, strict=True)):
        row = [str(index + 1), f"{loss:.4f}", percent(error)]
        if result.top5_error:
            row.append(percent(result.top5_error[index]))
        shown.add_row(*row)
    return shown
