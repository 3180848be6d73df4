"""With a profile: late stages are not started, and costs and image sizes are known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from anynest.nets import StageCost
from anynest.predict.early_stopping.policies import MultiplyAdds
from anynest.predict.predictor import AnytimePredictor
from anynest.profiling import Profile, ProfileError, StageLatency

Image = Callable[[float], Tensor]


def make_profile(*steps: list[float], threads: int = 1) -> Profile:
    """``steps``: the latency of each stage after the previous one, in several runs."""
    way = ("torch", "cpu", threads, 1)
    rows = tuple(StageLatency.of(stage, way, step, step) for stage, step in enumerate(steps, 1))
    costs = tuple(StageCost(s, 1, s, 10, 10 * s) for s in range(1, len(steps) + 1))
    return Profile("none", {}, 2, costs, rows, (), (), {})


@pytest.fixture
def profile() -> Profile:
    """The latency of stage 3 is uniform from 0 to 40 seconds."""
    return make_profile([0.001], [1.0], [0.0, 40.0])


def test_stages_that_would_be_late_are_not_started(
    make_session: Any, make_image: Image, profile: Profile
) -> None:
    x = torch.stack([make_image(1.0)] * 1)
    session = make_session()
    with AnytimePredictor(session, profile=profile, threads=1, warm_up=False) as predictor:
        for deadline, min_completion_probability, stage in (
            (20.0, 0.4, 3),  # half of the runs were in time
            (20.0, 0.6, 2),
            (39.0, 0.9, 3),
            (0.5, 0.01, 1),  # none was, of stage 2
            (None, 1.0, 3),
            (20.0, None, 3),
        ):
            prediction = predictor.predict(
                x, deadline, min_completion_probability=min_completion_probability
            )
            assert prediction.stage == stage
            assert prediction.stop_reason == (
                "last stage" if stage == 3 else "completion probability"
            )
            assert prediction.deadline_met
            assert prediction.elapsed < 0.5  # at once
        assert [entry[1:] for entry in session.log].count((3, 1)) == 4


def test_the_first_stage_is_always_started(make_session: Any, make_image: Image) -> None:
    hopeless = make_profile([100.0], [100.0], [100.0])
    session = make_session()
    with AnytimePredictor(session, profile=hopeless, threads=1, warm_up=False) as predictor:
        prediction = predictor.predict(make_image(1.0), 20.0, min_completion_probability=0.99)
        assert (prediction.stage, prediction.stop_reason) == (1, "completion probability")


def test_a_larger_batch_takes_longer(make_session: Any, make_image: Image) -> None:
    profile = make_profile([0.001], [1.0], [1.0])
    x = torch.stack([make_image(1.0)] * 8)  # 8 seconds a stage, at the most
    with AnytimePredictor(make_session(), profile=profile, threads=1) as predictor:
        assert predictor.predict(x, 4.0, min_completion_probability=0.5).stage == 1
        assert predictor.predict(x[:2], 4.0, min_completion_probability=0.5).stage == 3


def test_a_profile_from_its_file(
    make_session: Any, make_image: Image, profile: Profile, tmp_path: Path
) -> None:
    profile.save(tmp_path / "profile.json")
    for source in (tmp_path, str(tmp_path / "profile.json")):
        with AnytimePredictor(make_session(), profile=source, threads=1) as predictor:
            assert predictor.profile == profile
            assert (
                predictor.predict(make_image(1.0), 20.0, min_completion_probability=0.6).stage == 2
            )


def test_costs_of_a_source_that_does_not_tell_them(
    make_session: Any, make_image: Image, profile: Profile
) -> None:
    with AnytimePredictor(make_session(), profile=profile) as predictor:
        for budget, stage in ((9, 1), (19, 1), (20, 2), (30, 3)):
            assert (
                predictor.predict(make_image(1.0), None, policy=MultiplyAdds(budget)).stage == stage
            )
        with pytest.raises(ValueError, match="pass profile="):  # nor for images of other sizes
            predictor.predict(torch.zeros(1, 3, 3), None, policy=MultiplyAdds(5))
    with (
        AnytimePredictor(make_session()) as predictor,
        pytest.raises(ValueError, match="pass profile="),
    ):
        predictor.predict(make_image(1.0), None, policy=MultiplyAdds(5))


def test_opening_warms_up(make_session: Any, profile: Profile) -> None:
    for warm_up, runs in ((True, 2), (False, 0)):
        session = make_session(steps=1)
        with AnytimePredictor(session, profile=profile, warm_up=warm_up):
            assert len(session.log) == 3 * runs


def test_profiles_that_do_not_fit(make_session: Any, make_image: Image, profile: Profile) -> None:
    with pytest.raises(ValueError, match="of this network of 2 stages, found one of 3"):
        AnytimePredictor(make_session(stages=2), profile=profile)
    predictor = AnytimePredictor(make_session(), profile=profile, threads=2)
    with predictor, pytest.raises(ProfileError, match="measured for torch on cpu, 2 threads"):
        predictor.predict(make_image(1.0), 20.0, min_completion_probability=0.6)
