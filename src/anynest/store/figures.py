"""Figures that need no display, their common parts, and their atomic files."""

import io
from pathlib import Path
from typing import Any

from .files import write_whole


def stage_colors(stages: int) -> list[Any]:
    """One color per stage, from dark blue to orange, the same in every figure."""
    from matplotlib import colormaps

    return [colormaps["plasma"](0.68 * i / max(1, stages - 1)) for i in range(stages)]


def save_figure(figure: Any, path: Path) -> None:
    """Write a PNG file atomically. Names with a ``$`` are drawn as they are, not as formulas."""
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        if "$" in text.get_text() and "\\mathdefault" not in text.get_text():  # not a tick's label
            text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_whole(path, buffer.getvalue())


def new_figure(width: float, height: float) -> Any:
    """A figure of this size in inches, without a display and without global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def plain_log_ticks(axes: Any, zero: float | None = None) -> None:
    """Label a logarithmic axis with numbers such as 0.5, 2, 10 instead of powers of ten.

    Args:
        axes: the axes, whose y axis is labelled.
        zero: the position on the axis where 0 is drawn.
    """
    from matplotlib.ticker import (
        FixedLocator,
        FuncFormatter,
        LogLocator,
        NullFormatter,
        NullLocator,
    )

    low, high = axes.get_ylim()
    decades = high / low
    subs = [1.0] if decades > 1000 else [1.0, 2.0, 5.0]
    if decades < 8:
        subs = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
    locator = LogLocator(base=10, subs=subs)
    if zero is None:
        axes.yaxis.set_major_locator(locator)
    else:
        ticks = [tick for tick in locator.tick_values(low, high) if 1.5 * zero < tick <= high]
        axes.yaxis.set_major_locator(FixedLocator([zero, *ticks]))
    axes.yaxis.set_major_formatter(
        FuncFormatter(lambda value, _: "0" if value == zero else f"{value:g}")
    )
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())
