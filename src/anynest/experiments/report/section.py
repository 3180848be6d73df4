"""What one protocol and one data label have: a report's numbers never mix two of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from ..catalog.designs import DESIGNS
from ..catalog.experiment import SEEDS, Experiment
from ..catalog.protocols import PROTOCOLS, Protocol
from ..claims.evidence import Evidence
from ..results.filter_results import known_lines
from ..results.records import CELL, Line
from ..results.tabulate import Tabulated, comparable, table_of
from .formatting import anchor_of


@dataclass(frozen=True)
class Section:
    """lines: those of cells and measurements that the protocol has; passed_over: how many others
    there were; seeds: how many each cell should have; elsewhere: the families of networks that
    another section of the same protocol has."""

    protocol: Protocol
    data: str
    lines: tuple[Line, ...]
    passed_over: int
    seeds: int = SEEDS
    elsewhere: frozenset[str] = frozenset()

    @property
    def label(self) -> str:
        """What every number of it is labelled with."""
        return f"protocol {self.protocol.name}, {self.data}"

    @property
    def anchor(self) -> str:
        """For links and files' names."""
        return anchor_of(self.protocol.name, self.data)

    @cached_property
    def evidence(self) -> Evidence:
        """As the claims and figures read it."""
        return Evidence.of(self.lines, self.protocol, self.data)

    @cached_property
    def cells(self) -> list[Line]:
        """The lines of training runs."""
        return [line for line in self.lines if line["kind"] == CELL]

    @cached_property
    def families(self) -> frozenset[str]:
        """Whose networks it has."""
        found = {DESIGNS[line["design"]].family for line in self.cells}
        return frozenset(found or {"cifar"})

    def table(self, experiment: Experiment) -> Tabulated:
        """An experiment's numbers, from all seeds there are."""
        most = max((line["seed"] + 1 for line in self.cells), default=0)
        return table_of(experiment, self.protocol, max(self.seeds, most), self.cells)

    def comparable(self, design: str) -> bool:
        """Whether the paper's numbers may stand beside ours."""
        return comparable(design, self.protocol, self.cells)


def split(lines: Sequence[Line], seeds: int) -> tuple[list[Section], dict[str, int]]:
    """A section for each known protocol and each data label, and how many lines there are of each
    protocol that is not known here.

    Errors: RunFolderError for a known cell whose stages are not the protocol's.
    """
    by_label: dict[tuple[str, str], list[Line]] = {}
    unknown: dict[str, int] = {}
    for line in lines:
        if line["protocol"] in PROTOCOLS:
            by_label.setdefault((line["protocol"], line["data"]), []).append(line)
        else:
            unknown[line["protocol"]] = unknown.get(line["protocol"], 0) + 1
    names = list(PROTOCOLS)
    sections = []
    for name, data in sorted(by_label, key=lambda label: (names.index(label[0]), label[1])):
        every = by_label[name, data]
        kept = tuple(known_lines(every, PROTOCOLS[name]))
        sections.append(Section(PROTOCOLS[name], data, kept, len(every) - len(kept), seeds))
    return [with_elsewhere(section, sections) for section in sections], unknown


def with_elsewhere(section: Section, sections: Sequence[Section]) -> Section:
    """The section, told what its neighbours have."""
    others = [s for s in sections if s.protocol == section.protocol and s.data != section.data]
    elsewhere = frozenset(family for other in others for family in other.families)
    return replace(section, elsewhere=elsewhere - section.families)
