"""The real client of the protocol, tritonclient, against a server on loopback.

It runs in an environment of its own (``make_venv.sh``), as one process whose findings (``session.py``)
are compared here with the network itself.
"""

import asyncio
import io
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image

import anynest
from anynest.serving.grpc.messages import ENUMS, SCHEMA, describe
from anynest.serving.grpc.queries import QUERIES
from anynest.serving.grpc.server import start_grpc
from anynest.serving.http.app import create_app
from anynest.serving.repository import Repository
from anynest.serving.service import Service
from anynest.serving.settings import Settings
from anynest.store import WeightsInfo

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
SIZE, CLASSES = 8, ("cat", "dog", "owl")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
PATIENCE = 240  # seconds

INFO = WeightsInfo("", {}, CLASSES, MEAN, STD, SIZE, "", "0")
GOOD = {  # case -> the data it sends
    **dict.fromkeys(("http_binary_fp32", "http_gzip", "http_deflate"), "images"),
    **dict.fromkeys(("http_binary_uint8", "http_json_uint8"), "pixels"),
    **dict.fromkeys(("grpc_fp32", "grpc_gzip", "grpc_deflate", "grpc_client_timeout"), "images"),
    **{"http_bytes": "picture", "grpc_uint8": "pixels", "grpc_bytes": "picture"},
}


def client_python() -> str:
    """The Python of the environment with tritonclient; skips the test where there is none."""
    given = os.environ.get("ANYNEST_TRITONCLIENT_PYTHON")
    if given:
        assert Path(given).exists(), f"ANYNEST_TRITONCLIENT_PYTHON: there is no {given}"
        return given
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    found = cache / "anynest" / "tritonclient" / "bin" / "python"
    if not found.exists():
        pytest.skip("there is no tritonclient: run tests/serving/tritonclient/make_venv.sh")
    return str(found)


@dataclass
class Running:
    """A server in a thread of this process."""

    service: Service
    loop: asyncio.AbstractEventLoop
    http: str
    grpc: str

    def run(self, coroutine: Any) -> Any:
        """Run a coroutine on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(PATIENCE)


@contextmanager
def serving(network: torch.nn.Module) -> Iterator[Running]:
    started: list[Running] = []
    failed: list[BaseException] = []
    up, stop = threading.Event(), asyncio.Event()

    async def serve() -> None:
        repository = Repository()
        repository.add(network, name="net", info=INFO)
        service = Service(repository, Settings(max_batch=8))
        await service.start()
        grpc_server, grpc_port = await start_grpc(service, "127.0.0.1:0")
        config = uvicorn.Config(
            create_app(service), host="127.0.0.1", port=0, lifespan="off", log_level="warning"
        )
        http_server = uvicorn.Server(config)
        http_server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        task = asyncio.create_task(http_server.serve())
        while not http_server.started:
            await asyncio.sleep(0.01)
        port = http_server.servers[0].sockets[0].getsockname()[1]
        loop = asyncio.get_running_loop()
        started.append(Running(service, loop, f"127.0.0.1:{port}", f"127.0.0.1:{grpc_port}"))
        up.set()
        await stop.wait()
        http_server.should_exit = True
        await task
        await grpc_server.stop(0)
        await service.stop(0)

    def main() -> None:
        try:
            asyncio.run(serve())
        except BaseException as error:
            failed.append(error)
        finally:
            up.set()

    thread = threading.Thread(target=main)
    thread.start()
    try:
        assert up.wait(PATIENCE)
        assert not failed, failed
        yield started[0]
    finally:
        if started:
            started[0].loop.call_soon_threadsafe(stop.set)
        thread.join(PATIENCE)
    assert not failed, failed


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return anynest.create_model(
        "width_nested_resnet10", num_classes=len(CLASSES), base_width=4
    ).eval()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The data of the cases, and the file that holds them."""
    numbers = np.random.default_rng(0)
    pixels = numbers.integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels[0]).save(encoded, "PNG")
    found = {
        "images": numbers.standard_normal((2, 3, SIZE, SIZE)).astype(np.float32),
        "pixels": pixels,
        "picture": np.frombuffer(encoded.getvalue(), np.uint8),
    }
    file = tmp_path_factory.mktemp("inputs") / "inputs.npz"
    np.savez(file, **found)
    return {**found, "file": file}


def ask(cases: str, server: Running, inputs: dict[str, Any], **options: Any) -> Any:
    """Start the client on some cases."""
    command = [client_python(), str(HERE / "session.py"), cases, server.http, server.grpc]
    environment = {key: text for key, text in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        [*command, str(inputs["file"])],
        stdout=subprocess.PIPE,
        stdin=subprocess.PIPE,
        text=True,
        env=environment,
        **options,
    )


@pytest.fixture(scope="module")
def session(network: torch.nn.Module, inputs: dict[str, Any]) -> Any:
    """What the client found in each case."""
    client_python()
    with serving(network) as server, ask("all", server, inputs) as process:
        try:
            printed, _ = process.communicate(timeout=PATIENCE)
        finally:
            process.kill()
    return json.loads(printed.splitlines()[-1])


@pytest.fixture
def case(session: Any) -> Callable[[str], Any]:
    """The findings of one case, which must not have failed."""

    def find(name: str) -> Any:
        assert "failed" not in session[name], session[name]["failed"]
        return session[name]

    return find


def normalised(pixels: Any) -> torch.Tensor:
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    return (images - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


@pytest.fixture(scope="module")
def logits(network: torch.nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """Kind of data -> the network's own logits of each stage ``[S, B, K]``."""
    pixels = normalised(inputs["pixels"])
    given = {
        "images": torch.from_numpy(inputs["images"]),
        "pixels": pixels,
        "picture": pixels[:1],
    }
    with torch.no_grad():
        return {kind: torch.stack(list(network(images))) for kind, images in given.items()}


def check_outputs(outputs: Any, logits: torch.Tensor) -> None:
    """All five outputs, by the logits of the stage that they come from."""
    stage = outputs["stage"]["values"]
    assert len(set(stage)) == 1
    wanted = logits[stage[0] - 1]
    for name, tensor in (("logits", wanted), ("probabilities", wanted.softmax(1))):
        assert outputs[name]["dtype"] == "float32"
        torch.testing.assert_close(
            torch.tensor(outputs[name]["values"]), tensor, rtol=1e-3, atol=1e-4
        )
    best = wanted.softmax(1).max(1)
    assert outputs["label"] == [CLASSES[index] for index in best.indices]
    torch.testing.assert_close(
        torch.tensor(outputs["confidence"]["values"]), best.values, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("name", GOOD)
def test_one_answer(case: Callable[[str], Any], logits: Any, name: str) -> None:
    found, wanted = case(name), logits[GOOD[name]]
    check_outputs(found["outputs"], wanted)
    parameters = found["parameters"]
    assert parameters["stage"] == parameters["stages"] == len(wanted)
    assert parameters["deadline_met"] is True
    assert parameters["stop_reason"] == "complete"
    assert parameters["elapsed_us"] > 0
    assert found["outputs"]["stage"]["values"] == [len(wanted)] * wanted.shape[1]


@pytest.mark.parametrize("name", ["http_async_infer", "http_aio", "grpc_async_infer", "grpc_aio"])
def test_many_answers(case: Callable[[str], Any], logits: Any, name: str) -> None:
    found = case(name)
    assert len(found["outputs"]) >= 4
    assert not found.get("errors")
    for outputs in found["outputs"]:
        check_outputs(outputs, logits["images"])


def test_json_and_chosen_outputs(case: Callable[[str], Any], logits: Any) -> None:
    found = case("http_json_fp32")
    assert (found["names"], found["id"]) == (["logits", "label"], "7")
    torch.testing.assert_close(
        *(torch.tensor(found["outputs"]["logits"]["values"]), logits["images"][-1]),
        rtol=1e-3,
        atol=1e-4,
    )
    found = case("grpc_outputs_chosen")
    assert found["names"] == ["label", "stage"]
    assert found["outputs"]["stage"]["values"] == [len(logits["images"])] * 2
    assert case("grpc_fp32")["id"] == "7"


@pytest.mark.parametrize(
    "name", ["http_parameters_of_the_request", "grpc_parameters_of_the_request"]
)
def test_parameters_of_the_request(case: Callable[[str], Any], logits: Any, name: str) -> None:
    found = case(name)
    check_outputs(found["outputs"], logits["images"])
    assert (found["parameters"]["stage"], found["parameters"]["stop_reason"]) == (1, "requested")


@pytest.mark.parametrize("name", ["http_descriptions", "grpc_descriptions"])
def test_descriptions(case: Callable[[str], Any], name: str) -> None:
    found = case(name)
    assert found["live"] is found["ready"] is found["model_ready"] is True
    assert not found.get("other_ready", False)
    assert found.get("version_ready", True) is True
    assert found["server"]["name"] == "anynest"
    metadata = found["metadata"]
    assert (metadata["name"], metadata["versions"]) == ("net", ["1"])
    (given,) = metadata["inputs"]
    assert (given["datatype"], list(map(int, given["shape"]))) == ("FP32", [-1, 3, SIZE, SIZE])
    names = ["probabilities", "logits", "label", "confidence", "stage"]
    assert [tensor["name"] for tensor in metadata["outputs"]] == names
    config = found["config"].get("config", found["config"])
    assert (config["name"], config["max_batch_size"]) == ("net", 8)
    assert config["input"][0]["data_type"] == "TYPE_FP32"
    assert [tensor["name"] for tensor in config["output"]] == names
    assert config["parameters"]["stages"]["string_value"] == "3"
    (stats,) = found["statistics"]["model_stats"]
    assert (stats["name"], stats["version"]) == ("net", "1")
    assert int(stats["inference_stats"]["success"]["count"]) > 0
    assert int(stats["execution_count"]) > 0
    models = found["index"]["models"] if "models" in found["index"] else found["index"]
    assert [(model["name"], model["state"]) for model in models] == [("net", "READY")]


ERRORS = {  # request -> HTTP status, gRPC status, and a part of the line
    "model": ("404", "StatusCode.NOT_FOUND", "there is no model 'nets'"),
    "version": ("404", "StatusCode.NOT_FOUND", "has no version '9'"),
    "shape": ("400", "StatusCode.INVALID_ARGUMENT", f"must be [rows, 3, {SIZE}, {SIZE}]"),
    "output": ("400", "StatusCode.INVALID_ARGUMENT", "found 'label_'"),
    "over": ("504", "StatusCode.DEADLINE_EXCEEDED", "the deadline of 0.001 ms"),
    "metadata": ("404", "StatusCode.NOT_FOUND", "there is no model 'nets'"),
}


@pytest.mark.parametrize("request_", ERRORS)
@pytest.mark.parametrize("api", ["http", "grpc"])
def test_errors(case: Callable[[str], Any], api: str, request_: str) -> None:
    """Each is an InferenceServerException with the status and our one line."""
    found = case(f"{api}_errors")[request_]
    http, grpc, line = ERRORS[request_]
    assert found["status"] == (http if api == "http" else grpc)
    assert line in found["message"]
    assert "\n" not in found["message"]


def test_the_clients_own_time(case: Callable[[str], Any]) -> None:
    """Half a millisecond: the client itself, or the server, says that it is over."""
    found = case("grpc_errors")["client_timeout"]
    assert found["status"] == "StatusCode.DEADLINE_EXCEEDED"


def test_errors_of_the_asynchronous_clients(case: Callable[[str], Any]) -> None:
    for name in ("http_aio", "grpc_aio"):
        assert "there is no model 'nets'" in case(name)["error"]
        assert case(name)["ready"] is True


def test_streams(case: Callable[[str], Any], logits: Any) -> None:
    """Each stage once and in order, for each request; an error ends its request alone."""
    found, stages = case("grpc_stream"), len(logits["images"])
    for name in "ab":
        mine = [response for response in found["responses"] if response["id"] == name]
        given = [response["parameters"]["stage"] for response in mine]
        assert given == sorted(set(given))
        assert given[-1] == stages
        finals = [response["parameters"]["triton_final_response"] for response in mine]
        assert finals == [False] * (len(mine) - 1) + [True]
        for response in mine:
            check_outputs(response["outputs"], logits["images"])
    (error,) = found["errors"]
    assert error.startswith("request 'wrong': there is no model 'nets'")
    last = {}
    for name, stage, error in case("grpc_aio")["stages"]:
        assert error is None
        assert stage > last.get(name, 0)
        last[name] = stage
    assert last == {"a": stages, "b": stages}


def test_our_messages_are_the_clients(case: Callable[[str], Any]) -> None:
    """Each field that we have has the client's name, number, type, label, oneof and message."""
    theirs = case("grpc_descriptor")
    assert {"ModelInfer", "ModelStreamInfer", *QUERIES} <= set(theirs["methods"])
    for name, values in ENUMS.items():
        assert {value: number for number, value in enumerate(values)} == theirs["enums"][name]
    compared = 0

    def compare(message: Any, name: str) -> None:
        nonlocal compared
        known = theirs["messages"][name]
        for field in message.field:
            number, kind, repeated, oneof, of = known[field.name]
            where = f"{name}.{field.name}"
            assert (field.number, field.type) == (number, kind), where
            assert (field.label == field.LABEL_REPEATED) == repeated, where
            assert (oneof is not None) == field.HasField("oneof_index"), where
            if of is not None:
                assert field.type_name == f".{of}", where
            compared += 1
        for nested in message.nested_type:
            compare(nested, f"{name}.{nested.name}")

    for message in describe(SCHEMA).message_type:
        compare(message, message.name)
    assert compared > 120


def test_a_server_that_stops(network: torch.nn.Module, inputs: dict[str, Any]) -> None:
    """It answers before, refuses with our line after, and stays live."""
    client_python()
    with serving(network) as server, ask("draining", server, inputs) as process:
        try:
            assert process.stdout.readline() == "answered\n"

            async def drain() -> None:
                server.service.draining = True

            server.run(drain())
            printed, _ = process.communicate("go on\n", timeout=PATIENCE)
        finally:
            process.kill()
    found = json.loads(printed.splitlines()[-1])["draining"]
    assert "failed" not in found, found
    assert (found["http"]["status"], found["grpc"]["status"]) == ("503", "StatusCode.UNAVAILABLE")
    assert found["http"]["message"] == found["grpc"]["message"] == "the server stops"
    assert found["http_live"] is found["grpc_live"] is True
    assert found["http_ready"] is found["grpc_ready"] is False
