"""The learning curves of a run."""

from pathlib import Path
from typing import Any

from ...store.figures import new_figure, plain_log_ticks, save_figure, stage_colors


def draw_curves(
    axes: Any, history: list[dict[str, Any]], part: str, measure: str, scale: float = 1.0
) -> None:
    """Draw one line per stage on a logarithmic axis.

    Later stages are thinner and drawn on top, so that equal curves remain visible. A value of 0 is
    a hollow triangle at the lower edge, whose tick is labelled 0.

    Args:
        axes: of matplotlib.
        history: the lines of ``metrics.jsonl``.
        part: ``train`` or ``validation``.
        measure: ``loss`` or ``error``.
        scale: factor of the values.
    """
    stages = len(history[0][part][measure])
    values = [scale * v for line in history for v in line[part][measure] if v is not None]
    above = [value for value in values if value > 0]
    zero = min(above, default=1.0) / 2  # the height at which 0 is drawn
    zeros = len(above) < len(values)
    for index, color in enumerate(stage_colors(stages)):
        points = [(line["epoch"], line[part][measure][index]) for line in history]
        known = [(epoch, scale * value) for epoch, value in points if value is not None]
        if not known:
            continue
        thin = index / max(1, stages - 1)
        axes.plot(
            [epoch for epoch, _ in known],
            [value or zero for _, value in known],
            color=color,
            marker="o" if len(known) < 30 else None,
            ms=6.5 - 3.5 * thin,
            lw=3.2 - 2.0 * thin,
            label=f"stage {index + 1}",
        )
        if at := [epoch for epoch, value in known if value == 0]:
            (marks,) = axes.plot(at, [zero] * len(at), "v", color=color, mfc="white", zorder=3)
            marks.set(markersize=8 - 2.5 * thin, clip_on=False, in_layout=False)
    axes.set_xlabel("epoch")
    integer_epochs(axes)
    axes.grid(True, which="both", alpha=0.25)
    if values:
        axes.set_yscale("log")
        axes.set_ylim(zero if zeros else zero * 4 / 3, max(above, default=1.0) * 1.3)
        plain_log_ticks(axes, zero if zeros else None)


def integer_epochs(axes: Any) -> None:
    """Tick the axis of epochs at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, min_n_ticks=1))


def plot_run(history: list[dict[str, Any]], title: str, path: Path) -> None:
    """Save a figure of validation error and training loss per stage and epoch."""
    save_figure(run_figure(history, title), path)


def run_figure(history: list[dict[str, Any]], title: str) -> Any:
    """The figure of :func:`plot_run`."""
    figure = new_figure(10, 4.2)
    figure.suptitle(title)
    left, right = figure.subplots(1, 2)
    draw_curves(left, history, "validation", "error", 100)
    left.set_ylabel(f"error on {history[0]['validation']['split']} (%)")
    left.legend(fontsize="small")
    draw_curves(right, history, "train", "loss")
    right.set_ylabel("training loss")
    return figure
