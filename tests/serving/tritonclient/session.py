"""What the real tritonclient does with a server; runs in its own environment, without anynest.

    python session.py CASES HTTP_ADDRESS GRPC_ADDRESS INPUTS.npz

``CASES`` is ``all`` or names with commas between. Prints one JSON object: case -> what was found.
"""

import asyncio
import json
import queue
import sys
import traceback

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.grpc.aio as over_grpc_aio
import tritonclient.http as over_http
import tritonclient.http.aio as over_http_aio
from tritonclient.utils import InferenceServerException

MODEL = "net"
LONG = 50_000_000  # microseconds
CASES = {}


def case(function):
    """Register a case; an async one runs in an event loop."""
    CASES[function.__name__] = function
    return function


class Session:
    def __init__(self, http, grpc, inputs):
        self.http, self.grpc = http, grpc
        self.inputs = dict(np.load(inputs, allow_pickle=False))
        with over_http.InferenceServerClient(http) as client:
            self.name = client.get_model_metadata(MODEL)["inputs"][0]["name"]
        picture = np.empty(1, dtype=object)
        picture[0] = self.inputs["picture"].tobytes()
        self.inputs["picture"] = picture

    def tensors(self, api, kind, **options):
        """The input of one of the kinds of data."""
        array = self.inputs[kind]
        datatype = {"images": "FP32", "pixels": "UINT8", "picture": "BYTES"}[kind]
        found = api.InferInput(self.name, list(array.shape), datatype)
        found.set_data_from_numpy(array, **options)
        return [found]


def outputs_of(result, *names):
    """The named outputs, as nested lists; texts for bytes."""
    found = {}
    for name in names or ("probabilities", "logits", "label", "confidence", "stage"):
        array = result.as_numpy(name)
        if array is None:
            found[name] = None
        elif array.dtype == object:
            # the client gives texts where they came in JSON, else bytes
            found[name] = [t.decode() if type(t) is bytes else t for t in array.ravel()]
        else:
            found[name] = {"values": array.tolist(), "dtype": str(array.dtype)}
    return found


def http_parameters(result):
    return result.get_response().get("parameters", {})


def grpc_parameters(response):
    values = {}
    for name, parameter in response.parameters.items():
        values[name] = getattr(parameter, parameter.WhichOneof("parameter_choice"))
    return values


def error_of(call):
    """What the client raises."""
    try:
        result = call()
    except InferenceServerException as error:
        return {"status": str(error.status()), "message": error.message()}
    return {"no error": str(result)}


# -- HTTP -----------------------------------------------------------------------------------------
def http_infer(s, kind, binary, api=over_http, **options):
    inputs = s.tensors(api, kind, binary_data=binary)
    with api.InferenceServerClient(s.http) as client:
        result = client.infer(MODEL, inputs, timeout=LONG, **options)
        return {"outputs": outputs_of(result), "parameters": http_parameters(result)}


@case
def http_binary_fp32(s):
    return http_infer(s, "images", True)


@case
def http_json_fp32(s):
    asked = [over_http.InferRequestedOutput(n, binary_data=False) for n in ("logits", "label")]
    inputs = s.tensors(over_http, "images", binary_data=False)
    with over_http.InferenceServerClient(s.http) as client:
        result = client.infer(MODEL, inputs, outputs=asked, timeout=LONG, request_id="7")
        response = result.get_response()
        names = [tensor["name"] for tensor in response["outputs"]]
        found = outputs_of(result, "logits", "label")
        return {"outputs": found, "names": names, "id": response.get("id")}


@case
def http_binary_uint8(s):
    return http_infer(s, "pixels", True)


@case
def http_json_uint8(s):
    return http_infer(s, "pixels", False)


@case
def http_bytes(s):
    return http_infer(s, "picture", True)


@case
def http_gzip(s):
    both = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
    return http_infer(s, "images", True, **both)


@case
def http_deflate(s):
    both = {"request_compression_algorithm": "deflate", "response_compression_algorithm": "deflate"}
    return http_infer(s, "images", False, **both)


@case
def http_async_infer(s):
    """The thread pool of the synchronous client."""
    with over_http.InferenceServerClient(s.http, concurrency=4) as client:
        inputs = s.tensors(over_http, "images")
        calls = [client.async_infer(MODEL, inputs, timeout=LONG) for _ in range(8)]
        return {"outputs": [outputs_of(call.get_result()) for call in calls]}


@case
def http_parameters_of_the_request(s):
    with over_http.InferenceServerClient(s.http) as client:
        inputs = s.tensors(over_http, "images")
        result = client.infer(
            MODEL, inputs, timeout=LONG, priority=1, parameters={"stages": 1, "confidence": 0.99}
        )
        return {"outputs": outputs_of(result), "parameters": http_parameters(result)}


@case
def http_descriptions(s):
    with over_http.InferenceServerClient(s.http) as client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(MODEL),
            "other_ready": client.is_model_ready("nets"),
            "version_ready": client.is_model_ready(MODEL, "1"),
            "server": client.get_server_metadata(),
            "metadata": client.get_model_metadata(MODEL),
            "config": client.get_model_config(MODEL),
            "statistics": client.get_inference_statistics(MODEL),
            "index": client.get_model_repository_index(),
        }


@case
def http_errors(s):
    with over_http.InferenceServerClient(s.http) as client:

        def infer(inputs=None, model=MODEL, **options):
            inputs = inputs or s.tensors(over_http, "images")
            return error_of(lambda: client.infer(model, inputs, **options))

        wrong = over_http.InferInput(s.name, [1, 2], "FP32")
        wrong.set_data_from_numpy(np.zeros((1, 2), np.float32))
        return {
            "model": infer(model="nets"),
            "version": infer(model_version="9"),
            "shape": infer([wrong]),
            "output": infer(outputs=[over_http.InferRequestedOutput("label_")]),
            "over": infer(timeout=1),
            "metadata": error_of(lambda: client.get_model_metadata("nets")),
        }


@case
async def http_aio(s):
    async with over_http_aio.InferenceServerClient(s.http) as client:
        inputs = s.tensors(over_http_aio, "images")
        calls = [client.infer(MODEL, inputs, timeout=LONG) for _ in range(4)]
        found = await asyncio.gather(*calls)
        try:
            await client.infer("nets", inputs)
        except InferenceServerException as error:
            message = error.message()
        return {
            "outputs": [outputs_of(result) for result in found],
            "ready": await client.is_server_ready(),
            "metadata": await client.get_model_metadata(MODEL),
            "error": message,
        }


# -- gRPC -----------------------------------------------------------------------------------------
def grpc_infer(s, kind, **options):
    inputs = s.tensors(over_grpc, kind)
    with over_grpc.InferenceServerClient(s.grpc) as client:
        result = client.infer(MODEL, inputs, **{"timeout": LONG, **options})
        response = result.get_response()
        parameters = grpc_parameters(response)
        return {"outputs": outputs_of(result), "parameters": parameters, "id": response.id}


@case
def grpc_fp32(s):
    return grpc_infer(s, "images", request_id="7")


@case
def grpc_uint8(s):
    return grpc_infer(s, "pixels")


@case
def grpc_bytes(s):
    return grpc_infer(s, "picture")


@case
def grpc_gzip(s):
    return grpc_infer(s, "images", compression_algorithm="gzip")


@case
def grpc_deflate(s):
    return grpc_infer(s, "images", compression_algorithm="deflate")


@case
def grpc_outputs_chosen(s):
    asked = [over_grpc.InferRequestedOutput(name) for name in ("label", "stage")]
    with over_grpc.InferenceServerClient(s.grpc) as client:
        result = client.infer(MODEL, s.tensors(over_grpc, "images"), outputs=asked, timeout=LONG)
        names = [tensor.name for tensor in result.get_response().outputs]
        return {"outputs": outputs_of(result, "label", "stage"), "names": names}


@case
def grpc_parameters_of_the_request(s):
    return grpc_infer(s, "images", priority=1, parameters={"stages": 1, "confidence": "0.99"})


@case
def grpc_async_infer(s):
    """The callbacks of the synchronous client."""
    found = queue.Queue()
    with over_grpc.InferenceServerClient(s.grpc) as client:
        for _ in range(8):
            client.async_infer(
                *(MODEL, s.tensors(over_grpc, "images")),
                callback=lambda result, error: found.put((result, error)),
                timeout=LONG,
            )
        answers = [found.get(timeout=60) for _ in range(8)]
    return {
        "outputs": [outputs_of(result) for result, error in answers if error is None],
        "errors": [str(error) for _, error in answers if error is not None],
    }


@case
def grpc_descriptions(s):
    with over_grpc.InferenceServerClient(s.grpc) as client:
        return {
            "live": client.is_server_live(),
            "ready": client.is_server_ready(),
            "model_ready": client.is_model_ready(MODEL),
            "server": client.get_server_metadata(as_json=True),
            "metadata": client.get_model_metadata(MODEL, as_json=True),
            "config": client.get_model_config(MODEL, as_json=True),
            "statistics": client.get_inference_statistics(MODEL, as_json=True),
            "index": client.get_model_repository_index(as_json=True),
        }


@case
def grpc_errors(s):
    with over_grpc.InferenceServerClient(s.grpc) as client:

        def infer(inputs=None, model=MODEL, **options):
            inputs = inputs or s.tensors(over_grpc, "images")
            return error_of(lambda: client.infer(model, inputs, **options))

        wrong = over_grpc.InferInput(s.name, [1, 2], "FP32")
        wrong.set_data_from_numpy(np.zeros((1, 2), np.float32))
        return {
            "model": infer(model="nets"),
            "version": infer(model_version="9"),
            "shape": infer([wrong]),
            "output": infer(outputs=[over_grpc.InferRequestedOutput("label_")]),
            "over": infer(timeout=1),
            "client_timeout": infer(timeout=LONG, client_timeout=0.0005),
            "metadata": error_of(lambda: client.get_model_metadata("nets")),
        }


@case
def grpc_client_timeout(s):
    """The client's own time covers the work as the parameter does."""
    return grpc_infer(s, "images", timeout=None, client_timeout=50.0)


@case
def grpc_stream(s):
    """Two requests in one stream, and one that is wrong between them."""
    found = queue.Queue()
    with over_grpc.InferenceServerClient(s.grpc) as client:
        client.start_stream(callback=lambda result, error: found.put((result, error)))
        inputs = s.tensors(over_grpc, "images")
        for name, model in (("a", MODEL), ("wrong", "nets"), ("b", MODEL)):
            client.async_stream_infer(
                *(model, inputs),
                request_id=name,
                timeout=LONG,
                enable_empty_final_response=True,
            )
        client.stop_stream()  # waits for all responses
    responses, errors = [], []
    while not found.empty():
        result, error = found.get()
        if error is not None:
            errors.append(error.message())
            continue
        response = result.get_response()
        responses.append(
            {
                "id": response.id,
                "parameters": grpc_parameters(response),
                "outputs": outputs_of(result),
            }
        )
    return {"responses": responses, "errors": errors}


@case
async def grpc_aio(s):
    async with over_grpc_aio.InferenceServerClient(s.grpc) as client:
        inputs = s.tensors(over_grpc_aio, "images")
        found = await asyncio.gather(*(client.infer(MODEL, inputs, timeout=LONG) for _ in range(4)))
        try:
            await client.infer("nets", inputs)
        except InferenceServerException as error:
            message = error.message()

        async def requests():
            for name in "ab":
                yield {
                    "model_name": MODEL,
                    "inputs": inputs,
                    "request_id": name,
                    "timeout": LONG,
                }

        stages = []
        async for result, error in client.stream_infer(requests()):
            response = result.get_response()
            stages.append([response.id, int(result.as_numpy("stage")[0]), error])
        return {
            "outputs": [outputs_of(result) for result in found],
            "ready": await client.is_server_ready(),
            "error": message,
            "stages": stages,
        }


@case
def grpc_descriptor(s):
    """The client's own messages: name -> fields."""
    from tritonclient.grpc import model_config_pb2, service_pb2

    found = {}

    def add(message):
        name = message.full_name.removeprefix("inference.")
        found[name] = {
            field.name: [
                *(field.number, field.type, field.is_repeated),
                field.containing_oneof.name if field.containing_oneof else None,
                field.message_type.full_name if field.message_type else None,
            ]
            for field in message.fields
        }
        for nested in message.nested_types:
            add(nested)

    for module in (service_pb2, model_config_pb2):
        for message in module.DESCRIPTOR.message_types_by_name.values():
            add(message)
    enums = {}
    for name, enum in model_config_pb2.DESCRIPTOR.enum_types_by_name.items():
        enums[name] = {value.name: value.number for value in enum.values}
    methods = [
        m.name for m in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    ]
    return {"messages": found, "enums": enums, "methods": methods}


# -- a server that stops --------------------------------------------------------------------------
def draining(s):
    """Waits for a line between its first calls and its last."""
    with (
        over_http.InferenceServerClient(s.http) as http,
        over_grpc.InferenceServerClient(s.grpc) as grpc,
    ):
        http.infer(MODEL, s.tensors(over_http, "images"), timeout=LONG)
        grpc.infer(MODEL, s.tensors(over_grpc, "images"), timeout=LONG)
        print("answered", flush=True)
        sys.stdin.readline()
        return {
            "http": error_of(lambda: http.infer(MODEL, s.tensors(over_http, "images"))),
            "grpc": error_of(lambda: grpc.infer(MODEL, s.tensors(over_grpc, "images"))),
            "http_live": http.is_server_live(),
            "grpc_live": grpc.is_server_live(),
            "http_ready": http.is_server_ready(),
            "grpc_ready": grpc.is_server_ready(),
        }


def main():
    names, http, grpc, inputs = sys.argv[1:]
    known = {**CASES, "draining": draining}
    session = Session(http, grpc, inputs)
    found = {}
    for name in CASES if names == "all" else names.split(","):
        try:
            result = known[name](session)
            found[name] = asyncio.run(result) if asyncio.iscoroutine(result) else result
        except Exception:
            found[name] = {"failed": traceback.format_exc()}
    print(json.dumps(found))


main()
