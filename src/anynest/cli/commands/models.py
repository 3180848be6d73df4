"""``anynest models``."""

import argparse
import json
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table

from ...nets import AnytimeNetwork, create_model, describe, list_models
from ...training import ConfigError
from ..console import Console
from ..flags import Commands, add_import_flag, import_modules

EXAMPLES = """examples:
  anynest models
  anynest models 'width*'
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
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="or shell pattern (default: a list of all)"
    )
    parser.add_argument(
        "--image-size", type=int, help="pixels a side (default: 32, with ImageNet's stem 224)"
    )
    parser.add_argument("--num-classes", type=int, default=10, help="default: 10")
    parser.add_argument("--in-channels", type=int, default=3, help="default: 3")
    add_import_flag(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Print every named network's cost, or a list of all."""
    if arguments.image_size is not None and arguments.image_size < 1:
        raise ConfigError(f"--image-size must be at least 1, found {arguments.image_size}")
    import_modules(arguments)
    names = matching(arguments.names)
    if not (arguments.json or arguments.names):
        show_list([summary(name, arguments) for name in names])
        return 0
    described = [costs(name, arguments) for name in names]
    if arguments.json:
        print(json.dumps(described, indent=2))
        return 0
    console = Console()
    for model in described:
        console.print(table(model))
    return 0


def matching(patterns: list[str]) -> list[str]:
    """The networks that names and shell patterns stand for; all where there are none."""
    found: dict[str, None] = {}
    for pattern in patterns or ["*"]:
        names = list_models(pattern)
        if not names and any(sign in pattern for sign in "*?["):
            raise ConfigError(f"no model matches {pattern!r}: `anynest models` lists them all")
        found.update(dict.fromkeys(names or [pattern]))
    return list(found)


def build(name: str, arguments: argparse.Namespace, **options: Any) -> tuple[AnytimeNetwork, int]:
    """A network without weights, and the side in pixels of its images."""
    with torch.device("meta"):  # counted from the graph: no weights are needed
        model = create_model(
            name,
            num_classes=arguments.num_classes,
            in_channels=arguments.in_channels,
            **options,
        )
    return model, arguments.image_size or SIZES[model.architecture.stem]


def summary(name: str, arguments: argparse.Namespace) -> tuple[str, ...]:
    """A network in a row of the list: the cost is the last stage's."""
    model, size = build(name, arguments)
    row = model.cost(size)[-1]
    work = f"{millions(row.multiply_adds)} at {size}"
    return name, str(model.num_stages), millions(row.parameters), work, describe(name)


def show_list(rows: list[tuple[str, ...]]) -> None:
    """One line a network, never wrapped, so that it can be searched with grep."""
    rows = [("name", "stages", "parameters", "multiply-adds", "description"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for name, *numbers, text in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        console.print("  ".join([name.ljust(widths[0]), *cells, text]))
    console.print("\nEvery stage's cost: anynest models NAME, or a pattern such as 'width*'")


def costs(name: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """One network: per stage parameters and multiply-adds, nested beside independent."""
    model, size = build(name, arguments)
    alone = [
        build(name, arguments, independent=stage)[0].cost(size)[-1]
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
