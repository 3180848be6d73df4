"""A table with a row a method and a column a stage: for the ablations, and whatever has many
methods."""

from collections.abc import Sequence

from ...catalog.experiment import Experiment, Run
from ...catalog.variants import title_of
from ...results.tabulate import Entry
from ..formatting import network_title, stage_names
from ..render.document import Cell, Group, Table
from ..section import Section
from .tables import notes, seeds_text


def method_table(section: Section, experiment: Experiment) -> Table:
    """The lowest error of each column of each design is marked."""
    numbers = section.table(experiment)
    every = [row for row in numbers.rows if row.run.independent is None]
    counts = {entry.n for row in every for entry in row.entries if entry.n}
    designs = dict.fromkeys(row.run.design for row in every)
    width = max((len(row.entries) for row in every), default=0)
    groups = []
    for design in designs:
        rows = [(row.run, row.entries) for row in every if row.run.design == design]
        names = stage_names(section.protocol, design)
        title, note = network_title(section.protocol, design)
        stages = "stages " + ", ".join(names)
        filled = tuple(cells(run, e, rows, width, section, counts) for run, e in rows)
        groups.append(Group(filled, title, f"{note}; {stages}" if note else stages))
    caption = (
        f"{experiment.title}: test error in %, mean (standard deviation) of "
        f"{seeds_text(counts)}; {section.label}"
    )
    head = ("method", *(f"stage {stage}" for stage in range(1, width + 1)))
    return Table(caption, head, tuple(groups))


def cells(
    run: Run,
    entries: Sequence[Entry],
    rows: Sequence[tuple[Run, Sequence[Entry]]],
    width: int,
    section: Section,
    counts: set[int],
) -> tuple[Cell, ...]:
    """A method's row, as wide as the widest."""
    made = [Cell(title_of(run.variant))]
    for index in range(width):
        if index >= len(entries):
            made.append(Cell(""))
            continue
        entry = entries[index]
        rivals = [round(other[index].mean, 1) for _, other in rows if other[index].n]
        best = len(rivals) > 1 and entry.n > 0 and round(entry.mean, 1) == min(rivals)
        below = notes(entry, section.comparable(run.design), len(counts) > 1)
        made.append(Cell(entry.text(), below, strong=best))
    return tuple(made)
