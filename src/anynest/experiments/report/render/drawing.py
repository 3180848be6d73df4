"""Figures as SVG: reproducible for equal numbers, in the page's text colour, with text as text."""

import io
import re
from collections.abc import Callable
from typing import Any

from ....store.figures import new_figure

INK = "#0a0b0c"  # replaced by the text colour around the picture, on light and dark pages
# readable on white and near black, and distinct in lightness for colour-blind readers
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


def draw(plot: Callable[[Any], None], width: float = 3.7, height: float = 3.0) -> str:
    """Draws a figure without background, with a faint grid and a legend below the axes.

    Args:
        plot: Fills the Matplotlib axes.
        width: Inches.
        height: Inches.

    Returns:
        The ``<svg>`` element.
    """
    from matplotlib import rc_context

    with rc_context(RC):
        figure = new_figure(width, height)
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        axes.grid(True, color=INK, alpha=0.12, lw=0.6)
        axes.set_axisbelow(True)
        plot(axes)
        figure.legend(
            loc="outside lower center", ncols=2, frameon=False, fontsize=8, handlelength=2.2
        )
        return svg_of(figure)


def svg_of(figure: Any) -> str:
    """The ``<svg>`` element of a figure, without dates, addresses and a fixed size."""
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
    """For a page: ids are made unique by ``name``; ``title`` must be escaped."""
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
