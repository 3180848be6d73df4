"""What OSGD gains over the paper's SGD, and what of it the sum of the losses gains already."""

import statistics
from collections.abc import Collection

from ...catalog.designs import DESIGNS
from ..formatting import network_title, signed, stage_names
from ..render.document import Block, Cell, Group, Table, Text
from ..section import Section

COLUMNS = (
    ("OSGD less SGD", "osgd", "sgd-mean"),
    ("SGD on the sum less SGD", "sgd-sum", "sgd-mean"),
    ("OSGD less SGD on the sum", "osgd", "sgd-sum"),
)
MEANING = (
    "The control: OSGD sums what it keeps of the losses' gradients, while SGD as the paper prints it "
    "averages the losses, so that weights which only the last stage uses move S times as far in "
    "each of OSGD's steps. sgd-sum is SGD on the sum of the losses: it takes steps of OSGD's scale "
    "and projects nothing. The last column is what the projection itself adds."
)


def control(section: Section) -> list[Block]:
    """The last two stages of each design, seed by seed; nothing where no pair has run."""
    evidence, groups = section.evidence, []
    for design in DESIGNS:
        names = stage_names(section.protocol, design)
        stages = range(max(1, len(names) - 1), len(names) + 1)
        columns = [evidence.paired(design, one, other, list(stages)) for _, one, other in COLUMNS]
        rows = [
            (Cell(names[s - 1]), *(difference(c[f"stage {s}"].values()) for c in columns))
            for s in stages
        ]
        if any(cell.text != "-" for row in rows for cell in row[1:]):
            groups.append(Group(tuple(rows), *network_title(section.protocol, design)))
    if not groups:
        return []
    caption = (
        "The control sgd-sum: differences in percentage points at the last two stages, below 0 is "
        f"better; mean (standard deviation) over pairs of one seed; {section.label}"
    )
    head = ("stage", *(name for name, _, _ in COLUMNS))
    return [Text(MEANING), Table(caption, head, tuple(groups), apart=3)]


def difference(values: Collection[float]) -> Cell:
    """Mean, deviation and n of differences."""
    if not values:
        return Cell("-")
    spread = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return Cell(signed(statistics.mean(values)) + spread, (f"n = {len(values)}",))
