"""The demo's picture: accuracy by deadline, and one answer as it grows."""

from pathlib import Path
from typing import Any

from ....store.figures import new_figure, save_figure, stage_colors

PLAIN = "#8c8c8c"
NESTED = "#d9570f"
MARKERS = "os^Dvp"
CHANCE = 10.0  # percent, of ten classes
TICKS = [digit * 10.0**power for power in range(-2, 4) for digit in (1, 2, 5)]  # milliseconds


def draw(report: dict[str, Any], path: Path) -> None:
    """Left: accuracy under each deadline. Right: a picture, and each stage's probabilities."""
    figure = new_figure(11.0, 4.4)
    left, right = figure.subfigures(1, 2, width_ratios=[1.2, 1])
    draw_deadlines(left.subplots(), report)
    stages = report["example"]["stages"]
    draw_answer(right, report["example"], [f"{1e3 * one['elapsed']:.2g} ms" for one in stages])
    save_figure(figure, path)


def draw_answer(
    figure: Any, example: dict[str, Any], below: list[str], colors: list[Any] | None = None
) -> None:
    """A picture, and beside it each stage's probabilities as bars.

    Args:
        figure: a figure or subfigure without axes.
        example: of the demo's report: ``pixels``, ``label`` and ``stages``.
        below: a second line of each stage's title.
        colors: of the stages; None: those of all figures.
    """
    stages = example["stages"]
    figure.suptitle("one picture's answer, stage by stage", fontsize="medium")
    image, *bars = figure.subplots(1, 1 + len(stages), width_ratios=[1.3, *[1] * len(stages)])
    image.imshow(example["pixels"], cmap="gray")
    image.set_axis_off()
    image.set_title(f"a {example['label']}", fontsize="small")
    colors = colors or stage_colors(len(stages))
    for number, (axes, stage, color) in enumerate(zip(bars, stages, colors, strict=True), start=1):
        shares = [100 * share for share in stage["probabilities"]]
        classes = range(len(shares))
        answer = max(classes, key=shares.__getitem__)
        axes.barh(classes, [100] * len(shares), color="#88888822", height=0.72)
        axes.barh(classes, shares, color=color, height=0.72)
        axes.set_title(f"stage {number}\n{below[number - 1]}", fontsize="small")
        axes.set_xlim(0, 100)
        axes.set_xticks([])
        axes.set_xlabel(f"“{answer}”, {shares[answer]:.0f} %", fontsize="small")
        axes.set_yticks(classes, [str(n) for n in classes] if number == 1 else [""] * len(shares))
        axes.tick_params(length=0)
        axes.invert_yaxis()
        for side in axes.spines.values():
            side.set_visible(False)


def draw_deadlines(axes: Any, report: dict[str, Any]) -> None:
    """Accuracy against the deadline, of the nested network and of every plain one."""
    deadlines: list[float] = []
    for number, (name, results) in enumerate(report["networks"].items()):
        deadlines = [1e3 * result["deadline"] for result in results]
        accuracy = [100 * result["accuracy"] for result in results]
        if number == 0:
            look = {"color": NESTED, "lw": 3, "marker": "o", "ms": 7, "zorder": 3}
            label = "nested: one network, three answers"
        else:
            look = {"color": PLAIN, "lw": 1.2, "ls": "--", "ms": 5}
            look["marker"] = MARKERS[number % len(MARKERS)]
            label = f"plain network of stage {name.rpartition('-')[2]}'s size"
        axes.plot(deadlines, accuracy, label=label, **look)
    axes.axhline(CHANCE, color="#88888888", lw=1, zorder=0)
    axes.annotate("a guess", (1, CHANCE), (-4, 3), ("axes fraction", "data"),
                  textcoords="offset points", ha="right", fontsize="x-small", color="#777777")  # fmt: skip
    axes.set_xscale("log")
    ticks = [tick for tick in TICKS if deadlines[0] <= tick <= deadlines[-1]]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(0, 103)
    axes.set_xlabel("deadline (ms), one picture at a time on this machine")
    axes.set_ylabel(f"accuracy (%) of {report['images']} test pictures")
    axes.set_title("the same pictures by several deadlines", fontsize="medium")
    axes.grid(True, alpha=0.25)
    axes.legend(fontsize="small", loc="upper center", bbox_to_anchor=(0.47, -0.15), ncols=2,
                frameon=False)  # fmt: skip
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
