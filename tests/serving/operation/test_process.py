"""The server as a process: signals, drain, reload, clients that vanish, logs, metrics, a token."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from anynest.cli import main

for module in ("starlette", "uvicorn", "httptools", "grpc", "prometheus_client"):
    pytest.importorskip(module)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX"),
]
PATIENCE = 120.0  # seconds until a test that waits has failed, on a machine that is very busy
INFER = "/v2/models/m/infer"
ONE = {"shape": [1, 8, 8, 1], "datatype": "UINT8", "data": list(range(64))}


@dataclass
class Running:
    """A server's process."""

    process: subprocess.Popen[str]
    ready: dict[str, Any]
    errors: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def connect(self, timeout: float = PATIENCE) -> HTTPConnection:
        address = urlsplit(self.ready["http"])
        assert address.hostname
        return HTTPConnection(address.hostname, address.port, timeout=timeout)

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request on a connection of its own."""
        connection = self.connect()
        try:
            data = json.dumps(body).encode() if body is not None else None
            connection.request(method, path, data, headers or {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def infer(self, seconds: float = PATIENCE / 2, **headers: str) -> dict[str, Any]:
        """One answer with all the time that it may need."""
        status, body = self.ask("POST", INFER, request(seconds), headers)
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def metrics(self) -> dict[tuple[str, ...], float]:
        """(name, label values...) -> value."""
        from prometheus_client.parser import text_string_to_metric_families

        status, body = self.ask("GET", "/metrics")
        assert status == 200
        return {
            (sample.name, *(sample.labels[key] for key in sorted(sample.labels))): sample.value
            for family in text_string_to_metric_families(body.decode())
            for sample in family.samples
        }

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def wait_for_line(self, words: str) -> None:
        """Wait for a line on standard error."""
        with self.changed:
            found = self.changed.wait_for(
                lambda: any(words in line for line in self.errors), PATIENCE
            )
        assert found, self.errors

    def _follow(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.changed:
                self.errors.append(line.rstrip())
                self.changed.notify_all()


def request(seconds: float = PATIENCE / 2, **parameters: Any) -> dict[str, Any]:
    """An inference request of one raw image."""
    told = {"timeout": round(1e6 * seconds), **parameters}
    return {"inputs": [{"name": "x", **ONE}], "parameters": told}


def read(response: HTTPResponse) -> tuple[int, Any]:
    """Status and JSON of a response."""
    return response.status, json.loads(response.read())


@contextmanager
def serving(*arguments: str | Path, port: str = "0", grpc: str = "0") -> Iterator[Running]:
    """A server of ``--name m`` on ports that are free, from its ready line on."""
    command = [sys.executable, "-m", "anynest", "serve", *map(str, arguments), "--json"]
    command += ["--port", port, "--grpc-port", grpc, "--name", "m", "--max-batch", "4"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        running = Running(process, {})
        follower = threading.Thread(target=running._follow, daemon=True)
        follower.start()
        # a server that never gets ready is ended, and so ends the wait for its line
        alarm = threading.Timer(PATIENCE, process.kill)
        alarm.start()
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            alarm.cancel()
            assert line, running.errors
            running.ready = json.loads(line)
            yield running
        finally:
            alarm.cancel()
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()
            follower.join()


def until(condition: Callable[[], bool]) -> None:
    """Wait for something that happens in another process."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@contextlib.contextmanager
def half_sent(server: Running, **headers: str) -> Iterator[tuple[HTTPConnection, bytes]]:
    """A request that is accepted, but whose body is not yet complete: the connection, the rest."""
    body = json.dumps(request()).encode()
    connection = server.connect()
    try:
        connection.putrequest("POST", INFER)
        for name, value in {"content-length": str(len(body)), **headers}.items():
            connection.putheader(name, value)
        connection.endheaders(body[:10])
        until(lambda: server.metrics()["anynest_in_flight",] >= 1)
        yield connection, body[10:]
    finally:
        connection.close()


class Load(threading.Thread):
    """Sends requests on one connection until the server ends it; remembers what became of each."""

    def __init__(self, server: Running, name: str) -> None:
        super().__init__(daemon=True)
        self.server, self.prefix = server, name
        self.statuses: dict[str, int | None] = {}  # by request id; None: no response
        self.ended = threading.Event()
        self.answered = threading.Event()

    def run(self) -> None:
        body = json.dumps(request()).encode()
        connection = self.server.connect()
        while not self.ended.is_set():
            key = f"{self.prefix}-{len(self.statuses)}"
            self.statuses[key] = None
            try:
                connection.request("POST", INFER, body, {"x-request-id": key})
                response = connection.getresponse()
                data = response.read()
            except (OSError, HTTPException):
                break
            assert ("outputs" if response.status == 200 else "error") in json.loads(data)
            self.statuses[key] = response.status
            if response.status == 200:
                self.answered.set()
        connection.close()


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sigterm_under_load_loses_nothing_that_was_accepted(
    runs: list[Path], tmp_path: Path
) -> None:
    log = tmp_path / "log"
    with serving(runs[0], "--access-log", log) as server:
        clients = [Load(server, str(number)) for number in range(8)]
        for client in clients:
            client.start()
        for client in clients:
            assert client.answered.wait(PATIENCE)
        with half_sent(server, **{"x-request-id": "half"}) as (connection, rest):
            server.signal(signal.SIGTERM)
            until(lambda: server.ask("GET", "/v2/health/ready")[0] == 503)
            assert server.ask("GET", "/v2/health/live")[0] == 200
            assert server.ask("POST", INFER, request())[0] == 503
            until(lambda: any(503 in client.statuses.values() for client in clients))
            connection.send(rest)  # the server waits for what it has accepted
            status, body = read(connection.getresponse())
            assert status == 200, body
        assert server.wait() == 0, server.errors
        for client in clients:
            client.join(PATIENCE)
    received = {key: value for client in clients for key, value in client.statuses.items()}
    received["half"] = 200
    assert set(received.values()) <= {200, 503, None}
    logged = {line["request_id"]: line for line in lines(log) if "request_id" in line}
    for key, status in received.items():
        if status is None:  # no response: then the server has not accepted it
            assert key not in logged or "outcome" not in logged[key]
        else:
            assert logged[key]["status"] == status
    for key, line in logged.items():
        if line.get("outcome") == "answered":
            assert received[str(key)] == 200


def test_a_draining_server_tells_clients_to_connect_anew(runs: list[Path]) -> None:
    with serving(runs[0]) as server, half_sent(server):
        connection = server.connect()
        connection.request("POST", INFER, json.dumps(request()))
        response = connection.getresponse()
        assert (response.status, response.headers["connection"]) == (200, None)
        response.read()
        server.signal(signal.SIGTERM)
        until(lambda: server.ask("GET", "/v2/health/ready")[0] == 503)
        connection.request("POST", INFER, json.dumps(request()))
        response = connection.getresponse()
        assert (response.status, response.headers["connection"]) == (503, "close")
        response.read()
        connection.close()


def test_a_second_signal_ends_it_at_once(runs: list[Path]) -> None:
    with serving(runs[0]) as server, half_sent(server):
        server.signal(signal.SIGINT)
        until(lambda: server.ask("GET", "/v2/health/ready")[0] == 503)
        server.signal(signal.SIGINT)
        assert server.wait() == -signal.SIGINT


def test_what_is_not_answered_in_the_time_for_draining_is_told(runs: list[Path]) -> None:
    with serving(runs[0], "--drain", "300ms") as server, half_sent(server) as (connection, _):
        server.signal(signal.SIGTERM)
        status, body = read(connection.getresponse())
        assert (status, "stops" in body["error"]) == (503, True)
        assert server.wait() == 1
        server.wait_for_line("1 accepted request was not answered within --drain 300 ms")


def test_a_client_that_is_killed_leaves_nothing_behind(runs: list[Path]) -> None:
    with serving(runs[0]) as server:
        before = server.infer()
        code = (
            "import socket, sys, time\n"
            f"s = socket.create_connection(('127.0.0.1', {server.connect().port}))\n"
            f"s.sendall(b'POST {INFER} HTTP/1.1\\r\\nHost: localhost\\r\\n"
            "Content-Length: 1000\\r\\n\\r\\n{')\n"
            "time.sleep(1000)\n"
        )
        with subprocess.Popen([sys.executable, "-c", code]) as client:
            try:
                until(lambda: server.metrics()["anynest_in_flight",] == 1)
            finally:
                client.kill()
        until(lambda: server.metrics()["anynest_in_flight",] == 0)
        found = server.metrics()
        left = [value for key, value in found.items() if key[0] == "anynest_requests_total"]
        assert sorted(left) == [1, 1]  # one answered, one that left
        assert found["anynest_bytes_in_flight",] == found["anynest_queue_rows",] == 0
        assert server.infer()["outputs"] == before["outputs"]


def test_sighup_loads_other_weights_without_losing_a_request(
    runs: list[Path], tmp_path: Path
) -> None:
    served, log = tmp_path / "served", tmp_path / "log"
    shutil.copytree(runs[0], served)
    with serving(served, "--access-log", log) as server:
        before = server.infer()["outputs"]
        clients = [Load(server, str(number)) for number in range(4)]
        for client in clients:
            client.start()
        for client in clients:
            assert client.answered.wait(PATIENCE)
        shutil.copy(runs[1] / "weights.safetensors", tmp_path / "new")
        os.replace(tmp_path / "new", served / "weights.safetensors")
        log.rename(tmp_path / "old log")
        server.signal(signal.SIGHUP)
        server.wait_for_line("loaded again: m 1")
        for client in clients:
            client.answered.clear()
        for client in clients:
            assert client.answered.wait(PATIENCE)  # by the new weights, still
            client.ended.set()
        for client in clients:
            client.join(PATIENCE)
        after = server.infer()["outputs"]
        assert after != before
        (served / "weights.safetensors").write_bytes(b"damaged")
        server.signal(signal.SIGHUP)
        server.wait_for_line("were not loaded again")
        assert server.infer()["outputs"] == after  # the old ones stay
        until(lambda: log.exists() and "answered" in log.read_text())  # opened anew
    assert {status for client in clients for status in client.statuses.values()} == {200}
    with serving(runs[1]) as server:
        assert server.infer()["outputs"] == after


def test_log_and_metrics_agree_with_what_was_sent(runs: list[Path], tmp_path: Path) -> None:
    log = tmp_path / "log"
    with serving(runs[0], "--access-log", log) as server:
        answers = [server.infer(**{"x-request-id": str(number)}) for number in range(3)]
        assert server.ask("POST", INFER, request(stages=1))[0] == 200
        over = request()
        over["parameters"]["timeout"] = 0
        assert server.ask("POST", INFER, over)[0] == 504
        assert server.ask("POST", INFER, {"inputs": []})[0] == 400
        assert server.ask("GET", "/v2/models/none")[0] == 404
        found = server.metrics()
    outcomes = {
        key[2:]: value for key, value in found.items() if key[0] == "anynest_requests_total"
    }
    assert outcomes[("answered", "")] == 4
    assert sum(outcomes.values()) == 6
    assert found["anynest_answers_total", "m", "1"] == 1
    assert found["anynest_answers_total", "m", "3"] == 3
    assert found["anynest_request_seconds_count", "m"] == 4
    assert found["anynest_deadlines_total", "yes", "m"] == 4
    assert found["anynest_ready",] == 1
    for stage in ("1", "2", "3"):
        expected = 4 if stage == "1" else 3
        assert found["anynest_step_seconds_count", "m", stage] == expected
        assert found["anynest_batch_rows_sum", "m", stage] == expected
    by_path = [line for line in lines(log) if line["path"] == INFER]
    assert [line["status"] for line in by_path] == [200, 200, 200, 200, 504, 400]
    for number, (line, answer) in enumerate(zip(by_path, answers, strict=False)):
        parameters = answer["parameters"]
        assert line["request_id"] == str(number)
        assert line["outcome"] == "answered"
        assert line["deadline_ms"] == 1e3 * PATIENCE / 2
        for key in ("stage", "stages", "deadline_met", "stop_reason"):
            assert line[key] == parameters[key]
    assert any(line["status"] == 404 for line in lines(log))


def test_a_token_guards_http_and_grpc(runs: list[Path], tmp_path: Path) -> None:
    import grpc

    file = tmp_path / "token"
    file.write_text("correct-horse-battery\n")
    with serving(runs[0], "--token-file", file, "--host", "0.0.0.0") as server:
        port = server.connect().port
        server.ready["http"] = f"http://127.0.0.1:{port}"
        right = {"authorization": "Bearer correct-horse-battery"}
        for path in (INFER, "/v2/models/m", "/metrics"):
            method = "POST" if path == INFER else "GET"
            body = request() if path == INFER else None
            assert server.ask(method, path, body)[0] == 401
            wrong = {"authorization": "Bearer correct-horse"}
            assert server.ask(method, path, body, wrong)[0] == 401
            assert server.ask(method, path, body, right)[0] == 200
        for path in ("/v2/health/live", "/v2/health/ready"):
            assert server.ask("GET", path)[0] == 200  # probes need none
        address = server.ready["grpc"].replace("0.0.0.0", "127.0.0.1")
        with grpc.insecure_channel(address) as channel:
            call = channel.unary_unary("/inference.GRPCInferenceService/ServerMetadata")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=PATIENCE)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            assert call(b"", metadata=tuple(right.items()), timeout=PATIENCE)


def test_a_port_in_use_is_one_line(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        assert main(["serve", str(runs[0]), "--port", port]) == 2
        assert main(["serve", str(runs[0]), "--port", "0", "--grpc-port", port]) == 2
    http, grpc = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("anynest: ")
    ]
    assert http.startswith(f"anynest: HTTP cannot listen at 127.0.0.1:{port}: ")
    assert grpc.startswith(f"anynest: gRPC cannot listen at 127.0.0.1:{port}")


def test_the_walk_through_of_the_docs(runs: list[Path], tmp_path: Path) -> None:
    """The requests of docs/serve.md, as a shell sends them."""
    if shutil.which("curl") is None:
        pytest.skip("needs curl")
    Image.new("L", (30, 20), 128).save(tmp_path / "digit.png")
    text = (Path(__file__).parents[3] / "docs/serve.md").read_text()
    (block,) = (block for block in text.split("```") if "curl --json" in block)
    _, *lines = block.splitlines()  # the fence names the language
    commands = [line for line in lines if not line.startswith(("anynest", "until", "kill"))]
    with serving(runs[0]) as server:
        script = "\n".join(commands).replace("models/digits", "models/m")
        script = script.replace("localhost:8000", urlsplit(server.ready["http"]).netloc)
        script = script.replace("20000}", "60000000}").replace("ms: 20'", "ms: 60000'")
        script = script.replace("curl -N", "curl -N -H 'anynest-timeout-ms: 60000'")
        done = subprocess.run(
            ["bash", "-c", script.replace("curl ", "curl -sS --fail-with-body -w '\\n' ")],
            cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    metadata, by_json, by_picture, *stages = map(json.loads, filter(None, done.stdout.splitlines()))
    assert metadata["name"] == "m"
    assert by_json["parameters"]["stop_reason"] == "complete"
    assert by_picture["parameters"]["stage"] == 3
    assert [stage["parameters"]["stage"] for stage in stages] == [1, 2, 3]
