"""Figure 9 drawn: error against multiply-adds; nested green, the Oracle blue, baselines red."""

from typing import Any

from ...catalog.designs import DESIGNS
from ...results.figures import Figure, Series
from ..formatting import count_text
from ..render.document import Picture
from ..render.drawing import BLUE, GREEN, RED, legend, new_axes, styled, svg_of
from ..section import Section

COLORS = {"nested": GREEN, "oracle": BLUE, "baseline": RED}
MARKERS = {"nested": ("o", "^"), "oracle": ("D",), "baseline": ("s",)}
DASHES = {"nested": ("-", "--"), "oracle": (":",), "baseline": ("-.",)}
NAMES = {design.title: design.name for design in DESIGNS.values()}


def short_name(series: Series) -> str:
    """A legend's: which design, not which network, for a protocol may have another."""
    words = {"nested": "nested: ", "baseline": "baseline: ", "oracle": ""}
    return words[series.role] + NAMES.get(series.name, series.name)


def panel_title(figure: Figure, section: Section) -> str:
    """The paper's networks are named where they are the paper's alone."""
    letter, title = figure.name[-1], figure.title
    if not any(section.protocol.models):
        return f"({letter}) {title}"
    return f"({letter}) {title.partition(', ')[2]}"


def draw(figure: Figure, section: Section) -> Picture:
    """Means over seeds; bars are one standard deviation."""
    with styled():
        made, axes = new_axes()
        for role in COLORS:
            for number, series in enumerate(s for s in figure.series if s.role == role):
                index = number % len(MARKERS[role])
                axes.errorbar(
                    [spot.x for spot in series.spots],
                    [spot.mean for spot in series.spots],
                    yerr=[spot.deviation or 0.0 for spot in series.spots],
                    color=COLORS[role],
                    marker=MARKERS[role][index],
                    ls=DASHES[role][index],
                    ms=5,
                    lw=1.7,
                    capsize=2,
                    label=short_name(series),
                )
        axes.set_xscale("log")
        work_ticks(axes, [float(spot.x or 1) for s in figure.series for spot in s.spots])
        axes.set_xlabel("multiply-adds an image")
        axes.set_ylabel("test error (%)")
        legend(axes)
        title = panel_title(figure, section)
        return Picture(f"{section.anchor}-{figure.name}", title, svg_of(made))


def work_ticks(axes: Any, work: list[float]) -> None:
    """Round numbers that the points span: 500k, 1M, 2M."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(work) / 1.25, max(work) * 1.25
    steps = (1, 2, 5) if high / low < 200 else (1,)
    ticks = [s * 10.0**e for e in range(13) for s in steps if low <= s * 10.0**e <= high]
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([count_text(tick) for tick in ticks])
