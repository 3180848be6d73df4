"""Flags of ``anynest demo``."""

from ..flags import add_json_flag
from ..parser import Parser, integer

DESCRIPTION = (
    "Train a small nested network with OSGD on scikit-learn's digits, and use it: the same "
    "pictures answered by several deadlines, beside the plain networks of its stages' sizes."
)
EXAMPLES = """examples:
  anynest demo --out runs/demo
  anynest demo --compare --seeds 3    # SGD and OSGD, every stage's error"""


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument("--out", metavar="FOLDER", help="empty or new (default: under runs/)")
    parser.add_argument(
        "--epochs", type=integer(), help="of each run (default: 12; with --compare 16)"
    )
    parser.add_argument("--compare", action="store_true", help="compare SGD and OSGD instead")
    parser.add_argument(
        "--seeds",
        type=integer(1, 1000),
        default=3,
        help="of --compare: runs per method (default: 3)",
    )
    add_json_flag(parser)
