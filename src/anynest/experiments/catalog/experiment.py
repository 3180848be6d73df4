"""What a table or figure of the paper consists of: runs, as data."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product

from ..sweep.cell import Cell
from .protocols import Protocol

SEEDS = 3


@dataclass(frozen=True)
class Run:
    """What is trained once a seed. independent: not the design, but the plain network of the size
    of its stage of this number."""

    design: str
    variant: str
    independent: int | None = None

    def cell(self, protocol: Protocol, seed: int) -> Cell:
        """Its cell under a protocol."""
        settings = protocol.settings(self.design, self.variant, seed, self.independent)
        return Cell(protocol.name, self.design, self.variant, seed, settings, self.independent)


@dataclass(frozen=True)
class Experiment:
    """One table or figure. runs: what it needs, given the protocol (whose networks may have fewer
    stages than the paper's), in the order of the table; measured: besides, the trained networks
    are timed on this machine."""

    name: str
    title: str
    source: str
    family: str
    runs: Callable[[Protocol], list[Run]]
    measured: bool = False


def grid(designs: Iterable[str], variants: Iterable[str]) -> list[Run]:
    """
    >>> [run.variant for run in grid(["width"], ["greedy", "osgd"])]
    ['greedy', 'osgd']
    """
    return [Run(design, variant) for design, variant in product(designs, variants)]


def cells_of(runs: Iterable[Run], protocol: Protocol, seeds: int) -> list[Cell]:
    """Each different cell once, all runs of a seed before the next seed."""
    cells: dict[str, Cell] = {}
    listed = list(runs)
    for seed in range(seeds):
        for run in listed:
            cell = run.cell(protocol, seed)
            cells.setdefault(cell.key, cell)
    return list(cells.values())
