"""Messages: bytes that were written by hand, and other packages' messages of the same names."""

import subprocess
import sys

import pytest

from anynest.serving.grpc.messages import SCHEMA, describe, message_class


def field(number: int, data: bytes) -> bytes:
    """A field of protobuf with a length, for numbers below 16."""
    return bytes([number << 3 | 2, len(data)]) + data


def test_a_request_on_the_wire() -> None:
    parameter = field(1, b"timeout") + field(2, bytes([2 << 3, 0x88, 0x27]))  # 5000 as varint
    tensor = field(1, b"x") + field(2, b"FP32") + field(3, bytes([1, 3]))
    unknown = field(9, b"of a later version")
    data = (
        field(1, b"net")
        + field(2, b"1")
        + field(3, b"id")
        + field(4, parameter)
        + field(5, tensor)
        + field(6, field(1, b"label"))
        + field(7, bytes(12))
        + unknown
    )
    found = message_class("ModelInferRequest").FromString(data)
    assert (found.model_name, found.model_version, found.id) == ("net", "1", "id")
    assert found.parameters["timeout"].int64_param == 5000
    assert found.parameters["timeout"].WhichOneof("parameter_choice") == "int64_param"
    assert (found.inputs[0].name, found.inputs[0].datatype) == ("x", "FP32")
    assert list(found.inputs[0].shape) == [1, 3]
    assert [output.name for output in found.outputs] == ["label"]
    assert list(found.raw_input_contents) == [bytes(12)]
    assert found.SerializeToString(deterministic=True) == data  # what is unknown is kept


def test_a_response_on_the_wire() -> None:
    response = message_class("ModelInferResponse")(model_name="net", id="7")
    response.parameters["stage"].int64_param = 2
    response.outputs.add(name="y", datatype="FP32", shape=[2]).contents.fp32_contents.extend([0, 0])
    contents = field(5, field(6, bytes(8)))
    tensor = field(1, b"y") + field(2, b"FP32") + field(3, b"\2") + contents
    parameter = field(1, b"stage") + field(2, bytes([2 << 3, 2]))
    wanted = field(1, b"net") + field(3, b"7") + field(4, parameter) + field(5, tensor)
    assert response.SerializeToString(deterministic=True) == wanted


def test_each_name_and_number_is_used_once() -> None:
    file = describe(SCHEMA)
    messages = [*file.message_type, *(m for top in file.message_type for m in top.nested_type)]
    assert len({m.name for m in file.message_type}) == len(file.message_type)
    for found in messages:
        assert len({f.number for f in found.field}) == len(found.field), found.name


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_other_messages_of_the_same_names(first: str) -> None:
    """Two descriptions of ``inference.ModelInferRequest`` in the default pool would clash."""
    code = f"""
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

def theirs():
    file = descriptor_pb2.FileDescriptorProto(
        name="grpc_service.proto", package="inference", syntax="proto3")
    field = file.message_type.add(name="ModelInferRequest").field.add(name="other", number=1)
    field.type, field.label = field.TYPE_INT64, field.LABEL_OPTIONAL
    pool = descriptor_pool.Default()
    pool.AddSerializedFile(file.SerializeToString())
    found = pool.FindMessageTypeByName("inference.ModelInferRequest")
    return message_factory.GetMessageClass(found)

def ours():
    from anynest.serving.grpc.messages import message_class
    return message_class("ModelInferRequest")

if {first!r} == "ours":
    a, b = ours(), theirs()
else:
    b, a = theirs(), ours()
assert a(model_name="net").model_name == "net" and b(other=4).other == 4
assert a is not b
"""
    subprocess.run([sys.executable, "-c", code], check=True)
