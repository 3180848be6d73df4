"""Which lines are of cells and measurements that a protocol has now; others are passed over."""

from collections.abc import Iterable, Iterator

from ...store import RunFolderError
from ...training import ConfigError
from ..catalog.designs import DESIGNS
from ..catalog.experiment import Run
from ..catalog.protocols import Protocol
from .records import CELL, DEADLINES, Line
from .timing import plans


def known_lines(lines: Iterable[Line], protocol: Protocol) -> Iterator[Line]:
    """Those of cells and measurements as the protocol has them now.

    Errors: RunFolderError for such a cell whose stages are not the protocol's.
    """
    listed = list(lines)
    most = max((line["seed"] + 1 for line in listed if line["kind"] == DEADLINES), default=0)
    measured = {plan.key: (plan.panel.name, plan.seed) for plan in plans(protocol, most)}
    for line in listed:
        if line["kind"] == CELL and is_known_cell(line, protocol):
            stages = 1 if line["independent"] else len(protocol.growth(line["design"]))
            told = {len(entry["cosines"]) + 1 for entry in line.get("cosines", [])}
            for found in (len(line["error"]), *told):
                if found != stages:
                    raise RunFolderError(
                        f"cell {line['key']} of protocol {protocol.name} must have {stages} "
                        f"stages, found {found}: train it again with anynest reproduce"
                    )
            yield line
        elif line["kind"] == DEADLINES and line["key"] in measured:
            if measured[line["key"]] != (line["panel"], line["seed"]):
                panel, seed = measured[line["key"]]
                raise RunFolderError(
                    f"latencies {line['key']} of protocol {protocol.name} must be of panel {panel}, "
                    f"seed {seed}, found {line['panel']}, {line['seed']}: measure again with anynest "
                    "reproduce fig10"
                )
            yield line


def is_known_cell(line: Line, protocol: Protocol) -> bool:
    """Whether the protocol has a cell of these very settings."""
    if line["design"] not in DESIGNS:
        return False
    try:
        run = Run(line["design"], line["variant"], line["independent"])
        cell = run.cell(protocol, line["seed"])
    except (ConfigError, ValueError):  # a method of another version
        return False
    return bool(cell.settings == line["settings"] and cell.key == line["key"])
