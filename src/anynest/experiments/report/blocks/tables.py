"""Tables of errors.

Tables 1 to 3 have the paper's layout: designs and stages down, methods across. Others have a row
per method. The paper's number and the difference are notes below ours where network and data are
the paper's; otherwise the paper's table is shown separately.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ....training.output.reporting import counted
from ...catalog.designs import DESIGNS
from ...catalog.experiment import Experiment, Run
from ...catalog.paper import ERRORS, METHODS, PRINTED
from ...catalog.variants import title_of
from ...results.tabulate import Entry, error_text
from ..formatting import network_title, signed, stage_names
from ..render.document import Fold, RowGroup, Table, TableCell, Text
from ..section import Section

FAR = 2.0  # standard deviations from which a difference is marked
# by family: field of a record -> its name in headings
METRICS = {"cifar": {"error": ""}, "imagenet": {"error": "top-1", "top5_error": "top-5"}}
ORIENTATION = (
    "The paper's, for orientation; another network or other data, not to be compared number by "
    "number."
)


@dataclass(frozen=True)
class Column:
    """The errors of a method. metric: field of a record; label: its name in the heading."""

    variant: str
    metric: str
    label: str

    @property
    def printed(self) -> bool:
        """Whether the method is the paper's; others are controls."""
        return self.variant in METHODS

    @property
    def heading(self) -> str:
        return title_of(self.variant) + (f", {self.label}" if self.label else "")


def error_table(section: Section, experiment: Experiment) -> Table:
    """Our errors, with the paper's if they may be compared."""
    runs = experiment.runs(section.protocol)
    metrics = METRICS[experiment.family]
    columns = [
        Column(variant, *metric)
        for variant in dict.fromkeys(run.variant for run in runs)
        for metric in metrics.items()
    ]
    columns.sort(key=lambda column: not column.printed)
    tables = {metric: section.table(experiment, metric) for metric in metrics}
    entries = {
        (design, stage): [
            tables[c.metric].entry(Run(design, c.variant), stage) or Entry(stage, (), None)
            for c in columns
        ]
        for design in dict.fromkeys(run.design for run in runs)
        for stage in range(1, len(section.protocol.growth(design)) + 1)
    }
    counts = seed_counts(entry for row in entries.values() for entry in row)
    groups = []
    for design in dict.fromkeys(design for design, _ in entries):
        rows = []
        for stage, name in enumerate(stage_names(section.protocol, design), start=1):
            row = entries[design, stage]
            best = lowest(columns, [rounded(entry) for entry in row])
            cells = (
                cell_of(entry, best[c.metric], section.comparable(design), counts, not c.printed)
                for c, entry in zip(columns, row, strict=True)
            )
            rows.append((TableCell(name), *cells))
        groups.append(RowGroup(tuple(rows), *network_title(section.protocol, design)))
    shown = "top-1 and top-5 test error" if len(metrics) > 1 else "test error"
    return Table(
        f"{experiment.source}: {shown} in %, mean (standard deviation) of {seeds_text(counts)}",
        ("stage", *(column.heading for column in columns)),
        tuple(groups),
        apart=next((i + 1 for i, column in enumerate(columns) if not column.printed), None),
    )


def method_table(section: Section, experiment: Experiment) -> Table:
    """A row per method and a column per stage; the lowest error of each column is marked."""
    rows = [row for row in section.table(experiment).rows if row.run.independent is None]
    counts = seed_counts(entry for row in rows for entry in row.entries)
    width = max((len(row.entries) for row in rows), default=0)
    groups = []
    for design in dict.fromkeys(row.run.design for row in rows):
        own = [row for row in rows if row.run.design == design]
        names = stage_names(section.protocol, design)
        best = [least(rounded(row.entries[index]) for row in own) for index in range(len(names))]
        made = []
        for row in own:
            cells = [
                cell_of(entry, lowest_error, section.comparable(design), counts)
                for entry, lowest_error in zip(row.entries, best, strict=True)
            ]
            cells += [TableCell("")] * (width - len(cells))
            made.append((TableCell(title_of(row.run.variant)), *cells))
        title, note = network_title(section.protocol, design)
        stages = "stages " + ", ".join(names)
        groups.append(RowGroup(tuple(made), title, f"{note}; {stages}" if note else stages))
    return Table(
        f"{experiment.title}: test error in %, mean (standard deviation) of {seeds_text(counts)}",
        ("method", *(f"stage {stage}" for stage in range(1, width + 1))),
        tuple(groups),
    )


def papers_table(section: Section, experiment: Experiment) -> Fold | None:
    """The paper's numbers for those designs of a table that ours may not be compared with."""
    designs = [
        design
        for design in dict.fromkeys(run.design for run in experiment.runs(section.protocol))
        if not section.comparable(design)
    ]
    if not designs:
        return None
    columns = [
        Column(method, *metric)
        for method in METHODS
        if (designs[0], method, 1) in ERRORS
        for metric in METRICS[experiment.family].items()
    ]
    groups = []
    for design in designs:
        rows = []
        for stage, name in enumerate(DESIGNS[design].subscripts(), start=1):
            printed = [PRINTED[c.metric][design, c.variant, stage] for c in columns]
            best = lowest(columns, [number.mean for number in printed])
            cells = (
                TableCell(
                    error_text(number.mean, number.deviation),
                    strong=number.mean == best[column.metric],
                )
                for column, number in zip(columns, printed, strict=True)
            )
            rows.append((TableCell(f"{stage} {name}"), *cells))
        groups.append(RowGroup(tuple(rows), DESIGNS[design].title))
    title = f"{experiment.source} as the paper prints it"
    data = "ImageNet" if experiment.family == "imagenet" else "CIFAR-10"
    head = ("stage", *(column.heading for column in columns))
    table = Table(f"{title}: test error in %, {data}", head, tuple(groups))
    return Fold(title, (Text(ORIENTATION), table), note="for orientation")


def lowest(columns: Sequence[Column], means: Sequence[float]) -> dict[str, float]:
    """By metric, the lowest mean among the paper's methods."""
    pairs = list(zip(columns, means, strict=True))
    return {
        metric: least(mean for column, mean in pairs if column.metric == metric and column.printed)
        for metric in {column.metric for column in columns}
    }


def least(means: Iterable[float]) -> float:
    """The lowest mean; NaN unless there are two to choose from."""
    found = [mean for mean in means if not math.isnan(mean)]
    return min(found) if len(found) > 1 else math.nan


def rounded(entry: Entry) -> float:
    """The mean as printed; NaN without values."""
    return round(entry.mean, 1)


def seed_counts(entries: Iterable[Entry]) -> set[int]:
    """The different numbers of seeds."""
    return {entry.n for entry in entries if entry.n}


def seeds_text(counts: set[int]) -> str:
    """
    >>> seeds_text({3}), seeds_text({1}), seeds_text({1, 3}), seeds_text(set())
    ('n = 3 seeds', 'n = 1 seed', 'n = 1 to 3 seeds', 'seeds')
    """
    if not counts:
        return "seeds"
    if len(counts) > 1:
        return f"n = {min(counts)} to {max(counts)} seeds"
    return f"n = {counted(min(counts), 'seed')}"


def cell_of(
    entry: Entry, best: float, compared: bool, counts: set[int], control: bool = False
) -> TableCell:
    """An error with its notes; the best, and a control better than it, are marked."""
    mean = rounded(entry)
    return TableCell(
        entry.text(),
        notes(entry, compared, len(counts) > 1),
        strong=not control and mean == best,
        below=control and mean < best,
        far=compared and abs(entry.difference or 0) > FAR,
    )


def notes(entry: Entry, compared: bool, with_n: bool) -> tuple[str, ...]:
    """n if it varies within the table; the paper's number and the difference if compared."""
    lines = [f"n = {entry.n}"] if with_n and entry.n else []
    if compared and entry.paper:
        lines.append(f"paper {error_text(entry.paper.mean, entry.paper.deviation)}")
        if entry.difference is not None:
            lines.append(f"{signed(entry.difference)} sd")
        elif entry.n:
            lines.append(f"{signed(entry.mean - entry.paper.mean)} points")
    return tuple(lines)
