"""Tensors on the wire: raw little-endian bytes, or values in JSON.

Data types are the protocol's. An element of BYTES is four bytes of length and the bytes themselves.
"""

from __future__ import annotations

import base64
import binascii
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ProtocolError

Array = NDArray[Any]

DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
MAX_DIMENSIONS = 8
LENGTH = struct.Struct("<I")


def datatype_of(array: Array) -> str:
    """The protocol's name of an array's type.

    >>> datatype_of(np.zeros(3, np.float32)), datatype_of(np.array([b"x"], object))
    ('FP32', 'BYTES')

    Raises:
        ValueError: the protocol has no such type.
    """
    name = _NAMES.get(array.dtype.newbyteorder("<"))
    if name is None:
        raise ValueError(f"the protocol has no type for {array.dtype}")
    return name


def check_shape(shape: Any, what: str, max_elements: int) -> tuple[int, ...]:
    """A shape from JSON; ProtocolError unless it is a list of sizes within bounds."""
    if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
        raise ProtocolError(400, f"{what}: shape must be a list of integers from 0")
    if len(shape) > MAX_DIMENSIONS:
        raise ProtocolError(
            400, f"{what}: shape must have at most {MAX_DIMENSIONS} dimensions, found {len(shape)}"
        )
    count = max(math.prod(shape), *shape, 0)  # a size beside 0 is bounded too
    if count > max_elements:
        raise ProtocolError(
            413, f"{what} must have at most {max_elements} elements, found {count}; send fewer rows"
        )
    return tuple(shape)


def check_datatype(name: Any, what: str) -> np.dtype[Any]:
    """The type of a protocol's name; ProtocolError lists the known ones."""
    if not isinstance(name, str) or name not in DATATYPES:
        raise ProtocolError(
            400, f"{what}: datatype must be one of {', '.join(DATATYPES)}, found {str(name)[:40]!r}"
        )
    return DATATYPES[name]


def from_binary(data: memoryview, datatype: str, shape: tuple[int, ...], what: str) -> Array:
    """The tensor in raw bytes, read-only and without a copy (except BYTES)."""
    dtype, count = DATATYPES[datatype], math.prod(shape)
    if datatype == "BYTES":
        if count * LENGTH.size > len(data):
            raise ProtocolError(
                400, f"{what} must have {count} elements, found {len(data)} bytes: too few"
            )
        elements = np.empty(count, dtype=object)
        for number, element in enumerate(_split(data, count, what)):
            elements[number] = element
        return elements.reshape(shape)
    if len(data) != count * dtype.itemsize:
        raise ProtocolError(
            400,
            f"{what} of shape {list(shape)} and {datatype} must have {count * dtype.itemsize} "
            f"bytes, found {len(data)}",
        )
    if datatype == "BOOL" and any(byte > 1 for byte in bytes(data)):
        raise ProtocolError(400, f"{what}: a BOOL must be the byte 0 or 1")
    return np.frombuffer(data, dtype=dtype).reshape(shape)


def _split(data: memoryview, count: int, what: str) -> Iterator[bytes]:
    """The elements of a BYTES tensor."""
    position = 0
    for number in range(count):
        start = position + LENGTH.size
        if start > len(data):
            raise ProtocolError(400, f"{what} must have {count} elements, found {number}")
        position = start + LENGTH.unpack_from(data, position)[0]
        if position > len(data):
            raise ProtocolError(400, f"{what}: element {number} is longer than the tensor's bytes")
        yield bytes(data[start:position])
    if position != len(data):
        raise ProtocolError(400, f"{what}: {len(data) - position} bytes follow the last element")


def from_json(
    data: Any, datatype: str, shape: tuple[int, ...], what: str, *, base64_bytes: bool = False
) -> Array:
    """The tensor in JSON values: flat in row-major order, or nested as its shape.

    Args:
        data: a list.
        datatype: the protocol's name.
        shape: of the tensor.
        what: names it in errors.
        base64_bytes: whether texts of a BYTES tensor are base64 rather than UTF-8.
    """
    if not isinstance(data, list):
        raise ProtocolError(400, f"{what}: data must be a list, found {type(data).__name__}")
    nested = any(isinstance(value, list) for value in data)
    values = list(_flatten(data, shape, what)) if nested else data
    count, dtype = math.prod(shape), DATATYPES[datatype]
    if len(values) != count:
        raise ProtocolError(
            400, f"{what} of shape {list(shape)} must have {count} values, found {len(values)}"
        )
    if datatype == "BYTES":
        elements = np.empty(count, dtype=object)
        for number, value in enumerate(values):
            elements[number] = _to_bytes(value, what, base64_bytes)
        return elements.reshape(shape)
    wanted = {"BOOL": (bool,), "FP": (int, float)}.get(datatype.rstrip("0123456789"), (int,))
    for value in values:
        if type(value) not in wanted:
            raise ProtocolError(400, f"{what}: {datatype} values must be numbers of that type")
    try:
        if dtype.kind in "iu":
            bounds = np.iinfo(dtype)
            if values and not bounds.min <= min(values) <= max(values) <= bounds.max:
                raise OverflowError
        with np.errstate(over="ignore"):
            return np.array(values, dtype=dtype).reshape(shape)
    except OverflowError:
        raise ProtocolError(400, f"{what}: a value does not fit in {datatype}") from None


def _flatten(data: Sequence[Any], shape: tuple[int, ...], what: str) -> Iterator[Any]:
    """The values of nested lists, which must have exactly this shape."""
    if not shape or len(data) != shape[0]:
        raise ProtocolError(400, f"{what}: nested data must have the shape {list(shape)}")
    for value in data:
        if len(shape) > 1:
            if not isinstance(value, list):
                raise ProtocolError(400, f"{what}: nested data must have the shape {list(shape)}")
            yield from _flatten(value, shape[1:], what)
        else:
            yield value


def _to_bytes(value: Any, what: str, base64_bytes: bool) -> bytes:
    if not isinstance(value, str):
        raise ProtocolError(400, f"{what}: BYTES values must be texts")
    try:
        if base64_bytes:
            return base64.b64decode(value, validate=True)
        return value.encode()
    except (binascii.Error, ValueError) as error:  # UnicodeEncodeError, for lone surrogates, too
        raise ProtocolError(400, f"{what}: a text cannot be decoded: {error}") from None


def to_binary(array: Array) -> bytes:
    """The raw bytes of a tensor.

    >>> to_binary(np.array([1, 2], np.uint16)), to_binary(np.array([b"ab"], object))
    (b'\\x01\\x00\\x02\\x00', b'\\x02\\x00\\x00\\x00ab')
    """
    if array.dtype == object:
        return b"".join(LENGTH.pack(len(element)) + element for element in array.flat)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()


def to_json(array: Array) -> list[Any]:
    """The values of a tensor, flat, for JSON; BYTES as UTF-8, with replacements."""
    if array.dtype == object:
        return [element.decode(errors="replace") for element in array.flat]
    return list(array.ravel().tolist())
