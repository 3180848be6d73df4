"""A section: the results of one protocol and one data label, which are never mixed."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..catalog.designs import DESIGNS
from ..catalog.experiment import SEEDS, Experiment
from ..catalog.protocols import PROTOCOLS, Protocol
from ..results.evidence import Evidence
from ..results.filter_results import filter_results
from ..results.records import CELL, Record
from ..results.tabulate import ErrorTable, comparable, table_of
from .formatting import anchor_of


@dataclass(frozen=True)
class Section:
    """The results of one protocol and one data label.

    Args:
        protocol: The protocol.
        data: The data label.
        records: Records of cells and measurements that the protocol has.
        passed_over: Number of other records.
        seeds: Number of seeds that each cell should have.
        elsewhere: Families of networks that another section of the protocol has.
    """

    protocol: Protocol
    data: str
    records: tuple[Record, ...]
    passed_over: int
    seeds: int = SEEDS
    elsewhere: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """The label of each of its numbers."""
        return f"protocol {self.protocol.name}, {self.data}"

    @property
    def anchor(self) -> str:
        """Its name in links and file names."""
        return anchor_of(self.protocol.name, self.data)

    @cached_property
    def evidence(self) -> Evidence:
        """The errors as claims and figures read them."""
        return Evidence.of(self.records, self.protocol, self.data)

    @cached_property
    def cells(self) -> list[Record]:
        """The records of training runs."""
        return [record for record in self.records if record["kind"] == CELL]

    @cached_property
    def families(self) -> frozenset[str]:
        """The families of its networks."""
        found = {DESIGNS[record["design"]].family for record in self.cells}
        return frozenset(found or {"cifar"})

    def table(self, experiment: Experiment, metric: str = "error") -> ErrorTable:
        """An experiment's table with all seeds that exist."""
        most = max((record["seed"] + 1 for record in self.cells), default=0)
        return table_of(experiment, self.protocol, max(self.seeds, most), self.cells, metric)

    def comparable(self, design: str) -> bool:
        """Whether the paper's numbers may be compared."""
        return comparable(design, self.protocol, self.cells)


def split(records: Sequence[Record], seeds: int) -> tuple[list[Section], dict[str, int]]:
    """A section per known protocol and data label, and the number of records of each unknown
    protocol.

    Raises:
        RunFolderError: As ``filter_results``.
    """
    by_label: dict[tuple[str, str], list[Record]] = {}
    unknown: dict[str, int] = {}
    for record in records:
        name = record["protocol"]
        if name in PROTOCOLS:
            by_label.setdefault((name, record["data"]), []).append(record)
        else:
            unknown[name] = unknown.get(name, 0) + 1
    names = list(PROTOCOLS)
    sections = []
    for name, data in sorted(by_label, key=lambda label: (names.index(label[0]), label[1])):
        found = by_label[name, data]
        kept = tuple(filter_results(found, PROTOCOLS[name]))
        sections.append(Section(PROTOCOLS[name], data, kept, len(found) - len(kept), seeds))
    return [with_elsewhere(section, sections) for section in sections], unknown


def with_elsewhere(section: Section, sections: Sequence[Section]) -> Section:
    """The section with the families of its protocol's other sections."""
    others = [s for s in sections if s.protocol == section.protocol and s.data != section.data]
    elsewhere = frozenset(family for other in others for family in other.families)
    return replace(section, elsewhere=elsewhere - section.families)
