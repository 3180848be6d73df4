"""Records: what the edges and the service's observer say of one request comes together."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("starlette")
grpc = pytest.importorskip("grpc")
from anynest.serving.telemetry.records import (  # noqa: E402
    Record,
    RecordedApp,
    RecordedCalls,
    RecordingObserver,
)

MODEL: Any = SimpleNamespace(name="m", version="1")
ANSWER: Any = SimpleNamespace(
    stage=2,
    stages=3,
    stop_reason="deadline",
    deadline=0.05,
    deadline_met=True,
    elapsed=0.02,
    timings=((1, 4, 0.001, 0.005), (2, 3, 0.002, 0.012)),
)
SCOPE: Any = {
    "type": "http",
    "method": "POST",
    "path": "/v2/models/m/infer",
    "query_string": b"secret=1",
    "client": ("10.0.0.7", 1234),
    "headers": [(b"x-request-id", b"abc")],
}


async def send(message: Any) -> None:
    """To nobody."""


async def receive() -> Any:
    """From nobody."""


def test_http() -> None:
    records: list[Record] = []
    observer = RecordingObserver([records.append])

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def inner() -> None:  # as a task of the protocol's
            observer.answered(MODEL, ANSWER, 1)

        await asyncio.create_task(inner())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"123", "more_body": True})
        await send({"type": "http.response.body", "body": b"45"})

    asyncio.run(RecordedApp(app, [records.append])(SCOPE, receive, send))
    (record,) = records
    assert (record.method, record.path, record.client) == ("POST", SCOPE["path"], "10.0.0.7")
    assert (record.status, record.sent, record.headers["x-request-id"]) == (200, 5, "abc")
    assert record.found == {
        "model": "m",
        "version": "1",
        "outcome": "answered",
        "rows": 1,
        "stage": 2,
        "stages": 3,
        "stop_reason": "deadline",
        "deadline_ms": 50.0,
        "deadline_met": True,
    }
    assert record.steps == ANSWER.timings


def test_requests_side_by_side_keep_their_records() -> None:
    records: list[Record] = []
    observer = RecordingObserver([records.append])

    async def run() -> None:
        both = asyncio.Barrier(2)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await both.wait()
            observer.refused(MODEL, scope["path"])

        recorded = RecordedApp(app, [records.append])
        await asyncio.gather(
            *(recorded({**SCOPE, "path": path}, receive, send) for path in ("/a", "/b"))
        )

    asyncio.run(run())
    assert sorted((record.path, record.found["reason"]) for record in records) == [
        ("/a", "/a"),
        ("/b", "/b"),
    ]


def test_an_application_that_fails_is_recorded() -> None:
    records: list[Record] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        asyncio.run(RecordedApp(app, [records.append])(SCOPE, receive, send))
    assert [record.status for record in records] == [None]


class Handler(grpc.GenericRpcHandler):  # type: ignore[misc]
    """One unary method and one stream, which observe a request for each message."""

    def __init__(self, observer: RecordingObserver) -> None:
        self.observer, self.waits = observer, asyncio.Event()

    def service(self, details: Any) -> Any:
        async def unary(messages: Any, context: Any) -> bytes:
            async for message in messages:
                if message == b"bad":
                    await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "bad")
                if message == b"wait":
                    self.waits.set()
                    await asyncio.sleep(1000)
                self.observer.answered(MODEL, ANSWER, 1)
            return b"done"

        async def stream(messages: Any, context: Any) -> None:
            async for message in messages:
                if message == b"bad":
                    self.observer.failed(MODEL, 504)
                else:
                    self.observer.answered(MODEL, ANSWER, 1)
            await context.write(b"done")

        if details.method == "/S/ModelStreamInfer":
            return grpc.stream_stream_rpc_method_handler(stream)
        if details.method == "/S/ModelInfer":
            return grpc.stream_unary_rpc_method_handler(unary)
        return None


def test_grpc() -> None:
    records: list[Record] = []

    async def run() -> None:
        server = grpc.aio.server(interceptors=[RecordedCalls([records.append])])
        handler = Handler(RecordingObserver([records.append]))
        server.add_generic_rpc_handlers((handler,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.stream_unary("/S/ModelInfer")
                metadata = (("x-request-id", "abc"),)
                assert await call(iter([b"good"]), metadata=metadata, timeout=60) == b"done"
                with pytest.raises(grpc.aio.AioRpcError):
                    await call(iter([b"bad"]), timeout=60)
                waiting = call(iter([b"wait"]), timeout=60)
                await handler.waits.wait()
                waiting.cancel()
                while len(records) < 3:
                    await asyncio.sleep(0.01)
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.stream_unary("/S/None")(iter([b""]), timeout=60)
                replies = channel.stream_stream("/S/ModelStreamInfer")(
                    iter([b"good", b"bad"]), timeout=60
                )
                assert [reply async for reply in replies] == [b"done"]
        finally:
            await server.stop(None)

    asyncio.run(run())
    unary, refused, left, *own, stream = records
    assert (unary.protocol, unary.path, unary.client) == ("grpc", "/S/ModelInfer", "127.0.0.1")
    assert (unary.status, unary.found["stage"]) == ("OK", 2)
    assert unary.headers["x-request-id"] == "abc"
    assert (refused.status, refused.found) == ("INVALID_ARGUMENT", {})
    assert left.status == "CANCELLED"
    assert [one.found["outcome"] for one in own] == ["answered", "timed_out"]
    assert own[0].seconds == ANSWER.elapsed
    assert (stream.status, stream.found, stream.streams) == ("OK", {}, True)
