"""One protocol and data label, part by part, in the paper's order."""

from collections.abc import Callable

from ....training.output.reporting import counted
from ...catalog.experiment import Experiment
from ...catalog.experiments import EXPERIMENTS
from ..render.document import Block, Heading, Text
from ..section import Section
from . import verdicts
from .control import control
from .cosines import cosine_blocks
from .figure_blocks import figure_blocks
from .method_table import method_table
from .missing import still_missing
from .papers_tables import papers_table
from .provenance import what_ran
from .tables import error_table

LEGEND = (
    "Bold: the lowest of the paper's methods in its row. The column that stands apart is a control "
    "that the paper does not have; underlined where it is lower still."
)


def section_blocks(section: Section) -> list[Block]:
    """A heading for the section and one for each part; what has no results yet says so."""
    blocks: list[Block] = [
        Heading(2, f"{section.protocol.name}: {section.data}", section.anchor),
        Text(f"{section.protocol.title[:1].upper()}{section.protocol.title[1:]}."),
    ]
    if section.passed_over:
        lines = counted(section.passed_over, "line")
        blocks.append(
            Text(f"Left out: {lines} of cells that the protocol does not have (any more).")
        )
    for title, anchor, found in parts(section):
        blocks.append(Heading(3, title, f"{section.anchor}-{anchor}"))
        blocks += found or [Text("No results yet.")]
    return blocks


def parts(section: Section) -> list[tuple[str, str, list[Block]]]:
    """Title, anchor, blocks. Experiments whose images are another section's are left to it, and
    those that have no cells under the protocol are left out."""
    here = [
        e
        for e in EXPERIMENTS.values()
        if e.family not in section.elsewhere and e.wanted(section.protocol, section.cells)
    ]
    made = {e.name: (title_of(e), e.name, experiment_blocks(section, e)) for e in here}
    tables = [made.pop(name) for name in TABLES if name in made]
    return [
        ("What ran", "ran", what_ran(section)),
        ("Claims and verdicts", "claims", verdicts.claims(section)),
        *tables,
        ("The control sgd-sum", "control", control(section)),
        *made.values(),
        ("Cosines between the tasks' gradients", "cosines", cosine_blocks(section)),
        ("Still missing", "missing", still_missing(section)),
    ]


def title_of(experiment: Experiment) -> str:
    """The paper's name for it, or ours where the paper has none."""
    known = experiment.name in TABLES or experiment.name in FIGURES
    return experiment.source if known else experiment.name.capitalize()


def experiment_blocks(section: Section, experiment: Experiment) -> list[Block]:
    """A table or figure: its numbers, or that there are none yet."""
    found = BUILD.get(experiment.name, methods)(section, experiment)
    blocks = found or [Text(f"{experiment.title}: no results yet.")]
    folded = papers_table(section, experiment) if experiment.name in TABLES else None
    return [*blocks, folded] if folded else blocks


def table(section: Section, experiment: Experiment) -> list[Block]:
    """A table of the paper."""
    if not any_result(section, experiment):
        return []
    return [error_table(section, experiment), Text(LEGEND, quiet=True)]


def methods(section: Section, experiment: Experiment) -> list[Block]:
    """A row a method."""
    return [method_table(section, experiment)] if any_result(section, experiment) else []


def any_result(section: Section, experiment: Experiment) -> bool:
    """Whether one of its cells is there."""
    return any(entry.n for row in section.table(experiment).rows for entry in row.entries)


TABLES = ("table1", "table2", "table3")
FIGURES = ("fig8", "fig9", "fig10")
BUILD: dict[str, Callable[[Section, Experiment], list[Block]]] = {
    **dict.fromkeys(TABLES, table),
    **dict.fromkeys(FIGURES, figure_blocks),
}
