"""Errors by network, method and seed, as claims and figures read them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..catalog.protocols import Protocol
from .filter_results import filter_results
from .records import DEADLINES, Record

Errors = dict[int, list[float]]  # seed -> error in % of each stage


@dataclass
class Evidence:
    """The results of one protocol and one data label.

    Args:
        protocol: The protocol.
        data: The data label.
        cells: Errors by (design, variant, independent).
        work: Multiply-adds per image of each stage, by (design, independent).
        deadlines: Records of Figure 10's measurements.
        records: Records of the cells.
    """

    protocol: Protocol
    data: str
    cells: dict[tuple[str, str, int | None], Errors] = field(default_factory=dict)
    work: dict[tuple[str, int | None], list[float]] = field(default_factory=dict)
    deadlines: list[Record] = field(default_factory=list)
    records: list[Record] = field(default_factory=list)

    @classmethod
    def of(cls, records: Iterable[Record], protocol: Protocol, data: str) -> "Evidence":
        """From records; those of other protocols or data are ignored.

        Raises:
            RunFolderError: As ``filter_results``.
        """
        found = cls(protocol, data)
        ours = (r for r in records if (r["protocol"], r["data"]) == (protocol.name, data))
        for record in filter_results(ours, protocol):
            if record["kind"] == DEADLINES:
                found.deadlines.append(record)
            else:
                network = record["design"], record["independent"]
                run = record["design"], record["variant"], record["independent"]
                errors = [100 * error for error in record["error"]]
                found.cells.setdefault(run, {})[record["seed"]] = errors
                found.records.append(record)
                found.work[network] = record["multiply_adds"]
        return found

    def errors(self, design: str, variant: str, independent: int | None = None) -> Errors:
        """Errors by seed; empty if the run is missing."""
        return self.cells.get((design, variant, independent), {})

    def stages(self, design: str) -> int:
        """The design's number of stages under this protocol."""
        return len(self.protocol.growth(design))

    def paired(
        self, design: str, variant: str, reference: str, stages: Sequence[int]
    ) -> dict[str, dict[int, float]]:
        """For each stage (from 1), by seed: error of ``variant`` less error of ``reference``."""
        ours, theirs = self.errors(design, variant), self.errors(design, reference)
        seeds = sorted(set(ours) & set(theirs))
        return {
            f"stage {s}": {seed: ours[seed][s - 1] - theirs[seed][s - 1] for seed in seeds}
            for s in stages
        }
