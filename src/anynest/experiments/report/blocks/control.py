"""The control: OSGD's gain over the paper's SGD, split into sum of losses and projection."""

import statistics
from collections.abc import Collection

from ...catalog.designs import DESIGNS
from ..formatting import network_title, signed, stage_names
from ..render.document import Block, RowGroup, Table, TableCell, Text
from ..section import Section

COLUMNS = (
    ("OSGD less SGD", "osgd", "sgd-mean"),
    ("SGD on the sum less SGD", "sgd-sum", "sgd-mean"),
    ("OSGD less SGD on the sum", "osgd", "sgd-sum"),
)
MEANING = (
    "The control: OSGD sums what it keeps of the losses' gradients, while SGD as the paper prints "
    "it averages the losses, so that weights which only the last stage uses move S times as far in "
    "each of OSGD's steps. SGD on the sum of the losses takes steps of OSGD's scale and projects "
    "nothing. The last column is what the projection itself adds."
)


def control(section: Section) -> list[Block]:
    """Differences at the last two stages of each design; empty without pairs."""
    groups = []
    for design in DESIGNS:
        names = stage_names(section.protocol, design)
        stages = range(max(1, len(names) - 1), len(names) + 1)
        columns = [section.evidence.paired(design, a, b, stages) for _, a, b in COLUMNS]
        if any(values for column in columns for values in column.values()):
            rows = tuple(
                (
                    TableCell(names[stage - 1]),
                    *(difference(column[f"stage {stage}"].values()) for column in columns),
                )
                for stage in stages
            )
            groups.append(RowGroup(rows, *network_title(section.protocol, design)))
    if not groups:
        return []
    caption = (
        "The control: differences in percentage points at the last two stages, below 0 is better; "
        "mean (standard deviation) over pairs of one seed"
    )
    head = ("stage", *(name for name, _, _ in COLUMNS))
    return [Text(MEANING), Table(caption, head, tuple(groups), apart=3)]


def difference(values: Collection[float]) -> TableCell:
    """Mean, standard deviation and n."""
    if not values:
        return TableCell("-")
    spread = f" ({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return TableCell(signed(statistics.mean(values)) + spread, (f"n = {len(values)}",))
