"""Policies, and their combinations."""

from __future__ import annotations

import math
import operator
import threading
from typing import Any

import pytest
import torch

from anynest.predict.early_stopping.policies import (
    AllOf,
    AnyOf,
    Confidence,
    Deadline,
    MultiplyAdds,
    Policy,
    PolicyInput,
    as_policy,
    check_fit,
    with_thresholds,
)
from anynest.predict.predictor import AnytimePredictor

THREE = torch.tensor([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]])  # confidences 0.5, 0.9, 0.8


def moment(stage: int = 1, **more: Any) -> PolicyInput:
    return PolicyInput(stage, THREE, **more)


def stopped(policy: Policy, at: PolicyInput) -> list[bool]:
    done = policy.stop(at)
    assert done.dtype == torch.bool
    assert done.shape == (3,)
    return done.tolist()


def test_confidence_of_each_image() -> None:
    assert stopped(Confidence(0.85), moment()) == [False, True, False]
    assert stopped(Confidence(0.5), moment()) == [True, True, True]
    assert stopped(Confidence(1.1), moment()) == [False, False, False]
    per_stage = Confidence([0.85, 0.6])  # type: ignore[arg-type]
    assert per_stage == Confidence((0.85, 0.6))
    assert stopped(per_stage, moment(1)) == [False, True, False]
    assert stopped(per_stage, moment(2)) == [False, True, True]
    with pytest.raises(ValueError, match="stage 3 needs a confidence threshold, found 2 of them"):
        per_stage.stop(moment(3))


def test_deadline_and_budget() -> None:
    assert stopped(Deadline(0.01), moment(elapsed=0.0099)) == [False] * 3
    assert stopped(Deadline(0.01), moment(elapsed=0.01)) == [True] * 3
    assert stopped(MultiplyAdds(100), moment(cost=60, next_cost=100)) == [False] * 3
    assert stopped(MultiplyAdds(100), moment(cost=60, next_cost=101)) == [True] * 3
    with pytest.raises(ValueError, match="pass profile="):
        MultiplyAdds(100).stop(moment())


def test_any_and_all() -> None:
    sure, cheap = Confidence(0.85), MultiplyAdds(100)
    late = moment(cost=60, next_cost=200)
    early = moment(cost=10, next_cost=50)
    assert stopped(sure | cheap, late) == [True] * 3
    assert stopped(sure | cheap, early) == [False, True, False]
    assert stopped(sure & cheap, late) == [False, True, False]
    assert stopped(sure & cheap, early) == [False] * 3
    assert sure | cheap == AnyOf((sure, cheap))
    assert as_policy([sure, cheap]) == AnyOf((sure, cheap))
    assert as_policy([sure]) is sure
    assert as_policy([]) is None
    nested = (sure | cheap) & Deadline(1.0)
    assert nested.parts() == (sure, cheap, Deadline(1.0))
    with pytest.raises(TypeError, match="must be a Policy or a list of them"):
        as_policy("fast")  # type: ignore[arg-type]


def test_when_a_policy_ends_all() -> None:
    short, long, sure = Deadline(0.01), Deadline(0.1), Confidence()
    assert short.limit() == 0.01
    assert sure.limit() == math.inf
    assert (short | long).limit() == 0.01
    assert (short & long).limit() == 0.1
    assert (short | sure).limit() == 0.01
    assert (short & sure).limit() == math.inf  # confidence may never be reached
    assert ((short & sure) | long).limit() == 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Deadline(math.nan), "a deadline must be a number of seconds, found nan"),
        (lambda: Deadline(math.inf), "a deadline must be a number of seconds, found inf"),
        (lambda: Confidence(-0.1), "must be numbers from 0, found -0.1"),
        (lambda: Confidence(()), r"must be numbers from 0, found \(\)"),
        (lambda: Confidence((0.5, math.nan)), "must be numbers from 0"),
        (lambda: MultiplyAdds(0), "a budget must be a positive number of multiply-adds, found 0"),
        (lambda: Deadline("10ms"), "a deadline must be a number of seconds, found '10ms'"),
        (lambda: Confidence("0.9"), "must be numbers from 0, found '0.9'"),
        (lambda: Confidence((0.5, None)), r"must be numbers from 0, found \(0.5, None\)"),
        (
            lambda: MultiplyAdds(None),
            "a budget must be a positive number of multiply-adds, found None",
        ),
    ],
)
def test_wrong_numbers(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("join", [operator.or_, operator.and_])
def test_policies_are_joined_with_policies(join: Any) -> None:
    for other in (3, [Confidence()]):
        with pytest.raises(TypeError, match=r"\| and & combine policies, found "):
            join(Confidence(0.5), other)


def test_fit_is_checked_before_anything_runs() -> None:
    for count in (2, 3):
        check_fit(Confidence((0.5,) * count), 3, False)
    for count in (1, 4):
        with pytest.raises(ValueError, match=f"one for each of the stages 1 to 2, found {count}"):
            check_fit(Confidence((0.5,) * count) | Deadline(1.0), 3, False)
    with pytest.raises(ValueError, match="pass profile="):
        check_fit(Deadline(1.0) & MultiplyAdds(5), 3, False)
    check_fit(MultiplyAdds(5), 3, True)


def test_with_other_thresholds() -> None:
    policy = (Confidence(0.9) | MultiplyAdds(5)) & Confidence(0.1)
    changed = with_thresholds(policy, (0.3, 0.4))
    other = Confidence((0.3, 0.4))
    assert changed == AllOf((AnyOf((other, MultiplyAdds(5))), other))


def test_a_policy_of_ones_own(make_session: Any, make_image: Any) -> None:
    seen: list[PolicyInput] = []

    class Second(Policy):
        def stop(self, moment: PolicyInput) -> torch.Tensor:
            seen.append(moment)
            return torch.full((len(moment.probabilities),), moment.stage == 2)

    with AnytimePredictor(make_session()) as predictor:
        prediction = predictor.predict(make_image(1.0), None, policy=Second())
        assert (prediction.stage, prediction.stop_reason) == (2, "policy")
        assert [m.stage for m in seen] == [1, 2]
        assert 0 < seen[0].elapsed <= seen[1].elapsed <= prediction.elapsed
        with pytest.raises(TypeError, match="Policy must implement stop"):
            predictor.predict(make_image(1.0), None, policy=Policy())


def test_the_last_stage_is_not_asked_about(make_session: Any, make_image: Any) -> None:
    with AnytimePredictor(make_session()) as predictor:
        prediction = predictor.predict(make_image(0.0), None, policy=Confidence((1.5, 1.5)))
        assert (prediction.stage, prediction.stop_reason) == (3, "last stage")


def test_a_deadline_in_the_policy_holds(make_session: Any, make_image: Any) -> None:
    opened = threading.Event()
    session = make_session(on_step=lambda stage, node: stage < 3 or opened.wait(20))
    with AnytimePredictor(session) as predictor:
        for policy in (Deadline(0.2), [Confidence(1.1), Deadline(0.2)]):
            prediction = predictor.predict(make_image(1.0), None, policy=policy)
            assert (prediction.stage, prediction.stop_reason) == (2, "deadline")
            assert prediction.deadline == 0.2
            opened.set()
            assert predictor.predict(make_image(1.0), None).stage == 3
            opened.clear()
        opened.set()
