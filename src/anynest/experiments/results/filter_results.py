"""Selects the records of cells and measurements that a protocol currently has."""

from collections.abc import Iterable, Iterator

from ...store import RunFolderError
from ...training import ConfigError
from ..catalog.designs import DESIGNS
from ..catalog.experiment import Run
from ..catalog.fig10 import measurements
from ..catalog.protocols import Protocol
from .records import CELL, DEADLINES, Record


def filter_results(records: Iterable[Record], protocol: Protocol) -> Iterator[Record]:
    """The records whose settings are those of the protocol; all others are left out.

    Raises:
        RunFolderError: For a record with these settings and other stages, panel or seed.
    """
    listed = list(records)
    seeds = max((r["seed"] + 1 for r in listed if r["kind"] == DEADLINES), default=0)
    by_key = {one.key: (one.panel.name, one.seed) for one in measurements(protocol, seeds)}
    for record in listed:
        if record["kind"] == CELL and is_current(record, protocol):
            check_stages(record, protocol)
            yield record
        elif record["kind"] == DEADLINES and record["key"] in by_key:
            if by_key[record["key"]] != (record["panel"], record["seed"]):
                panel, seed = by_key[record["key"]]
                raise RunFolderError(
                    f"latencies {record['key']} of protocol {protocol.name} must be of panel "
                    f"{panel}, seed {seed}, found {record['panel']}, {record['seed']}: measure "
                    "again with anynest reproduce fig10"
                )
            yield record


def is_current(record: Record, protocol: Protocol) -> bool:
    """Whether the protocol has a cell with exactly these settings."""
    if record["design"] not in DESIGNS:
        return False
    try:
        run = Run(record["design"], record["variant"], record["independent"])
        cell = run.cell(protocol, record["seed"])
    except (ConfigError, ValueError):  # a method of another version
        return False
    return bool(cell.settings == record["settings"] and cell.key == record["key"])


def check_stages(record: Record, protocol: Protocol) -> None:
    """Checks the number of stages of errors and cosines."""
    stages = 1 if record["independent"] else len(protocol.growth(record["design"]))
    cosines = {len(entry["cosines"]) + 1 for entry in record.get("cosines", [])}
    for found in (len(record["error"]), *cosines):
        if found != stages:
            raise RunFolderError(
                f"cell {record['key']} of protocol {protocol.name} must have {stages} "
                f"stages, found {found}: train it again with anynest reproduce"
            )
