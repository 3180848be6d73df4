"""How far each table and figure has come, and which cells it still wants."""

from dataclasses import dataclass

from ....training.output.reporting import counted
from ...catalog.experiment import Experiment, cells_of
from ...catalog.experiments import EXPERIMENTS
from ...results.records import DEADLINES
from ...results.tabulate import table_of
from ...results.timing import plans
from ..render.document import Block, Cell, Fold, Group, Items, Table, Text, row
from ..section import Section


@dataclass(frozen=True)
class Progress:
    """cells: how many an experiment wants; missing: the names of those that it has not; elsewhere:
    its images are those of another section."""

    experiment: Experiment
    cells: int
    missing: tuple[str, ...]
    elsewhere: bool = False


def progress(section: Section) -> list[Progress]:
    """Every experiment's."""
    return [progress_of(section, experiment) for experiment in EXPERIMENTS.values()]


def progress_of(section: Section, experiment: Experiment) -> Progress:
    """One experiment's; a measured one also wants its latencies."""
    if experiment.family in section.elsewhere:
        return Progress(experiment, 0, (), elsewhere=True)
    runs = experiment.wanted(section.protocol, section.cells)
    cells = cells_of(runs, section.protocol, section.seeds)
    wanted = len(cells)
    table = table_of(experiment, section.protocol, section.seeds, section.cells)
    missing = [*dict.fromkeys(table.missing)]
    if experiment.measured:
        known = {line["key"] for line in section.lines if line["kind"] == DEADLINES}
        measurements = plans(section.protocol, section.seeds)
        wanted += len(measurements)
        missing += [
            f"latencies, panel {plan.panel.name}, seed {plan.seed}"
            for plan in measurements
            if plan.key not in known
        ]
    return Progress(experiment, wanted, tuple(missing))


def still_missing(section: Section) -> list[Block]:
    """A table of all experiments, and below it the missing cells of each, folded."""
    found = progress(section)
    rows, folds = [], list[Block]()
    for one in found:
        name, source = one.experiment.name, one.experiment.source
        if one.elsewhere:
            rows.append(row(name, source, "-", "-", "see the section of its images"))
            continue
        done = one.cells - len(one.missing)
        state = f"{len(one.missing)} missing" if one.missing else "complete"
        state = state if one.cells else "no cells under this protocol"
        rows.append((*row(name, source), Cell(str(done)), Cell(str(one.cells)), Cell(state)))
        if one.missing:
            folds.append(
                Fold(f"{name}: {len(one.missing)} of {one.cells} missing", (Items(one.missing),))
            )
    seeds = counted(section.seeds, "seed")
    caption = f"Finished cells of {seeds}; a cell that several need is in each; {section.label}"
    head = ("name", "source", "finished", "wanted", "state")
    blocks: list[Block] = [Table(caption, head, (Group(tuple(rows)),), words=2)]
    if not folds:
        blocks.append(Text("Nothing is missing."))
    return [*blocks, *folds]
