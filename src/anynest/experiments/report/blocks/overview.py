"""The summary above the sections, and how the report was made, below them."""

import shlex
from collections.abc import Sequence

from ....training.output.reporting import counted
from ...catalog.experiment import cells_of
from ...catalog.experiments import EXPERIMENTS
from ...catalog.protocols import PROTOCOLS
from ...claims.claim_list import judge_all
from ..render.document import Block, Code, Heading, Items, RowGroup, Table, Text, text_row
from ..section import Section
from ..sources import Source
from . import verdicts


def overview(sections: Sequence[Section]) -> list[Block]:
    """A row per section: its cells, and the number of claims with each outcome."""
    rows = []
    for section in sections:
        found = verdicts.counts(judge_all(section.evidence))
        numbers = (len(section.cells), *found.values())
        rows.append(text_row(section.protocol.name, section.data, *map(str, numbers)))
    head = ("protocol", "data", "cells", *verdicts.OUTCOMES)
    caption = "Claims of the paper, by protocol and data"
    table = Table(caption, head, (RowGroup(tuple(rows)),), words=2)
    return [Heading(2, "Summary", "summary"), table]


def nothing_yet(seeds: int) -> list[Block]:
    """The number of cells to train; for a report without results."""
    rows = []
    for e in EXPERIMENTS.values():
        counts = (len(cells_of(e.runs(p), p, seeds)) for p in PROTOCOLS.values())
        rows.append(text_row(e.name, e.source, e.title, *map(str, counts)))
    caption = f"Cells to train, {counted(seeds, 'seed')}, by protocol"
    head = ("name", "source", "what", *PROTOCOLS)
    table = Table(caption, head, (RowGroup(tuple(rows)),), words=3)
    return [Heading(2, "Summary", "summary"), Text("There are no results yet."), table]


def how_made(
    sections: Sequence[Section], sources: Sequence[Source], named: Sequence[str]
) -> list[Block]:
    """The commands and the files read. named: files and folders as given on the command line."""
    commands = [
        f"anynest reproduce all --protocol {protocol} --data DATA --out runs/{protocol} "
        f"--results results/{protocol}.jsonl"
        for protocol in dict.fromkeys(section.protocol.name for section in sections)
    ]
    commands.append(f"anynest report {shlex.join(named)} --out FOLDER")
    texts = tuple(
        f"{source.name}: {counted(source.records, 'line')}, SHA-256 {source.digest[:16]}"
        for source in sources
    )
    return [
        Heading(2, "How this was made", "made"),
        Text("Each cell is trained once: what a results file has is not trained again."),
        Code("\n".join(commands)),
        Text("Read:"),
        Items(texts),
    ]
