"""Tensors in messages: every type, raw and typed, and messages that lie."""

import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from anynest.serving.grpc.inference import CONTENTS, read_infer, write_infer
from anynest.serving.grpc.messages import message_class
from anynest.serving.protocol.errors import ProtocolError
from anynest.serving.protocol.inference import InferRequest
from anynest.serving.protocol.tensors import DATATYPES

Request = message_class("ModelInferRequest")
Response = message_class("ModelInferResponse")
LIMIT = 10_000


def encode(array: np.ndarray[Any, Any]) -> bytes:
    if array.dtype != object:
        return array.astype(array.dtype.newbyteorder("<")).tobytes()
    return b"".join(struct.pack("<I", len(item)) + item for item in array.flat)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, Any]:
    name = draw(st.sampled_from(list(DATATYPES)))
    shape = draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    if name != "BYTES":
        return name, draw(arrays.arrays(DATATYPES[name], shape))
    found = np.empty(math.prod(shape), dtype=object)
    for number in range(len(found)):
        found[number] = draw(st.binary(max_size=4))  # with zero bytes at the end
    return name, found.reshape(shape)


def same(found: Any, wanted: Any) -> bool:
    alike = found.shape == wanted.shape and found.dtype.kind == wanted.dtype.kind
    return alike and encode(found) == encode(wanted)


def add_input(message: Any, name: str, datatype: str, array: Any, raw: bool) -> None:
    tensor = message.inputs.add(name=name, datatype=datatype, shape=array.shape)
    if raw:
        message.raw_input_contents.append(encode(array))
    elif array.size:
        getattr(tensor.contents, CONTENTS[datatype]).extend(array.ravel().tolist())


@given(st.lists(tensors(), min_size=1, max_size=3), st.booleans())
@hypothesis_settings(deadline=None, max_examples=50)
def test_inputs_arrive_as_sent(sent: list[tuple[str, Any]], raw: bool) -> None:
    raw = raw or any(datatype == "FP16" for datatype, _ in sent)
    message = Request(id="7")
    for number, (datatype, array) in enumerate(sent):
        add_input(message, f"in{number}", datatype, array, raw)
    message.parameters["timeout"].int64_param = 5
    message.parameters["priority"].uint64_param = 2
    message.parameters["on"].bool_param = False
    message.parameters["share"].double_param = 0.5
    message.parameters["text"].string_param = ""
    found = read_infer(Request.FromString(message.SerializeToString()), max_elements=LIMIT)
    assert (found.id, found.binary, found.outputs) == ("7", raw, {})
    asked = {"timeout": 5, "priority": 2, "on": False, "share": 0.5, "text": ""}
    assert found.parameters == asked
    assert found.parameters["on"] is False
    assert list(found.inputs) == [f"in{number}" for number in range(len(sent))]
    for array, (_, wanted) in zip(found.inputs.values(), sent, strict=True):
        assert same(array, wanted)


@given(st.lists(tensors(), min_size=1, max_size=3), st.booleans())
@hypothesis_settings(deadline=None, max_examples=50)
def test_outputs_arrive_as_given(given_tensors: list[tuple[str, Any]], binary: bool) -> None:
    outputs = {f"out{number}": array for number, (_, array) in enumerate(given_tensors)}
    kinds = [datatype for datatype, _ in given_tensors]
    request = InferRequest("7", {}, {}, binary)
    parameters = {"stage": 2, "deadline_met": True, "stop_reason": "deadline", "share": 0.5}
    sent = write_infer("net", "1", request, outputs, parameters)
    found = Response.FromString(sent.SerializeToString())
    assert (found.model_name, found.model_version, found.id) == ("net", "1", "7")
    values = {
        key: getattr(p, p.WhichOneof("parameter_choice")) for key, p in found.parameters.items()
    }
    assert values == parameters
    assert [tensor.name for tensor in found.outputs] == list(outputs)
    raw = binary or "FP16" in kinds
    assert len(found.raw_output_contents) == (len(outputs) if raw else 0)
    for number, (tensor, datatype) in enumerate(zip(found.outputs, kinds, strict=True)):
        array = outputs[tensor.name]
        assert (tensor.datatype, tuple(tensor.shape)) == (datatype, array.shape)
        if raw:
            assert found.raw_output_contents[number] == encode(array)
            assert not tensor.HasField("contents")
        else:
            fields = tensor.contents.ListFields()
            assert [f.name for f, _ in fields] == ([CONTENTS[datatype]] if array.size else [])
            back = list(getattr(tensor.contents, CONTENTS[datatype]))
            assert repr(back) == repr(array.ravel().tolist())  # NaN too


def test_outputs_that_were_chosen() -> None:
    outputs = {"a": np.zeros(1, np.float32), "b": np.ones(1, np.float32)}
    found = write_infer("net", "1", InferRequest("", {}, {"b": True}, True), outputs, {})
    assert [tensor.name for tensor in found.outputs] == ["b"]
    assert list(found.raw_output_contents) == [np.float32(1).tobytes()]


def valid() -> Any:
    message = Request(model_name="net")
    message.inputs.add(name="x", datatype="FP32", shape=[1, 3])
    message.raw_input_contents.append(bytes(12))
    return message


def typed() -> Any:
    message = valid()
    message.ClearField("raw_input_contents")
    message.inputs[0].contents.fp32_contents.extend([0, 0, 0])
    return message


LIES: dict[str, tuple[Callable[[], Any], Callable[[Any], object], str]] = {
    "no inputs": (Request, lambda m: None, "inputs must be 1 to 64 tensors, found 0"),
    "too many inputs": (
        *(valid, lambda m: m.inputs.extend([m.inputs[0]] * 64)),
        "inputs must be 1 to 64 tensors, found 65",
    ),
    "raw missing": (valid, lambda m: m.inputs.add(name="y"), "one value for each of the 2 inputs"),
    "raw left over": (valid, lambda m: m.raw_input_contents.append(b""), "found 2"),
    "raw short": (valid, lambda m: m.inputs[0].shape.append(2), "must have 24 bytes, found 12"),
    "both": (
        *(valid, lambda m: m.inputs[0].contents.fp32_contents.append(1)),
        "either contents or raw_input_contents",
    ),
    "no name": (valid, lambda m: m.inputs[0].ClearField("name"), "input 0 must have a name"),
    "twice": (
        typed,
        lambda m: m.inputs.extend([m.inputs[0]]),
        "'x' must be given once",
    ),
    "type": (valid, lambda m: setattr(m.inputs[0], "datatype", "FLOAT"), "found 'FLOAT'"),
    "negative": (valid, lambda m: m.inputs[0].shape.append(-1), "integers from 0"),
    "huge": (valid, lambda m: m.inputs[0].shape.append(1 << 40), "at most 10000 elements"),
    "empty parameter": (valid, lambda m: m.parameters["p"], "parameter 'p' must have a value"),
    "contents of another type": (
        *(typed, lambda m: setattr(m.inputs[0], "datatype", "INT32")),
        "of INT32 must have int_contents alone, found fp32_contents",
    ),
    "contents missing": (
        *(typed, lambda m: m.inputs[0].ClearField("contents")),
        "must have 3 values, found 0",
    ),
    "half": (typed, lambda m: setattr(m.inputs[0], "datatype", "FP16"), "no typed contents"),
    "output without name": (valid, lambda m: m.outputs.add(), "output 0 must have a name"),
    "output twice": (
        valid,
        lambda m: (m.outputs.add(name="a"), m.outputs.add(name="a")),
        "'a' must be asked for once",
    ),
    "too many outputs": (
        *(valid, lambda m: [m.outputs.add(name=str(n)) for n in range(65)]),
        "outputs must be at most 64",
    ),
    "classes": (
        *(valid, lambda m: _ask(m, "classification", "int64_param", 1)),
        "classification is not offered",
    ),
    "shared memory": (
        *(valid, lambda m: _ask(m, "shared_memory_region", "string_param", "r")),
        "shared memory is not offered",
    ),
}


def _ask(message: Any, name: str, kind: str, value: Any) -> None:
    setattr(message.outputs.add(name="a").parameters[name], kind, value)


@pytest.mark.parametrize("lie", LIES)
def test_messages_that_lie(lie: str) -> None:
    make, spoil, line = LIES[lie]
    message = make()
    spoil(message)
    with pytest.raises(ProtocolError) as caught:
        read_infer(message, max_elements=LIMIT)
    assert line in caught.value.message
    assert caught.value.status == (413 if lie == "huge" else 400)


@pytest.mark.parametrize(
    ("datatype", "field", "value"),
    [
        *(("INT8", "int_contents", 128), ("INT16", "int_contents", -(1 << 15) - 1)),
        *(("UINT8", "uint_contents", 256), ("UINT16", "uint_contents", 1 << 16)),
    ],
)
def test_typed_values_must_fit(datatype: str, field: str, value: int) -> None:
    message = Request()
    tensor = message.inputs.add(name="x", datatype=datatype, shape=[1])
    getattr(tensor.contents, field).append(value)
    with pytest.raises(ProtocolError, match=f"a value does not fit in {datatype}"):
        read_infer(message, max_elements=LIMIT)


def test_values_raw_and_typed_are_the_same() -> None:
    for message in (valid(), typed()):
        found = read_infer(message, max_elements=LIMIT)
        np.testing.assert_array_equal(found.inputs["x"], np.zeros((1, 3), np.float32))
