"""The demo's picture: error against cost, and the last stage's way there, method by method."""

import statistics
from pathlib import Path
from typing import Any

from ....nets import create_model
from ....store.figures import new_figure, plain_log_ticks, save_figure
from ....training.output.curves import integer_epochs
from ....training.output.reporting import counted
from ....training.output.run_folder import RunFolder

COLORS = {"sgd-mean": "#888888", "sgd-sum": "#3b75af", "osgd": "#c8500f"}


def draw(report: dict[str, Any], titles: dict[str, str], folder: Path, path: Path) -> None:
    """Left: test error of every stage against its multiply-adds. Right: validation error of the
    first and last stage by epoch. Means over seeds; bars are the standard deviation over them."""
    figure = new_figure(10.5, 4.4)
    figure.suptitle(
        f"{report['model']}, digits, {counted(report['epochs'], 'epoch')}, "
        f"{counted(report['seeds'], 'seed')}"
    )
    left, right = figure.subplots(1, 2)
    draw_cost(left, report, titles)
    draw_epochs(right, report, titles, folder)
    save_figure(figure, path)


def draw_cost(axes: Any, report: dict[str, Any], titles: dict[str, str]) -> None:
    """Test error against multiply-adds."""
    model = create_model(report["model"], in_channels=1)
    work = [row.multiply_adds / 1e6 for row in model.cost(8)]
    for number, (method, title) in enumerate(titles.items()):
        columns = list(zip(*report["error"][method], strict=True))  # [S][seeds]
        mean = [100 * statistics.mean(c) for c in columns]
        several = report["seeds"] > 1
        spread = [100 * statistics.stdev(c) for c in columns] if several else None
        shifted = [w * 1.03 ** (number - 1) for w in work]  # so that bars do not hide one another
        axes.errorbar(
            shifted,
            mean,
            yerr=spread,
            color=COLORS[method],
            label=title,
            marker="o",
            ms=4,
            lw=1.5,
            capsize=2,
        )
    axes.set_xscale("log")
    axes.set_xticks(work, [f"{w:.2g}" for w in work])
    axes.minorticks_off()
    axes.set_xlabel("multiply-adds per image up to the stage (million)")
    seeds = report["seeds"]
    over = f"mean of {seeds} seeds,\nbars: standard deviation over them" if seeds > 1 else "1 seed"
    axes.set_ylabel(f"test error (%), {over}")
    axes.set_ylim(bottom=0)
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize="small")


def draw_epochs(axes: Any, report: dict[str, Any], titles: dict[str, str], folder: Path) -> None:
    """Validation error by epoch, first stage dashed, last stage solid."""
    last = len(report["error"]["osgd"][0]) - 1
    curves = {
        (method, stage): mean_errors(folder, method, stage, report["seeds"])
        for method in titles
        for stage in (0, last)
    }
    above = [error for curve in curves.values() for error in curve if error > 0]
    zero = min(above, default=1.0) / 2  # a logarithmic axis has no 0: it is drawn here
    zeros = any(error == 0 for curve in curves.values() for error in curve)
    for (method, stage), curve in curves.items():
        axes.plot(
            range(1, len(curve) + 1),
            [error or zero for error in curve],
            "-o" if stage else "--s",
            color=COLORS[method],
            ms=3.5,
            lw=1.5,
            label=f"{titles[method]}, stage {stage + 1}",
        )
    axes.set_yscale("log")
    axes.set_ylim(zero * (0.9 if zeros else 1.5), max(above, default=1.0) * 1.3)
    plain_log_ticks(axes, zero if zeros else None)
    axes.set_xlabel("epoch")
    integer_epochs(axes)
    over = f"mean of {report['seeds']} seeds" if report["seeds"] > 1 else "1 seed"
    axes.set_ylabel(f"validation error (%), {over}")
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize="x-small")


def mean_errors(folder: Path, method: str, stage: int, seeds: int) -> list[float]:
    """Per epoch, the validation error in percent of a stage (from 0), mean over the seeds."""
    histories = [RunFolder(folder / f"{method}-seed{seed}").read_history() for seed in range(seeds)]
    return [
        statistics.mean(100 * line["validation"]["error"][stage] for line in lines)
        for lines in zip(*histories, strict=True)
    ]
