"""The cut of one graph into stages: sizes of what an earlier stage alone computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from anynest.engines.onnx.graphs.cut import CutError, GraphCutter


def info(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(inner: tuple[int | str, ...], reader: Any) -> Any:
    """Stage 2 reads the sizes of ``inner``, which is within stage 1 and no state."""
    nodes = [
        helper.make_node("Transpose", ["x"], ["inner"], perm=[0, 2, 1]),
        helper.make_node("Relu", ["inner"], ["y1"]),
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Boundary", ["a"], ["b"], domain="anynest", stage=1),
        reader,
        helper.make_node("Concat", ["sizes", "one"], ["target"], axis=0),
        helper.make_node("Reshape", ["b", "target"], ["y2"]),
    ]
    one = numpy_helper.from_array(np.array([-1], dtype=np.int64), "one")
    known = [info("inner", *inner), info("a", "batch", "n", 3), info("b", "batch", "n", 3)]
    outputs = [info("y1", "batch", 3, "n"), info("y2", "p", "q", "r", "s")]
    graph = helper.make_graph(
        nodes, "graph", [info("x", "batch", "n", 3)], outputs, [one], value_info=known
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("anynest", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.mark.parametrize(
    ("start", "end", "shape"),
    [(None, None, (2, 3, 5, 1)), (1, None, (3, 5, 2)), (2, 3, (5, 6)), (0, 1, (2, 15))],
)
def test_sizes_of_an_earlier_stages_value(start: Any, end: Any, shape: tuple[int, ...]) -> None:
    bounds = {"start": start, "end": end}
    given = {name: value for name, value in bounds.items() if value is not None}
    reader = helper.make_node("Shape", ["inner"], ["sizes"], **given)
    models, stages = GraphCutter(model(("batch", 3, "n"), reader), ["x"]).cut()
    assert stages[1].inputs == () or stages[1].inputs == ("x",)
    assert "inner" not in stages[1].reads
    x = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)
    state = dict(
        zip(
            ["logits1", *stages[0].gives],
            ReferenceEvaluator(models[0]).run(None, {"x": x}),
            strict=True,
        )
    )
    known = {"x": x, **state}
    feed = {name: known[name] for name in (*stages[1].inputs, *stages[1].reads)}
    (found,) = ReferenceEvaluator(models[1]).run(None, feed)
    np.testing.assert_array_equal(found, (-x).reshape(shape))


def test_a_size_that_no_tensor_at_hand_has() -> None:
    reader = helper.make_node("Shape", ["inner"], ["sizes"])
    with pytest.raises(CutError, match="size m, which no tensor at hand has") as caught:
        GraphCutter(model(("batch", 3, "m"), reader), ["x"]).cut()
    assert caught.value.stage == 2


def test_a_count_of_elements_is_not_computed_again() -> None:
    reader = helper.make_node("Size", ["inner"], ["sizes"])
    with pytest.raises(CutError, match="needs the size of inner"):
        GraphCutter(model(("batch", 3, "n"), reader), ["x"]).cut()
