"""The drawings of Figures 8 to 10. Points are means over seeds, bars one standard deviation."""

from collections.abc import Callable
from typing import Any

from ...catalog import fig8
from ...catalog.designs import DESIGNS
from ...catalog.fig9 import KINDS, PANELS, schemes
from ...catalog.variants import title_of
from ...results.figures import Figure, Series
from ..formatting import count_text
from ..render.document import Picture
from ..render.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    RED,
    SKY,
    VIOLET,
    YELLOW,
    draw,
)
from ..section import Section

# Figure 8, as in the paper: the standard order green, an intermediate output first yellow
ORDER_STYLES = ((GREEN, "o", "-"), (VIOLET, "v", "-"), (YELLOW, "s", "-"), (ORANGE, "D", "-"))
SGD_STYLE = (GREY, "x", "--")
# Figure 9: colour, then marker and line style of each series of the role
ROLES = {
    "nested": (GREEN, (("o", "-"), ("^", "--"))),
    "oracle": (BLUE, (("D", ":"),)),
    "baseline": (RED, (("s", "-."),)),
}
# Figure 10: name and colours of each kind of scheme
BARS = {
    "base": ("Base", (RED,)),
    "nest": ("Nest", (GREEN, "#8ccf9f")),
    "oracle-all": ("Oracle (all)", (BLUE,)),
    "oracle-each": ("Oracle (each)", (SKY,)),
}
NAMES = {design.title: design.words for design in DESIGNS.values()}


def draw_figure8(figure: Figure, section: Section) -> Picture:
    """A line per priority order, and SGD; the error of each stage."""
    orders = fig8.orders(section.evidence.stages(fig8.DESIGN))
    titles = [title_of(fig8.priority_variant(order)) for order in orders]
    styles = dict(zip(titles, ORDER_STYLES, strict=True))

    def plot(axes: Any) -> None:
        for number, series in enumerate(figure.series):
            color, marker, dash = styles.get(series.name, SGD_STYLE)
            standard = series.name == titles[0]
            shift = 0.03 * (number - (len(figure.series) - 1) / 2)  # separates the bars
            axes.errorbar(
                [float(spot.x or 0) + shift for spot in series.spots],
                *means_of(series),
                color=color,
                marker=marker,
                ls=dash,
                ms=4.5,
                lw=2.2 if standard else 1.5,
                capsize=2,
                label=f"{series.name} (standard order)" if standard else series.name,
            )
        spots = figure.series[0].spots
        axes.set_xticks(
            [spot.x for spot in spots], [f"{n} {s.name}" for n, s in enumerate(spots, 1)]
        )
        axes.set_xlabel("stage")
        axes.set_ylabel("test error (%)")

    return Picture(f"{section.anchor}-{figure.name}", "Figure 8", draw(plot, 4.6, 3.5))


def draw_figure9(figure: Figure, section: Section) -> Picture:
    """Error against multiply-adds."""

    def plot(axes: Any) -> None:
        for role, (color, styles) in ROLES.items():
            for number, series in enumerate(s for s in figure.series if s.role == role):
                marker, dash = styles[number % len(styles)]
                axes.errorbar(
                    [spot.x for spot in series.spots],
                    *means_of(series),
                    color=color,
                    marker=marker,
                    ls=dash,
                    ms=5,
                    lw=1.7,
                    capsize=2,
                    label=short_name(series),
                )
        axes.set_xscale("log")
        work_ticks(axes, [float(spot.x or 1) for s in figure.series for spot in s.spots])
        axes.set_xlabel("multiply-adds an image")
        axes.set_ylabel("test error (%)")

    return panel(figure, section, draw(plot))


def draw_figure10(figure: Figure, section: Section) -> Picture:
    """Grouped bars over seven deadlines and none."""
    (of_paper,) = [panel for panel in PANELS if f"fig10{panel.name}" == figure.name]
    bars = []
    for kind in KINDS:
        name, colors = BARS[kind]
        for number, scheme in enumerate(schemes(of_paper, kind)):
            _, _, design = scheme.partition(": ")
            label = f"{name}: {DESIGNS[design].words}" if design else name
            bars.append((scheme, label, colors[number % len(colors)]))
    by_name = {series.name: series for series in figure.series}
    width = 0.82 / len(bars)

    def plot(axes: Any) -> None:
        axes.grid(False, axis="x")
        for number, (scheme, label, color) in enumerate(bars):
            means, deviations = means_of(by_name[scheme])
            shift = (number - (len(bars) - 1) / 2) * width
            axes.bar(
                [place + shift for place in range(len(means))],
                means,
                width,
                yerr=deviations,
                color=color,
                error_kw={"lw": 0.7, "ecolor": INK},
                label=label,
            )
        names = ["none" if s.x is None else f"{s.x:.2f}" for s in figure.series[0].spots]
        axes.set_xticks(range(len(names)), names)
        axes.set_xlabel("deadline / mean latency of the biggest network")
        axes.set_ylabel("error (%)")

    return panel(figure, section, draw(plot))


def panel(figure: Figure, section: Section, svg: str) -> Picture:
    """A panel of Figure 9 or 10; its title names the paper's networks only if they are."""
    letter, title = figure.name[-1], figure.title
    if section.protocol.models:
        title = title.partition(", ")[2]
    return Picture(f"{section.anchor}-{figure.name}", f"({letter}) {title}", svg)


def means_of(series: Series) -> tuple[list[float], list[float]]:
    """Means and standard deviations."""
    return [spot.mean for spot in series.spots], [spot.deviation or 0.0 for spot in series.spots]


def short_name(series: Series) -> str:
    """Name in the legend: the design, whose network depends on the protocol."""
    name = NAMES.get(series.name, series.name)
    return name if series.role == "oracle" else f"{series.role}: {name}"


def work_ticks(axes: Any, work: list[float]) -> None:
    """Ticks at round numbers of multiply-adds: 500k, 1M, 2M."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = min(work) / 1.25, max(work) * 1.25
    steps = (1, 2, 5) if high / low < 200 else (1,)
    ticks = [s * 10.0**e for e in range(13) for s in steps if low <= s * 10.0**e <= high]
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([count_text(tick) for tick in ticks])


DRAW: dict[str, Callable[[Figure, Section], Picture]] = {
    "fig8": draw_figure8,
    "fig9": draw_figure9,
    "fig10": draw_figure10,
}
