"""The summary above the sections, and how the report was made, below them."""

import shlex
from collections.abc import Sequence

from ....training.output.reporting import counted
from ...catalog.experiment import cells_of
from ...catalog.experiments import EXPERIMENTS
from ...catalog.protocols import PROTOCOLS
from ...claims.claim import Outcome, Verdict
from ...claims.claim_list import judge_all
from ..render.document import Block, Code, Heading, Items, RowGroup, Table, Text, text_row
from ..section import Section
from ..sources import Source
from . import verdicts
from .missing import progress

LATE, CONTROL, TUNED = "osgd-late", "osgd-late-against-sum", "osgd-tuned-against-sum"
MEANINGS: dict[Outcome, str] = {
    "holds": "So OSGD gains more than a longer step does.",
    "fails": "So OSGD's gain here is that of a longer step; its projection adds nothing to it.",
    "undecided": "Whether OSGD's projection adds to the gain of a longer step is undecided.",
}


def overview(sections: Sequence[Section]) -> list[Block]:
    """A column per section: cells, outcomes of the paper's claims, the control at one learning
    rate, and that at each method's best. Few columns, for narrow screens."""
    names = [section.protocol.name for section in sections]
    heads = [
        s.protocol.name if names.count(s.protocol.name) == 1 else f"{s.protocol.name}: {s.data}"
        for s in sections
    ]
    found = [judge_all(section.evidence) for section in sections]
    counts = [verdicts.counts(one) for one in found]
    rows = [text_row("cells", *(str(len(section.cells)) for section in sections))]
    rows += [
        text_row(f"claims: {outcome}", *(str(one[outcome]) for one in counts))
        for outcome in verdicts.OUTCOMES
    ]
    rows += [
        text_row(title, *(one[name].outcome for one in found))
        for title, name in (("control", CONTROL), ("control, rates tuned", TUNED))
    ]
    caption = "Cells trained, claims of the paper, and the control, by protocol"
    table = Table(caption, ("", *heads), (RowGroup(tuple(rows)),))
    return [Heading(2, "Summary", "summary"), table]


def in_words(sections: Sequence[Section]) -> list[Block]:
    """A paragraph per section that says what ran and what it shows, and what did not run."""
    blocks: list[Block] = [Text(section_in_words(section)) for section in sections]
    names = {section.protocol.name for section in sections}
    absent = [f"{name}: 0 cells" for name in PROTOCOLS if name not in names]
    return [*blocks, Text(f"What has not run: {', '.join(absent)}.")] if absent else blocks


def section_in_words(section: Section) -> str:
    """One section: its size, its verdicts, and OSGD against SGD and against the control."""
    found = judge_all(section.evidence)
    outcomes = verdicts.counts(found)
    words = [
        f"Protocol {section.protocol.name} ({section.protocol.title}), {section.data}: "
        f"{counted(len(section.cells), 'cell')}. Of the paper's {sum(outcomes.values())} claims "
        f"{outcomes['holds']} hold, {outcomes['fails']} fail and {outcomes['undecided']} are "
        "undecided."
    ]
    late, control = found[LATE], found[CONTROL]
    if late.n > 1:  # one pair of runs says nothing
        words.append(f"At the last two stages OSGD has {gap(late)} the paper's SGD.")
    if control.n > 1:
        words.append(f"It has {gap(control)} SGD on the sum of the losses, the control.")
    if late.outcome == "holds" and control.n > 1:
        meaning = control.outcome
        if control.outcome == "fails" and (control.difference or 0) < 0:
            meaning = "undecided"  # a single comparison contradicts the pool
        words.append(MEANINGS[meaning])
    tuned = found[TUNED]
    if tuned.n > 1:
        words.append(
            "With each method's learning rate tuned, at the last two stages of the width-nested "
            f"network OSGD has {gap(tuned)} SGD on the sum of the losses."
        )
    return " ".join(words)


def gap(verdict: Verdict) -> str:
    """The pooled difference in words.

    >>> gap(Verdict("holds", "", 6, -2.74))
    'an error 2.7 points lower (holds) than'
    """
    difference = verdict.difference or 0.0
    side = "lower" if difference < 0 else "higher"
    return f"an error {abs(difference):.1f} points {side} ({verdict.outcome}) than"


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


def command_of(section: Section) -> str:
    """What trains a section's cells: the experiments that are complete; all where none or each is."""
    every = [one for one in progress(section) if one.cells]
    complete = [one.experiment.name for one in every if not one.missing]
    names = " ".join(complete) if 0 < len(complete) < len(every) else "all"
    machines = [record.get("machine") or {} for record in section.cells]
    last = machines and all(machine.get("channels_last") for machine in machines)
    protocol = section.protocol.name
    return (
        f"anynest reproduce {names} --protocol {protocol} --data DATA --out runs/{protocol} "
        f"--results results/{protocol}.jsonl" + (" --run-option channels_last=true" * bool(last))
    )


def how_made(
    sections: Sequence[Section], sources: Sequence[Source], named: Sequence[str]
) -> list[Block]:
    """The commands and the files read. named: files and folders as given on the command line."""
    commands = [*dict.fromkeys(map(command_of, sections))]
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
