"""Predictions at a deadline, on a session whose steps are controlled by the tests.

A "running kernel" is a step that waits for the test, so a prediction that waited for it in turn
would never return.
"""

from __future__ import annotations

import asyncio
import copy
import json
import math
import pickle
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anynest.predict.early_stopping.policies import Confidence, Deadline, MultiplyAdds
from anynest.predict.in_flight import InFlight
from anynest.predict.monotonicity import softmax
from anynest.predict.options import PredictOptions
from anynest.predict.prediction import DeadlineError, NetworkError, Prediction
from anynest.predict.predictor import AnytimePredictor

from .conftest import PATIENCE, settle

Image = Callable[[float], Tensor]


def test_the_newest_stage_at_the_deadline(make_session: Any, make_image: Image, gates: Any) -> None:
    for stage in (2, 3):
        for node in (1, 2):
            gate = gates(stage, node)
            session = make_session(on_step=gate)
            with AnytimePredictor(session) as predictor:
                prediction = predictor.predict(make_image(1.0), deadline=0.2)
                gate.opened.set()
            assert prediction.stage == stage - 1
            assert prediction.stop_reason == "deadline"
            assert prediction.deadline_met
            assert not prediction.guessed
            assert prediction.elapsed >= 0.2
            assert prediction.overshoot == pytest.approx(prediction.elapsed - 0.2)
            assert prediction.logits.tolist() == [stage - 1, 0, 0, 0]


def test_a_late_prediction_wastes_one_step_at_most(
    make_session: Any, make_image: Image, gates: Any
) -> None:
    gate = gates(2, 1)
    session = make_session(steps=3, on_step=gate)
    with AnytimePredictor(session) as predictor:
        predictor.predict(make_image(1.0), deadline=0.2)
        assert session.cancels == 1  # for the running step
        gate.opened.set()
        settle(lambda: not session.open)
        assert [entry[1:] for entry in session.log] == [(1, 1), (1, 2), (1, 3), (2, 1)]


def test_without_deadline_to_the_end(make_session: Any, make_image: Image) -> None:
    session = make_session()
    with AnytimePredictor(session) as predictor:
        for deadline in (None, math.inf, 1e300, 100):
            prediction = predictor.predict(make_image(2.0), deadline)
            assert (prediction.stage, prediction.stop_reason) == (3, "last stage")
            assert prediction.logits.tolist() == [6.0, 0, 0, 0]
            assert prediction.deadline == (deadline if deadline in (1e300, 100) else None)
            assert prediction.deadline_met
        assert session.threads == {"anynest-predictor"}


def test_probabilities_confidence_and_labels(make_session: Any, make_image: Image) -> None:
    with AnytimePredictor(make_session()) as predictor:
        single = predictor.predict(make_image(2.0), None)
        batch = predictor.predict(torch.stack([make_image(2.0), make_image(-3.0)]), None)
    assert single.probabilities.shape == (4,)
    assert torch.equal(single.probabilities, single.logits.softmax(0))
    assert single.confidence == float(single.probabilities.max())
    assert (single.label, single.labels, single.names) == (0, (0,), None)
    assert batch.logits.shape == batch.probabilities.shape == (2, 4)
    assert torch.equal(batch.probabilities[0], single.probabilities)
    assert batch.confidence == float(batch.probabilities.amax(1).min())
    assert batch.labels == (0, 1)
    assert batch.stages == (3, 3)
    with pytest.raises(ValueError, match="use labels"):
        _ = batch.label
    single.logits.add_(1).requires_grad_()  # no inference-mode tensors


@pytest.mark.parametrize("deadline", [0.0, 0.03])
def test_nothing_by_the_deadline_raises(
    make_session: Any, make_image: Image, gates: Any, deadline: float
) -> None:
    gate = gates(1, 2)
    with AnytimePredictor(make_session(on_step=gate)) as predictor:
        with pytest.raises(
            DeadlineError, match=f"within {deadline * 1000:g} ms of the call"
        ) as info:
            predictor.predict(make_image(1.0), deadline)
        assert "\n" not in str(info.value)
        gate.opened.set()
        assert predictor.predict(make_image(1.0), None).stage == 3


def test_waiting_for_the_first_stage(make_session: Any, make_image: Image, gates: Any) -> None:
    gate = gates(1, 1)
    session = make_session(on_step=gate)
    with AnytimePredictor(session) as predictor, ThreadPoolExecutor(1) as pool:
        future = pool.submit(predictor.predict, make_image(1.0), 0.03, on_timeout="wait")
        assert gate.reached.wait(PATIENCE)
        time.sleep(0.05)  # the deadline is over
        gate.opened.set()
        prediction = future.result(PATIENCE)
        assert (prediction.stage, prediction.stop_reason) == (1, "deadline")
        assert not prediction.deadline_met
        assert not prediction.guessed
        settle(lambda: not session.open)
        assert [entry[1:] for entry in session.log] == [(1, 1), (1, 2)]


def test_guesses_are_uniform_seeded_and_marked(
    make_session: Any, make_image: Image, gates: Any
) -> None:
    gate = gates(1, 1)
    batch = torch.stack([make_image(1.0)] * 5)
    drawn = []
    for seed in (0, 0, 1):
        with AnytimePredictor(make_session(on_step=gate), seed=seed) as predictor:
            guesses = [predictor.predict(batch, 0.0, on_timeout="guess") for _ in range(4)]
            single = predictor.predict(make_image(1.0), 0.0, on_timeout="guess")
            gate.opened.set()
        gate.opened.clear()
        drawn.append([guess.labels for guess in guesses])
        for guess in guesses:
            assert guess.guessed
            assert not guess.deadline_met
            assert (guess.stage, guess.stages, guess.confidence) == (0, (0,) * 5, 0.25)
            assert torch.equal(guess.probabilities, torch.full((5, 4), 0.25))
            assert torch.equal(guess.logits, torch.zeros(5, 4))
        assert single.logits.shape == (4,)
        assert single.label in range(4)
        assert set().union(*drawn[-1]) == {0, 1, 2, 3}  # of 20 draws
    assert drawn[0] == drawn[1] != drawn[2]


def test_waiting_for_others_counts(make_session: Any, make_image: Image, gates: Any) -> None:
    gate = gates(1, 1)
    session = make_session(on_step=gate)
    with AnytimePredictor(session) as predictor, ThreadPoolExecutor(1) as pool:
        first = pool.submit(predictor.predict, make_image(1.0), None)
        assert gate.reached.wait(PATIENCE)
        start = time.monotonic()
        with pytest.raises(DeadlineError):
            predictor.predict(make_image(2.0), 0.05)
        assert time.monotonic() - start >= 0.05
        gate.opened.set()
        assert first.result(PATIENCE).stage == 3
        assert {entry[0] for entry in session.log} == {(1.0,)}  # the second was never started


def waiting(predictor: AnytimePredictor) -> int:
    """Number of calls in the queue behind the first, which blocks the thread."""
    return predictor._scheduler._inbox.qsize()


def test_first_answers_come_before_better_ones(
    make_session: Any, make_image: Image, gates: Any
) -> None:
    gate = gates(1, 1)
    session = make_session(on_step=gate)
    with AnytimePredictor(session) as predictor, ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(predictor.predict, make_image(1.0), 30.0)]
        assert gate.reached.wait(PATIENCE)
        for value, deadline in ((2.0, 20.0), (3.0, 10.0), (4.0, None)):
            futures.append(pool.submit(predictor.predict, make_image(value), deadline))
            settle(lambda: waiting(predictor) == len(futures) - 1)
        gate.opened.set()
        assert all(future.result(PATIENCE).stage == 3 for future in futures)
    order = [(image[0], stage) for image, stage, node in session.log if node == 2]
    first = [(3.0, 1), (2.0, 1), (1.0, 1), (4.0, 1)]  # without a result: earliest deadline first
    then = [(value, stage) for value in (3.0, 2.0, 1.0, 4.0) for stage in (2, 3)]
    assert order == first + then


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_an_error_reaches_its_caller_alone(
    make_session: Any, make_image: Image, stage: int
) -> None:
    failure = ZeroDivisionError("in a kernel\nof two lines")
    fail = True

    def on_step(at: int, node: int) -> None:
        if fail and at == stage:
            raise failure

    session = make_session(on_step=on_step)
    with AnytimePredictor(session) as predictor:
        message = f"the network failed in stage {stage}: .*ZeroDivisionError: in a kernel$"
        with pytest.raises(NetworkError, match=message) as info:
            predictor.predict(make_image(1.0), 10.0)
        assert info.value.__cause__ is failure
        with pytest.raises(NetworkError):
            list(predictor.stream(make_image(1.0)))
        settle(lambda: not session.open)
        fail = False
        assert predictor.predict(make_image(1.0), 10.0).stage == 3


def test_an_exit_in_the_network_reaches_its_caller_alone(
    make_session: Any, make_image: Image
) -> None:
    def on_step(stage: int, node: int) -> None:
        raise SystemExit(3)

    session = make_session(on_step=on_step)
    with AnytimePredictor(session) as predictor:
        with pytest.raises(SystemExit):
            predictor.predict(make_image(1.0), 10.0)
        session.on_step = lambda stage, node: None
        assert predictor.predict(make_image(1.0), 10.0).stage == 3


def test_non_finite_logits_are_an_error(make_session: Any, make_image: Image) -> None:
    with AnytimePredictor(make_session()) as predictor:
        with pytest.raises(NetworkError, match="logits of stage 2 must be finite, found NaN"):
            predictor.predict(make_image(3e38), None)  # twice that overflows float32
        assert predictor.predict(make_image(1.0), None).stage == 3


def test_what_a_session_refuses(make_session: Any) -> None:
    with AnytimePredictor(make_session()) as predictor:
        with pytest.raises(ValueError, match="13 pixels"):
            predictor.predict(torch.zeros(1, 13, 13), None)
        assert predictor.predict(torch.zeros(1, 2, 2), None).stage == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"deadline": math.nan}, "deadline must be a number of seconds or None, found nan"),
        ({"deadline": "10ms"}, "deadline must be a number of seconds or None, found '10ms'"),
        (
            {"min_completion_probability": "a"},
            "min_completion_probability must be above 0 and at most 1, found 'a'",
        ),
        ({"on_timeout": "panic"}, "on_timeout must be one of raise, wait, guess, found 'panic'"),
        (
            {"min_completion_probability": 0.0},
            "min_completion_probability must be above 0 and at most 1, found 0.0",
        ),
        (
            {"min_completion_probability": 0.9},
            "min_completion_probability needs the latencies of this machine: pass profile=",
        ),
    ],
)
def test_wrong_arguments(
    make_session: Any,
    make_image: Image,
    arguments: dict[str, Any],
    message: str,
) -> None:
    with AnytimePredictor(make_session()) as predictor, pytest.raises(ValueError, match=message):
        predictor.predict(make_image(1.0), **arguments)


@pytest.mark.parametrize("deadline", [-0.005, -math.inf, np.float32(-1), -1])
def test_a_deadline_that_has_passed(make_session: Any, make_image: Image, deadline: float) -> None:
    """A missed deadline rather than a wrong argument, because callers subtract."""
    with AnytimePredictor(make_session()) as predictor:
        for policy in (None, Deadline(-1.0)):
            with pytest.raises(
                DeadlineError, match=r"had passed [\dinf.]+ ms before the call: give"
            ):
                predictor.predict(make_image(1.0), deadline, policy=policy)
        guess = predictor.predict(make_image(1.0), deadline, on_timeout="guess")
        assert (guess.guessed, guess.overshoot > 0) == (True, guess.deadline is not None)
        late = predictor.predict(make_image(1.0), deadline, on_timeout="wait")
        assert (late.stage, late.deadline_met, late.stop_reason) == (1, False, "deadline")
        assert list(predictor.stream(make_image(1.0), deadline)) == []


def test_numbers_of_other_types(make_session: Any, make_image: Image) -> None:
    """Converted to Python numbers, because a float32 rounds the clock."""
    x = make_image(1.0)
    with AnytimePredictor(make_session(), seed=np.int64(3)) as predictor:
        for deadline in (np.float32(30), np.float64(30), np.int64(30), Fraction(30)):
            policy = Deadline(deadline) | Confidence([deadline]) | MultiplyAdds(deadline)
            options = PredictOptions.create(deadline, policy, "raise", np.float32(0.5))
            assert all(type(v) is float for v in (options.seconds, options.due))
            assert type(options.min_completion_probability) is float
            parts = [part.__dict__ for part in options.policy.parts()]  # type: ignore[union-attr]
            assert parts == [{"seconds": 30.0}, {"thresholds": (30.0,)}, {"budget": 30.0}]
            assert "float32" not in repr(policy)
            found = predictor.predict(x, deadline)
            json.dumps(found.to_dict())
            assert (found.deadline, type(found.deadline)) == (30.0, float)
        guess = predictor.predict(x, np.float32(-0.5), on_timeout="guess")
        json.dumps(guess.to_dict())
    far = PredictOptions.create(np.float32(0.01), None)
    assert far.due - far.called == pytest.approx(0.01, abs=1e-9)
    for wrong in (True, 10**400, np.float32("nan"), 1j):
        with pytest.raises(ValueError, match="deadline must be a number of seconds or None"):
            PredictOptions.create(wrong, None)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", ["predict", "stream", "apredict", "astream"])
def test_no_result_is_lost_while_it_is_published(
    make_session: Any, make_image: Image, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """The network finishes in time, and its probabilities follow after the deadline."""

    def slow(state: Tensor | None, logits: Tensor) -> tuple[Tensor, Tensor]:
        time.sleep(0.3)
        return softmax(state, logits)

    async def asynchronous() -> Prediction:
        if way == "apredict":
            return await predictor.apredict(make_image(1.0), 0.2)
        return await anext(predictor.astream(make_image(1.0), 0.2))

    with AnytimePredictor(make_session()) as predictor:
        monkeypatch.setattr(predictor, "_rule", slow)
        if way.startswith("a"):
            found = asyncio.run(asynchronous())
        elif way == "stream":
            (found,) = predictor.stream(make_image(1.0), 0.2)
        else:
            found = predictor.predict(make_image(1.0), 0.2)
    assert (found.stage, found.deadline_met, found.guessed) == (1, True, False)
    if "stream" not in way:
        assert found.elapsed >= 0.3
        assert found.stop_reason == "deadline"


def test_predictors_are_not_pickled(make_session: Any) -> None:
    with AnytimePredictor(make_session()) as predictor:
        for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="cannot be pickled or copied") as raised:
                attempt(predictor)
            assert "\n" not in str(raised.value)


def test_many_threads_at_once(make_session: Any, make_image: Image) -> None:
    session = make_session()

    def ask(number: int) -> Prediction:
        return predictor.predict(make_image(float(number)), 60.0)

    with AnytimePredictor(session) as predictor, ThreadPoolExecutor(8) as pool:
        for number, prediction in enumerate(pool.map(ask, range(400))):
            assert prediction.stage == 3
            assert prediction.logits.tolist() == [3.0 * number, 0, 0, 0]
    settle(lambda: not session.open)  # closed just after the last answer
    assert len(session.log) == 400 * 6


def test_preparing_the_image_counts(
    make_session: Any, make_image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make_session()
    with AnytimePredictor(session) as predictor:
        read = predictor._inputs
        monkeypatch.setattr(predictor, "_inputs", lambda x: (time.sleep(0.05), read(x))[1])
        with pytest.raises(DeadlineError):
            predictor.predict(make_image(1.0), 0.03)
        prediction = predictor.predict(make_image(1.0), 10.0)
        assert prediction.elapsed > 0.05
        assert next(predictor.stream(make_image(1.0))).elapsed > 0.05


def test_in_time_is_in_time_however_late_the_caller_wakes(
    make_session: Any,
    make_image: Image,
    gates: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A late stage stays late, even if the caller sees both at once."""
    gate = gates(3)
    session = make_session(on_step=gate)
    with AnytimePredictor(session) as predictor, ThreadPoolExecutor(1) as pool:

        def oversleep(job: InFlight, until: float) -> bool:
            assert gate.reached.wait(PATIENCE)
            time.sleep(max(0.0, until - time.monotonic()) + 0.02)
            gate.opened.set()
            settle(lambda: len(session.log) >= 5)
            time.sleep(0.02)
            return wait(job, until)

        wait = InFlight.wait
        monkeypatch.setattr(InFlight, "wait", oversleep)
        prediction = pool.submit(predictor.predict, make_image(1.0), 0.5).result(PATIENCE)
        assert (prediction.stage, prediction.deadline_met) == (2, True)
        assert prediction.overshoot > 0.02
