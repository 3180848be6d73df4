"""Flags of ``anynest evaluate``."""

from argparse import Namespace

from ...training.errors import ConfigError
from ..durations import parse_deadlines
from ..flags import (
    BACKENDS,
    SPLITS,
    add_device_flag,
    add_import_flag,
    add_json_flag,
    add_policy_flag,
    add_threads_flag,
    add_workers_flag,
)
from ..parser import Parser, integer

DESCRIPTION = (
    "Measure loss and error of every stage of a trained network, or the accuracy of its answers "
    "under real deadlines."
)
EXAMPLES = """examples:
  anynest evaluate runs/a
  anynest evaluate runs/a/weights.safetensors --data digits --split validation
  anynest evaluate runs/a --policy saved    # after anynest calibrate runs/a
  anynest evaluate runs/a --deadlines auto
  anynest evaluate runs/a --deadlines 5ms,10ms,none --samples 500 --json"""


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument("weights", metavar="PATH", help="a finished run's folder or weights file")
    parser.add_argument(
        "--data", metavar="SOURCE", help="default: the data that the run was trained on"
    )
    parser.add_argument("--split", choices=SPLITS, default="test", help="which images")
    parser.add_argument("--batch-size", type=integer(), default=512, help="images per batch")
    add_workers_flag(parser)
    add_device_flag(parser)
    add_policy_flag(
        parser,
        "also measure answers that stop early by a policy of anynest calibrate; saved: the one in "
        "the run's folder",
    )
    add_json_flag(parser)
    group = parser.add_argument_group(
        "deadlines", "Each image is predicted alone, under every deadline."
    )
    group.add_argument(
        "--deadlines",
        type=parse_deadlines,
        metavar="LIST",
        help="such as 5ms,10ms,none; auto: seven from 0.5 to 1 times the mean latency of the whole "
        "network, then none (default: measure the stages without deadlines)",
    )
    group.add_argument(
        "--backend", choices=BACKENDS, help="default: onnxruntime on the CPU, else torch"
    )
    add_threads_flag(group, default=None)
    group.add_argument("--samples", type=integer(), metavar="N", help="images (default: all)")
    add_import_flag(parser)


def check(arguments: Namespace) -> None:
    """Raise ConfigError for a flag that only ``--deadlines`` reads, or that it does not read."""
    if arguments.deadlines is not None and arguments.policy != "none":
        raise ConfigError("--policy is measured without deadlines: leave out --deadlines")
    for name in ("backend", "threads", "samples"):
        if arguments.deadlines is None and getattr(arguments, name) is not None:
            raise ConfigError(f"--{name} is read for --deadlines alone: give --deadlines too")
