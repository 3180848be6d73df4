"""The results as the claims read them: errors by network and method, seed by seed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ..catalog.protocols import Protocol
from ..results.filter_results import known_lines
from ..results.records import DEADLINES, Line

Errors = dict[int, list[float]]  # seed -> error in % of every stage


@dataclass
class Evidence:
    """The lines of one protocol and one data label."""

    protocol: Protocol
    data: str
    cells: dict[tuple[str, str, int | None], Errors] = field(default_factory=dict)
    work: dict[tuple[str, int | None], list[float]] = field(default_factory=dict)
    deadlines: list[Line] = field(default_factory=list)

    @classmethod
    def of(cls, lines: Iterable[Line], protocol: Protocol, data: str) -> "Evidence":
        """What the lines say; those of other protocols, other data, and of cells and measurements
        that the protocol no longer has, are passed over.

        Errors: RunFolderError as ``known_lines`` raises it.
        """
        found = cls(protocol, data)
        ours = (ln for ln in lines if (ln["protocol"], ln["data"]) == (protocol.name, data))
        for line in known_lines(ours, protocol):
            if line["kind"] == DEADLINES:
                found.deadlines.append(line)
            else:
                network = line["design"], line["independent"]
                run = line["design"], line["variant"], line["independent"]
                errors = [100 * error for error in line["error"]]
                found.cells.setdefault(run, {})[line["seed"]] = errors
                found.work[network] = line["multiply_adds"]
        return found

    def errors(self, design: str, variant: str, independent: int | None = None) -> Errors:
        """By seed; nothing where the run is missing."""
        return self.cells.get((design, variant, independent), {})

    def stages(self, design: str) -> int:
        """How many the design has under this protocol."""
        return len(self.protocol.growth(design))

    def paired(
        self, design: str, variant: str, reference: str, stages: Sequence[int]
    ) -> dict[str, dict[int, float]]:
        """For each stage (from 1), seed by seed, the error of ``variant`` less that of
        ``reference``."""
        ours, theirs = self.errors(design, variant), self.errors(design, reference)
        seeds = sorted(set(ours) & set(theirs))
        return {
            f"stage {s}": {seed: ours[seed][s - 1] - theirs[seed][s - 1] for seed in seeds}
            for s in stages
        }
