"""A profile as a picture: every stage's error against its latency and against its multiply-adds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..store.figures import new_figure, save_figure
from .profile import Profile, describe_way
from .times import StageLatency

COLORS = ("#c8500f", "#3b75af", "#2f8f5b", "#8a4f9e", "#888888", "#b59b00")
TICK = 0.06  # height of a plain network's tick, as a share of the picture's


def draw_profile(profile: Profile, errors: Sequence[float], split: str, path: Path) -> None:
    """Write the picture as PNG, atomically.

    Args:
        profile: the latencies and costs.
        errors: of every stage, from 0 to 1.
        split: the data they were measured on, for the axis label.
        path: the file.
    """
    save_figure(profile_figure(profile, errors, split), path)


def profile_figure(profile: Profile, errors: Sequence[float], split: str) -> Any:
    """Error against the smallest batch's median latency (left) and multiply-adds (right).

    A bar leads to the 95 % quantile of the latency.

    Ticks on the horizontal axis are plain networks of the stages' sizes, each with the number of
    its stage: their errors are not known.
    """
    if len(errors) != profile.num_stages:
        raise ValueError(
            f"there must be an error for each of {profile.num_stages} stages, found {len(errors)}"
        )
    percent = [100 * error for error in errors]
    size = min(way[3] for way in profile.ways)
    figure = new_figure(10.5, 4.6)
    machine = profile.environment.get("accelerator") or profile.environment.get("processor", "")
    figure.suptitle(f"{profile.model}, {profile.on}, {machine}")
    left, right = figure.subplots(1, 2, sharey=True)
    ways = [way for way in profile.ways if way[3] == size]
    for way, color in zip(ways, COLORS * len(ways), strict=False):
        rows = [row for row in profile.rows if row.way == way]
        plain = [row for row in profile.plain if row.way == way]
        _draw_latency(left, rows, plain, percent, color)
    counted = f"batch of {size}" if size > 1 else "one image"
    left.set_xlabel(f"latency of {counted} (ms): median, bar to the 95 % quantile")
    left.set_ylabel(f"error on {split} (%)")
    work = [cost.multiply_adds / 1e6 for cost in profile.costs]
    right.plot(work, percent, "-o", color="black", label="nested, up to the stage")
    if profile.plain_costs:
        alone = [cost.multiply_adds / 1e6 for cost in profile.plain_costs]
        _draw_ticks(right, alone, "black")
    for stage, place in enumerate(zip(work, percent, strict=True), 1):
        right.annotate(f" {stage}", place, xytext=(3, 5), textcoords="offset points")
    right.set_xlabel("multiply-adds per image (million)")
    for axes in (left, right):
        _log_ticks(axes)
        axes.set_ylim(*_limits(percent))
        axes.grid(True, alpha=0.25)
        axes.legend(fontsize="small", loc="upper right")
    return figure


def _log_ticks(axes: Any) -> None:
    """A logarithmic horizontal axis with plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _draw_latency(
    axes: Any,
    rows: list[StageLatency],
    plain: list[StageLatency],
    percent: list[float],
    color: str,
) -> None:
    median = [1e3 * row.p50 for row in rows]
    late = [1e3 * (row.p95 - row.p50) for row in rows]
    label = describe_way(rows[0].way).rsplit(", batch", 1)[0]
    axes.plot(median, percent, "-o", color=color, lw=1.5, label=label)
    axes.errorbar(
        median, percent, xerr=[[0.0] * len(late), late], fmt="none", color=color, capsize=2, lw=0.8
    )  # fmt: skip
    if plain:
        _draw_ticks(axes, [1e3 * row.p50 for row in plain], color)


def _draw_ticks(axes: Any, values: list[float], color: str) -> None:
    """Ticks that stand on the horizontal axis, numbered by stage; the first row's have a label."""
    label = "plain network of a stage's size, alone"
    if label in axes.get_legend_handles_labels()[1]:
        label = "_"  # in the colour of the line that it belongs to
    place = axes.get_xaxis_transform()  # the height as a share of the picture's
    height = [TICK / 2] * len(values)
    axes.plot(values, height, "|", color=color, ms=12, mew=2, transform=place, label=label)
    for stage, value in enumerate(values, 1):
        axes.annotate(
            str(stage), (value, TICK), xycoords=place, color=color, fontsize="small", ha="center"
        )


def _limits(percent: list[float]) -> tuple[float, float]:
    """The error axis: the data's range, with room for the ticks below and the legend above."""
    low, high = min(percent), max(percent)
    span = max(high - low, 0.1 * high, 0.1)
    return low - 0.25 * span, high + 0.35 * span
