"""The paper's figures: drawn, with their numbers folded below."""

from ...catalog.experiment import Experiment
from ...catalog.fig9 import scheme_words
from ...results.figures import FIGURES, Figure, Series
from ...results.tabulate import error_text
from ..formatting import count_text
from ..render.document import Block, Fold, Pictures, RowGroup, Table, Text, text_row
from ..section import Section
from .drawings import DRAW, NAMES
from .tables import seeds_text


def figure_blocks(section: Section, experiment: Experiment) -> list[Block]:
    """A figure's panels and numbers; empty without results."""
    figures = FIGURES[experiment.name](section.evidence)
    if not figures:
        return []
    panels = tuple(DRAW[experiment.name](figure, section) for figure in figures)
    counts = {spot.n for figure in figures for one in figure.series for spot in one.spots}
    caption = (
        f"{experiment.source}: test error in %, means over {seeds_text(counts)}, bars are one "
        "standard deviation"
    )
    with_work = experiment.name == "fig9"
    tables = tuple(numbers(section, figure, with_work) for figure in figures)
    return [
        Text(f"{experiment.title}."),
        Pictures(caption, panels),
        Fold(f"{experiment.source} in numbers", tables),
    ]


def numbers(section: Section, figure: Figure, with_work: bool) -> Table:
    """A panel's table: a row per point. with_work: whether to show the multiply-adds."""
    groups = []
    for series in figure.series:
        rows = []
        for spot in series.spots:
            work = (count_text(spot.x or 0),) if with_work else ()
            error = error_text(spot.mean, spot.deviation)
            rows.append(text_row(spot.name, *work, error, str(spot.n)))
        groups.append(RowGroup(tuple(rows), series_words(section, figure, series)))
    head = ("point", *(("multiply-adds",) if with_work else ()), "error %", "n")
    caption = f"{figure_words(figure.name)}, {figure.x}: mean (standard deviation)"
    return Table(caption, head, tuple(groups))


def figure_words(name: str) -> str:
    """
    >>> figure_words("fig8"), figure_words("fig9a")
    ('Figure 8', 'Figure 9 (a)')
    """
    number, panel = name.removeprefix("fig").rstrip("abc"), name[-1]
    return f"Figure {number} ({panel})" if panel.isalpha() else f"Figure {number}"


def series_words(section: Section, figure: Figure, series: Series) -> str:
    """A series' name; the paper's title of a network is for the paper's network alone."""
    if figure.name.startswith("fig10"):
        words = scheme_words(series.name)
        return words[0].upper() + words[1:] if series.role == "oracle" else words
    return NAMES.get(series.name, series.name) if section.protocol.models else series.name
