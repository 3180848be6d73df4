"""An experiment (a table or figure of the paper) as data: the runs that it consists of."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

from ..results.records import Record
from .cell import Cell
from .protocols import Protocol

SEEDS = 3


@dataclass(frozen=True)
class Run:
    """A network and a method, trained once per seed.

    Args:
        design: Name of the network design.
        variant: The method and its changes.
        independent: Stage (from 1) whose size a plain network has; None for the design itself.
        seeds: Number of seeds; None leaves it to the user.
    """

    design: str
    variant: str
    independent: int | None = None
    seeds: int | None = field(default=None, compare=False, repr=False)

    def cell(self, protocol: Protocol, seed: int) -> Cell:
        """The cell of one seed under a protocol."""
        settings = protocol.settings(self.design, self.variant, seed, self.independent)
        return Cell(protocol.name, self.design, self.variant, seed, settings, self.independent)


@dataclass(frozen=True)
class Experiment:
    """A table or figure.

    Args:
        name: Its name on the command line.
        title: One line for the reader.
        source: Its number in the paper.
        family: Family of its networks: ``cifar`` or ``imagenet``.
        runs: The runs in the table's order, given the protocol (whose networks may have fewer
            stages than the paper's).
        measured: Whether the trained networks are also timed on this machine.
        next_runs: For an experiment whose runs depend on results: the runs, given the records of
            one protocol and one data label. ``runs`` then lists the first ones.
        next_designs: Designs that only such later runs have.
        waits_for: Name of the experiment whose results must be there before there are any runs.
    """

    name: str
    title: str
    source: str
    family: str
    runs: Callable[[Protocol], list[Run]]
    measured: bool = False
    next_runs: Callable[[Protocol, Sequence[Record]], list[Run]] | None = None
    next_designs: tuple[str, ...] = ()
    waits_for: str = ""

    def wanted(self, protocol: Protocol, records: Sequence[Record]) -> list[Run]:
        """The runs, as far as the results determine them."""
        return self.next_runs(protocol, records) if self.next_runs else self.runs(protocol)


def grid(designs: Iterable[str], variants: Iterable[str]) -> list[Run]:
    """
    >>> [run.variant for run in grid(["width"], ["greedy", "osgd"])]
    ['greedy', 'osgd']
    """
    return [Run(design, variant) for design, variant in product(designs, variants)]


def cells_of(runs: Iterable[Run], protocol: Protocol, seeds: int) -> list[Cell]:
    """Each distinct cell once; all runs of a seed before the next seed."""
    cells: dict[str, Cell] = {}
    counts = [(run, run.seeds or seeds) for run in runs]
    for seed in range(max((count for _, count in counts), default=0)):
        for run in (run for run, count in counts if seed < count):
            cell = run.cell(protocol, seed)
            cells.setdefault(cell.key, cell)
    return list(cells.values())
