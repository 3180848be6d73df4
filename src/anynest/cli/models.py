"""``anynest models``."""

import argparse
import json
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ..nets import create_model, describe, list_models
from ..training import ConfigError
from .console import Console
from .flags import Commands

EXAMPLES = """examples:
  anynest models
  anynest models width_nested_resnet10 --image-size 32 --json"""
SIZES = {"cifar": 32, "imagenet": 224}


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "models",
        help="the networks and what each stage costs",
        description="Parameters and multiply-adds per stage: nested, and beside it the plain "
        "network of the same size (independent).",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all")
    parser.add_argument(
        "--image-size", type=int, help="pixels a side (default: 32, with ImageNet's stem 224)"
    )
    parser.add_argument("--num-classes", type=int, default=10, help="default: 10")
    parser.add_argument("--in-channels", type=int, default=3, help="default: 3")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Print every named network's cost."""
    if arguments.image_size is not None and arguments.image_size < 1:
        raise ConfigError(f"--image-size must be at least 1, found {arguments.image_size}")
    described = [costs(name, arguments) for name in arguments.names or list_models()]
    if arguments.json:
        print(json.dumps(described, indent=2))
        return 0
    console = Console()
    for model in described:
        console.print(table(model))
    return 0


def costs(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One network: per stage parameters and multiply-adds, nested beside independent."""
    sizes = {"num_classes": arguments.num_classes, "in_channels": arguments.in_channels}
    with torch.device("meta"):  # counted from the graph: no weights are needed
        model = create_model(name, **sizes)
        size = arguments.image_size or SIZES[model.architecture.stem]
        alone = [
            create_model(name, independent=stage, **sizes).cost(size)[-1]
            for stage in range(1, model.num_stages + 1)
        ]
    stages = [
        {
            "stage": row.stage,
            "parameters": row.parameters,
            "multiply_adds": row.multiply_adds,
            "own_parameters": row.own_parameters,
            "own_multiply_adds": row.own_multiply_adds,
            "independent_parameters": plain.parameters,
            "independent_multiply_adds": plain.multiply_adds,
        }
        for row, plain in zip(model.cost(size), alone, strict=True)
    ]
    return {"name": name, "description": describe(name), "image_size": size, "stages": stages}


def millions(count: int) -> str:
    """
    >>> millions(1_234_567), millions(23_456)
    ('1.235 M', '0.023 M')
    """
    return f"{count / 1e6:.3f} M"


def table(model: dict[str, Any]) -> Table:
    """One row a stage; up to and including it."""
    size = model["image_size"]
    shown = Table(
        title=f"{model['name']}: {model['description']} Images {size}x{size}.",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    names = ("stage", "parameters", "multiply-adds", "independent:\nparameters", "multiply-adds")
    for name in names:
        shown.add_column(name, justify="right")
    for row in model["stages"]:
        keys = (
            "parameters",
            "multiply_adds",
            "independent_parameters",
            "independent_multiply_adds",
        )
        shown.add_row(str(row["stage"]), *(millions(row[key]) for key in keys))
    return shown
