"""Flags of ``anynest reproduce``."""

from ...experiments.catalog.experiment import SEEDS
from ...experiments.catalog.experiments import ALL, EXPERIMENTS
from ...experiments.catalog.protocols import PROTOCOLS
from ..flags import add_device_flag, add_json_flag, key_value
from ..parser import Parser, integer

DESCRIPTION = (
    "Train every cell of a table or figure of the paper, and print the results, beside the "
    "paper's where network and data are the same."
)
EXAMPLES = """examples:
  anynest reproduce table1 --protocol micro --data DIR --out runs/micro
  anynest reproduce all --protocol fast --data DIR --out runs/fast --dry-run
  anynest reproduce table1 --only width --protocol paper --data DIR --out runs/w
  anynest reproduce table3 --protocol paper --data IMAGENET --out runs/paper

After Ctrl-C or a crash the same command resumes, also within a cell."""
MAX_SEEDS = 1000
MAX_JOBS = 1024


def names(text: str) -> list[str]:
    """
    >>> names("width, depth")
    ['width', 'depth']
    """
    return [name for part in text.split(",") if (name := part.strip())]


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    experiments = ", ".join([*EXPERIMENTS, ALL])
    parser.add_argument("what", nargs="+", metavar="WHAT", help=f"{experiments}; or several")
    protocols = "; ".join(f"{name} ({PROTOCOLS[name].title})" for name in PROTOCOLS)
    parser.add_argument("--protocol", required=True, metavar="NAME", help=protocols)
    parser.add_argument("--data", required=True, metavar="FOLDER", help="as of anynest train")
    parser.add_argument(
        "--imagenet",
        metavar="FOLDER",
        help="the images of table3 if WHAT is all (default: table3 is left out)",
    )
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder of the runs")
    parser.add_argument(
        "--only",
        type=names,
        metavar="DESIGN,...",
        help="train these designs alone, such as width,depth (default: all)",
    )
    parser.add_argument(
        "--methods",
        type=names,
        metavar="METHOD,...",
        help="train by these methods alone, such as osgd,sgd-mean (default: all)",
    )
    parser.add_argument("--seeds", type=integer(1, MAX_SEEDS), default=SEEDS, help="runs per cell")
    parser.add_argument(
        "--results", metavar="FILE", help="JSON lines (default: PROTOCOL.jsonl in --out)"
    )
    parser.add_argument(
        "--jobs",
        type=integer(1, MAX_JOBS),
        help="cells at once (default: one per core; 1 on a GPU)",
    )
    parser.add_argument(
        "--launcher", choices=("local", "ray"), default="local", help="what starts the cells"
    )
    parser.add_argument(
        "--ray-address", metavar="ADDRESS", help="of a running cluster (default: a local one)"
    )
    add_device_flag(parser)
    parser.add_argument(
        "--run-option",
        action="append",
        type=key_value,
        default=[],
        metavar="KEY=VALUE",
        help="a setting of the section run of anynest train, such as precision=bf16 or "
        "channels_last=true; may be repeated",
    )
    parser.add_argument("--dry-run", action="store_true", help="list the runs and the time")
    add_json_flag(parser)
