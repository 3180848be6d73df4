"""The paper's figures: drawn, with their numbers to unfold."""

from collections.abc import Callable

from ...catalog.experiment import Experiment
from ...results.figures import FIGURES, Figure
from ...results.tabulate import error_text
from ..formatting import count_text
from ..render.document import Block, Cell, Fold, Group, Picture, Pictures, Table, Text
from ..section import Section
from . import figure8, figure9, figure10
from .tables import seeds_text

DRAW: dict[str, Callable[[Figure, Section], Picture]] = {
    "fig8": figure8.draw,
    "fig9": figure9.draw,
    "fig10": figure10.draw,
}


def figure_blocks(section: Section, experiment: Experiment) -> list[Block]:
    """Nothing without results."""
    figures = FIGURES[experiment.name](section.evidence)
    if not figures:
        return []
    panels = tuple(DRAW[experiment.name](figure, section) for figure in figures)
    counts = {spot.n for figure in figures for one in figure.series for spot in one.spots}
    caption = (
        f"{experiment.source}: test error in %, means over {seeds_text(counts)}, bars are one "
        f"standard deviation; {section.label}"
    )
    return [
        Text(f"{experiment.title}."),
        Pictures(caption, panels),
        numbers(section, experiment, figures),
    ]


def numbers(section: Section, experiment: Experiment, figures: list[Figure]) -> Fold:
    """A table a panel: a row a point."""
    tables = []
    for figure in figures:
        groups = []
        for series in figure.series:
            rows = tuple(
                (
                    Cell(spot.name),
                    *((Cell(count_text(spot.x or 0)),) if experiment.name == "fig9" else ()),
                    Cell(error_text(spot.mean, spot.deviation)),
                    Cell(str(spot.n)),
                )
                for spot in series.spots
            )
            groups.append(Group(rows, name_of(series.name, section)))
        head = ("point", *(("multiply-adds",) if experiment.name == "fig9" else ()), "error %", "n")
        caption = f"{figure.name}, {figure.x}: mean (standard deviation); {section.label}"
        tables.append(Table(caption, head, tuple(groups)))
    return Fold(f"{experiment.source} in numbers", tuple(tables))


def name_of(series: str, section: Section) -> str:
    """A design's title belongs to the paper's networks alone."""
    return figure9.NAMES.get(series, series) if section.protocol.models else series
