"""The price of a step against the number of tasks and against the number of parameters.

The network is a plain one, a trunk of four linear layers with a head a task: all weights of the
trunk are shared by all tasks, and at a batch of 64 each weight is used 64 times only, where a
convolution uses it tens of thousands of times. So this is the dearest case for what is done once a
weight: gathering, dots and sums.
"""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

from _problems import Problem, many_heads

from anynest.store import write_whole

TASKS = (2, 3, 4, 6, 8, 12, 16)
WIDTHS = (64, 128, 256, 512, 1024, 2048)
SWEEPS = ("tasks", "parameters")
AXES = {"tasks": "losses", "parameters": "parameters"}


def problems(sweep: str, batch: int, device: str) -> list[Problem]:
    """The networks of one curve."""
    if sweep == "tasks":
        return [many_heads(tasks, batch, device) for tasks in TASKS]
    return [many_heads(4, batch, device, width) for width in WIDTHS]


def draw(sweep: str, results: list[dict[str, Any]], path: Path) -> None:
    """Ratios to SGD against what was swept, with quartiles, and the floor."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.subplots()
    at = [result["stages" if sweep == "tasks" else "parameters"] for result in results]
    names: dict[str, str] = {}
    for result in results:
        for row in result["variants"]:
            names.setdefault(row["variant"], row["shown"])
    for name, shown in names.items():
        points = [
            (where, row["ratio"])
            for where, result in zip(at, results, strict=True)
            for row in result["variants"]
            if row["variant"] == name
        ]
        ours = name in ("exact", "lazy")
        axes.errorbar(
            [where for where, _ in points],
            [ratio["median"] for _, ratio in points],
            [
                [ratio["median"] - ratio["low"] for _, ratio in points],
                [ratio["high"] - ratio["median"] for _, ratio in points],
            ],
            label=shown,
            marker="o",
            markersize=3,
            linewidth=2.2 if ours else 1.2,
            linestyle="-" if ours or name == "sgd" else "--",
            capsize=2,
        )
    floors = [result["floor"]["floor"]["median"] for result in results]
    axes.plot(at, floors, color="black", linestyle=":", label="floor of an exact method")
    axes.set_xscale("log", base=2 if sweep == "tasks" else 10)
    axes.set_yscale("log", base=2)
    if sweep == "tasks":
        axes.set_xticks(at, [str(where) for where in at])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel(AXES[sweep])
    axes.set_ylabel("time of a step, of SGD's")
    axes.set_title(f"A step against the number of {AXES[sweep]}", fontsize=11)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8, frameon=False)
    buffer = BytesIO()
    FigureCanvasAgg(figure).print_png(buffer)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, buffer.getvalue())
