"""What stands above and below the sections: the summary, and how the report was made."""

import shlex
from collections.abc import Sequence

from ....training.output.reporting import counted
from ...catalog.experiment import cells_of
from ...catalog.experiments import EXPERIMENTS
from ...catalog.protocols import PROTOCOLS
from ...claims.claim_list import judge_all
from ..records import Source
from ..render.document import Block, Cell, Code, Group, Heading, Items, Table, Text, row
from ..section import Section
from . import verdicts


def overview(sections: Sequence[Section]) -> list[Block]:
    """A row a section: its cells, and how many claims hold, fail and stay undecided."""
    rows = []
    for section in sections:
        found = verdicts.counts(judge_all(section.evidence))
        numbers = (len(section.cells), *found.values())
        rows.append(row(section.protocol.name, section.data, *map(str, numbers)))
    head = ("protocol", "data", "cells", *verdicts.OUTCOMES)
    table = Table("Claims of the paper, by protocol and data", head, (Group(tuple(rows)),), words=2)
    return [Heading(2, "Summary", "summary"), table]


def nothing_yet(seeds: int) -> list[Block]:
    """What there is to do, where there are no results."""
    rows = tuple(
        (
            *row(e.name, e.source, e.title),
            *(Cell(str(len(cells_of(e.runs(p), p, seeds)))) for p in PROTOCOLS.values()),
        )
        for e in EXPERIMENTS.values()
    )
    caption = f"Cells to train, {counted(seeds, 'seed')}, by protocol"
    table = Table(caption, ("name", "source", "what", *PROTOCOLS), (Group(rows),), words=3)
    return [Heading(2, "Summary", "summary"), Text("There are no results yet."), table]


def how_made(
    sections: Sequence[Section], sources: Sequence[Source], named: Sequence[str]
) -> list[Block]:
    """The commands, and the files that were read. named: as the command was given them."""
    commands = [
        f"anynest reproduce all --protocol {protocol} --data DATA --out runs/{protocol} "
        f"--results results/{protocol}.jsonl"
        for protocol in dict.fromkeys(section.protocol.name for section in sections)
    ]
    commands.append(f"anynest report {shlex.join(named)} --out FOLDER")
    texts = tuple(
        f"{source.name}: {counted(source.lines, 'line')}, SHA-256 {source.digest[:16]}"
        for source in sources
    )
    return [
        Heading(2, "How this was made", "made"),
        Text("Each cell is trained once: what a results file has is not trained again."),
        Code("\n".join(commands)),
        Text("Read:"),
        Items(texts),
    ]
