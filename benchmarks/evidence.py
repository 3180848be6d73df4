"""What the committed results say about OSGD, as the tables of docs/evidence.md.

    python benchmarks/evidence.py results --into docs/evidence.md

Trains nothing: reads results files as ``anynest report`` does, and writes its answer and a table of
the claims between the page's marks. Without --into it prints them.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from _pages import write_part

from anynest.experiments.claims.claim_list import CLAIMS, judge_all
from anynest.experiments.report import find_files, make_report, read_all
from anynest.experiments.report.blocks.answer import answer
from anynest.experiments.report.blocks.overview import in_words
from anynest.experiments.report.blocks.verdicts import reason
from anynest.experiments.report.formatting import range_text, signed
from anynest.experiments.report.render.document import (
    Block,
    Document,
    Fold,
    Heading,
    RowGroup,
    Table,
    text_row,
)
from anynest.experiments.report.render.pages import FOLDER, render_markdown
from anynest.experiments.report.section import Section

HEAD = ("claim", "verdict", "points", "95 % interval", "n", "open because")


def answer_blocks(sections: Sequence[Section]) -> list[Block]:
    """The answer without its heading, and what ran."""
    blocks = [block for block in answer(sections) if not isinstance(block, Heading)]
    return [*blocks, *in_words(sections)]


def claim_table(section: Section, control: bool) -> Table:
    """A row per claim of the paper, or per control."""
    verdicts = judge_all(section.evidence)
    rows = []
    for claim in CLAIMS:
        if claim.control != control:
            continue
        verdict = verdicts[claim.name]
        points = "-" if verdict.difference is None else signed(verdict.difference, 2)
        why = reason(verdict) if verdict.outcome == "undecided" else ""
        text = claim.text.replace("*", "")
        numbers = (points, range_text(verdict.interval), str(verdict.n))
        rows.append(text_row(text, verdict.outcome, *numbers, why))
    what = "Controls" if control else "Claims of the paper"
    caption = f"{what}: pooled difference in points of test error; {section.label}"
    return Table(caption, HEAD, (RowGroup(tuple(rows)),), words=2)


def claim_blocks(sections: Sequence[Section]) -> list[Block]:
    """The controls of every section; the paper's claims, folded."""
    blocks: list[Block] = []
    for section in sections:
        blocks.append(claim_table(section, control=True))
        title = f"The paper's claims, {section.protocol.name}"
        blocks.append(Fold(title, (claim_table(section, control=False),)))
    return blocks


def markdown(blocks: Sequence[Block], results: str) -> str:
    """The blocks as Markdown for a page in a folder beside the results' folder."""
    text = render_markdown(Document("-", tuple(blocks)))
    return text.removeprefix("# -\n").strip().replace(f"({FOLDER}/", f"({results}/{FOLDER}/")


def parts_of(results: Sequence[str], folder: str = "../results") -> dict[str, str]:
    """The page's parts by the names of their marks."""
    sections = make_report(*read_all(find_files(results)), results).sections
    return {
        "answer": markdown(answer_blocks(sections), folder),
        "claims": markdown(claim_blocks(sections), folder),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", nargs="+", help="results files, or folders of them")
    parser.add_argument("--into", type=Path, help="a page to write the parts into")
    args = parser.parse_args()
    for name, text in parts_of(args.results).items():
        if args.into:
            write_part(args.into, name, text)
        else:
            print(f"{text}\n")


if __name__ == "__main__":
    main()
