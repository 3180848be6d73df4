"""``anynest models``: costs are counted from the plan, without torch."""

import argparse
import sys
from typing import Any

from ...nets.nested.cost import stage_costs
from ...nets.nested.wiring import build_plan
from ...nets.registry import create_architecture, describe, list_models
from ...training.errors import ConfigError

IMAGE_SIZES = {"cifar": 32, "imagenet": 224}  # default by the network's stem


def run(arguments: argparse.Namespace) -> int:
    """Print the cost of each named network, or a list of all."""
    names = matching(arguments.names)
    options = {"num_classes": arguments.num_classes, "in_channels": arguments.in_channels}
    described = [costs(name, arguments.image_size, **options) for name in names]
    if not (arguments.json or arguments.names):
        show_list(described)
        return 0

    from ..console import Console, make_table, print_json

    if arguments.json:
        print_json(described)
        return 0
    for model in described:
        size = model["image_size"]
        title = f"{model['name']}: {model['description']} Images {size}x{size}."
        keys = ("parameters", "multiply_adds")
        names = ["stage", "parameters", "multiply-adds"]
        names += ["independent:\nparameters", "multiply-adds"]
        rows = [
            [
                str(row["stage"]),
                *(millions(row[key]) for key in keys),
                *(millions(row[f"independent_{key}"]) for key in keys),
            ]
            for row in model["stages"]
        ]
        Console().print(make_table(title, names, rows))
    return 0


def matching(patterns: list[str]) -> list[str]:
    """The networks that names and shell patterns stand for; all if there are none."""
    found: dict[str, None] = {}
    for pattern in patterns or ["*"]:
        names = list_models(pattern)
        if not names and any(sign in pattern for sign in "*?["):
            raise ConfigError(f"no model matches {pattern!r}: `anynest models` lists them all")
        found.update(dict.fromkeys(names or [pattern]))
    return list(found)


def costs(name: str, image_size: int | None, **options: Any) -> dict[str, Any]:
    """Per stage parameters and multiply-adds, nested and independent."""
    nested = create_architecture(name, **options)
    size = image_size or IMAGE_SIZES[nested.stem]
    rows = stage_costs(build_plan(nested), (size, size))
    alone = [stage_costs(build_plan(nested.plain(row.stage)), (size, size))[-1] for row in rows]
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
        for row, plain in zip(rows, alone, strict=True)
    ]
    return {"name": name, "description": describe(name), "image_size": size, "stages": stages}


def show_list(models: list[dict[str, Any]]) -> None:
    """One line per network, never wrapped, so that it can be searched with grep."""
    rows = [("name", "stages", "parameters", "multiply-adds", "description")]
    for model in models:
        last = model["stages"][-1]
        work = f"{millions(last['multiply_adds'])} at {model['image_size']}"
        stages, parameters = str(last["stage"]), millions(last["parameters"])
        rows.append((model["name"], stages, parameters, work, model["description"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, *numbers, text in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        sys.stdout.write("  ".join([name.ljust(widths[0]), *cells, text]) + "\n")
    print("\nEvery stage's cost: anynest models NAME, or a pattern such as 'width*'")


def millions(count: int) -> str:
    """
    >>> millions(1_234_567), millions(23_456)
    ('1.235 M', '0.023 M')
    """
    return f"{count / 1e6:.3f} M"
