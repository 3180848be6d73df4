"""Flags of ``anynest calibrate``."""

import math
from argparse import ArgumentTypeError

from ..flags import (
    BACKENDS,
    SPLITS,
    add_device_flag,
    add_import_flag,
    add_json_flag,
    add_threads_flag,
    add_workers_flag,
)
from ..parser import Parser, integer, probability, shorten

DESCRIPTION = (
    "Choose the confidence of each stage from which on no later stage is computed, on images that "
    "the network was not trained on, and save it beside the network as policy.json. Commands that "
    "have --policy read it."
)
EXAMPLES = """examples:
  anynest calibrate runs/a
  anynest calibrate runs/a --target-accuracy 0.95
  anynest calibrate runs/a --budget 50%
  anynest calibrate runs/a/onnx --data digits --split validation

Then: anynest predict runs/a cat.png; anynest serve runs/a --policy saved"""
MAX_DROP = 0.01


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument(
        "source", metavar="RUN", help="a run's folder, a weights file or an exported folder"
    )
    goals = parser.add_argument_group("the goal, one of these").add_mutually_exclusive_group()
    goals.add_argument(
        "--max-drop",
        type=drop,
        metavar="P",
        help="accuracy to give up at most against the last stage, for the least mean cost "
        f"(default: {MAX_DROP}, one percentage point)",
    )
    goals.add_argument(
        "--target-accuracy",
        type=probability,
        metavar="P",
        help="accuracy to reach at the least mean cost, such as 0.95 (default: by --max-drop)",
    )
    goals.add_argument(
        "--budget",
        type=parse_budget,
        metavar="N",
        help="mean multiply-adds an image, such as 2e6, or a share of the last stage's such as "
        "50%% (default: none)",
    )
    parser.add_argument(
        "--data", metavar="SOURCE", help="default: the data that the run was trained on"
    )
    parser.add_argument(
        "--split", choices=SPLITS, help="which images (default: validation, of a run)"
    )
    parser.add_argument("--batch-size", type=integer(), default=64, help="images at once")
    add_workers_flag(parser)
    parser.add_argument(
        "--backend", choices=BACKENDS, help="default: onnxruntime on the CPU, else torch"
    )
    add_threads_flag(parser)
    add_device_flag(parser, default="cpu")
    parser.add_argument("--out", metavar="FILE", help="default: policy.json beside the weights")
    add_json_flag(parser)
    add_import_flag(parser)


def drop(text: str) -> float:
    """An accuracy to give up.

    >>> drop("0"), drop("0.02")
    (0.0, 0.02)
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < 1:
        raise ArgumentTypeError(f"must be from 0 to below 1, found {shorten(text)}")
    return value


def parse_budget(text: str) -> tuple[float, bool]:
    """A number, and whether it is a share of the last stage's.

    >>> parse_budget("2e6"), parse_budget("50%")
    ((2000000.0, False), (0.5, True))
    """
    is_share = text.endswith("%")
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(
            f"must be a number of multiply-adds or a share such as 50%, found {shorten(text)}"
        )
    return (value / 100 if is_share else value), is_share
