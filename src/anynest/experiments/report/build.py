"""Builds the report's document from records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ...training.output.reporting import counted
from ..catalog.experiment import SEEDS
from ..catalog.protocols import PAPER
from ..claims.claim_list import CLAIMS, judge_all
from ..results.records import Record
from .blocks.answer import answer
from .blocks.missing import progress
from .blocks.overview import how_made, in_words, nothing_yet, overview
from .blocks.section_blocks import section_blocks
from .render.document import Block, Document, Heading, Text
from .section import Section, split
from .sources import Source

TITLE = "Anytime networks and Orthogonalized SGD: the paper's tables and figures, re-run"
ABOUT = (
    "Orthogonalized SGD and Nested Architectures for Anytime Neural Networks (Wan, Hoffmann, Lu, "
    "Maire, ICML 2020), re-run by anynest, an independent implementation. Every number below is "
    "computed from the results files, and belongs to one protocol and one set of data, which its "
    "section's heading names. Errors are in % of the test images."
)


@dataclass(frozen=True)
class Report:
    """The content of results files.

    Args:
        sections: One per protocol and data label.
        unknown: Number of records of each unknown protocol.
        sources: The files.
        named: The files and folders as given on the command line.
        seeds: Number of seeds that each cell should have.
    """

    sections: tuple[Section, ...]
    unknown: dict[str, int]
    sources: tuple[Source, ...]
    named: tuple[str, ...]
    seeds: int

    def to_json(self) -> dict[str, Any]:
        """Verdicts and missing cells as plain values."""
        return {
            "sections": [
                {
                    "protocol": section.protocol.name,
                    "data": section.data,
                    "cells": len(section.cells),
                    "passed_over": section.passed_over,
                    **verdicts_of(section),
                    "missing": {
                        one.experiment.name: list(one.missing)
                        for one in progress(section)
                        if not one.elsewhere
                    },
                }
                for section in self.sections
            ],
            "unknown_protocols": self.unknown,
        }

    def document(self) -> Document:
        """The document."""
        blocks: list[Block] = answer(self.sections)
        blocks += [Heading(2, "What ran", "ran"), *in_words(self.sections), Text(ABOUT)]
        blocks += overview(self.sections) if self.sections else nothing_yet(self.seeds)
        for name, number in sorted(self.unknown.items()):
            lines = counted(number, "result")
            blocks.append(
                Text(f"Left out: {lines} of the protocol {name}, which is not known here.")
            )
        for section in self.sections:
            blocks += section_blocks(section)
        made = how_made(self.sections, self.sources, self.named)
        return Document(title_of(self.sections), (*blocks, *made))


def title_of(sections: Sequence[Section]) -> str:
    """The title, which says whether the paper's own protocol ran."""
    reduced = [section.protocol.name != PAPER.name for section in sections]
    if any(reduced):
        return TITLE + (" at reduced size" if all(reduced) else ", in part at reduced size")
    return TITLE


def verdicts_of(section: Section) -> dict[str, dict[str, Any]]:
    """The verdicts of the paper's claims and of the controls, as plain values."""
    found = judge_all(section.evidence)
    return {
        key: {c.name: found[c.name].to_json() for c in CLAIMS if c.control == control}
        for key, control in (("claims", False), ("controls", True))
    }


def make_report(
    records: Sequence[Record], sources: Sequence[Source], named: Sequence[str], seeds: int = SEEDS
) -> Report:
    """The report of records.

    Raises:
        RunFolderError: For records that cannot be used.
    """
    sections, unknown = split(records, seeds)
    return Report(tuple(sections), unknown, tuple(sources), tuple(named), seeds)
