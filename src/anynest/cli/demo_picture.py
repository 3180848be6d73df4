"""The demo's picture: error against cost, and the last stage's way there, method by method."""

import statistics
from pathlib import Path
from typing import Any

from ..nets import create_model
from ..training.plot import new_figure, plain_log_ticks, save_figure
from ..training.run_folder import RunFolder

COLORS = {"sgd-mean": "#888888", "sgd-sum": "#3b75af", "osgd": "#c8500f"}


def draw(report: dict[str, Any], titles: dict[str, str], folder: Path, path: Path) -> None:
    """Left: test error of every stage against its multiply-adds. Right: validation error of the
    first and last stage by epoch. Means over seeds; bars and bands from lowest to highest."""
    figure = new_figure(10.5, 4.4)
    figure.suptitle(
        f"{report['model']}, digits, {report['epochs']} epochs, {report['seeds']} seeds"
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
        low = [m - 100 * min(c) for m, c in zip(mean, columns, strict=True)]
        high = [100 * max(c) - m for m, c in zip(mean, columns, strict=True)]
        shifted = [w * 1.03 ** (number - 1) for w in work]  # so that bars do not hide one another
        axes.errorbar(
            shifted,
            mean,
            yerr=[low, high],
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
    axes.set_ylabel("test error (%)")
    axes.set_ylim(bottom=0)
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize="small")


def draw_epochs(axes: Any, report: dict[str, Any], titles: dict[str, str], folder: Path) -> None:
    """Validation error by epoch, first stage dashed, last stage solid."""
    last = len(report["error"]["osgd"][0]) - 1
    every: list[float] = []
    for method, title in titles.items():
        histories = [
            RunFolder(folder / f"{method}-seed{seed}").read_history()
            for seed in range(report["seeds"])
        ]
        epochs = [line["epoch"] for line in histories[0]]
        for stage, style in ((0, "--"), (last, "-")):
            columns = [
                [100 * line["validation"]["error"][stage] for line in lines]
                for lines in zip(*histories, strict=True)
            ]
            mean = [max(statistics.mean(c), 0.3) for c in columns]
            every += mean
            axes.plot(
                epochs,
                mean,
                style,
                color=COLORS[method],
                lw=1.5,
                label=f"{title}, stage {stage + 1}",
            )
    axes.set_yscale("log")
    axes.set_ylim(min(every) / 1.3, max(every) * 1.3)
    plain_log_ticks(axes)
    axes.set_xlabel("epoch")
    axes.set_ylabel("validation error (%)")
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize="x-small")
