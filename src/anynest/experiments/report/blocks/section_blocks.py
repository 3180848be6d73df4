"""A section of the report, in the paper's order."""

from ....training.output.reporting import counted
from ...catalog.experiment import Experiment
from ...catalog.experiments import EXPERIMENTS
from ..render.document import Block, Heading, Text
from ..section import Section
from . import verdicts
from .control import control
from .cosines import cosine_blocks
from .figure_blocks import figure_blocks
from .missing import still_missing
from .provenance import what_ran
from .tables import error_table, method_table, papers_table

TABLES = ("table1", "table2", "table3")
FIGURES = ("fig8", "fig9", "fig10")
LEGEND = (
    "Bold: the lowest of the paper's methods in its row. The column that stands apart is a control "
    "that the paper does not have; underlined where it is lower still."
)


def section_blocks(section: Section) -> list[Block]:
    """A heading for the section and one for each part."""
    blocks: list[Block] = [
        Heading(2, f"{section.protocol.name}: {section.data}", section.anchor),
        Text(f"{section.protocol.title[:1].upper()}{section.protocol.title[1:]}."),
    ]
    if section.passed_over:
        lines = counted(section.passed_over, "result")
        blocks.append(
            Text(f"Left out: {lines} of cells that the protocol does not have (any more).")
        )
    for title, anchor, found in parts(section):
        blocks.append(Heading(3, title, f"{section.anchor}-{anchor}"))
        blocks += found or [Text("No results yet.")]
    return blocks


def parts(section: Section) -> list[tuple[str, str, list[Block]]]:
    """Title, anchor and blocks of each part, without experiments whose images are another
    section's or that have no cells under the protocol."""
    made = {}
    for e in EXPERIMENTS.values():
        if e.family not in section.elsewhere and e.wanted(section.protocol, section.cells):
            title = e.source if e.name in TABLES + FIGURES else e.name.capitalize()
            made[e.name] = (title, e.name, experiment_blocks(section, e))
    tables = [made.pop(name) for name in TABLES if name in made]
    return [
        ("What ran", "ran", what_ran(section)),
        ("Claims and verdicts", "claims", verdicts.claims(section)),
        *tables,
        ("The control: SGD on the sum of the losses", "control", control(section)),
        *made.values(),
        ("Cosines between the tasks' gradients", "cosines", cosine_blocks(section)),
        ("Still missing", "missing", still_missing(section)),
    ]


def experiment_blocks(section: Section, experiment: Experiment) -> list[Block]:
    """A table or figure, or a line that it has no results."""
    blocks: list[Block] = []
    if experiment.name in FIGURES:
        blocks += figure_blocks(section, experiment)
    elif any(entry.n for row in section.table(experiment).rows for entry in row.entries):
        if experiment.name in TABLES:
            blocks += [error_table(section, experiment), Text(LEGEND, quiet=True)]
        else:
            blocks.append(method_table(section, experiment))
    blocks = blocks or [Text(f"{experiment.title}: no results yet.")]
    folded = papers_table(section, experiment) if experiment.name in TABLES else None
    return [*blocks, folded] if folded else blocks
