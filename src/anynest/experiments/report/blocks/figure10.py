"""Figure 10 drawn: grouped bars over seven deadlines and none: Base, Nest, Oracle_All,
Oracle_Each."""

from ...catalog.fig9 import PANELS, schemes
from ...results.figures import Figure
from ..render.document import Picture
from ..render.drawing import BLUE, GREEN, INK, RED, SKY, legend, new_axes, styled, svg_of
from ..section import Section
from .figure9 import panel_title

KINDS = ("base", "nest", "oracle-all", "oracle-each")
COLORS = {"base": (RED,), "nest": (GREEN, "#8ccf9f"), "oracle-all": (BLUE,), "oracle-each": (SKY,)}
NAMES = {
    "base": "Base",
    "nest": "Nest",
    "oracle-all": "Oracle (all)",
    "oracle-each": "Oracle (each)",
}


def bars_of(figure: Figure) -> list[tuple[str, str, str]]:
    """(scheme, name, colour) in the paper's order."""
    panel = next(panel for panel in PANELS if f"fig10{panel.name}" == figure.name)
    found = []
    for kind in KINDS:
        for number, scheme in enumerate(schemes(panel, kind)):
            _, _, design = scheme.partition(": ")
            name = f"{NAMES[kind]}: {design}" if design else NAMES[kind]
            found.append((scheme, name, COLORS[kind][number % len(COLORS[kind])]))
    return found


def draw(figure: Figure, section: Section) -> Picture:
    """Means over seeds; whiskers are one standard deviation."""
    bars = bars_of(figure)
    by_name = {series.name: series for series in figure.series}
    width = 0.82 / len(bars)
    with styled():
        made, axes = new_axes()
        axes.grid(False, axis="x")
        for number, (scheme, name, color) in enumerate(bars):
            spots = by_name[scheme].spots
            shift = (number - (len(bars) - 1) / 2) * width
            axes.bar(
                [place + shift for place in range(len(spots))],
                [spot.mean for spot in spots],
                width,
                yerr=[spot.deviation or 0.0 for spot in spots],
                color=color,
                error_kw={"lw": 0.7, "ecolor": INK},
                label=name,
            )
        names = ["none" if s.x is None else f"{s.x:.2f}" for s in figure.series[0].spots]
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("deadline / mean latency of the biggest network")
        axes.set_ylabel("error (%)")
        legend(axes)
        title = panel_title(figure, section)
        return Picture(f"{section.anchor}-{figure.name}", title, svg_of(made))
