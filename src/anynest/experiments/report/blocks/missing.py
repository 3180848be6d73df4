"""The progress of each table and figure, and its missing cells."""

from dataclasses import dataclass

from ....training.output.reporting import counted
from ...catalog.experiment import Experiment, cells_of
from ...catalog.experiments import EXPERIMENTS
from ...catalog.fig10 import measurements
from ...results.records import DEADLINES
from ...results.tabulate import table_of
from ..render.document import Block, Fold, Items, RowGroup, Table, Text, text_row
from ..section import Section


@dataclass(frozen=True)
class ExperimentProgress:
    """An experiment's progress.

    Args:
        experiment: The experiment.
        cells: Number of cells that it needs.
        missing: Names of the missing ones.
        elsewhere: Whether its images are another section's.
    """

    experiment: Experiment
    cells: int
    missing: tuple[str, ...]
    elsewhere: bool = False


def progress(section: Section) -> list[ExperimentProgress]:
    """The progress of all experiments."""
    return [progress_of(section, experiment) for experiment in EXPERIMENTS.values()]


def progress_of(section: Section, experiment: Experiment) -> ExperimentProgress:
    """The progress of one experiment, including latencies."""
    if experiment.family in section.elsewhere:
        return ExperimentProgress(experiment, 0, (), elsewhere=True)
    protocol, seeds = section.protocol, section.seeds
    wanted = len(cells_of(experiment.wanted(protocol, section.cells), protocol, seeds))
    missing = [*dict.fromkeys(table_of(experiment, protocol, seeds, section.cells).missing)]
    if experiment.measured:
        found = {record["key"] for record in section.records if record["kind"] == DEADLINES}
        needed = measurements(protocol, seeds)
        wanted += len(needed)
        missing += [one.name for one in needed if one.key not in found]
    return ExperimentProgress(experiment, wanted, tuple(missing))


def still_missing(section: Section) -> list[Block]:
    """A table of all experiments and the missing cells of each, folded."""
    rows, folds = [], list[Block]()
    for one in progress(section):
        name, source = one.experiment.name, one.experiment.source
        if one.elsewhere:
            rows.append(text_row(name, source, "-", "-", "see the section of its images"))
            continue
        before = EXPERIMENTS.get(one.experiment.waits_for)
        state = "complete" if one.cells else "no cells under this protocol"
        if before and not one.cells and before.runs(section.protocol):
            state = f"its cells follow from {before.name}"
        if one.missing:
            state = f"{len(one.missing)} missing"
            title = f"{name}: {len(one.missing)} of {one.cells} missing"
            folds.append(Fold(title, (Items(one.missing),)))
        done = one.cells - len(one.missing)
        rows.append(text_row(name, source, str(done), str(one.cells), state))
    seeds = counted(section.seeds, "seed")
    caption = f"Finished cells of {seeds}; a cell that several need is in each"
    head = ("name", "source", "finished", "wanted", "state")
    table = Table(caption, head, (RowGroup(tuple(rows)),), words=2)
    return [table, *(folds or [Text("Nothing is missing.")])]
