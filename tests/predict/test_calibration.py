"""Calibrated thresholds keep their goal, and are at least as good as simpler ones."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anynest import create_model
from anynest.predict.early_stopping.calibration import HeldOut, calibrate, simulate
from anynest.predict.early_stopping.policies import Confidence, Deadline, MultiplyAdds
from anynest.predict.early_stopping.thresholds import (
    ALWAYS,
    NEVER,
    Exits,
    Thresholds,
    _between,
    search,
)
from anynest.predict.predictor import AnytimePredictor


def held_out(seed: int, stages: int = 3, images: int = 200, classes: int = 5) -> HeldOut:
    """Later stages are better on average, and confidence correlates with correctness."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    hardness = 3 * torch.rand(images, generator=generator)
    rows = []
    for stage in range(stages):
        z = torch.randn(images, classes, generator=generator)
        z[torch.arange(images), labels] += 2.0 + stage - hardness
        rows.append(z.softmax(1))
    return HeldOut(torch.stack(rows), labels, tuple(10 * 3**stage for stage in range(stages)))


def exits_of(data: HeldOut) -> Exits:
    return Exits(
        data.probabilities.amax(2).double(),
        (~data.correct).double(),
        torch.tensor(data.costs, dtype=torch.float64),
    )


def cuts(confidence: Tensor) -> list[float]:
    """One threshold between each two images."""
    values = sorted(set(confidence.tolist()))
    between = [(a + b) / 2 for a, b in itertools.pairwise(values)]
    return [ALWAYS, *between, NEVER]


def plain_outcome(exits: Exits, thresholds: Thresholds) -> tuple[float, float]:
    """(mean wrong, mean cost), image by image."""
    stages, images = exits.confidence.shape
    wrong = cost = 0.0
    for n in range(images):
        s = 0
        while s < stages - 1 and exits.confidence[s, n] < thresholds[s]:
            s += 1
        wrong += float(exits.wrong[s, n])
        cost += float(exits.cost[s])
    return wrong / images, cost / images


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000), target=st.floats(0.4, 1.0))
def test_accuracy_at_no_more_than_any_shared_threshold_costs(seed: int, target: float) -> None:
    data = held_out(seed, images=100)
    _, report = calibrate(Confidence(), data, target_accuracy=target)
    shared = [
        simulate(Confidence(t), data) for t in cuts(data.probabilities.amax(2).flatten())[::7]
    ]
    good = [other for other in shared if other.accuracy >= target - 1e-12]
    if good:
        assert report.reached
        assert report.cost <= min(other.cost for other in good) + 1e-9
    if report.reached:
        assert report.accuracy >= target - 1e-12
    else:
        assert all(other.accuracy <= report.accuracy for other in shared)
        assert "cannot be reached" in report.note


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000), budget=st.floats(5.0, 100.0))
def test_a_budget_is_kept_and_spent_best(seed: int, budget: float) -> None:
    data = held_out(seed, images=100)
    _, report = calibrate(Confidence(), data, budget=budget)
    shared = [
        simulate(Confidence(t), data) for t in cuts(data.probabilities.amax(2).flatten())[::7]
    ]
    good = [other for other in shared if other.cost <= budget]
    assert report.reached == (budget >= 10)
    if good:
        assert report.cost <= budget * (1 + 1e-12)
        assert report.accuracy >= max(other.accuracy for other in good) - 1e-12
    else:
        assert report.exit_rates == (1.0, 0.0, 0.0)
        assert "stage 1 alone costs 10" in report.note


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_no_single_threshold_can_be_bettered(seed: int) -> None:
    """Against a search over every cut of every stage that counts image by image."""
    exits = exits_of(held_out(seed, images=30))
    bound = 0.25
    found = search(exits, bound, None)
    wrong, cost = plain_outcome(exits, found)
    outcome = exits.outcome(found)
    assert (outcome.wrong, outcome.cost) == pytest.approx((wrong, cost))
    for stage in range(2):
        for value in cuts(exits.confidence[stage]):
            other = (*found[:stage], value, *found[stage + 1 :])
            other_wrong, other_cost = plain_outcome(exits, other)
            if wrong <= bound + 1e-12:
                assert other_wrong > bound + 1e-12 or other_cost >= cost - 1e-9
            else:
                assert other_wrong >= wrong - 1e-9


def test_against_every_combination() -> None:
    """The search is local; on small sets it finds the optimum, or nearly."""
    ratios = []
    for seed in range(8):
        exits = exits_of(held_out(seed, images=14))
        pairs = itertools.product(cuts(exits.confidence[0]), cuts(exits.confidence[1]))
        outcomes = [plain_outcome(exits, pair) for pair in pairs]
        best = min(cost for wrong, cost in outcomes if wrong <= 0.3)
        ratios.append(exits.outcome(search(exits, 0.3, None)).cost / best)
    assert min(ratios) >= 1 - 1e-9
    assert sum(ratio <= 1 + 1e-9 for ratio in ratios) >= 6
    assert max(ratios) < 1.25


def test_equal_confidences_exit_together() -> None:
    probabilities = torch.tensor([[0.9, 0.1]] * 6).repeat(2, 1, 1)
    labels = torch.tensor([0, 0, 0, 1, 1, 1])
    probabilities[1, 3:] = torch.tensor([0.2, 0.8])  # stage 2 is right where stage 1 is not
    data = HeldOut(probabilities, labels, (1, 2))
    for target, leaving in ((0.5, (1.0, 0.0)), (0.6, (0.0, 1.0))):
        _, report = calibrate(Confidence(), data, target_accuracy=target)
        assert report.exit_rates == leaving
        assert report.reached


def test_neighbouring_floats_are_distinguished() -> None:
    high = torch.tensor(0.9)
    low = torch.nextafter(high, torch.tensor(0.0))
    confidence = torch.tensor([float(high), float(low)])
    probabilities = torch.stack([confidence, 1 - confidence], 1).repeat(2, 1, 1)
    probabilities[1, 1] = torch.tensor([0.1, 0.9])
    data = HeldOut(probabilities, torch.tensor([0, 1]), (1, 2))
    _, report = calibrate(Confidence(), data, target_accuracy=1.0)
    assert report.exit_rates == (0.5, 0.5)
    assert report.reached
    for one in torch.rand(50):
        pair = torch.stack([torch.nextafter(one, torch.tensor(2.0)), one])
        assert (pair >= _between(pair.double(), 1)).tolist() == [True, False]


def test_the_report_counts() -> None:
    data = held_out(3)
    policy = Confidence((0.6, 0.7))
    report = simulate(policy, data)
    right, cost, leaving = 0, 0, [0, 0, 0]
    for n in range(200):
        for s in range(3):
            p = data.probabilities[s, n]
            if s == 2 or float(p.max()) >= (0.6, 0.7)[s]:
                right += int(p.argmax() == data.labels[n])
                cost += data.costs[s]
                leaving[s] += 1
                break
    assert report.accuracy == pytest.approx(right / 200)
    assert report.accuracy_error == pytest.approx(math.sqrt(right / 200 * (1 - right / 200) / 200))
    assert report.cost == pytest.approx(cost / 200)
    assert report.exit_rates == pytest.approx([n / 200 for n in leaving])
    assert report.stage_accuracy[2] == simulate(None, data).accuracy
    assert report.stage_cost == (10, 30, 90)
    assert report.reached is None
    assert json.loads(json.dumps(report.to_dict()))["images"] == 200
    assert "exits by stage" in str(report)


def test_numbers_of_other_types() -> None:
    data = held_out(3)
    typed = replace(data, costs=tuple(np.array(data.costs)))
    for goal in ({"target_accuracy": 0.5}, {"budget": 40}):
        expected = calibrate(Confidence(), data, **goal)  # type: ignore[arg-type]
        numpy_goal = {name: np.float32(value) for name, value in goal.items()}
        found = calibrate(Confidence(np.float32(0.5)), typed, **numpy_goal)  # type: ignore[arg-type]
        assert (found[0], found[1].to_dict()) == (expected[0], expected[1].to_dict())
        json.dumps(found[1].to_dict())


def test_expectations_are_of_images_not_chosen_on() -> None:
    """Where confidence is random the search overfits, and cross-validation shows it."""
    flattery = []
    for seed in range(6):
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(2, (60,), generator=generator)
        p = torch.rand(4, 60, generator=generator)
        data = HeldOut(torch.stack([p, 1 - p], 2), labels, (10, 11, 12, 13))
        _, report = calibrate(Confidence(), data, budget=1000)
        assert report.expected_accuracy is not None
        flattery.append(report.accuracy - report.expected_accuracy)
        assert abs(report.expected_accuracy - 0.5) < 0.25
    assert sum(flattery) / 6 > 0.08
    few = held_out(0, images=19)
    assert calibrate(Confidence(), few, budget=50)[1].expected_accuracy is None


def test_with_a_budget_for_each_image() -> None:
    data = held_out(1)
    policy, report = calibrate(Confidence() | MultiplyAdds(30), data, target_accuracy=0.5)
    assert report.exit_rates[2] == 0
    assert report.reached
    again = simulate(policy, data)
    assert (report.accuracy, report.cost, report.exit_rates) == (
        again.accuracy,
        again.cost,
        again.exit_rates,
    )


@pytest.mark.parametrize(
    ("policy", "goals", "message"),
    [
        (Confidence(), {}, "needs exactly one goal"),
        (Confidence(), {"target_accuracy": 0.9, "budget": 5}, "needs exactly one goal"),
        (Confidence(), {"target_accuracy": 90}, "must be above 0 and at most 1, found 90"),
        (Confidence(), {"budget": 0}, "must be a positive number of multiply-adds, found 0"),
        (MultiplyAdds(5), {"budget": 5}, "of one Confidence"),
        (Confidence() | Confidence(), {"budget": 5}, "of one Confidence"),
        (Confidence() | Deadline(1), {"budget": 5}, "of one Confidence"),
        (Confidence() & MultiplyAdds(1), {"budget": 5}, "of one Confidence"),
    ],
)
def test_what_cannot_be_calibrated(policy: Any, goals: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(policy, held_out(0), **goals)


def test_one_stage_has_no_thresholds() -> None:
    with pytest.raises(ValueError, match="needs at least two stages, found one"):
        calibrate(Confidence(), held_out(0, stages=1), budget=100)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.zeros(3, dtype=torch.int64)}, r"labels \[N\], found"),
        ({"labels": torch.full((200,), 5)}, r"labels must lie in 0\.\.4, found 5"),
        ({"costs": (10, 30)}, "costs must increase, one for each of 3 stages"),
        ({"costs": (10, 10, 30)}, "costs must increase"),
        ({"probabilities": torch.full((3, 200, 5), math.nan)}, "must be finite"),
    ],
)
def test_data_that_make_no_sense(change: dict[str, Any], message: str) -> None:
    data = held_out(0)
    fields = {"probabilities": data.probabilities, "labels": data.labels, "costs": data.costs}
    with pytest.raises(ValueError, match=message):
        HeldOut(**(fields | change))


def test_a_predictor_does_what_the_report_says() -> None:
    model = create_model("width_nested_resnet10", base_width=4).eval()
    x, labels = torch.randn(64, 3, 12, 12), torch.randint(10, (64,))
    batches = [(x[:40], labels[:40]), (x[40:], labels[40:])]
    with AnytimePredictor(model, threads=1) as predictor:
        data = HeldOut.collect(predictor, batches)
        assert data.costs == tuple(row.multiply_adds for row in model.cost(12))
        budget = (data.costs[0] + data.costs[1]) / 2
        policy, report = calibrate(Confidence(), data, budget=budget)
        stages = [s for xs, _ in batches for s in predictor.predict(xs, None, policy=policy).stages]
    assert report.exit_rates == tuple(stages.count(s) / 64 for s in (1, 2, 3))
    assert sum(data.costs[s - 1] for s in stages) / 64 <= budget
    with pytest.raises(ValueError, match="at least one image"):
        HeldOut.collect(predictor, [])
