"""The profile: probabilities of stages, and its JSON."""

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from anynest.engines.onnx.export import directory
from anynest.nets import create_model
from anynest.predict.early_stopping import saved_policy
from anynest.profiling import Profile, ProfileError, StageLatency
from anynest.profiling.profile import FILE
from anynest.profiling.times import POINTS, quantiles, share_within

MODEL = create_model("width_nested_resnet10", base_width=2, growth=((1, 1), (2, 1)))
WAYS = [("onnxruntime", "cpu", 1, 1), ("onnxruntime", "cpu", 1, 8), ("onnxruntime", "cpu", 2, 1)]


def runs(way: tuple[str, str, int, int], n: int = 400) -> tuple[StageLatency, ...]:
    """Stage 1 takes 1 to 2 ms an image, stage 2 another 3 to 5 ms."""
    draw = random.Random(way[3])
    first = [way[3] * draw.uniform(1e-3, 2e-3) for _ in range(n)]
    second = [way[3] * draw.uniform(3e-3, 5e-3) for _ in range(n)]
    both = [a + b for a, b in zip(first, second, strict=True)]
    return StageLatency.of(1, way, first, first), StageLatency.of(2, way, both, second)


@pytest.fixture
def profile() -> Profile:
    rows = tuple(row for way in WAYS for row in runs(way))
    costs = MODEL.cost(8)
    return Profile(MODEL.name, MODEL.arguments, 8, costs, rows, costs, rows[:2], {"torch": "2"})


def test_probability_is_of_the_step_from_the_stage_before(profile: Profile) -> None:
    at = profile.probability
    assert at(1, 0.0, 0.0009) == 0.0
    assert at(1, 0.0, 0.0021) == 1.0
    assert at(1, 0.0, 0.0015) == pytest.approx(0.5, abs=0.06)
    assert at(1, 0.5, 0.5015) == pytest.approx(at(1, 0.0, 0.0015))  # waiting counts
    assert at(2, 0.0015, 0.0055) == pytest.approx(0.5, abs=0.06)
    assert at(2, 0.0040, 0.0080) == pytest.approx(at(2, 0.0015, 0.0055))
    assert at(2, 0.0060, 0.0055) == 0.0  # too late already
    grid = [at(2, 0.001, 0.004 + 1e-5 * i) for i in range(250)]
    assert grid == sorted(grid)
    assert (grid[0], grid[-1]) == (pytest.approx(0, abs=0.02), 1.0)


def test_probability_of_a_batch_is_bounded_by_what_was_measured(profile: Profile) -> None:
    def at(size: int) -> float:
        return profile.probability(2, 0.0, 0.032, batch_size=size)

    assert at(8) == pytest.approx(0.5, abs=0.06)
    assert at(3) == at(8)  # the next larger one that was measured
    assert profile.probability(2, 0.0, 0.064, batch_size=16) == pytest.approx(at(8))
    assert at(1) == 1.0


def test_ways_that_were_not_measured(profile: Profile) -> None:
    with pytest.raises(ProfileError, match=r"torch on cpu, 1 thread.*profile has onnxruntime on"):
        profile.stages("torch")
    with pytest.raises(ProfileError, match="4 threads"):
        profile.probability(1, 0, 1, threads=4)
    for stage in (0, 3):
        with pytest.raises(ProfileError, match=f"numbered 1 to 2, found {stage}"):
            profile.probability(stage, 0, 1)


def test_share_within_against_counting() -> None:
    draw = random.Random(0)
    values = [draw.expovariate(1.0) for _ in range(5000)]
    points = quantiles(values)
    for seconds in (0.0, 0.01, 0.1, 0.7, 1.0, 3.0, 9.0):
        counted = sum(value <= seconds for value in values) / len(values)
        assert share_within(points, seconds) == pytest.approx(counted, abs=0.006)
    assert share_within(points, float("nan")) == 0.0
    assert share_within(points, float("inf")) == 1.0
    assert share_within((2.0,) * POINTS, 2.0) == 1.0
    assert share_within((2.0,) * POINTS, 1.999) == 0.0


def test_quantiles_of_a_row() -> None:
    values = [float(i) for i in range(1, 202)]
    row = StageLatency.of(1, WAYS[0], values, values[:101])
    assert (row.p50, row.p95, row.p99) == (101.0, 191.0, 199.0)
    assert (row.mean, row.runs) == (101.0, 201)
    assert row.quantiles[0] == 1
    assert row.quantiles[-1] == 201
    assert row.step_quantiles == tuple(float(i) for i in range(1, 102))


def test_json_round_trip(profile: Profile, tmp_path: Path) -> None:
    file = tmp_path / "profile.json"
    profile.save(file)
    assert Profile.read(file) == Profile.read(tmp_path) == profile
    data = json.loads(file.read_text())
    assert data["rows"][1]["p99"] == profile.rows[1].p99
    assert Profile.read(file).dumps() == file.read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["profile.json"]


DAMAGE: list[tuple[str, Any, str]] = [
    ("format", "anynest-profile-0", "format must be anynest-profile-1"),
    ("model", 3, "model must be a str"),
    ("image_size", 0, "image_size must be at least 1"),
    ("image_size", True, "image_size must be a int"),
    ("rows", {}, "rows must be a list"),
    ("costs", [], "at least one stage"),
    ("rows.0", 1, r"rows\[0\] must be an object"),
    ("rows.1.stage", 3, "each of the stages"),
    ("rows.0.stage", 1.0, "stage must be a whole number"),
    ("rows.0.p50", 0.5, "p50 must be that of its quantiles"),
    ("rows.0.mean", float("nan"), "mean must be seconds"),
    ("rows.0.mean", 10**400, "mean must be seconds"),
    ("rows.0.mean", -1.0, "mean must be seconds from 0"),
    ("rows.0.quantiles", [1.0], "quantiles must be 101 seconds"),
    ("rows.0.quantiles.0", 1e9, "quantiles must not fall"),
    ("rows.0.step_quantiles.3", "x", "step_quantiles must be 101 seconds"),
    ("rows.0.backend", None, "backend and device must be texts"),
    ("costs.0.parameters", -1, r"costs\[0\].parameters must be a whole number"),
    ("costs.1.extra", 1, r"costs\[1\] has the unknown key"),
    ("plain.1.stage", 1, "plain must have each of the stages"),
    ("extra", 1, "has the unknown key 'extra'"),
    ("rows.0.extra", 1, r"rows\[0\] has the unknown key"),
]


@pytest.mark.parametrize(("place", "value", "words"), DAMAGE, ids=[d[0] for d in DAMAGE])
def test_damage_is_named_in_one_line(
    profile: Profile, place: str, value: Any, words: str, tmp_path: Path
) -> None:
    data = json.loads(profile.dumps())
    *path, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    target = data
    for part in path:
        target = target[part]
    target[last] = value
    if place.endswith("quantiles.0"):
        target[-1] = 1.0
    file = tmp_path / "p.json"
    file.write_text(json.dumps(data))
    with pytest.raises(ProfileError, match=words) as caught:
        Profile.read(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 100_000, '{"format": 1}'])
def test_no_profile_at_all(text: str, tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    file.write_text(text)
    with pytest.raises(ProfileError, match=r"p\.json"):
        Profile.read(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ProfileError, match="not text"):
        Profile.read(file)
    with pytest.raises(ProfileError, match="`anynest profile` writes one"):
        Profile.read(tmp_path / "none.json")


def test_a_missing_key_and_a_missing_stage(profile: Profile) -> None:
    data = json.loads(profile.dumps())
    del data["rows"][0]["runs"]
    with pytest.raises(ProfileError, match=r"rows\[0\] lacks key 'runs'"):
        Profile.loads(json.dumps(data))
    data = json.loads(profile.dumps())
    del data["plain_costs"][1]["parameters"]
    with pytest.raises(ProfileError, match=r"plain_costs\[1\] lacks key 'parameters'"):
        Profile.loads(json.dumps(data))
    with pytest.raises(ProfileError, match="each of the stages"):
        replace(profile, rows=profile.rows[1:])


def test_numpy_numbers_become_plain_ones(profile: Profile) -> None:
    plain = profile.probability(2, 0.0015, 0.0055)
    found = profile.probability(
        np.int64(2),
        np.float64(0.0015),
        np.float32(0.0055),
        threads=np.int64(1),  # type: ignore
    )
    assert type(found) is float
    assert found == pytest.approx(plain, abs=0.01)
    times = [np.float32(1.0), np.float32(3.0)]
    way: Any = ("torch", "cpu", np.int64(1), np.int64(1))
    row = StageLatency.of(np.int64(1), way, times, times)  # type: ignore[arg-type]
    assert type(row.step_within(np.float32(1.7))) is float  # type: ignore[arg-type]
    whole = replace(profile, rows=(row, replace(row, stage=2)), plain=())
    assert Profile.loads(whole.dumps()) == whole
    assert {type(value) for value in (row.stage, row.threads, row.mean, *row.quantiles)} == {
        int,
        float,
    }
    for wrong in (True, 1.0, "1", 0):
        with pytest.raises(ProfileError, match="must be a whole number from 1"):
            profile.stages(batch_size=wrong)  # type: ignore[arg-type]


def test_an_export_is_overwritten_with_its_profile_and_policy() -> None:
    assert {FILE, saved_policy.FILE} == directory.BESIDE
