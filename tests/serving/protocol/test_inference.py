"""Requests and responses against an encoder of the test's own, and bodies that lie."""

import base64
import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from anynest.serving.protocol.errors import ProtocolError
from anynest.serving.protocol.inference import read_request, write_response
from anynest.serving.protocol.tensors import DATATYPES

LIMIT = 10_000
NUMBERS = [name for name in DATATYPES if name != "BYTES"]


def encode(tensor: np.ndarray[Any, Any]) -> bytes:
    if tensor.dtype != object:
        return tensor.astype(tensor.dtype.newbyteorder("<")).tobytes()
    return b"".join(struct.pack("<I", len(item)) + item for item in tensor.reshape(-1))


def tensors() -> st.SearchStrategy[tuple[str, Any]]:
    """Of every type and of up to three dimensions, some of them 0."""
    shape = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3)

    def of(name: str) -> st.SearchStrategy[tuple[str, Any]]:
        if name == "BYTES":
            many = st.tuples(shape, st.lists(st.binary(max_size=5), min_size=27, max_size=27))

            def build(drawn: Any) -> Any:
                found = np.empty(math.prod(drawn[0]), dtype=object)
                found[:] = drawn[1][: len(found)]
                return found.reshape(drawn[0])

            return many.map(lambda drawn: (name, build(drawn)))
        return arrays.arrays(DATATYPES[name], shape).map(lambda array: (name, array))

    return st.sampled_from(list(DATATYPES)).flatmap(of)


def body_of(named: dict[str, tuple[str, Any]], **more: Any) -> tuple[bytes, int]:
    inputs, rest = [], b""
    for name, (datatype, tensor) in named.items():
        data = encode(tensor)
        parameters = {"binary_data_size": len(data)}
        shape = list(tensor.shape)
        inputs.append(
            {"name": name, "datatype": datatype, "shape": shape, "parameters": parameters}
        )
        rest += data
    header = json.dumps({"inputs": inputs, **more}).encode()
    return header + rest, len(header)


def same(found: Any, wanted: Any) -> bool:
    if found.shape != wanted.shape or found.dtype.newbyteorder("=") != wanted.dtype.newbyteorder(
        "="
    ):
        return False
    return encode(found) == encode(wanted)


@given(st.lists(tensors(), min_size=1, max_size=3), st.text(max_size=5))
@settings(deadline=None)
def test_binary_tensors_survive(given_tensors: list[tuple[str, Any]], request_id: str) -> None:
    named = {f"in{n}": tensor for n, tensor in enumerate(given_tensors)}
    body, length = body_of(named, id=request_id, parameters={"timeout": 5000})
    request = read_request(body, length, max_elements=LIMIT)
    assert (request.id, request.parameters) == (request_id, {"timeout": 5000})
    assert list(request.inputs) == list(named)
    for name, (_, tensor) in named.items():
        assert same(request.inputs[name], tensor)
    # and back: the response in binary holds the same bytes
    asked, ask_length = body_of(
        named, outputs=[{"name": n, "parameters": {"binary_data": True}} for n in named]
    )
    echo = read_request(asked, ask_length, max_elements=LIMIT)
    outputs = {name: tensor for name, (_, tensor) in named.items()}
    answer, header_length = write_response("m", "1", echo, outputs, {"stage": 2})
    assert header_length is not None
    header = json.loads(answer[:header_length])
    assert header["parameters"] == {"stage": 2}
    rest = answer[header_length:]
    for described, (name, (datatype, tensor)) in zip(header["outputs"], named.items(), strict=True):
        size = described["parameters"]["binary_data_size"]
        assert (described["name"], described["datatype"]) == (name, datatype)
        assert described["shape"] == list(tensor.shape)
        assert rest[:size] == encode(tensor)
        rest = rest[size:]
    assert rest == b""


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("datatype", NUMBERS)
def test_json_tensors(datatype: str, nested: bool) -> None:
    values: list[Any] = [[True, False, True], [False, False, True]]
    if datatype != "BOOL":
        values = [[1, 0, 2], [3, 100, 7]]
    array = np.array(values, dtype=DATATYPES[datatype])
    data = values if nested else [value for row in values for value in row]
    tensor = {"name": "x", "datatype": datatype, "shape": [2, 3], "data": data}
    request = read_request(json.dumps({"inputs": [tensor]}).encode(), None, max_elements=6)
    assert same(request.inputs["x"], array)
    answer, header_length = write_response("m", "", request, {"y": array}, {})
    assert header_length is None
    (output,) = json.loads(answer)["outputs"]
    assert output["data"] == array.ravel().tolist()


def test_texts_and_base64() -> None:
    picture = bytes(range(256))
    inputs: list[dict[str, Any]] = [
        {"name": "a", "datatype": "BYTES", "shape": [1], "data": ["é"]},
        {
            "name": "b",
            "datatype": "BYTES",
            "shape": [1],
            "data": [base64.b64encode(picture).decode()],
            "parameters": {"content_type": "base64"},
        },
    ]
    body = json.dumps({"inputs": inputs}).encode()
    found = read_request(body, None, max_elements=10).inputs
    assert (found["a"][0], found["b"][0]) == ("é".encode(), picture)


GOOD: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [2], "data": [1.0, 2.0]}
BINARY = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}


@pytest.mark.parametrize(
    ("header", "rest", "message"),
    [
        ({}, b"", "inputs must be a list"),
        ({"inputs": []}, b"", "inputs must be a list"),
        ({"inputs": [3]}, b"", "input 0 must be an object with a name"),
        ({"inputs": [GOOD, GOOD]}, b"", "must be given once"),
        ({"inputs": [GOOD], "id": 3}, b"", "id must be a text"),
        ({"inputs": [GOOD], "parameters": []}, b"", "parameters must be an object"),
        ({"inputs": [{**GOOD, "datatype": "FP8"}]}, b"", "datatype must be one of BOOL"),
        ({"inputs": [{**GOOD, "datatype": []}]}, b"", "datatype must be one of BOOL"),
        ({"inputs": [{**GOOD, "shape": [-1]}]}, b"", "shape must be a list of integers"),
        ({"inputs": [{**GOOD, "shape": [True, 2]}]}, b"", "shape must be a list of integers"),
        ({"inputs": [{**GOOD, "shape": [1] * 9}]}, b"", "at most 8 dimensions"),
        ({"inputs": [{**GOOD, "shape": [1 << 62, 4]}]}, b"", "at most 10000 elements"),
        ({"inputs": [{**GOOD, "shape": [3]}]}, b"", "must have 3 values, found 2"),
        ({"inputs": [{**GOOD, "data": [[1.0], [2.0]]}]}, b"", "must be numbers"),
        ({"inputs": [{**GOOD, "shape": [2, 1], "data": [[1.0], 2.0]}]}, b"", "the shape"),
        ({"inputs": [{**GOOD, "shape": [], "data": [[1.0]]}]}, b"", "the shape"),
        ({"inputs": [{**GOOD, "data": [1.0, "2"]}]}, b"", "must be numbers of that type"),
        ({"inputs": [{**GOOD, "data": "12"}]}, b"", "data must be a list"),
        ({"inputs": [{**GOOD, "datatype": "UINT8", "data": [1, 256]}]}, b"", "does not fit"),
        ({"inputs": [{**GOOD, "datatype": "INT32", "data": [1, 1.5]}]}, b"", "must be numbers"),
        ({"inputs": [{**GOOD, "parameters": {"binary_data_size": 8}}]}, b"12345678", "either data"),
        ({"inputs": [BINARY]}, b"1234567", "from 0 to the 7 bytes left"),
        ({"inputs": [BINARY]}, b"123456789", "1 bytes follow the last binary tensor"),
        ({"inputs": [{**BINARY, "shape": [3]}]}, b"12345678", "must have 12 bytes, found 8"),
        (
            {"inputs": [{**BINARY, "parameters": {"binary_data_size": -1}}]},
            b"",
            "binary_data_size must be from 0",
        ),
        ({"inputs": [{**BINARY, "datatype": "BYTES"}]}, b"\x09\0\0\0abcd", "longer than"),
        ({"inputs": [{**BINARY, "datatype": "BYTES"}]}, b"\x04\0\0\0abcd", "must have 2 elements"),
        (
            {"inputs": [{**BINARY, "datatype": "BYTES", "shape": [1]}]},
            b"\x02\0\0\0abcd",
            "2 bytes follow",
        ),
        ({"inputs": [{**BINARY, "datatype": "BOOL", "shape": [8]}]}, b"\x02" * 8, "byte 0 or 1"),
        ({"inputs": [GOOD], "outputs": {}}, b"", "outputs must be a list"),
        ({"inputs": [GOOD], "outputs": [{"name": "y"}, {"name": "y"}]}, b"", "asked for once"),
        (
            {"inputs": [GOOD], "outputs": [{"name": "y", "parameters": {"classification": 3}}]},
            b"",
            "classification is not offered",
        ),
    ],
)
def test_bodies_that_lie_end_in_one_line(header: Any, rest: bytes, message: str) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(ProtocolError, match=message) as caught:
        read_request(text + rest, len(text), max_elements=LIMIT)
    assert caught.value.status in (400, 413)
    assert "\n" not in caught.value.message
    assert len(caught.value.message) <= 500


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'{"inputs": [NaN]}', b"[" * 100_000])
def test_what_is_no_json_object(body: bytes) -> None:
    for length in (None, len(body), len(body) + 1, -1, 0):
        with pytest.raises(ProtocolError):
            read_request(body, length, max_elements=LIMIT)


def test_an_unknown_output_lists_the_known_ones() -> None:
    body = json.dumps({"inputs": [GOOD], "outputs": [{"name": "logit"}]}).encode()
    request = read_request(body, None, max_elements=LIMIT)
    with pytest.raises(ProtocolError, match="outputs must be among logits, found 'logit'"):
        write_response("m", "1", request, {"logits": np.zeros(1, np.float32)}, {})


def refusal(body: bytes, length: int | None) -> ProtocolError | None:
    try:
        read_request(body, length, max_elements=LIMIT)
    except ProtocolError as error:
        return error
    return None


@given(st.binary(max_size=200), st.one_of(st.none(), st.integers(-5, 300)))
@settings(max_examples=300)
def test_any_bytes_end_in_a_request_or_one_line(body: bytes, length: int | None) -> None:
    error = refusal(body, length)
    assert error is None or error.status in (400, 413)


@given(tensors(), st.integers(0, 60), st.integers(0, 255), st.integers(-9, 9))
@settings(deadline=None)
def test_damaged_bodies_end_in_a_request_or_one_line(
    tensor: tuple[str, Any], place: int, value: int, shift: int
) -> None:
    body, length = body_of({"x": tensor})
    damaged = bytearray(body)
    damaged[place % len(body)] = value
    for given_length in (length, length + shift):
        error = refusal(bytes(damaged), given_length)
        assert error is None or "\n" not in error.message
