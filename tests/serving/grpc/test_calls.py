"""Single calls: what is admitted, what comes back, and who is refused with which status."""

import asyncio
import gzip
import logging
import time
import zlib
from collections.abc import Callable
from typing import Any

import grpc
import numpy as np
import pytest

from anynest.serving.grpc import servicer
from anynest.serving.grpc.messages import message_class
from anynest.serving.grpc.messaging import receive, send
from anynest.serving.grpc.server import start_grpc
from anynest.serving.protocol.errors import ProtocolError
from anynest.serving.requests.refused import Refused

Code = grpc.StatusCode
OnServer = Callable[..., None]


def test_one_answer(on_server: OnServer) -> None:
    async def test(b: Any) -> None:
        request = b.infer_request(id="7", model_version="1")
        request.parameters["priority"].uint64_param = 1
        request.outputs.add(name="scores")
        call = b.client.call("ModelInfer")(request)
        ticket = await b.ticket()
        assert ticket.asked["nbytes"] == request.ByteSize()
        assert ticket.asked["client"] == "127.0.0.1"
        assert not ticket.released.is_set()
        assert ticket.request.parameters == {"priority": 1}
        assert ticket.request.outputs == {"scores": True}
        np.testing.assert_array_equal(ticket.request.inputs["x"], np.zeros((2, 3)))
        ticket.coming.put_nowait(b.answer(2))
        found = await call
        assert (found.model_name, found.model_version, found.id) == ("net", "1", "7")
        assert [tensor.name for tensor in found.outputs] == ["scores"]
        assert found.raw_output_contents[0] == np.full((2, 3), 2, np.float32).tobytes()
        assert found.parameters["stage"].int64_param == 2
        assert found.parameters["deadline_met"].bool_param is True
        assert ticket.released.is_set()

    on_server(test)


def test_typed_contents_are_answered_with_typed_contents(on_server: OnServer) -> None:
    async def test(b: Any) -> None:
        request = b.infer_request(raw_input_contents=[])
        request.inputs[0].contents.fp32_contents.extend(range(6))
        call = b.client.call("ModelInfer")(request)
        ticket = await b.ticket()
        ticket.coming.put_nowait(b.answer(1))
        scores, label = (await call).outputs
        assert list(scores.contents.fp32_contents) == [1] * 6
        assert list(label.contents.bytes_contents) == [b"cat\0", b""]
        np.testing.assert_array_equal(ticket.request.inputs["x"].ravel(), np.arange(6))

    on_server(test)


@pytest.mark.parametrize(
    ("timeout", "header", "least", "most"),
    [
        (None, None, None, None),
        (None, ("anynest-timeout-ms", "3000"), 3, 3),
        (None, ("x-envoy-expected-rq-timeout-ms", "2000"), 2, 2),
        (40, None, 30, 40.1),
        (40, ("anynest-timeout-ms", "3000"), 3, 3),
        (40, ("anynest-timeout-ms", "50000"), 30, 40.1),
    ],
)
def test_the_smallest_deadline_holds(
    on_server: OnServer,
    timeout: float | None,
    header: tuple[str, str] | None,
    least: float | None,
    most: float | None,
) -> None:
    """Of the headers; the service itself reads the parameter of the request."""

    async def test(b: Any) -> None:
        metadata = () if header is None else (header,)
        start = time.monotonic()
        call = b.client.call("ModelInfer")(b.infer_request(), timeout=timeout, metadata=metadata)
        ticket = await b.ticket()
        assert start <= ticket.asked["arrived"] <= time.monotonic()
        if least is None or most is None:
            assert ticket.asked["seconds"] is None
        else:
            assert least <= ticket.asked["seconds"] <= most
        ticket.coming.put_nowait(b.answer(1))
        await call

    on_server(test)


def test_time_counts_from_the_headers(on_server: OnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(b: Any) -> None:
        called = asyncio.Event()
        monkeypatch.setattr(servicer, "check_token", lambda *_: called.set())
        start = time.monotonic()
        call = b.client.call("ModelInfer", "stream_unary")(timeout=b.patience)
        await asyncio.wait_for(called.wait(), b.patience)
        later = time.monotonic()
        await asyncio.sleep(0.5)  # the message is under way
        await call.write(b.infer_request())
        ticket = await b.ticket()
        arrived, seconds = ticket.asked["arrived"], ticket.asked["seconds"]
        assert start <= arrived <= later
        # the gRPC deadline stays the client's
        assert start + b.patience - 0.1 < arrived + seconds < later + b.patience + 0.1
        ticket.coming.put_nowait(b.answer(1))
        await call

    on_server(test)


ERRORS = [
    *((ProtocolError(s, "a line"), Code.INVALID_ARGUMENT, None) for s in (400, 408, 413, 415)),
    (ProtocolError(401, "a line"), Code.UNAUTHENTICATED, None),
    (ProtocolError(403, "a line"), Code.PERMISSION_DENIED, None),
    (ProtocolError(404, "a line"), Code.NOT_FOUND, None),
    (ProtocolError(429, "a line"), Code.RESOURCE_EXHAUSTED, None),
    (ProtocolError(500, "a line"), Code.INTERNAL, None),
    (ProtocolError(504, "a line"), Code.DEADLINE_EXCEEDED, None),
    (Refused("late", retry_after=0.0421), Code.RESOURCE_EXHAUSTED, "43"),
    (Refused("late", retry_after=0.0), Code.RESOURCE_EXHAUSTED, "1"),
    (Refused("stops", retry_after=2, unavailable=True), Code.UNAVAILABLE, "2000"),
    (Refused("limit", retry_after=1, status=429), Code.RESOURCE_EXHAUSTED, "1000"),
]


@pytest.mark.parametrize(("error", "code", "retry"), ERRORS)
@pytest.mark.parametrize("when", ["admission", "answer"])
def test_errors(
    on_server: OnServer, error: ProtocolError, code: grpc.StatusCode, retry: str | None, when: str
) -> None:
    async def test(b: Any) -> None:
        if when == "admission":
            b.service.refusal = error
        call = b.client.call("ModelInfer")(b.infer_request())
        if when == "answer":
            ticket = await b.ticket()
            ticket.coming.put_nowait(error)
        found = await b.client.error(call)
        assert (found.code(), found.details()) == (code, error.message)
        assert dict(found.trailing_metadata()).get("retry-after-ms") == retry
        assert when == "admission" or ticket.released.is_set()

    on_server(test)


def test_a_fault_of_the_server(on_server: OnServer, caplog: pytest.LogCaptureFixture) -> None:
    async def test(b: Any) -> None:
        b.service.refusal = RuntimeError("secret")
        found = await b.client.error(b.client.call("ModelInfer")(b.infer_request()))
        assert found.code() == Code.INTERNAL
        assert found.details() == "the request failed; the server's log says why"

    with caplog.at_level(logging.ERROR):
        on_server(test)
    assert "RuntimeError: secret" in caplog.text


@pytest.mark.parametrize(
    ("fields", "code", "line"),
    [
        ({"model_name": "nets"}, Code.NOT_FOUND, "there is no model 'nets'"),
        ({"model_version": "2"}, Code.NOT_FOUND, "there is no model 'net'"),
        ({"model_name": "other"}, Code.UNAVAILABLE, "it is being loaded"),
    ],
)
def test_models_that_cannot_be_asked(
    on_server: OnServer, fields: dict[str, str], code: grpc.StatusCode, line: str
) -> None:
    async def test(b: Any) -> None:
        call = b.client.call("ModelInfer")(b.infer_request(**fields))
        found = await b.client.error(call)
        assert (found.code(), found.details()) == (code, line)
        assert b.service.tickets.empty()

    on_server(test)


def test_the_token(on_server: OnServer) -> None:
    """Wrong or missing, a call is refused before its message is received; probes need none."""

    async def test(b: Any) -> None:
        for metadata in ((), (("authorization", "Bearer wrong-one"),)):
            call = b.client.call("ModelInfer", "stream_unary")(metadata=metadata)
            found = await b.client.error(call)  # no message was sent
            assert found.code() == Code.UNAUTHENTICATED
            assert "Authorization must be" in found.details()
        call = b.client.call("ModelMetadata")(b.message("ModelMetadataRequest", name="net"))
        assert (await b.client.error(call)).code() == Code.UNAUTHENTICATED
        stream = b.client.call("ModelStreamInfer", "stream_stream")()
        assert (await b.client.error(stream.read())).code() == Code.UNAUTHENTICATED
        assert (await b.client.call("ServerLive")(b.message("ServerLiveRequest"))).live
        right = (("authorization", "Bearer right-one"),)
        call = b.client.call("ModelInfer")(b.infer_request(), metadata=right)
        (await b.ticket()).coming.put_nowait(b.answer(1))
        await call

    on_server(test, token="right-one")


@pytest.mark.parametrize("how", ["cancelled", "deadline"])
def test_a_client_that_leaves(on_server: OnServer, how: str) -> None:
    async def test(b: Any) -> None:
        call = b.client.call("ModelInfer")(
            b.infer_request(), timeout=0.5 if how == "deadline" else None
        )
        ticket = asyncio.ensure_future(b.ticket())
        if how == "cancelled":
            await ticket
            call.cancel()
        # the deadline may pass before the request arrives, on a busy machine
        gone = await asyncio.wait_for(asyncio.gather(call, return_exceptions=True), b.patience)
        assert isinstance(gone[0], asyncio.CancelledError | grpc.RpcError)
        if how == "deadline" and not ticket.done():
            ticket.cancel()
            return
        await asyncio.wait_for((await ticket).released.wait(), b.patience)

    on_server(test)


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_compressed_requests(on_server: OnServer, compression: grpc.Compression) -> None:
    async def test(b: Any) -> None:
        request = b.infer_request(id="x" * 1000)
        call = b.client.call("ModelInfer")(request, compression=compression)
        ticket = await b.ticket()
        assert ticket.asked["nbytes"] == request.ByteSize()
        ticket.coming.put_nowait(b.answer(1))
        assert (await call).id == request.id
        bomb = b.infer_request(id="x" * 100_000)
        found = await b.client.error(b.client.call("ModelInfer")(bomb, compression=compression))
        assert found.code() == Code.INVALID_ARGUMENT
        assert found.details() == "a message must have at most 10000 bytes after decompression"
        metadata = b.message("ModelMetadataRequest", name="net", version="1" * 0)
        call = b.client.call("ModelMetadata")(metadata, compression=compression)
        assert (await call).name == "net"

    on_server(test, max_body=10_000)


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"\xff\xff", "the message must be a ModelInferRequest in protobuf"),
        (b"\x1f\x8b\x08", "cannot be decompressed: it is cut short"),
        (b"\x1f\x8b\x09rest of it", "cannot be decompressed: Error -3"),
        (gzip.compress(b"text" * 9, mtime=0)[:-1], "cannot be decompressed: it is cut short"),
        (zlib.compress(b"\xff\xff"), "the message must be a ModelInferRequest in protobuf"),
        (b"", "there is no model ''"),
    ],
)
def test_bytes_that_are_no_message(on_server: OnServer, data: bytes, line: str) -> None:
    async def test(b: Any) -> None:
        found = await b.client.error(b.client.call("ModelInfer")(data))
        assert line in found.details()
        assert found.code() in (Code.INVALID_ARGUMENT, Code.NOT_FOUND)

    on_server(test)


def test_a_message_above_the_bound(on_server: OnServer, caplog: pytest.LogCaptureFixture) -> None:
    """gRPC itself refuses it, and the server's log keeps quiet."""

    async def test(b: Any) -> None:
        large = b.infer_request(id="x" * 10_001)
        found = await b.client.error(b.client.call("ModelInfer")(large))
        assert found.code() == Code.RESOURCE_EXHAUSTED
        assert "larger than max" in found.details()
        assert b.service.tickets.empty()

    on_server(test, max_body=10_000)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_calls_without_a_message(on_server: OnServer) -> None:
    async def test(b: Any) -> None:
        call = b.client.call("ModelInfer", "stream_unary")()
        await call.done_writing()
        found = await b.client.error(call)
        assert (found.code(), "found none" in found.details()) == (Code.INVALID_ARGUMENT, True)
        call = b.client.call("ModelInfer", "stream_unary")()
        found = await b.client.error(call)  # neither a message nor an end
        assert found.code() == Code.INVALID_ARGUMENT
        assert found.details() == "the message must arrive within 0.2 s; send it faster"

    on_server(test, receive_seconds=0.2)


def test_queries(on_server: OnServer) -> None:
    async def test(b: Any) -> None:
        async def ask(method: str, /, **fields: Any) -> Any:
            return await b.client.call(method)(b.message(f"{method}Request", **fields))

        assert (await ask("ServerLive")).live
        assert (await ask("ServerReady")).ready
        assert (await ask("ModelReady", name="net", version="1")).ready
        assert not (await ask("ModelReady", name="other")).ready
        server = await ask("ServerMetadata")
        assert server.name == "anynest"
        assert "binary_tensor_data" in server.extensions
        model = await ask("ModelMetadata", name="net")
        assert (model.name, list(model.versions)) == ("net", ["1"])
        assert list(model.inputs[0].shape) == [-1, 3]
        config = (await ask("ModelConfig", name="net")).config
        assert (config.max_batch_size, config.input[0].data_type) == (8, 11)
        assert config.parameters["stages"].string_value == "3"
        index = (await ask("RepositoryIndex")).models
        assert [(m.name, m.state) for m in index] == [("net", "READY"), ("other", "LOADING")]
        assert [m.name for m in (await ask("RepositoryIndex", ready=True)).models] == ["net"]
        await ask("RepositoryModelLoad", model_name="net")
        assert b.service.reloaded == ["net"]
        b.service.ready = False
        assert (await ask("ServerLive")).live
        assert not (await ask("ServerReady")).ready
        assert not (await ask("ModelReady", name="net")).ready
        for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
            found = await b.client.error(ask(method, name="nets"))
            assert (found.code(), found.details()) == (Code.NOT_FOUND, "there is no model 'nets'")
        found = await b.client.error(ask("ModelMetadata", name="other"))
        assert found.code() == Code.UNAVAILABLE

    on_server(test)


def test_statistics(on_server: OnServer) -> None:
    async def test(b: Any) -> None:
        counts, model = b.service.statistics, b.service.model("net")
        for stage, rows, seconds in ((1, 3, 0.25), (2, 3, 0.5), (1, 1, 4000.0)):
            counts.step(model, stage, rows, seconds)
        counts.answered(model, b.answer(2), 3)
        counts.failed(model, 500)
        counts.refused(model, "late")
        for fields in ({}, {"name": "net"}, {"name": "net", "version": "1"}):
            call = b.client.call("ModelStatistics")(b.message("ModelStatisticsRequest", **fields))
            (found,) = (await call).model_stats
            assert (found.name, found.version) == ("net", "1")
            assert (found.inference_count, found.execution_count) == (3, 2)
            assert abs(found.last_inference / 1000 - time.time()) < b.patience
            stats = found.inference_stats
            assert (stats.success.count, stats.success.ns) == (1, 1_500_000_000)
            assert stats.fail.count == 2
            assert (stats.compute_infer.count, stats.compute_infer.ns) == (3, 4_000_750_000_000)
            batches = [(s.batch_size, s.compute_infer.count) for s in found.batch_stats]
            assert batches == [(1, 1), (3, 2)]

    on_server(test)


def test_methods_that_there_are_not(on_server: OnServer) -> None:
    async def test(b: Any) -> None:
        for name in ("/inference.GRPCInferenceService/Trace", "/other.Service/ModelInfer", "/x"):
            found = await b.client.error(b.client.channel.unary_unary(name)(b""))
            assert found.code() == Code.UNIMPLEMENTED

    on_server(test)


def test_a_port_in_use(on_server: OnServer) -> None:
    async def test(b: Any) -> None:
        with pytest.raises(OSError, match=f"gRPC cannot listen at 127.0.0.1:{b.port}"):
            await start_grpc(b.service, f"127.0.0.1:{b.port}")

    on_server(test)


def test_calls_that_have_ended() -> None:
    """Whether gRPC cancels the handler first or fails its reading and writing is chance."""

    class Ended:
        async def read(self) -> bytes:
            raise RuntimeError("the call is over")

        async def write(self, data: bytes) -> None:
            raise RuntimeError("the call is over")

    for part in (receive(Ended()), send(Ended(), message_class("ServerLiveRequest")())):
        with pytest.raises(asyncio.CancelledError):
            asyncio.run(part)
