"""``anynest report``: results files as a page and a Markdown file."""

import argparse
from pathlib import Path

from ...experiments.report import find_files, make_report, read_all, write_report
from ..console import Console, print_json


def run(arguments: argparse.Namespace) -> int:
    """Write the report, and print a summary and its paths."""
    with Console(stderr=True).status("reading results and drawing figures"):
        lines, sources = read_all(find_files(arguments.results))
        report = make_report(lines, sources, arguments.results, arguments.seeds)
        files = write_report(report, Path(arguments.out))
    if arguments.json:
        print_json({**report.to_json(), "files": [str(path) for path in files]})
        return 0
    console = Console()
    for section in report.to_json()["sections"]:
        outcomes = [verdict["outcome"] for verdict in section["claims"].values()]
        counts = ", ".join(f"{outcomes.count(o)} {o}" for o in ("holds", "fails", "undecided"))
        missing = len({cell for cells in section["missing"].values() for cell in cells})
        console.print(
            f"{section['protocol']}, {section['data']}: {section['cells']} cells, "
            f"{missing} missing; claims: {counts}"
        )
    for path in files:
        console.print(str(path))
    return 0
