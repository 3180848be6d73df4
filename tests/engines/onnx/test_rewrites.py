"""Rewrites of exported graphs: they compute the same, and the nodes for sizes are gone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn

import anynest
from anynest.engines.onnx.export.convert import convert
from anynest.engines.onnx.graphs.linear import merge_linear
from anynest.engines.onnx.graphs.reshapes import simplify_reshapes
from anynest.engines.onnx.graphs.sizes import known_shapes

rng = np.random.default_rng(0)


def weight(name: str, *shape: int) -> Any:
    return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)


def whole(name: str, *values: int) -> Any:
    return numpy_helper.from_array(np.array(values, dtype=np.int64), name)


def info(name: str, *shape: int | str) -> Any:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def model(
    nodes: list[Any], inputs: list[Any], outputs: list[Any], weights: list[Any], known: Any = ()
) -> Any:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights, value_info=list(known))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("anynest", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


def run(proto: Any, *inputs: Any) -> list[Any]:
    names = [value.name for value in proto.graph.input]
    return ReferenceEvaluator(proto).run(None, dict(zip(names, inputs, strict=True)))


def kinds(proto: Any) -> Counter[str]:
    return Counter(node.op_type for node in proto.graph.node)


# -- sizes ------------------------------------------------------------------------------------------
def test_a_number_on_one_side_of_a_mark_is_known_everywhere() -> None:
    mark = helper.make_node("Boundary", ["a"], ["b"], domain="anynest", stage=1)
    proto = model(
        [helper.make_node("Relu", ["x"], ["a"]), mark, helper.make_node("Relu", ["b"], ["y"])],
        [info("x", "batch", "n", 3)],
        [info("y", "batch", "n + 1", 3)],
        [],
        [info("a", "batch", 65, 3), info("b", "batch", "n + 1", 3)],
    )
    found = known_shapes(proto)
    assert found["b"] == found["y"] == ["batch", 65, 3]
    assert found["x"] == ["batch", "n", 3]


# -- targets of Reshape -----------------------------------------------------------------------------
def heads(tokens: int | str) -> Any:
    """[batch, tokens, 6] to [batch, tokens, 2, 3]; the target is computed."""
    nodes = [
        helper.make_node("Shape", ["x"], ["front"], start=0, end=2),
        helper.make_node("Concat", ["front", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["y"], allowzero=1),
    ]
    ends = [info("x", "batch", tokens, 6)], [info("y", "batch", tokens, 2, 3)]
    return model(nodes, *ends, [whole("rest", 2, 3)])


@pytest.mark.parametrize("tokens", ["n", 4])
def test_a_target_is_constant(tokens: int | str) -> None:
    proto = heads(tokens)
    x = rng.standard_normal((5, 4, 6)).astype(np.float32)
    (before,) = run(proto, x)
    simplify_reshapes(proto)
    (reshape,) = [node for node in proto.graph.node if node.op_type == "Reshape"]
    assert reshape.input[1] in {tensor.name for tensor in proto.graph.initializer}
    np.testing.assert_array_equal(run(proto, x)[0], before)


def test_a_target_with_two_sizes_to_infer_stays() -> None:
    proto = heads("n")
    proto.graph.output[0].CopyFrom(info("y", "other", "m", 2, 3))
    unchanged = proto.SerializeToString()
    simplify_reshapes(proto)
    assert proto.SerializeToString() == unchanged


# -- attention's transpose --------------------------------------------------------------------------
def swapped(edit: str = "") -> Any:
    """[a, b, c, d] to [a, b, d, c] by way of three dimensions, as attention is exported."""
    ends = {"first": ("front", "third", "second"), "": ("front", "second", "third")}
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"]),
        helper.make_node("Slice", ["shape", "low", "-2"], ["front"]),
        helper.make_node("Slice", ["shape", "-2", "-1"], ["third"]),
        helper.make_node("Slice", ["shape", "-1", "high"], ["second"]),
        helper.make_node("Concat", ["-1", "third", "second"], ["inner"], axis=0),
        helper.make_node("Reshape", ["x", "inner"], ["rows"]),
        helper.make_node("Transpose", ["rows"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Concat", [*ends["first" if edit == "target" else ""]], ["outer"], axis=0),
        helper.make_node("Reshape", ["turned", "outer"], ["y"]),
    ]
    if edit == "perm":
        nodes[6].attribute[0].ints[:] = [0, 1, 2]
    outputs = [info("y", "", "", "", "")]
    if edit == "reader":
        outputs.append(info("turned", "", "", ""))
    constants = [("low", -(1 << 63)), ("-2", -2), ("-1", -1), ("high", (1 << 63) - 1)]
    rank = (3, 4, 4, 4) if edit == "square" else ("batch", 3, "n", 4)
    return model(nodes, [info("x", *rank)], outputs, [whole(*pair) for pair in constants])


def test_three_nodes_become_one_transpose() -> None:
    proto = swapped()
    x = rng.standard_normal((2, 3, 5, 4)).astype(np.float32)
    (before,) = run(proto, x)
    simplify_reshapes(proto)
    last = proto.graph.node[-1]
    assert (last.op_type, list(last.input)) == ("Transpose", ["x"])
    np.testing.assert_array_equal(run(proto, x)[0], before)
    np.testing.assert_array_equal(before, x.transpose(0, 1, 3, 2))


@pytest.mark.parametrize("edit", ["target", "perm", "reader"])
def test_other_reshapes_stay(edit: str) -> None:
    proto = swapped(edit)
    x = rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
    before = run(proto, x)
    simplify_reshapes(proto)
    assert kinds(proto)["Reshape"] == 2
    for found, wanted in zip(run(proto, x), before, strict=True):
        np.testing.assert_array_equal(found, wanted)


# -- linear layers ----------------------------------------------------------------------------------
def linear(
    *shape: int | str, bias: int = 5, swap: bool = False, reads_product: bool = False
) -> Any:
    operands = ["b", "product"] if swap else ["product", "b"]
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", operands, ["y"]),
    ]
    outputs = [info("y", *shape[:-1], 5)]
    if reads_product:
        outputs.append(info("product", *shape[:-1], 5))
    return model(nodes, [info("x", *shape)], outputs, [weight("w", 3, 5), weight("b", bias)])


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("shape", [("batch", 4, 3), (2, "n", 3), ("batch", 2, 2, 3)])
def test_a_linear_layer_is_one_gemm(shape: Any, swap: bool) -> None:
    proto = linear(*shape, swap=swap)
    x = rng.standard_normal([size if isinstance(size, int) else 7 for size in shape])
    (before,) = run(proto, x.astype(np.float32))
    merge_linear(proto)
    onnx.checker.check_model(proto)
    assert kinds(proto) == {"Reshape": 2, "Gemm": 1}
    (found,) = run(proto, x.astype(np.float32))
    assert found.shape == before.shape
    np.testing.assert_allclose(found, before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "proto",
    [
        linear("batch", "n", 3),  # two sizes would have to be inferred
        linear("batch", 3),  # ONNX Runtime joins these itself
        linear("batch", 4, 3, bias=1),  # no bias of a Gemm's columns
        linear("batch", 4, 3, reads_product=True),
    ],
    ids=["open", "matrix", "broadcast", "product"],
)
def test_other_products_stay(proto: Any) -> None:
    unchanged = proto.SerializeToString()
    merge_linear(proto)
    assert proto.SerializeToString() == unchanged


def test_a_residual_sum_is_no_bias() -> None:
    proto = linear("batch", 4, 3)
    proto.graph.node[1].input[1] = "x2"
    proto.graph.input.append(info("x2", "batch", 4, 5))
    unchanged = proto.SerializeToString()
    merge_linear(proto)
    assert proto.SerializeToString() == unchanged


# -- a transformer ----------------------------------------------------------------------------------
class Block(nn.Module):
    def __init__(self, width: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return x + self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch, self.position = nn.Conv2d(3, 12, 4, 4), nn.Parameter(torch.zeros(1, 16, 12))
        self.blocks, self.head = nn.Sequential(Block(), Block()), nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.blocks(tokens).mean(1))


def test_no_stage_of_a_transformer_computes_sizes() -> None:
    torch.manual_seed(0)
    network = anynest.add_exits(Body(), torch.randn(2, 3, 16, 16), 10, {"blocks.0": "auto"}).eval()
    converted = convert(network)
    for proto in converted.models:
        found = kinds(proto)
        assert found["Shape"] == found["Concat"] == 0
        assert found["MatMul"] == 2  # of attention
    assert converted.checked["max_error"] < 1e-4
