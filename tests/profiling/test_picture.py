"""The picture shows the measured values at their coordinates."""

from dataclasses import replace
from pathlib import Path

import pytest

from anynest.nets import create_model
from anynest.profiling import Profile, StageLatency
from anynest.profiling.picture import draw_profile, profile_figure

MODEL = create_model("width_nested_resnet10", base_width=2)
ERRORS = [0.4, 0.3, 0.25]


@pytest.fixture
def profile() -> Profile:
    def rows(scale: float) -> list[StageLatency]:
        result = []
        for backend in ("torch", "onnxruntime"):
            for size in (2, 1):  # the smallest is not the first
                for stage in (1, 2, 3):
                    times = [scale * size * stage * (1 + 0.01 * i) for i in range(101)]
                    result.append(StageLatency.of(stage, (backend, "cpu", 1, size), times, times))
        return result

    costs = MODEL.cost(8)
    plain = tuple(replace(cost, multiply_adds=2 * cost.multiply_adds) for cost in costs)
    return Profile(
        "m", {}, 8, costs, tuple(rows(1e-3)), plain, tuple(rows(5e-4)), {"processor": "a processor"}
    )


def test_every_stage_at_its_place(profile: Profile) -> None:
    figure = profile_figure(profile, ERRORS, "the test split")
    left, right = figure.axes
    lines = {line.get_label(): line.get_xydata().tolist() for line in left.lines}
    torch_line = lines["torch on cpu, 1 thread"]
    ticks = [line for line in left.lines if line.get_transform() == left.get_xaxis_transform()]
    assert len(ticks) == 2  # a row for each backend
    plain_line = ticks[0].get_xydata().tolist()
    assert torch_line == [pytest.approx((1.5 * s, 100 * e)) for s, e in enumerate(ERRORS, 1)]
    assert [x for x, _ in plain_line] == [pytest.approx(0.75 * stage) for stage in (1, 2, 3)]
    assert "onnxruntime on cpu, 1 thread" in lines
    nested, alone = right.lines
    work = [cost.multiply_adds / 1e6 for cost in profile.costs]
    assert nested.get_xdata().tolist() == work
    assert alone.get_xdata().tolist() == [2 * value for value in work]
    # the errors of plain networks are not known: ticks that stand on the axis
    assert alone.get_transform() == right.get_xaxis_transform()
    for line in (*ticks, alone):
        assert max(line.get_ydata()) < 0.1
    assert "the test split" in left.get_ylabel()
    assert "a processor" in figure.get_suptitle()
    for axes in (left, right):
        low, high = axes.get_ylim()
        span = 100 * (max(ERRORS) - min(ERRORS))
        assert min(ERRORS) * 100 - span / 2 < low < min(ERRORS) * 100
        assert max(ERRORS) * 100 < high < max(ERRORS) * 100 + span / 2


def test_without_plain_networks_and_without_errors(profile: Profile, tmp_path: Path) -> None:
    bare = replace(profile, plain=(), plain_costs=())
    draw_profile(bare, [0.0, 0.0, 0.0], "the test split", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")
    assert len(profile_figure(bare, ERRORS, "x").axes[1].lines) == 1
    with pytest.raises(ValueError, match="error for each of 3 stages, found 2"):
        profile_figure(profile, ERRORS[:2], "x")
