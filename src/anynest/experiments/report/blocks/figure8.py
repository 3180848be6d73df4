"""Figure 8 drawn: a line an order of priority, and SGD; the error of every stage."""

from ...catalog import fig8
from ...catalog.variants import title_of
from ...results.figures import Figure
from ..render.document import Picture
from ..render.drawing import GREEN, GREY, ORANGE, VIOLET, YELLOW, legend, new_axes, styled, svg_of
from ..section import Section

# as the paper has it: the standard order green, an intermediate output first yellow
STYLES = ((GREEN, "o", "-"), (VIOLET, "v", "-"), (YELLOW, "s", "-"), (ORANGE, "D", "-"))
SGD = (GREY, "x", "--")


def draw(figure: Figure, section: Section) -> Picture:
    """Means over seeds; bars are one standard deviation."""
    orders = fig8.orders(section.evidence.stages(fig8.DESIGN))
    titles = [title_of(fig8.priority_variant(order)) for order in orders]
    styles = dict(zip(titles, STYLES, strict=True))
    with styled():
        made, axes = new_axes(4.6, 3.5)
        for number, series in enumerate(figure.series):
            color, marker, dash = styles.get(series.name, SGD)
            standard = series.name == titles[0]
            shift = 0.03 * (number - (len(figure.series) - 1) / 2)  # so that bars stay apart
            axes.errorbar(
                [float(spot.x or 0) + shift for spot in series.spots],
                [spot.mean for spot in series.spots],
                yerr=[spot.deviation or 0.0 for spot in series.spots],
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
        legend(axes)
        return Picture(f"{section.anchor}-{figure.name}", "Figure 8", svg_of(made))
