"""Figures as SVG text that is the same for the same numbers and follows the page's colours.

What is drawn in ``INK`` takes the colour of the text around the picture, so that it can be read on
light and dark pages; text stays text.
"""

import io
import re
from typing import Any

from ....store.figures import new_figure

INK = "#0a0b0c"
# readable on white and on near black, and apart for the colour-blind in lightness
GREEN, BLUE, RED, YELLOW, GREY, VIOLET, ORANGE, SKY = (
    "#2f9e5f", "#2f74d0", "#d6453d", "#d9a200", "#8a8f98", "#9a5fd0", "#e07b1f", "#7db4f0",
)  # fmt: skip
RC = {
    "svg.fonttype": "none",
    "svg.hashsalt": "anynest",
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.usetex": False,
}


def styled() -> Any:
    """A context in which figures are made and drawn."""
    from matplotlib import rc_context

    return rc_context(RC)


def new_axes(width: float = 3.7, height: float = 3.0) -> tuple[Any, Any]:
    """A figure without a background, and its axes with a faint grid."""
    figure = new_figure(width, height)
    figure.patch.set_alpha(0)
    axes = figure.subplots()
    axes.patch.set_alpha(0)
    axes.grid(True, color=INK, alpha=0.12, lw=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def legend(axes: Any, columns: int = 2) -> None:
    """Below the axes, where it hides nothing."""
    axes.figure.legend(
        loc="outside lower center", ncols=columns, frameon=False, fontsize=8, handlelength=2.2
    )


def svg_of(figure: Any) -> str:
    """The ``<svg>`` element alone, without dates and addresses, as wide as its place."""
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    box = re.search(r'viewBox="([^"]*)"', text)
    assert box is not None
    body = text[text.index(">") + 1 :]
    return f'<svg viewBox="{box[1]}">{body}'.strip()


def inline(svg: str, name: str, title: str) -> str:
    """For a page: names of its parts that no other picture has; ``title`` must be escaped."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = svg.replace(INK, "currentColor")
    return svg.replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)


def standalone(svg: str) -> str:
    """For a file: dark on white."""
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    head = f'<svg {spaces} version="1.1" style="background: #ffffff" '
    return svg.replace(INK, "#1b1f24").replace("<svg ", head, 1) + "\n"
