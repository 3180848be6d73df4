"""Accuracy under deadlines as a picture, in the manner of the paper's Figure 10."""

from pathlib import Path
from typing import Any

from ...store.figures import new_figure, save_figure, stage_colors


def draw_deadlines(report: dict[str, Any], path: Path) -> None:
    """Write the picture as PNG, whole or not at all."""
    save_figure(deadlines_figure(report), path)


def deadlines_figure(report: dict[str, Any]) -> Any:
    """Left: accuracy under each deadline, bars of one standard error, and every stage's accuracy
    as a dotted line; right: the stages that the answers came from."""
    rows = report["deadlines"]
    stages = len(report["stage_accuracy"])
    colors = stage_colors(stages)
    figure = new_figure(10.5, 4.6)
    reduced = report["images"] < report["images_of_split"]
    images = f"{report['images']}{' of ' + str(report['images_of_split']) if reduced else ''}"
    figure.suptitle(
        f"{report['model']}, {report['data']}, {images} images of the {report['split']} split"
        f"{' (reduced)' if reduced else ''}\n{report['backend']}, threads {report['threads']}, "
        f"{report['environment']['accelerator'] or report['environment']['processor']}",
        fontsize="medium",
    )
    left, right = figure.subplots(1, 2)
    places = list(range(len(rows)))
    for index, (accuracy, color) in enumerate(zip(report["stage_accuracy"], colors, strict=True)):
        left.axhline(100 * accuracy, color=color, ls=":", lw=1.2, label=f"stage {index + 1} alone")
    left.errorbar(
        places,
        [100 * row["accuracy"] for row in rows],
        yerr=[100 * row["standard_error"] for row in rows],
        fmt="o", color="black", capsize=3, label="the answer at the deadline",
    )  # fmt: skip
    left.set_ylabel("accuracy (%)")
    bottom = [0.0] * len(rows)
    parts = [("random guess", "#bbbbbb", [row["guessed"] for row in rows])]
    parts += [
        (f"stage {stage + 1}", colors[stage], [row["stages"][stage] for row in rows])
        for stage in range(stages)
    ]
    for label, color, counts in parts:
        shares = [100 * n / row["images"] for n, row in zip(counts, rows, strict=True)]
        right.bar(places, shares, bottom=bottom, color=color, label=label)
        bottom = [low + share for low, share in zip(bottom, shares, strict=True)]
    right.set_ylabel("answers (%)")
    names = ["none" if r["deadline"] is None else f"{1e3 * r['deadline']:.3g}" for r in rows]
    for axes in (left, right):
        axes.set_xticks(places, names)
        axes.set_xlim(-0.6, len(rows) - 0.4)
        axes.set_xlabel("deadline (ms)")
    left.grid(True, alpha=0.25)
    left.legend(fontsize="small", framealpha=0.6)
    right.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
