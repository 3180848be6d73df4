"""The messages of ``inference.GRPCInferenceService``, as protobuf classes.

Built from the table below in a descriptor pool of their own: packages that bring their own
``inference.*`` messages into the process (clients, other servers) neither clash with these nor see
them. Names and numbers of fields are those of the protocol; a field that this server neither reads
nor writes is left out, and protobuf skips it where a client sends it.
"""

from __future__ import annotations

import re
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

# message -> "type name = number; ...": "*" marks a repeated field, "a|b" a map of a to b, and "?" a
# member of the one oneof that a message may have
SCHEMA = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live = 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready = 1",
    "ModelReadyRequest": "string name = 1; string version = 2",
    "ModelReadyResponse": "bool ready = 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name = 1; string version = 2; string* extensions = 3",
    "ModelMetadataRequest": "string name = 1; string version = 2",
    "ModelMetadataResponse": """
        string name = 1; string* versions = 2; string platform = 3;
        ModelMetadataResponse.TensorMetadata* inputs = 4;
        ModelMetadataResponse.TensorMetadata* outputs = 5""",
    "ModelMetadataResponse.TensorMetadata": "string name = 1; string datatype = 2; int64* shape = 3",
    "InferParameter": """
        bool? bool_param = 1; int64? int64_param = 2; string? string_param = 3;
        double? double_param = 4; uint64? uint64_param = 5""",
    "InferTensorContents": """
        bool* bool_contents = 1; int32* int_contents = 2; int64* int64_contents = 3;
        uint32* uint_contents = 4; uint64* uint64_contents = 5; float* fp32_contents = 6;
        double* fp64_contents = 7; bytes* bytes_contents = 8""",
    "ModelInferRequest": """
        string model_name = 1; string model_version = 2; string id = 3;
        string|InferParameter parameters = 4; ModelInferRequest.InferInputTensor* inputs = 5;
        ModelInferRequest.InferRequestedOutputTensor* outputs = 6; bytes* raw_input_contents = 7""",
    "ModelInferRequest.InferInputTensor": """
        string name = 1; string datatype = 2; int64* shape = 3;
        string|InferParameter parameters = 4; InferTensorContents contents = 5""",
    "ModelInferRequest.InferRequestedOutputTensor": """
        string name = 1; string|InferParameter parameters = 2""",
    "ModelInferResponse": """
        string model_name = 1; string model_version = 2; string id = 3;
        string|InferParameter parameters = 4; ModelInferResponse.InferOutputTensor* outputs = 5;
        bytes* raw_output_contents = 6""",
    "ModelInferResponse.InferOutputTensor": """
        string name = 1; string datatype = 2; int64* shape = 3;
        string|InferParameter parameters = 4; InferTensorContents contents = 5""",
    "ModelStreamInferResponse": "string error_message = 1; ModelInferResponse infer_response = 2",
    "ModelConfigRequest": "string name = 1; string version = 2",
    "ModelConfigResponse": "ModelConfig config = 1",
    "ModelConfig": """
        string name = 1; string platform = 2; int32 max_batch_size = 4; ModelInput* input = 5;
        ModelOutput* output = 6; string|ModelParameter parameters = 14; string backend = 17;
        ModelTransactionPolicy model_transaction_policy = 19""",
    "ModelInput": "string name = 1; DataType data_type = 2; int64* dims = 4; bool optional = 8",
    "ModelOutput": "string name = 1; DataType data_type = 2; int64* dims = 3",
    "ModelParameter": "string string_value = 1",
    "ModelTransactionPolicy": "bool decoupled = 1",
    "ModelStatisticsRequest": "string name = 1; string version = 2",
    "ModelStatisticsResponse": "ModelStatistics* model_stats = 1",
    "ModelStatistics": """
        string name = 1; string version = 2; uint64 last_inference = 3; uint64 inference_count = 4;
        uint64 execution_count = 5; InferStatistics inference_stats = 6;
        InferBatchStatistics* batch_stats = 7""",
    "InferStatistics": """
        StatisticDuration success = 1; StatisticDuration fail = 2; StatisticDuration queue = 3;
        StatisticDuration compute_input = 4; StatisticDuration compute_infer = 5;
        StatisticDuration compute_output = 6""",
    "InferBatchStatistics": """
        uint64 batch_size = 1; StatisticDuration compute_input = 2;
        StatisticDuration compute_infer = 3; StatisticDuration compute_output = 4""",
    "StatisticDuration": "uint64 count = 1; uint64 ns = 2",
    "RepositoryIndexRequest": "string repository_name = 1; bool ready = 2",
    "RepositoryIndexResponse": "RepositoryIndexResponse.ModelIndex* models = 1",
    "RepositoryIndexResponse.ModelIndex": """
        string name = 1; string version = 2; string state = 3; string reason = 4""",
    "RepositoryModelLoadRequest": "string repository_name = 1; string model_name = 2",
    "RepositoryModelLoadResponse": "",
    "RepositoryModelUnloadRequest": "string repository_name = 1; string model_name = 2",
    "RepositoryModelUnloadResponse": "",
}
ENUMS = {
    "DataType": (
        *("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64"),
        *("TYPE_INT8", "TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32"),
        *("TYPE_FP64", "TYPE_STRING", "TYPE_BF16"),
    )
}
PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"
_FIELD = re.compile(r"(?:(\w+)\|)?([\w.]+)([*?]?) (\w+) = (\d+)")
_Field = descriptor_pb2.FieldDescriptorProto


def describe(schema: dict[str, str]) -> descriptor_pb2.FileDescriptorProto:
    """The description of a table of messages; a dotted name is a message within a message."""
    file = descriptor_pb2.FileDescriptorProto(
        name="anynest/serving/inference.proto", package=PACKAGE, syntax="proto3"
    )
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=value, number=number)
    made: dict[str, descriptor_pb2.DescriptorProto] = {}
    for name, fields in schema.items():
        outer, _, inner = name.rpartition(".")
        message = made[outer].nested_type.add() if outer else file.message_type.add()
        message.name, made[name] = inner, message
        for text in filter(None, (part.strip() for part in fields.split(";"))):
            _add_field(message, name, text)
    return file


def _add_field(message: descriptor_pb2.DescriptorProto, owner: str, text: str) -> None:
    match = _FIELD.fullmatch(text)
    assert match, f"{owner}: {text!r} describes no field"
    key, kind, mark, name, number = match.groups()
    field = message.field.add(name=name, number=int(number), label=_Field.LABEL_OPTIONAL)
    if key:  # a map is a repeated message of key and value
        entry = "".join(part.title() for part in name.split("_")) + "Entry"
        pair = message.nested_type.add(name=entry)
        pair.options.map_entry = True
        _add_field(pair, owner, f"{key} key = 1")
        _add_field(pair, owner, f"{kind} value = 2")
        kind, mark = f"{owner}.{entry}", "*"
    if mark == "*":
        field.label = _Field.LABEL_REPEATED
    elif mark == "?":
        if not message.oneof_decl:
            message.oneof_decl.add(name="parameter_choice")
        field.oneof_index = 0
    if kind[0].islower():
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type = _Field.TYPE_ENUM if kind in ENUMS else _Field.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"


POOL = descriptor_pool.DescriptorPool()
POOL.AddSerializedFile(describe(SCHEMA).SerializeToString())


def message_class(name: str) -> Any:
    """The class of a message, such as ``ModelInferRequest``."""
    found = POOL.FindMessageTypeByName(f"{PACKAGE}.{name}")
    return message_factory.GetMessageClass(found)
