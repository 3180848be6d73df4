"""Inference requests and responses: a JSON header, then the binary tensors in its order."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .errors import ProtocolError
from .tensors import (
    Array,
    check_datatype,
    check_shape,
    datatype_of,
    from_binary,
    from_json,
    to_binary,
    to_json,
)

MAX_INPUTS = 64
MAX_DEPTH = 32  # of objects and lists within one another
_TEXTS = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?', re.DOTALL)  # linear: it always matches
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


@dataclass(frozen=True)
class InferRequest:
    """A request that was read.

    Attributes:
        id: the client's, which the response repeats; "" if it gave none.
        inputs: name -> tensor.
        outputs: name -> whether it is wanted in binary; empty if the client named none.
        binary: whether outputs are binary where the client did not say.
        parameters: of the request, such as ``timeout`` in microseconds.
    """

    id: str
    inputs: dict[str, Array]
    outputs: dict[str, bool]
    binary: bool
    parameters: dict[str, Any] = field(default_factory=dict)


def read_request(
    body: bytes | memoryview, header_length: int | None, *, max_elements: int
) -> InferRequest:
    """Read a request.

    Args:
        body: after decompression.
        header_length: of ``Inference-Header-Content-Length``; None if the body is JSON alone.
        max_elements: bound on the elements of one tensor, checked before it is made.

    Raises:
        ProtocolError: malformed, or too large.
    """
    view = memoryview(body)
    length = len(view) if header_length is None else header_length
    if not 0 < length <= len(view):
        raise ProtocolError(
            400,
            f"the JSON header must be from 1 to {len(view)} bytes long, the length of the body, "
            f"found {length}",
        )
    header, rest = parse_object(view[:length]), view[length:]
    parameters = _object(header, "parameters", "the request")
    request_id = header.get("id", "")
    if not isinstance(request_id, str):
        raise ProtocolError(400, "id must be a text")
    given = header.get("inputs")
    if not isinstance(given, list) or not 0 < len(given) <= MAX_INPUTS:
        raise ProtocolError(400, f"inputs must be a list of 1 to {MAX_INPUTS} tensors")
    inputs: dict[str, Array] = {}
    for number, tensor in enumerate(given):
        name, what = _name(tensor, f"input {number}")
        if name in inputs:
            raise ProtocolError(400, f"{what} must be given once")
        datatype = tensor.get("datatype")
        check_datatype(datatype, what)
        shape = check_shape(tensor.get("shape"), what, max_elements)
        options = _object(tensor, "parameters", what)
        size = options.get("binary_data_size")
        if size is None:
            base64_bytes = options.get("content_type") == "base64"
            inputs[name] = from_json(
                tensor.get("data"), datatype, shape, what, base64_bytes=base64_bytes
            )
            continue
        if "data" in tensor:
            raise ProtocolError(400, f"{what} must have either data or binary_data_size")
        if type(size) is not int or not 0 <= size <= len(rest):
            raise ProtocolError(
                400,
                f"{what}: binary_data_size must be from 0 to the {len(rest)} bytes left in the "
                f"body, found {str(size)[:40]}",
            )
        inputs[name] = from_binary(rest[:size], datatype, shape, what)
        rest = rest[size:]
    if len(rest):
        raise ProtocolError(400, f"{len(rest)} bytes follow the last binary tensor")
    binary = bool(parameters.get("binary_data_output", False))
    return InferRequest(request_id, inputs, _outputs(header, binary), binary, parameters)


def _outputs(header: Mapping[str, Any], binary: bool) -> dict[str, bool]:
    given = header.get("outputs", [])
    if not isinstance(given, list) or len(given) > MAX_INPUTS:
        raise ProtocolError(400, f"outputs must be a list of at most {MAX_INPUTS} tensors")
    found: dict[str, bool] = {}
    for number, tensor in enumerate(given):
        name, what = _name(tensor, f"output {number}")
        if name in found:
            raise ProtocolError(400, f"{what} must be asked for once")
        options = _object(tensor, "parameters", what)
        if options.get("classification"):
            raise ProtocolError(400, f"{what}: classification is not offered; ask for label")
        found[name] = bool(options.get("binary_data", binary))
    return found


def chosen_outputs(request: InferRequest, names: Iterable[str]) -> dict[str, bool]:
    """The outputs that a client asked for, all if it named none, and whether in binary.

    Args:
        request: the client's.
        names: of the outputs that there are.

    Raises:
        ProtocolError: the client asked for an output that there is not.
    """
    known = dict.fromkeys(names, request.binary)
    for name in request.outputs:
        if name not in known:
            raise ProtocolError(
                400, f"outputs must be among {', '.join(known)}, found {name[:80]!r}"
            )
    return request.outputs or known


def write_response(
    model: str,
    version: str,
    request: InferRequest,
    outputs: Mapping[str, Array],
    parameters: Mapping[str, Any],
) -> tuple[bytes, int | None]:
    """The body of a response, and the length of its JSON header (None if it is JSON alone).

    Args:
        model: the model's name.
        version: its version.
        request: what it answers.
        outputs: all tensors that there are; those that the client asked for are sent.
        parameters: of the response.

    Raises:
        ProtocolError: the client asked for an output that there is not.
    """
    described: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for name, binary in chosen_outputs(request, outputs).items():
        array = outputs[name]
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": datatype_of(array),
            "shape": list(array.shape),
        }
        if binary:
            chunks.append(to_binary(array))
            tensor["parameters"] = {"binary_data_size": len(chunks[-1])}
        else:
            tensor["data"] = to_json(array)
        described.append(tensor)
    header: dict[str, Any] = {"model_name": model, "model_version": version}
    if request.id:
        header["id"] = request.id
    if parameters:
        header["parameters"] = dict(parameters)
    header["outputs"] = described
    text = write_object(header)
    return (text + b"".join(chunks), len(text)) if chunks else (text, None)


def write_object(value: Mapping[str, Any]) -> bytes:
    """An object as JSON on one line."""
    return _ENCODER.encode(value).encode()


def parse_object(data: bytes | memoryview) -> dict[str, Any]:
    """A JSON object; ProtocolError for anything else, also numbers that JSON does not have."""
    data = bytes(data)
    _check_depth(data)
    try:
        value = _DECODER.decode(data.decode())
    except (ValueError, RecursionError) as error:
        raise ProtocolError(400, f"the request must be JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError(400, f"the request must be an object, found {type(value).__name__}")
    return value


def _check_depth(data: bytes) -> None:
    """Bound the depth before parsing, by taking away the innermost brackets ``MAX_DEPTH`` times."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    brackets = _TEXTS.sub(b"", data).translate(_BRACKETS, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
    if brackets:
        raise ProtocolError(
            400,
            f"the request must be JSON of at most {MAX_DEPTH} levels; its brackets do not match",
        )


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number; send such values in binary")


_ENCODER = json.JSONEncoder(allow_nan=False, separators=(",", ":"))  # made once
_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def _name(tensor: Any, what: str) -> tuple[str, str]:
    """A tensor's name, and what to call it in errors."""
    name = tensor.get("name") if isinstance(tensor, dict) else None
    if not isinstance(name, str) or not name:
        raise ProtocolError(400, f"{what} must be an object with a name")
    return name, f"tensor {name[:80]!r}"


def _object(header: Mapping[str, Any], key: str, what: str) -> dict[str, Any]:
    value: Any = header.get(key, {})
    if not isinstance(value, dict):
        raise ProtocolError(400, f"{what}: {key} must be an object")
    return value
