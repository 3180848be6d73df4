"""The whole report, from lines to a document."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...training.progress import counted
from ..catalog import EXPERIMENTS
from ..claim_list import judge_all
from ..experiment import SEEDS, Experiment, cells_of
from ..protocols import PROTOCOLS
from ..results import Line
from . import verdicts
from .control import control
from .cosines import cosine_blocks
from .document import Block, Cell, Code, Document, Group, Heading, Items, Table, Text
from .figure_blocks import figure_blocks
from .lines import Source
from .method_table import method_table
from .missing import progress, still_missing
from .papers_tables import papers_table
from .provenance import what_ran
from .section import Section, split
from .tables import error_table

TITLE = "Anytime networks and Orthogonalized SGD: the paper's tables and figures, re-run"
ABOUT = (
    "Orthogonalized SGD and Nested Architectures for Anytime Neural Networks (Wan, Hoffmann, Lu, "
    "Maire, ICML 2020), re-run by anynest, an independent implementation. Every number below is "
    "computed from the results files, and belongs to one protocol and one set of data, which stand "
    "beside it. Errors are in % of the test images."
)


@dataclass(frozen=True)
class Report:
    """What the results files say."""

    sections: tuple[Section, ...]
    unknown: dict[str, int]  # lines of protocols that are not known, by name
    sources: tuple[Source, ...]
    command: tuple[str, ...]  # the results as they were named
    seeds: int = SEEDS

    def to_json(self) -> dict[str, Any]:
        """Verdicts and missing cells."""
        return {
            "sections": [
                {
                    "protocol": section.protocol.name,
                    "data": section.data,
                    "cells": len(section.cells),
                    "passed_over": section.passed_over,
                    "claims": {
                        name: verdict.to_json()
                        for name, verdict in judge_all(section.evidence).items()
                    },
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
        """All that is shown."""
        blocks: list[Block] = [Text(ABOUT)]
        blocks += overview(self.sections) if self.sections else nothing_yet(self.seeds)
        for name, number in sorted(self.unknown.items()):
            blocks.append(
                Text(f"Left out: {counted(number, 'line')} of protocol {name}, not known here.")
            )
        for section in self.sections:
            blocks += section_blocks(section)
        return Document(TITLE, (*blocks, *how_made(self)))


def make_report(
    lines: Sequence[Line], sources: Sequence[Source], command: Sequence[str], seeds: int = SEEDS
) -> Report:
    """Errors: RunFolderError for lines that cannot be used."""
    sections, unknown = split(lines, seeds)
    return Report(tuple(sections), unknown, tuple(sources), tuple(command), seeds)


def overview(sections: Sequence[Section]) -> list[Block]:
    """A row a section."""
    rows, total = [], dict.fromkeys(verdicts.OUTCOMES, 0)
    for section in sections:
        found = verdicts.counts(judge_all(section.evidence))
        for outcome, number in found.items():
            total[outcome] += number
        texts = [section.protocol.name, section.data, str(len(section.cells))]
        rows.append(tuple(map(Cell, [*texts, *map(str, found.values())])))
    head = ("protocol", "data", "cells", *verdicts.OUTCOMES)
    table = Table("Claims of the paper, by protocol and data", head, (Group(tuple(rows)),), words=2)
    return [Heading(2, "Summary", "summary"), table]


def nothing_yet(seeds: int) -> list[Block]:
    """What there is to do, where there are no results."""
    rows = tuple(
        (
            *(Cell(text) for text in (e.name, e.source, e.title)),
            *(Cell(str(len(cells_of(e.runs(p), p, seeds)))) for p in PROTOCOLS.values()),
        )
        for e in EXPERIMENTS.values()
    )
    caption = f"Cells to train, {counted(seeds, 'seed')}, by protocol"
    table = Table(caption, ("name", "source", "what", *PROTOCOLS), (Group(rows),), words=3)
    return [Heading(2, "Summary", "summary"), Text("There are no results yet."), table]


def section_blocks(section: Section) -> list[Block]:
    """One protocol and data label, in the paper's order."""
    name = section.anchor
    blocks: list[Block] = [
        Heading(2, f"{section.protocol.name}: {section.data}", name),
        Text(f"{section.protocol.title[:1].upper()}{section.protocol.title[1:]}."),
    ]
    if section.passed_over:
        blocks.append(
            Text(
                f"Left out: {counted(section.passed_over, 'line')} of cells that the protocol no "
                "longer has.",
                quiet=True,
            )
        )
    parts: list[tuple[str, str, list[Block]]] = [
        ("What ran", "ran", what_ran(section)),
        ("Claims and verdicts", "claims", verdicts.claims(section)),
    ]
    for experiment in EXPERIMENTS.values():
        parts.append((experiment.source, experiment.name, experiment_blocks(section, experiment)))
    parts.append(("Cosines between the tasks' gradients", "cosines", cosine_blocks(section)))
    parts.append(("Still missing", "missing", still_missing(section)))
    for title, anchor, found in parts:
        shown = "Ablations" if anchor == "ablations" else title
        blocks.append(Heading(3, shown, f"{name}-{anchor}"))
        blocks += found or [Text("No results yet.")]
    return blocks


def experiment_blocks(section: Section, experiment: Experiment) -> list[Block]:
    """A table or figure: its numbers, or that there are none yet."""
    blocks: list[Block] = [Text(f"{experiment.title}.")]
    if experiment.family not in section.families:
        where = "another section" if experiment.family in section.elsewhere else "no section yet"
        return [*blocks, Text(f"No results on this data: its images differ; see {where}.")]
    build = BUILD.get(experiment.name, ablation_blocks)
    found = build(section, experiment)
    folded = papers_table(section, experiment) if build is table_blocks else None
    return [*blocks, *(found or [Text("No results yet.")]), *((folded,) if folded else ())]


def table_blocks(section: Section, experiment: Experiment) -> list[Block]:
    """A table of the paper, and the control's meaning below the first of a family."""
    if not any_result(section, experiment):
        return []
    blocks: list[Block] = [error_table(section, experiment), Text(LEGEND, quiet=True)]
    if experiment.name != "table2":
        blocks += control(section, experiment.family)
    return blocks


LEGEND = (
    "Bold: the lowest of the paper's methods in its row. The column that stands apart is a control "
    "that the paper does not have; underlined where it is lower still."
)


def ablation_blocks(section: Section, experiment: Experiment) -> list[Block]:
    """A row a method."""
    return [method_table(section, experiment)] if any_result(section, experiment) else []


BUILD: dict[str, Callable[[Section, Experiment], list[Block]]] = {
    **dict.fromkeys(("table1", "table2", "table3"), table_blocks),
    **dict.fromkeys(("fig8", "fig9", "fig10"), figure_blocks),
}


def any_result(section: Section, experiment: Experiment) -> bool:
    """Whether one of its cells is there."""
    return any(entry.n for row in section.table(experiment).rows for entry in row.entries)


def how_made(report: Report) -> list[Block]:
    """The commands, and the files that were read."""
    commands = []
    for protocol in dict.fromkeys(section.protocol.name for section in report.sections):
        commands.append(
            f"anynest reproduce all --protocol {protocol} --data DATA --out runs/{protocol} "
            f"--results results/{protocol}.jsonl"
        )
    commands.append(f"anynest report {shlex.join(report.command)} --out FOLDER")
    blocks: list[Block] = [
        Heading(2, "How this was made", "made"),
        Text("Cells that a results file has already are not trained again."),
        Code("\n".join(commands)),
    ]
    if report.sources:
        texts = tuple(
            f"{source.name}: {counted(source.lines, 'line')}, SHA-256 {source.digest[:16]}"
            for source in report.sources
        )
        blocks += [Text("Read:"), Items(texts)]
    return blocks
