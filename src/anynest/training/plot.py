"""The learning curves of one run as a picture."""

import io
from pathlib import Path
from typing import Any

from .files import write_whole


def stage_colors(stages: int) -> list[Any]:
    """From dark (stage 1) to light, the same in every picture."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * i / max(1, stages - 1)) for i in range(stages)]


def save_figure(figure: Any, path: Path) -> None:
    """As PNG, whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    write_whole(path, buffer.getvalue())


def new_figure(width: float, height: float) -> Any:
    """A figure of its own, in inches, that needs no display and touches no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_curves(
    axes: Any, history: list[dict[str, Any]], part: str, measure: str, scale: float = 1.0
) -> None:
    """One line a stage on a logarithmic axis; ``part`` is train or validation."""
    stages = len(history[0][part][measure])
    for index, color in enumerate(stage_colors(stages)):
        points = [(line["epoch"], line[part][measure][index]) for line in history]
        known = [(epoch, scale * value) for epoch, value in points if value is not None]
        if known:
            marker = "o" if len(known) < 30 else None
            axes.plot(
                *zip(*known, strict=True),
                color=color,
                marker=marker,
                ms=3,
                lw=1.4,
                label=f"stage {index + 1}",
            )
    axes.set_xlabel("epoch")
    axes.grid(True, which="both", alpha=0.25)
    values = [scale * v for line in history for v in line[part][measure] if v]
    if values:
        floor = min(values) / 1.5
        axes.set_yscale("log")
        axes.set_ylim(bottom=floor, top=max(values) * 1.3)
        plain_log_ticks(axes)


def plain_log_ticks(axes: Any) -> None:
    """Numbers such as 0.5, 2, 10 on a logarithmic axis, where it would print powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = axes.get_ylim()
    decades = high / low
    subs = [1.0] if decades > 1000 else [1.0, 2.0, 5.0]
    if decades < 8:
        subs = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0]
    axes.yaxis.set_major_locator(LogLocator(base=10, subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_formatter(NullFormatter())


def plot_run(history: list[dict[str, Any]], title: str, path: Path) -> None:
    """Error on the validation split and training loss, per stage and epoch."""
    figure = new_figure(10, 4.2)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    draw_curves(left, history, "validation", "error", 100)
    left.set_ylabel(f"error on {history[0]['validation']['split']} (%)")
    left.legend(fontsize="small")
    draw_curves(right, history, "train", "loss")
    right.set_ylabel("training loss")
    save_figure(figure, path)
