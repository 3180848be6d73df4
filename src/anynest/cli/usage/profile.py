"""Flags of ``anynest profile``."""

from ...training.config.run_config import MAX_THREADS
from ..flags import BACKENDS, add_device_flag, add_image_size_flag, add_import_flag, add_json_flag
from ..parser import Parser, comma_list, integer, one_of

DESCRIPTION = (
    "Count and measure the cost of every stage of a network, beside the plain network of each "
    "stage's size. All measurements are interleaved in one run."
)
EXAMPLES = """examples:
  anynest profile runs/a
  anynest profile runs/a --backend torch,onnxruntime --threads 1,2
  anynest profile width_nested_resnet42 --json

The profile of a run is saved in its folder: as profile.json, which predictions
read, and as profile.png: error against latency and against multiply-adds."""


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument(
        "source",
        metavar="RUN_OR_MODEL",
        help="a run's folder, a weights file, an exported folder or a network's name",
    )
    parser.add_argument(
        "--backend",
        type=comma_list(one_of(BACKENDS)),
        metavar="NAMES",
        help="such as torch,onnxruntime (default: onnxruntime on the CPU, else torch)",
    )
    parser.add_argument(
        "--threads",
        type=comma_list(integer(1, MAX_THREADS)),
        default="1",
        metavar="NUMBERS",
        help="threads per operator, such as 1,2",
    )
    parser.add_argument(
        "--batch-sizes",
        type=comma_list(integer(1, 1 << 20)),
        default="1",
        metavar="NUMBERS",
        help="images per batch, such as 1,8",
    )
    add_image_size_flag(parser, "as trained; otherwise 32, or 224 with ImageNet's stem")
    add_device_flag(parser)
    parser.add_argument(
        "--rounds", type=integer(), default=40, help="of 5 runs each, default: 40 (200 runs)"
    )
    parser.add_argument("--no-plain", action="store_true", help="leave out the plain networks")
    parser.add_argument("--out", metavar="FILE", help="the JSON file (default: in the run)")
    add_json_flag(parser)
    add_import_flag(parser)
