"""Tables of errors: mean, standard deviation and n of each run and stage, beside the paper's."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import rich.table
from rich.console import Console

from ..catalog.cell import network_name
from ..catalog.designs import DESIGNS
from ..catalog.experiment import Experiment, Run
from ..catalog.paper import Printed, printed_error
from ..catalog.protocols import Protocol
from ..catalog.variants import title_of
from .records import CELL, Record


def error_text(mean: float, deviation: float | None) -> str:
    """An error in the paper's notation.

    >>> error_text(7.31, 0.26), error_text(7.31, None), error_text(10.2, 0.04)
    ('7.3 (0.3)', '7.3', '10.2 (0.04)')
    """
    if deviation is None or math.isnan(deviation):
        return f"{mean:.1f}"
    digits = 2 if 0 < deviation < 0.05 else 1
    return f"{mean:.1f} ({deviation:.{digits}f})"


@dataclass(frozen=True)
class Entry:
    """The error of one run at one stage.

    Args:
        stage: Number of the stage, from 1.
        values: Error in % of each seed, in the order of the seeds.
        paper: The paper's number, if it may be compared.
    """

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
        """Sample standard deviation; NaN with fewer than two values."""
        return statistics.stdev(self.values) if self.n > 1 else math.nan

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, in units of both standard deviations combined."""
        if self.paper is None or self.paper.deviation is None or self.n < 2:
            return None
        spread = math.hypot(self.paper.deviation, self.deviation)
        return (self.mean - self.paper.mean) / spread if spread else None

    def text(self) -> str:
        """In the paper's notation; a dash without values."""
        return error_text(self.mean, self.deviation) if self.values else "-"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "stage": self.stage,
            "error": list(self.values),
            "mean": self.mean if self.n else None,
            "deviation": self.deviation if self.n > 1 else None,
            "n": self.n,
            "paper": asdict(self.paper) if self.paper else None,
            "difference": self.difference,
        }


@dataclass(frozen=True)
class Row:
    """A run and its error at each stage."""

    run: Run
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class ErrorTable:
    """An experiment's rows under one protocol.

    Args:
        experiment: The experiment.
        protocol: The protocol.
        data: Data labels of the records that were used.
        seeds: Number of seeds that each run should have.
        rows: One per run.
        missing: Names of the cells without a record.
    """

    experiment: Experiment
    protocol: Protocol
    data: tuple[str, ...]
    seeds: int
    rows: tuple[Row, ...]
    missing: tuple[str, ...]

    def entry(self, run: Run, stage: int) -> Entry | None:
        """One error; None if the table does not have it."""
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
                {**asdict(row.run), "stages": [entry.to_json() for entry in row.entries]}
                for row in self.rows
            ],
            "missing": list(self.missing),
        }

    def show(self, console: Console) -> None:
        """Prints one table per network."""
        for network in dict.fromkeys((row.run.design, row.run.independent) for row in self.rows):
            rows = [r for r in self.rows if (r.run.design, r.run.independent) == network]
            console.print(self.console_table(network_name(*network), rows))
        if self.missing:
            console.print(f"missing: {len(self.missing)} of the cells")

    def console_table(self, name: str, rows: Sequence[Row]) -> rich.table.Table:
        """One network's table: a row per method and a column per stage, to fit a terminal."""
        title = f"{self.experiment.source}, {name}: test error %, {' / '.join(self.data)}"
        table = rich.table.Table(
            title=f"{title}, protocol {self.protocol.name}, mean (deviation) of seeds"
        )
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


def comparable(design: str, protocol: Protocol, records: Iterable[Record]) -> bool:
    """Whether the paper's numbers may be compared: the records are of its network and its data.

    CIFAR-10 is recognised by its label, which also names changes to it; ImageNet by its size.
    """
    if not protocol.has_papers_network(design):
        return False
    if DESIGNS[design].family == "cifar":
        labels = {record["data"] for record in records}
        return bool(labels) and all(f"{label} ".startswith("CIFAR-10 ") for label in labels)
    return {r.get("test_images") for r in records if r["design"] == design} == {50000}


def table_of(
    experiment: Experiment,
    protocol: Protocol,
    seeds: int,
    records: Sequence[Record],
    metric: str = "error",
) -> ErrorTable:
    """The experiment's table.

    Args:
        experiment: The experiment.
        protocol: The protocol.
        seeds: Number of seeds that each run should have.
        records: The results; those of other cells are ignored.
        metric: The field to tabulate, ``error`` or ``top5_error``.
    """
    by_key = {r["key"]: r for r in records if r["kind"] == CELL and metric in r}
    rows, missing, labels = [], [], dict[str, None]()
    for run in experiment.wanted(protocol, list(by_key.values())):
        errors: list[list[float]] = []
        for seed in range(run.seeds or seeds):
            cell = run.cell(protocol, seed)
            record = by_key.get(cell.key)
            if record is None:
                missing.append(cell.name)
            else:
                errors.append(record[metric])
                labels[record["data"]] = None
        compared = comparable(run.design, protocol, by_key.values())
        count = 1 if run.independent else len(protocol.growth(run.design))
        entries = (
            Entry(
                stage,
                tuple(100 * values[stage - 1] for values in errors),
                printed_error(run.design, run.variant, stage, run.independent, metric)
                if compared
                else None,
            )
            for stage in range(1, count + 1)
        )
        rows.append(Row(run, tuple(entries)))
    return ErrorTable(experiment, protocol, tuple(labels), seeds, tuple(rows), tuple(missing))
