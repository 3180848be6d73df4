"""Accuracy under deadlines: counts, order, and interruption."""

import json
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from anynest.predict.deadline_evaluation import (
    DeadlineResult,
    mean_latency,
    measure_deadlines,
    paper_deadlines,
)
from anynest.predict.prediction import Prediction


@dataclass
class Fake:
    """Stage s is ready after s seconds of its own clock, and correct from stage 2; guesses are 0.

    The image holds its label.
    """

    now: float = 0.0
    calls: list[tuple[int, float | None]] = field(default_factory=list)
    stop_at: int = 10**9

    def clock(self) -> float:
        return self.now

    def __call__(self, x: Tensor, deadline: float | None) -> Prediction:
        label = int(x)
        if len(self.calls) == self.stop_at:
            raise KeyboardInterrupt
        self.calls.append((label, deadline))
        stage = 3 if deadline is None else min(3, int(deadline))
        self.now += 3.0 if deadline is None else min(3.0, deadline) + 0.25
        said = label if stage >= 2 else 0
        return Prediction(
            output=torch.zeros(4),
            class_probabilities=torch.nn.functional.one_hot(torch.tensor(said), 4).float(),
            stage=stage,
            stages=(stage,),
            elapsed=0.0,
            deadline=deadline,
            deadline_met=stage > 0,
            guessed=stage == 0,
        )


def images(count: int) -> list[tuple[Tensor, int]]:
    return [(torch.tensor(float(i % 4)), i % 4) for i in range(count)]


def test_every_image_under_every_deadline() -> None:
    fake = Fake()
    seen: list[int] = []
    results, whole = measure_deadlines(
        fake, images(8), [0.5, 1.0, 2.5, None], 3, report=seen.append, clock=fake.clock
    )
    assert whole
    assert seen == list(range(1, 9))
    assert [result.accuracy for result in results] == [0.25, 0.25, 1.0, 1.0]
    assert [result.stages for result in results] == [
        [8, 0, 0, 0], [0, 8, 0, 0], [0, 0, 8, 0], [0, 0, 0, 8]
    ]  # fmt: skip
    assert results[0].standard_error == pytest.approx(math.sqrt(0.25 * 0.75 / 8))
    first = results[0].to_json()
    assert (first["guessed"], first["stages"], first["images"]) == (8, [0, 0, 0], 8)
    assert first["elapsed"]["p50"] == pytest.approx(0.75)
    assert first["overshoot"] == {"p99": pytest.approx(0.25), "max": pytest.approx(0.25)}
    assert "overshoot" not in results[3].to_json()
    assert results[3].to_json()["elapsed"]["mean"] == 3.0


def test_numbers_of_other_types_leave_as_json() -> None:
    result = DeadlineResult(np.float32(0.5), [0] * 4, elapsed=[])  # type: ignore[arg-type]
    result.add(Fake()(torch.tensor(1.0), None), np.int64(1), np.float64(0.25))  # type: ignore[arg-type]
    told = json.loads(json.dumps(result.to_json()))
    assert (told["deadline"], told["accuracy"], told["elapsed"]["mean"]) == (0.5, 1.0, 0.25)


def test_an_early_return_has_no_overshoot() -> None:
    early = DeadlineResult(0.2, [0, 1], images=1, elapsed=[0.1])
    assert early.to_json()["overshoot"] == {"p99": 0.0, "max": 0.0}
    mixed = DeadlineResult(0.25, [0, 2], images=2, elapsed=[0.0, 0.5])
    late = mixed.to_json()["overshoot"]
    assert late == {"p99": pytest.approx(0.99 * 0.25), "max": pytest.approx(0.25)}


def test_deadlines_take_turns_at_being_first() -> None:
    fake = Fake()
    measure_deadlines(fake, images(3), [1.0, 2.0, None], 3)
    assert [deadline for _, deadline in fake.calls] == [1.0, 2, None, 2, None, 1, None, 1, 2]
    assert [label for label, _ in fake.calls] == [0] * 3 + [1] * 3 + [2] * 3


def test_an_interruption_leaves_the_images_that_are_complete() -> None:
    fake = Fake(stop_at=2 * 3 + 1)
    results, whole = measure_deadlines(fake, images(8), [1.0, 2.0, None], 3)
    assert not whole
    assert [result.images for result in results] == [2, 2, 2]
    assert [len(result.elapsed) for result in results] == [2, 2, 2]


def test_the_papers_deadlines() -> None:
    found = paper_deadlines(0.006)
    assert found[-1] is None
    assert found[:-1] == pytest.approx([0.003 + 0.0005 * i for i in range(7)])
    fake = Fake()
    assert mean_latency(fake, [x for x, _ in images(20)], fake.clock) == 3.0
    assert len(fake.calls) == 30
