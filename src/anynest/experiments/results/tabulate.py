"""From lines to a table: mean, standard deviation and n per run and stage, beside the paper's."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from ..catalog.designs import DESIGNS
from ..catalog.experiment import Experiment, Run
from ..catalog.paper import Printed, printed_error
from ..catalog.protocols import Protocol
from ..catalog.variants import title_of
from ..sweep.cell import network_name
from .records import CELL, Line


def error_text(mean: float, deviation: float | None) -> str:
    """As the paper prints it.

    >>> error_text(7.31, 0.26), error_text(7.31, None), error_text(10.2, 0.04)
    ('7.3 (0.3)', '7.3', '10.2 (0.04)')
    """
    if deviation is None or math.isnan(deviation):
        return f"{mean:.1f}"
    digits = 2 if 0 < deviation < 0.05 else 1
    return f"{mean:.1f} ({deviation:.{digits}f})"


@dataclass(frozen=True)
class Entry:
    """One run's error at one stage, in %. values: one a seed, in the order of the seeds."""

    stage: int
    values: tuple[float, ...]
    paper: Printed | None

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.mean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Of the sample; not a number with fewer than two."""
        return statistics.stdev(self.values) if self.n > 1 else math.nan

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, in the paper's and our standard deviations together."""
        if self.paper is None or self.paper.deviation is None or self.n < 2:
            return None
        spread = math.hypot(self.paper.deviation, self.deviation)
        return (self.mean - self.paper.mean) / spread if spread else None

    def text(self) -> str:
        """As the paper prints it; a dash where there is none."""
        return error_text(self.mean, self.deviation) if self.values else "-"


@dataclass(frozen=True)
class Row:
    """One run: a network and a method."""

    run: Run
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Tabulated:
    """An experiment's rows under one protocol and one data label, and the seeds that are wanting."""

    experiment: Experiment
    protocol: Protocol
    data: tuple[str, ...]
    seeds: int
    rows: tuple[Row, ...]
    missing: tuple[str, ...]

    def entry(self, run: Run, stage: int) -> Entry | None:
        """One number."""
        for row in self.rows:
            if row.run == run:
                return next((e for e in row.entries if e.stage == stage), None)
        return None

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "title": self.experiment.title,
            "source": self.experiment.source,
            "protocol": self.protocol.name,
            "data": list(self.data),
            "seeds": self.seeds,
            "rows": [
                {
                    **asdict(row.run),
                    "stages": [
                        {
                            "stage": entry.stage,
                            "error": list(entry.values),
                            "mean": entry.mean if entry.n else None,
                            "deviation": entry.deviation if entry.n > 1 else None,
                            "n": entry.n,
                            "paper": asdict(entry.paper) if entry.paper else None,
                            "difference": entry.difference,
                        }
                        for entry in row.entries
                    ],
                }
                for row in self.rows
            ],
            "missing": list(self.missing),
        }

    def show(self, console: Console) -> None:
        """A table a network."""
        for network in dict.fromkeys((row.run.design, row.run.independent) for row in self.rows):
            rows = [r for r in self.rows if (r.run.design, r.run.independent) == network]
            console.print(self.table(network_name(*network), rows))
        if self.missing:
            console.print(f"missing: {len(self.missing)} of the cells")

    def table(self, name: str, rows: Sequence[Row]) -> Table:
        """One network's: a row a method, a column a stage, so that a terminal's width is enough."""
        title = f"{self.experiment.source}, {name}: test error %, {' / '.join(self.data)}"
        table = Table(title=f"{title}, protocol {self.protocol.name}, mean (deviation) of seeds")
        table.add_column("method")
        names = DESIGNS[rows[0].run.design].subscripts(self.protocol.growth(rows[0].run.design))
        for index in range(max(len(row.entries) for row in rows)):
            stage = rows[0].run.independent or index + 1
            table.add_column(f"{stage} {names[stage - 1]}", justify="right", no_wrap=True)
        for row in rows:
            table.add_row(title_of(row.run.variant), *(entry.text() for entry in row.entries))
            papers = [entry.paper for entry in row.entries]
            if any(papers):
                printed = (error_text(p.mean, p.deviation) if p else "" for p in papers)
                table.add_row("  paper", *printed, style="dim")
        return table


def comparable(design: str, protocol: Protocol, lines: Iterable[Line]) -> bool:
    """Whether the paper's numbers may stand beside those of these cells: its network, on its data.

    CIFAR-10 is known by its label, which also names what was done to it; ImageNet by its size.
    """
    if not protocol.has_papers_network(design):
        return False
    if DESIGNS[design].family == "cifar":
        labels = {line["data"] for line in lines}
        return bool(labels) and all(f"{label} ".startswith("CIFAR-10 ") for label in labels)
    return {line.get("test_images") for line in lines if line["design"] == design} == {50000}


def table_of(
    experiment: Experiment, protocol: Protocol, seeds: int, lines: Sequence[Line]
) -> Tabulated:
    """The experiment's numbers from the lines there are."""
    by_key = {line["key"]: line for line in lines if line["kind"] == CELL}
    rows, missing, labels = [], [], dict[str, None]()
    for run in experiment.wanted(protocol, list(by_key.values())):
        errors: list[list[float]] = []
        for seed in range(run.seeds or seeds):
            cell = run.cell(protocol, seed)
            line = by_key.get(cell.key)
            if line is None:
                missing.append(cell.name)
            else:
                errors.append(line["error"])
                labels[line["data"]] = None
        compared = comparable(run.design, protocol, by_key.values())
        rows.append(Row(run, entries_of(run, protocol, errors, compared)))
    return Tabulated(experiment, protocol, tuple(labels), seeds, tuple(rows), tuple(missing))


def entries_of(
    run: Run, protocol: Protocol, errors: list[list[float]], compared: bool
) -> tuple[Entry, ...]:
    """A run's stages, with the paper's numbers where they can be compared."""
    count = 1 if run.independent else len(protocol.growth(run.design))
    return tuple(
        Entry(
            stage,
            tuple(100 * values[stage - 1] for values in errors),
            printed_error(run.design, run.variant, stage, run.independent) if compared else None,
        )
        for stage in range(1, count + 1)
    )
