"""``anynest models``: costs are counted from the plan, without torch.

Networks that no ``Architecture`` defines are shown with the costs that were registered beside them;
without these they are built and asked.
"""

import argparse
import sys
from collections.abc import Iterable
from typing import Any

from ...nets.nested.cost import StageCost, stage_costs
from ...nets.nested.wiring import build_plan
from ...nets.pretrained import list_pretrained, read_card
from ...nets.registry import (
    create_architecture,
    create_for_data,
    describe,
    is_nested,
    list_models,
    option_defaults,
    registered_costs,
)
from ...training.errors import ConfigError

IMAGE_SIZES = {"cifar": 32, "imagenet": 224}  # default by the network's stem
COUNTS = ("parameters", "multiply_adds")


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
        images = "" if size is None else f" Images {size}x{size}."
        title = f"{model['name']}: {model['description']}{images}"
        names = ["stage", "parameters", "multiply-adds"]
        keys = list(COUNTS)
        if is_nested(model["name"]):
            names += ["independent:\nparameters", "multiply-adds"]
            keys += [f"independent_{key}" for key in COUNTS]
        rows = [
            [str(row["stage"]), *(millions(row[key]) for key in keys)] for row in model["stages"]
        ]
        Console().print(make_table(title, names, rows))
        show_pretrained(model["pretrained"])
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
    """Per stage parameters and multiply-adds, of nested networks also the independent ones'."""
    if not is_nested(name):
        return costs_of_module(name, image_size, **options)
    nested = create_architecture(name, **options)
    size = image_size or IMAGE_SIZES[nested.stem]
    rows = stage_costs(build_plan(nested), (size, size))
    alone = [stage_costs(build_plan(nested.plain(row.stage)), (size, size))[-1] for row in rows]
    stages = [
        {
            **row,
            "independent_parameters": plain.parameters,
            "independent_multiply_adds": plain.multiply_adds,
        }
        for row, plain in zip(to_json(rows), alone, strict=True)
    ]
    return {
        "name": name,
        "description": describe(name),
        "image_size": size,
        "stages": stages,
        "pretrained": pretrained_of(name),
    }


def pretrained_of(name: str) -> list[str]:
    """The trained weights of a network that come with the package."""
    return [one for one in list_pretrained() if read_card(one)["model"] == name]


def show_pretrained(names: Iterable[str]) -> None:
    """A line per file of trained weights, never wrapped."""
    for name in names:
        card = read_card(name)
        errors = " / ".join(f"{100 * error:.1f}" for error in card["error"])
        print(
            f"trained: {name}, {card['model']}, {card['data']}: test error {errors} %; "
            f'anynest.load("{name}")'
        )


def costs_of_module(name: str, image_size: int | None, **options: Any) -> dict[str, Any]:
    """The same of a network without an ``Architecture``; None where a number is not known."""
    size = image_size or option_defaults(name).get("image_size")
    sized = options if size is None else {**options, "image_size": size}
    found = registered_costs(name, **sized)
    if found is None:
        try:
            model = create_for_data(name, **options)
        except TypeError as error:
            raise ConfigError(str(error)) from error
        stages: list[dict[str, Any]] = [
            {"stage": stage, "parameters": None, "multiply_adds": None}
            for stage in range(1, model.num_stages + 1)
        ]
        stages[-1]["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    else:
        stages = to_json(found)
    return {
        "name": name,
        "description": describe(name),
        "image_size": size if found else None,
        "stages": stages,
        "pretrained": pretrained_of(name),
    }


def to_json(rows: Iterable[StageCost]) -> list[dict[str, int]]:
    """Costs as plain data."""
    return [
        {
            "stage": row.stage,
            "parameters": row.parameters,
            "multiply_adds": row.multiply_adds,
            "own_parameters": row.own_parameters,
            "own_multiply_adds": row.own_multiply_adds,
        }
        for row in rows
    ]


def show_list(models: list[dict[str, Any]]) -> None:
    """One line per network, never wrapped, so that it can be searched with grep."""
    rows = [("name", "stages", "parameters", "multiply-adds", "description")]
    for model in models:
        last = model["stages"][-1]
        size = "" if model["image_size"] is None else f" at {model['image_size']}"
        work = f"{millions(last['multiply_adds'])}{size}"
        stages, parameters = str(last["stage"]), millions(last["parameters"])
        rows.append((model["name"], stages, parameters, work, model["description"]))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for name, *numbers, text in rows:
        cells = [cell.rjust(width) for cell, width in zip(numbers, widths[1:], strict=True)]
        sys.stdout.write("  ".join([name.ljust(widths[0]), *cells, text]) + "\n")
    print()
    show_pretrained(list_pretrained())
    print("\nEvery stage's cost: anynest models NAME, or a pattern such as 'width*'")


def millions(count: int | None) -> str:
    """
    >>> millions(1_234_567), millions(23_456), millions(None)
    ('1.235 M', '0.023 M', '-')
    """
    return "-" if count is None else f"{count / 1e6:.3f} M"
