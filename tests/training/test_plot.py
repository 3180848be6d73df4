"""The learning curves: true where an error is 0, whole epochs, colours that can be read."""

from typing import Any

import pytest

from anynest.store.figures import stage_colors
from anynest.training.output.curves import run_figure


def history(errors: list[list[float | None]]) -> list[dict[str, Any]]:
    return [
        {
            "epoch": number,
            "validation": {"error": row, "split": "validation"},
            "train": {"loss": row},
        }
        for number, row in enumerate(errors, start=1)
    ]


def test_zero_is_drawn_at_the_edge_and_marked() -> None:
    figure = run_figure(history([[0.2, 0.1], [0.1, 0.0], [0.1, 0.02]]), "title")
    axes = figure.axes[0]
    figure.canvas.draw()
    edge = axes.get_ylim()[0]
    assert edge == pytest.approx(1.0)
    drawn = {line.get_label(): list(line.get_ydata()) for line in axes.lines}
    assert drawn["stage 2"] == pytest.approx([10, edge, 2])
    triangles = [line for line in axes.lines if line.get_marker() == "v" and len(line.get_xdata())]
    assert [list(line.get_xdata()) for line in triangles] == [[2]]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[0] == "0"
    assert axes.get_yticks()[0] == edge
    assert all(tick == int(tick) for tick in axes.get_xticks())


@pytest.mark.parametrize("errors", [[[0.0, 0.0]], [[0.5, None]]])
def test_few_points(errors: list[list[float | None]]) -> None:
    figure = run_figure(history(errors), "title")
    figure.canvas.draw()
    assert all(tick == int(tick) for tick in figure.axes[0].get_xticks())


@pytest.mark.parametrize("stages", [1, 3, 7])
def test_colours_are_readable_on_white(stages: int) -> None:
    for red, green, blue, _ in stage_colors(stages):
        assert 0.299 * red + 0.587 * green + 0.114 * blue < 0.65


def test_equal_curves_all_show() -> None:
    lines = run_figure(history([[0.2, 0.2, 0.2], [0.1, 0.1, 0.1]]), "title").axes[0].lines
    widths = [line.get_linewidth() for line in lines if line.get_label().startswith("stage")]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 3
