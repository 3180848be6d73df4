"""Nested transformers in sessions, predictors, profiles and ONNX Runtime."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformer.plans import plan_of

from anynest import AnytimePredictor
from anynest.engines.open import open_session
from anynest.engines.segment_engine import SegmentSession
from anynest.nets.transformer.network import NestedTransformer
from anynest.nets.transformer.plan import TransformerPlan
from anynest.profiling.profiler import profile_network

PLANS = {
    "width": plan_of((1, 1), (2, 1), (4, 1)),
    "width and depth": plan_of((1, 1), (2, 2), layers=1),
}
every = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


def images(batch: int) -> Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@every
def test_a_session_evaluates_segments_whose_rows_leave_and_join(plan: TransformerPlan) -> None:
    model = NestedTransformer(plan).eval()
    x = images(5)
    with torch.no_grad():
        expected = model(x)
    session = open_session(model, backend="torch")
    assert isinstance(session, SegmentSession)
    first, second = session.begin(x[:3]), session.begin(x[3:])
    for evaluation in (first, second):
        while evaluation.step() is None:
            pass
    joined = session.join([first, second])
    joined.compact(torch.tensor([4, 0, 1]))
    for logits in expected[1:]:
        found = None
        while found is None:
            found = joined.step()
        torch.testing.assert_close(found, logits[[4, 0, 1]], rtol=1e-5, atol=1e-6)


def test_a_predictor_and_a_profile() -> None:
    model = NestedTransformer(PLANS["width"]).eval()
    x = images(2)
    with torch.no_grad():
        expected = model(x)[-1]
    with AnytimePredictor(model) as predictor:
        prediction = predictor.predict(x, deadline=60.0)
    torch.testing.assert_close(prediction.logits, expected, rtol=1e-5, atol=1e-6)
    profile = profile_network(model, image_size=8, rounds=1)
    assert profile.costs == model.cost(8)


# of the exporter, torch's and onnxscript's own
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.slow
def test_each_segment_is_an_onnx_graph_for_any_batch(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = NestedTransformer(PLANS["width and depth"]).eval()
    state: tuple[Tensor, ...] = (images(2),)
    other: tuple[Tensor, ...] = (images(3),)
    path = tmp_path / "segment.onnx"
    batch = {0: torch.export.Dim.DYNAMIC}
    for number, segment in enumerate(model.segments()):
        shapes = (batch, tuple(batch for _ in state[1:])) if number else (batch,)
        segment.eval()
        with torch.no_grad():
            torch.onnx.export(
                segment, state, path, dynamo=True, dynamic_shapes=shapes, verbose=False
            )
            expected = segment(*other)
            state = segment(*state)[1:]
        session = onnxruntime.InferenceSession(path)
        names = [found.name for found in session.get_inputs()]
        given = {name: tensor.numpy() for name, tensor in zip(names, other, strict=True)}
        for found, wanted in zip(session.run(None, given), expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-5)
        other = expected[1:]
