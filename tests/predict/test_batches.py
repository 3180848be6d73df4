"""Images of a batch exit separately, and no prediction depends on the other images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anynest import create_model
from anynest.predict.early_stopping.policies import Confidence, MultiplyAdds
from anynest.predict.predictor import AnytimePredictor

from .conftest import FakeSession, picture


@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-3, 3, width=32), min_size=1, max_size=6),
    thresholds=st.tuples(*[st.sampled_from([0.0, 0.3, 0.5, 0.8, 0.95, 1.5])] * 3),
)
def test_a_batch_is_its_images_one_by_one(
    values: list[float], thresholds: tuple[float, ...]
) -> None:
    policy = Confidence(thresholds)
    with AnytimePredictor(FakeSession(stages=4, steps=1)) as predictor:
        alone = [predictor.predict(picture(v), None, policy=policy) for v in values]
    session = FakeSession(stages=4, steps=1)
    with AnytimePredictor(session) as predictor:
        batch = predictor.predict(torch.stack([picture(v) for v in values]), None, policy=policy)
    assert batch.stages == tuple(one.stage for one in alone)
    assert batch.stage == max(batch.stages)
    assert torch.equal(batch.logits, torch.stack([one.logits for one in alone]))
    assert torch.equal(batch.probabilities, torch.stack([one.probabilities for one in alone]))
    assert batch.confidence == min(one.confidence for one in alone)
    assert batch.stop_reason == ("last stage" if batch.stage == 4 else "policy")
    for images, stage, _ in session.log:  # images that have exited are not computed
        there = tuple(v for v, last in zip(values, batch.stages, strict=True) if last >= stage)
        assert images == there


def test_the_order_is_kept_at_a_deadline(make_image: Any) -> None:
    import threading

    opened = threading.Event()
    session = FakeSession(stages=3, steps=1)
    session.on_step = lambda stage, node: stage < 3 or opened.wait(20)
    values = [0.1, 9.0, 1.0, 8.0]
    with AnytimePredictor(session) as predictor:
        batch = predictor.predict(
            torch.stack([make_image(v) for v in values]), 0.2, policy=Confidence((0.99, 2.0))
        )
        opened.set()
    assert batch.stages == (2, 1, 2, 1)
    assert batch.stop_reason == "deadline"
    assert batch.logits[:, 0].tolist() == pytest.approx([0.2, 9.0, 2.0, 8.0])


@pytest.mark.parametrize(
    "name",
    ["width_nested_resnet10", "alternating_nested_sparse_resnet14"],
)
def test_real_networks(name: str) -> None:
    """Up to rounding: kernels for other batch sizes may add in another order."""
    model = create_model(name, base_width=4).eval()
    randomise(model)
    x = torch.randn(9, 3, 16, 16)
    with torch.no_grad():
        stages = torch.stack(model(x))  # [S, B, K]
    confidence = stages.softmax(2).amax(2)
    ordered = confidence[:-1].sort(dim=1).values  # halfway between two images, not at one of them
    thresholds = tuple(((ordered[:, 4] + ordered[:, 5]) / 2).tolist())
    with AnytimePredictor(model, threads=1) as predictor:
        batch = predictor.predict(x, None, policy=Confidence(thresholds))
        single = [predictor.predict(one, None, policy=Confidence(thresholds)) for one in x]
        assert len(set(batch.stages)) > 1
        for number, one in enumerate(single):
            assert batch.stages[number] == one.stage
            reference = stages[one.stage - 1, number]
            torch.testing.assert_close(one.logits, reference, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(batch.logits[number], one.logits, rtol=1e-4, atol=1e-5)
        streamed = list(predictor.stream(x))
        for number, prediction in enumerate(streamed):
            torch.testing.assert_close(prediction.logits, stages[number], rtol=1e-4, atol=1e-5)


def test_budgets_of_multiply_adds() -> None:
    model = create_model("width_nested_resnet10", base_width=4).eval()
    costs = [row.multiply_adds for row in model.cost(16)]
    x = torch.randn(3, 16, 16)
    with AnytimePredictor(model, threads=1) as predictor:
        for stage, cost in enumerate(costs, 1):
            for budget in (cost, cost + 1):
                assert predictor.predict(x, None, policy=MultiplyAdds(budget)).stage == stage
        assert predictor.predict(x, None, policy=MultiplyAdds(1)).stage == 1
        smaller = torch.randn(3, 8, 8)  # costs depend on the image size
        assert predictor.predict(smaller, None, policy=MultiplyAdds(costs[0])).stage > 1


def randomise(model: torch.nn.Module) -> None:
    """Random batch-norm statistics, so that folding them is not the identity."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.3)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.normal_(module.bias, std=0.3)
