"""``anynest report``: results files as a page and a Markdown file."""

import argparse
import json
from pathlib import Path

from ...experiments.catalog.experiment import SEEDS
from ...experiments.report import find_files, make_report, read_all, write_report
from ...training import ConfigError
from ..console import Console
from ..flags import Commands

EXAMPLES = """examples:
  anynest report
  anynest report results/micro.jsonl --out runs/report
  anynest report results --out runs/report --json"""


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "report",
        help="results as one HTML page and a Markdown file",
        description="Turn results files of anynest reproduce into report.html, which needs nothing "
        "else, and report.md: tables beside the paper's, figures, verdicts, what is missing.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "results",
        nargs="*",
        default=["results"],
        metavar="RESULTS",
        help="files of JSON lines, or folders with *.jsonl (default: results)",
    )
    parser.add_argument("--out", default=".", metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--seeds", type=int, default=SEEDS, help=f"how many a cell should have: {SEEDS}"
    )
    parser.add_argument("--json", action="store_true", help="print verdicts and missing cells")
    parser.set_defaults(call=run)


def run(arguments: argparse.Namespace) -> int:
    """Read, check, write, and say where."""
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, found {arguments.seeds}")
    lines, sources = read_all(find_files(arguments.results))
    report = make_report(lines, sources, arguments.results, arguments.seeds)
    files = write_report(report, Path(arguments.out))
    if arguments.json:
        print(json.dumps({**report.to_json(), "files": [str(path) for path in files]}, indent=2))
        return 0
    console = Console(highlight=False, soft_wrap=True)
    for section in report.to_json()["sections"]:
        outcomes = [verdict["outcome"] for verdict in section["claims"].values()]
        counts = ", ".join(f"{outcomes.count(o)} {o}" for o in ("holds", "fails", "undecided"))
        missing = len({cell for cells in section["missing"].values() for cell in cells})
        console.print(
            f"{section['protocol']}, {section['data']}: {section['cells']} cells, "
            f"{missing} missing; claims: {counts}",
            markup=False,
        )
    for path in files:
        console.print(str(path), markup=False)
    return 0
