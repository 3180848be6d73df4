"""What a table or figure of the paper consists of: runs, as data."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

from ..results.records import Line
from ..sweep.cell import Cell
from .protocols import Protocol

SEEDS = 3


@dataclass(frozen=True)
class Run:
    """What is trained once a seed. independent: not the design, but the plain network of the size
    of its stage of this number; seeds: how many, where that is not for the user to say."""

    design: str
    variant: str
    independent: int | None = None
    seeds: int | None = field(default=None, compare=False, repr=False)

    def cell(self, protocol: Protocol, seed: int) -> Cell:
        """Its cell under a protocol."""
        settings = protocol.settings(self.design, self.variant, seed, self.independent)
        return Cell(protocol.name, self.design, self.variant, seed, settings, self.independent)


@dataclass(frozen=True)
class Experiment:
    """One table or figure. runs: what it needs, given the protocol (whose networks may have fewer
    stages than the paper's), in the order of the table; measured: besides, the trained networks
    are timed on this machine; given: its runs where they depend on the results there are, of one
    protocol and one data label (``runs`` is then what it begins with)."""

    name: str
    title: str
    source: str
    family: str
    runs: Callable[[Protocol], list[Run]]
    measured: bool = False
    given: Callable[[Protocol, Sequence[Line]], list[Run]] | None = None

    def wanted(self, protocol: Protocol, lines: Sequence[Line]) -> list[Run]:
        """What it needs, as far as the results say."""
        return self.given(protocol, lines) if self.given else self.runs(protocol)


def grid(designs: Iterable[str], variants: Iterable[str]) -> list[Run]:
    """
    >>> [run.variant for run in grid(["width"], ["greedy", "osgd"])]
    ['greedy', 'osgd']
    """
    return [Run(design, variant) for design, variant in product(designs, variants)]


def cells_of(runs: Iterable[Run], protocol: Protocol, seeds: int) -> list[Cell]:
    """Each different cell once, all runs of a seed before the next seed."""
    cells: dict[str, Cell] = {}
    listed = [(run, run.seeds or seeds) for run in runs]
    for seed in range(max((count for _, count in listed), default=0)):
        for run in (run for run, count in listed if seed < count):
            cell = run.cell(protocol, seed)
            cells.setdefault(cell.key, cell)
    return list(cells.values())
