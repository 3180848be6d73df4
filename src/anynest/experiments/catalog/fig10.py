"""Figure 10: error at seven deadlines and without one; its networks are Figure 9's."""

import hashlib
import json
from dataclasses import dataclass

from . import fig9
from .cell import Cell
from .experiment import Experiment, Run
from .fig9 import ANYTIME, PANELS, Panel, oracle_runs
from .protocols import Protocol

ROUNDS = 3  # times that each input is timed

FIG10 = Experiment(
    "fig10",
    "Error at seven deadlines and at none, with measured latencies",
    "Figure 10",
    "cifar",
    fig9.runs,
    measured=True,
)


@dataclass(frozen=True)
class Measurement:
    """The networks of one panel and seed that are timed together.

    Args:
        panel: The panel of Figure 10.
        seed: The seed of its cells.
        anytime: Cell of each anytime network, by scheme.
        oracle: Cells of the Oracle's members.
    """

    panel: Panel
    seed: int
    anytime: dict[str, Cell]
    oracle: tuple[Cell, ...]

    @property
    def cells(self) -> list[Cell]:
        """All cells."""
        return [*self.anytime.values(), *self.oracle]

    @property
    def name(self) -> str:
        """As lists of missing results name it."""
        return f"latencies, panel {self.panel.name}, seed {self.seed}"

    @property
    def key(self) -> str:
        """As a cell's key: a hash of what decides the outcome."""
        parts = [self.panel.name, ROUNDS, [cell.key for cell in self.cells]]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def measurements(protocol: Protocol, seeds: int) -> list[Measurement]:
    """Those of every panel and seed."""
    found = []
    for panel in PANELS:
        designs = {f"base: {panel.baseline}": panel.baseline} if panel.baseline else {}
        designs |= {f"nest: {design}": design for design in panel.nested}
        for seed in range(seeds):
            anytime = {
                scheme: Run(design, ANYTIME).cell(protocol, seed)
                for scheme, design in designs.items()
            }
            oracle = tuple(run.cell(protocol, seed) for run in oracle_runs(panel, protocol))
            found.append(Measurement(panel, seed, anytime, oracle))
    return found
