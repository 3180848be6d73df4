"""Flags of ``anynest report``."""

from ...experiments.catalog.experiment import SEEDS
from ..flags import add_json_flag
from ..parser import Parser, integer

DESCRIPTION = (
    "Turn results files of anynest reproduce into report.html, a single self-contained page, and "
    "report.md: tables beside the paper's, figures, verdicts and missing cells."
)
EXAMPLES = """examples:
  anynest report
  anynest report results/micro.jsonl --out runs/report
  anynest report results --out runs/report --json"""


def add_flags(parser: Parser) -> None:
    """Add the flags."""
    parser.add_argument(
        "results",
        nargs="*",
        default=["results"],
        metavar="RESULTS",
        help="files of JSON lines, or folders with *.jsonl",
    )
    parser.add_argument("--out", default=".", metavar="FOLDER", help="folder of the report")
    parser.add_argument("--seeds", type=integer(), default=SEEDS, help="runs that a cell needs")
    add_json_flag(parser, "print verdicts and missing cells as JSON")
