"""Inference messages: to the request that HTTP reads from JSON, and from its outputs back.

A tensor's values are raw bytes beside the tensors (the ``raw_*_contents``), or typed lists within
them. A response takes the form of its request, except that FP16 is raw always.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..protocol.errors import ProtocolError
from ..protocol.inference import MAX_INPUTS, InferRequest, chosen_outputs
from ..protocol.tensors import (
    Array,
    check_datatype,
    check_shape,
    datatype_of,
    from_binary,
    from_json,
    to_binary,
)
from .messages import message_class

ModelInferRequest = message_class("ModelInferRequest")
ModelInferResponse = message_class("ModelInferResponse")

# data type -> the field of InferTensorContents; the protocol has none for FP16
CONTENTS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


def read_infer(message: Any, *, max_elements: int) -> InferRequest:
    """Read a ``ModelInferRequest``.

    Args:
        message: the client's.
        max_elements: bound on the elements of one tensor, checked before it is made.

    Raises:
        ProtocolError: malformed, or too large.
    """
    if not 0 < len(message.inputs) <= MAX_INPUTS:
        raise ProtocolError(
            400, f"inputs must be 1 to {MAX_INPUTS} tensors, found {len(message.inputs)}"
        )
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise ProtocolError(
            400,
            f"raw_input_contents must hold one value for each of the {len(message.inputs)} inputs, "
            f"found {len(raw)} (shared memory is not offered)",
        )
    inputs: dict[str, Array] = {}
    for number, tensor in enumerate(message.inputs):
        what = _what(tensor, f"input {number}")
        if tensor.name in inputs:
            raise ProtocolError(400, f"{what} must be given once")
        check_datatype(tensor.datatype, what)
        shape = check_shape(list(tensor.shape), what, max_elements)
        if not raw:
            inputs[tensor.name] = _from_contents(tensor, shape, what)
            continue
        if tensor.HasField("contents"):
            raise ProtocolError(
                400, f"{what} must have either contents or raw_input_contents, found both"
            )
        inputs[tensor.name] = from_binary(memoryview(raw[number]), tensor.datatype, shape, what)
    binary = bool(raw)
    parameters = _read_parameters(message.parameters, "the request")
    return InferRequest(message.id, inputs, _outputs(message, binary), binary, parameters)


def write_infer(
    model: str,
    version: str,
    request: InferRequest,
    outputs: Mapping[str, Array],
    parameters: Mapping[str, Any],
) -> Any:
    """The ``ModelInferResponse`` to a request; arguments as of ``protocol``'s ``write_response``.

    Raises:
        ProtocolError: the client asked for an output that there is not.
    """
    response = ModelInferResponse(model_name=model, model_version=version, id=request.id)
    write_parameters(response.parameters, parameters)
    chosen = {name: outputs[name] for name in chosen_outputs(request, outputs)}
    datatypes = {name: datatype_of(array) for name, array in chosen.items()}
    raw = request.binary or not CONTENTS.keys() >= set(datatypes.values())
    for name, array in chosen.items():
        tensor = response.outputs.add(name=name, datatype=datatypes[name], shape=array.shape)
        if raw:
            response.raw_output_contents.append(to_binary(array))
        else:
            values = array.ravel().tolist()
            getattr(tensor.contents, CONTENTS[tensor.datatype]).extend(values)
    return response


def write_parameters(field: Any, parameters: Mapping[str, Any]) -> None:
    """Fill a map of ``InferParameter`` from values in Python."""
    kinds = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}
    for name, value in parameters.items():
        setattr(field[name], kinds[type(value)], value)


def _read_parameters(field: Any, what: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, parameter in field.items():
        choice = parameter.WhichOneof("parameter_choice")
        if choice is None:
            raise ProtocolError(400, f"{what}: parameter {name[:80]!r} must have a value")
        found[name] = getattr(parameter, choice)
    return found


def _from_contents(tensor: Any, shape: tuple[int, ...], what: str) -> Array:
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise ProtocolError(
            400, f"{what}: {tensor.datatype} has no typed contents; send raw_input_contents"
        )
    others = {other.name for other, _ in tensor.contents.ListFields()} - {field}
    if others:
        raise ProtocolError(
            400, f"{what} of {tensor.datatype} must have {field} alone, found {min(others)}"
        )
    values: list[Any] = list(getattr(tensor.contents, field))
    if tensor.datatype != "BYTES":
        return from_json(values, tensor.datatype, shape, what)
    count = math.prod(shape)
    if len(values) != count:
        raise ProtocolError(
            400, f"{what} of shape {list(shape)} must have {count} values, found {len(values)}"
        )
    elements = np.empty(count, dtype=object)
    for number, value in enumerate(values):  # at once, NumPy would strip zero bytes at the end
        elements[number] = value
    return elements.reshape(shape)


def _outputs(message: Any, binary: bool) -> dict[str, bool]:
    if len(message.outputs) > MAX_INPUTS:
        raise ProtocolError(400, f"outputs must be at most {MAX_INPUTS} tensors")
    found: dict[str, bool] = {}
    for number, tensor in enumerate(message.outputs):
        what = _what(tensor, f"output {number}")
        if tensor.name in found:
            raise ProtocolError(400, f"{what} must be asked for once")
        options = _read_parameters(tensor.parameters, what)
        if options.get("classification"):
            raise ProtocolError(400, f"{what}: classification is not offered; ask for label")
        if "shared_memory_region" in options:
            raise ProtocolError(400, f"{what}: shared memory is not offered")
        found[tensor.name] = binary
    return found


def _what(tensor: Any, place: str) -> str:
    """What to call a tensor in errors."""
    if not tensor.name:
        raise ProtocolError(400, f"{place} must have a name")
    return f"tensor {tensor.name[:80]!r}"
