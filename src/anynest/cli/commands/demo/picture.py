"""The demo's picture: accuracy by deadline, and one answer as it grows."""

from pathlib import Path
from typing import Any

from ....store.figures import new_figure, save_figure, stage_colors

PLAIN = "#9a9a9a"
NESTED = "#c8500f"
MARKERS = "os^Dvp"
CHANCE = 10.0  # percent, of ten classes


def draw(report: dict[str, Any], path: Path) -> None:
    """Left: accuracy under each deadline. Right: a picture, and each stage's probabilities."""
    figure = new_figure(11.0, 4.6)
    stages = report["example"]["stages"]
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    draw_deadlines(left.subplots(), report)
    right.suptitle("one picture's answer, stage by stage", fontsize="medium")
    image, *bars = right.subplots(1, 1 + len(stages), width_ratios=[1.1, *[1] * len(stages)])
    image.imshow(report["example"]["pixels"], cmap="gray_r")
    image.set_axis_off()
    image.set_title(f"a {report['example']['label']}", fontsize="small")
    for number, (axes, stage, color) in enumerate(
        zip(bars, stages, stage_colors(len(stages)), strict=True), start=1
    ):
        shares = [100 * share for share in stage["probabilities"]]
        axes.barh(range(len(shares)), shares, color=color)
        axes.set_title(f"stage {number}\n{1e3 * stage['elapsed']:.2g} ms", fontsize="small")
        axes.set_xlim(0, 100)
        axes.set_xticks([0, 100], ["0", "100 %"], fontsize="x-small")
        axes.set_yticks(
            range(len(shares)), [str(n) for n in range(len(shares))] if number == 1 else []
        )
        axes.invert_yaxis()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    save_figure(figure, path)


def draw_deadlines(axes: Any, report: dict[str, Any]) -> None:
    """Accuracy against the deadline, of the nested network and of every plain one."""
    for number, (name, results) in enumerate(report["networks"].items()):
        deadlines = [1e3 * result["deadline"] for result in results]
        accuracy = [100 * result["accuracy"] for result in results]
        if number == 0:
            look = {"color": NESTED, "lw": 2.5, "marker": "o", "zorder": 3}
            label = "nested, one network"
        else:
            look = {"color": PLAIN, "lw": 1.2, "ls": "--", "ms": 5}
            look["marker"] = MARKERS[number % len(MARKERS)]
            label = f"plain network of stage {name.rpartition('-')[2]}'s size"
        axes.plot(deadlines, accuracy, label=label, **look)
    axes.axhline(CHANCE, color="#cccccc", lw=1, zorder=0)
    axes.annotate("a guess", (1, CHANCE), (-4, 3), ("axes fraction", "data"),
                  textcoords="offset points", ha="right", fontsize="x-small", color="#777777")  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(deadlines, [f"{deadline:.2g}" for deadline in deadlines])
    axes.minorticks_off()
    axes.set_ylim(0, 103)
    axes.set_xlabel("deadline (ms), one picture at a time on this machine")
    axes.set_ylabel(f"accuracy (%) of {report['images']} test pictures")
    axes.set_title("the same pictures by several deadlines", fontsize="medium")
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize="small", loc="center right")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
