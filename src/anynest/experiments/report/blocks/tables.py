"""Tables 1 to 3 as the paper lays them out: designs and stages down, methods across.

The paper's number and the difference stand below ours where network and data are the paper's, and
nowhere else.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ....training.output.reporting import counted
from ...catalog.experiment import Experiment, Run
from ...catalog.paper import METHODS, TOP5_ERRORS
from ...catalog.variants import title_of
from ...results.tabulate import Entry, Tabulated, error_text, table_of
from ..formatting import network_title, signed, stage_names
from ..render.document import Cell, Group, Table
from ..section import Section

FAR = 2.0  # standard deviations from which a difference is marked
TOP1, TOP5 = "top-1", "top-5"


@dataclass(frozen=True)
class Column:
    """A method, and which error of it (on ImageNet there are two)."""

    variant: str
    metric: str = TOP1

    @property
    def printed(self) -> bool:
        """Whether it is one of the paper's; the others are controls."""
        return self.variant in METHODS


def error_table(section: Section, experiment: Experiment) -> Table:
    """Ours, with the paper's where they can be compared."""
    runs = experiment.runs(section.protocol)
    metrics = (TOP1, TOP5) if experiment.family == "imagenet" else (TOP1,)
    columns = columns_of(runs, metrics)
    numbers = {metric: tabulated(section, experiment, metric) for metric in metrics}
    found = {
        (design, stage): [
            numbers[c.metric].entry(Run(design, c.variant), stage) or Entry(stage, (), None)
            for c in columns
        ]
        for design in dict.fromkeys(run.design for run in runs)
        for stage in range(1, len(section.protocol.growth(design)) + 1)
    }
    counts = {entry.n for entries in found.values() for entry in entries if entry.n}
    groups = []
    for design in dict.fromkeys(design for design, _ in found):
        names = stage_names(section.protocol, design)
        rows = [
            (Cell(name), *cells(columns, found[design, stage], section.comparable(design), counts))
            for stage, name in enumerate(names, start=1)
        ]
        groups.append(Group(tuple(rows), *network_title(section.protocol, design)))
    apart = next((i + 1 for i, c in enumerate(columns) if not c.printed), None)
    shown = "top-1 and top-5 test error" if len(metrics) > 1 else "test error"
    caption = (
        f"{experiment.source}: {shown} in %, mean (standard deviation) of "
        f"{seeds_text(counts)}; {section.label}"
    )
    head = ("stage", *(heading(c, len(metrics) > 1) for c in columns))
    return Table(caption, head, tuple(groups), apart=apart)


def columns_of(runs: Iterable[Run], metrics: Sequence[str]) -> list[Column]:
    """The paper's methods first, the controls last, each in the order of the runs."""
    variants = dict.fromkeys(run.variant for run in runs)
    columns = [Column(variant, metric) for variant in variants for metric in metrics]
    return sorted(columns, key=lambda column: not column.printed)


def heading(column: Column, several: bool) -> str:
    """What stands above a column."""
    return title_of(column.variant) + (f", {column.metric}" if several else "")


def seeds_text(counts: set[int]) -> str:
    """
    >>> seeds_text({3}), seeds_text({1}), seeds_text({1, 3}), seeds_text(set())
    ('n = 3 seeds', 'n = 1 seed', 'n = 1 to 3 seeds', 'seeds')
    """
    if not counts:
        return "seeds"
    if len(counts) > 1:
        return f"n = {min(counts)} to {max(counts)} seeds"
    (count,) = counts
    return f"n = {counted(count, 'seed')}"


def tabulated(section: Section, experiment: Experiment, metric: str) -> Tabulated:
    """The experiment's numbers; for the top-5 error, from those lines that have it."""
    table = section.table(experiment)
    if metric == TOP1:
        return table
    lines = [
        {**line, "error": line["top5_error"]} for line in section.cells if "top5_error" in line
    ]
    table = table_of(experiment, section.protocol, table.seeds, lines)
    rows = tuple(
        replace(
            row,
            entries=tuple(
                replace(
                    entry, paper=TOP5_ERRORS.get((row.run.design, row.run.variant, entry.stage))
                )
                for entry in row.entries
            ),
        )
        for row in table.rows
    )
    return replace(table, rows=rows)


def cells(
    columns: Sequence[Column], entries: Sequence[Entry], compared: bool, counts: set[int]
) -> list[Cell]:
    """A row. The lowest error among the paper's methods is marked, of each metric, where there are
    two to choose from; so is a control below it."""
    made = []
    for column, entry in zip(columns, entries, strict=True):
        rivals = [
            round(other.mean, 1)
            for c, other in zip(columns, entries, strict=True)
            if c.metric == column.metric and c.printed and other.n
        ]
        best = min(rivals) if len(rivals) > 1 else math.nan
        mean = round(entry.mean, 1) if entry.n else math.nan
        made.append(
            Cell(
                entry.text(),
                notes(entry, compared, len(counts) > 1),
                strong=column.printed and mean == best,
                below=not column.printed and mean < best,
                far=compared and abs(entry.difference or 0) > FAR,
            )
        )
    return made


def notes(entry: Entry, compared: bool, with_n: bool) -> tuple[str, ...]:
    """What stands below a number: n where it is not the same everywhere, the paper's number and
    the difference where the two can be compared."""
    lines = [f"n = {entry.n}"] if with_n and entry.n else []
    if compared and entry.paper:
        lines.append(f"paper {error_text(entry.paper.mean, entry.paper.deviation)}")
        if entry.difference is not None:
            lines.append(f"{signed(entry.difference)} sd")
        elif entry.n:
            lines.append(f"{signed(entry.mean - entry.paper.mean)} points")
    return tuple(lines)
