"""Bounds that hold before anything is built: depth of JSON, sizes of shapes."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anynest.serving.protocol.errors import ProtocolError
from anynest.serving.protocol.inference import MAX_DEPTH, parse_object, read_request

VALUES = st.recursive(
    st.none() | st.integers() | st.text('[]{}"\\a', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('"\\]', max_size=2), inner),
    max_leaves=60,
)


def depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    return 1 + max(map(depth, value), default=0) if isinstance(value, list) else 0


def nested(levels: int, opening: bytes = b"[", closing: bytes = b"]") -> bytes:
    return opening * levels + closing * levels


@given(VALUES, st.integers(0, MAX_DEPTH + 3), st.booleans())
def test_depth(value: Any, levels: int, wide: bool) -> None:
    """Brackets in texts do not count; whatever is deeper is refused, whatever is not is read."""
    for _ in range(levels):
        value = [value]
    whole = {"a": value, "b": [[]] * (2 * MAX_DEPTH if wide else 0), 'c"]': '\\"['}
    text = json.dumps(whole).encode()
    if depth(whole) <= MAX_DEPTH:
        assert parse_object(text) == whole
    elif text.count(b"[") + text.count(b"{") > MAX_DEPTH:
        with pytest.raises(ProtocolError, match="levels"):
            parse_object(text)


@pytest.mark.parametrize("levels", [MAX_DEPTH + 1, 400, 990, 5000, 1_000_000])
@pytest.mark.parametrize("pair", [(b"[", b"]"), (b'{"a":', b"}")])
def test_too_deep(levels: int, pair: tuple[bytes, bytes]) -> None:
    for text in (nested(levels, *pair), b'{"datatype": ' + nested(levels, *pair), b"[" * levels):
        with pytest.raises(ProtocolError) as caught:
            parse_object(text)
        assert caught.value.status == 400


@pytest.mark.parametrize(
    "text", [b'"' + b'\\"' * 500_000, b'"' * 500_001, b'{"a": "' + b"[" * 10**6]
)
def test_texts_without_an_end(text: bytes) -> None:
    """They are refused in a time that grows with their length, not with its square."""
    began = time.process_time()
    with pytest.raises(ProtocolError):
        parse_object(text + b"[" * (MAX_DEPTH + 1))
    assert time.process_time() - began < 5


def test_other_encodings_of_text() -> None:
    with pytest.raises(ProtocolError, match="JSON"):
        parse_object(json.dumps({"a": 1}).encode("utf-16"))


@pytest.mark.parametrize("shape", [[0, 2**70], [2**70], [2**40, 0], [0, 0, 10**9], [1, 10**9]])
@pytest.mark.parametrize("datatype", ["FP32", "BYTES"])
def test_sizes_beside_zero_are_bounded(shape: list[int], datatype: str) -> None:
    tensor = {
        **{"name": "x", "shape": shape, "datatype": datatype},
        "parameters": {"binary_data_size": 0},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(ProtocolError) as caught:
        read_request(header, len(header), max_elements=1000)
    assert caught.value.status == 413


def test_a_tensor_of_texts_is_made_only_if_its_bytes_are_there() -> None:
    """A shape may promise more elements than the body has lengths."""
    tensor = {
        **{"name": "x", "shape": [10**9], "datatype": "BYTES"},
        "parameters": {"binary_data_size": 4},
    }
    header = json.dumps({"inputs": [tensor]}).encode()
    with pytest.raises(ProtocolError, match="too few"):
        read_request(header + bytes(4), len(header), max_elements=1 << 40)
