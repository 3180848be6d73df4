"""Flags of ``anynest demo``."""

from ..flags import add_json_flag
from ..parser import Parser, integer

DESCRIPTION = (
    "Train a small width-depth nested network on scikit-learn's digits with SGD and with OSGD, and "
    "print every stage's error side by side."
)
EXAMPLES = "example: anynest demo --out runs/demo"


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument("--out", metavar="FOLDER", help="empty or new (default: under runs/)")
    parser.add_argument("--epochs", type=integer(), default=16, help="of each run")
    parser.add_argument("--seeds", type=integer(1, 1000), default=3, help="runs per method")
    add_json_flag(parser)
