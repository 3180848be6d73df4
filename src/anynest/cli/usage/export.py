"""Flags of ``anynest export``."""

from argparse import Namespace

from ...training.errors import ConfigError
from ..flags import (
    SPLITS,
    add_image_size_flag,
    add_import_flag,
    add_json_flag,
    add_workers_flag,
)
from ..parser import Parser, integer

DESCRIPTION = (
    "Write a trained network as ONNX graphs, one per stage, with a manifest. Every graph is "
    "compared with PyTorch before it is saved."
)
EXAMPLES = """examples:
  anynest export runs/a --format onnx
  anynest export runs/a --out a-onnx --single-file
  anynest export runs/a --out a-int8 --int8 --calibration-images 1000"""
CALIBRATION_IMAGES = 512


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument("weights", metavar="RUN", help="a finished run's folder or weights file")
    parser.add_argument("--format", choices=("onnx",), default="onnx", help="of the files")
    parser.add_argument("--out", metavar="FOLDER", help="default: onnx/ in the run's folder")
    parser.add_argument(
        "--single-file",
        action="store_true",
        help="all stages in one file, the later ones in If branches",
    )
    add_image_size_flag(parser, "as trained")
    parser.add_argument("--force", action="store_true", help="replace an export in FOLDER")
    int8 = parser.add_argument_group("8 bits")
    int8.add_argument(
        "--int8",
        action="store_true",
        help="quantise, calibrated on training images, and print the errors before and after",
    )
    int8.add_argument(
        "--data", metavar="SOURCE", help="default: the data that the run was trained on"
    )
    int8.add_argument(
        "--calibration-images",
        type=integer(),
        metavar="N",
        help=f"default: {CALIBRATION_IMAGES}",
    )
    int8.add_argument("--split", choices=SPLITS, help="where errors are measured (default: test)")
    add_workers_flag(int8, default=None)
    add_json_flag(parser)
    add_import_flag(parser)


def check(arguments: Namespace) -> None:
    """Raise ConfigError for a flag that only ``--int8`` reads."""
    for name in ("data", "calibration_images", "split", "workers"):
        if getattr(arguments, name) is not None and not arguments.int8:
            flag = "--" + name.replace("_", "-")
            raise ConfigError(f"{flag} is read for --int8 alone: give --int8 too")
