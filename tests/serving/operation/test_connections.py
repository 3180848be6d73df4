"""Slow, large and malformed requests end at the connection, in one line of JSON."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

uvicorn = pytest.importorskip("uvicorn")
from anynest.serving.connections import MAX_HEAD, limited  # noqa: E402
from anynest.serving.http.scope import ARRIVED, Client  # noqa: E402

PATIENCE = 60.0
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Test = Callable[[Callable[[], Awaitable[Stream]], dict[str, Any]], Awaitable[None]]


def serve(test: Test, *, header_seconds: float = PATIENCE, max_connections: int = 100) -> None:
    """Run a test with a server of one application, which answers after ``seen["go"]`` is set."""
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen["scope"] = scope
        seen["began"].set()
        await seen["go"].wait()
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"ok"})

    async def run() -> None:
        seen.update(go=asyncio.Event(), began=asyncio.Event())
        seen["go"].set()
        config = uvicorn.Config(app, lifespan="off", log_config=None, ws="none")
        config.load()
        factory = limited(header_seconds=header_seconds, max_connections=max_connections)
        state = uvicorn.server.ServerState()
        seen["connections"] = state.connections
        server = await asyncio.get_running_loop().create_server(
            lambda: factory(config=config, server_state=state, app_state={}), "127.0.0.1", 0
        )
        port = server.sockets[0].getsockname()[1]
        opened: list[asyncio.StreamWriter] = []

        async def connect() -> Stream:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            opened.append(writer)
            return reader, writer

        try:
            async with asyncio.timeout(PATIENCE):
                await test(connect, seen)
        finally:
            for writer in opened:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
            server.close()
            await server.wait_closed()

    asyncio.run(run())


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """Status and body of a response."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
    length = int(head.partition("content-length: ")[2].split("\r\n")[0])
    return int(head.split()[1]), await reader.readexactly(length)


async def refusal(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Status and line of an error, after which the connection is closed."""
    status, body = await answer(reader)
    assert await reader.read() == b""
    message = json.loads(body)["error"]
    assert "\n" not in message
    return status, message


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


def test_a_request_is_answered_with_its_arrival() -> None:
    async def test(connect: Any, seen: dict[str, Any]) -> None:
        reader, writer = await connect()
        for _ in range(2):  # on one connection
            before = time.monotonic()
            writer.write(GET)
            assert await answer(reader) == (200, b"ok")
            assert before <= seen["scope"][ARRIVED] <= time.monotonic()

    serve(test)


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nSlow: "])
def test_headers_that_do_not_come_are_not_awaited(sent: bytes) -> None:
    async def test(connect: Any, seen: dict[str, Any]) -> None:
        reader, writer = await connect()
        writer.write(sent)
        status, message = await refusal(reader)
        assert (status, "within 0.05 s" in message) == (408, True)

    serve(test, header_seconds=0.05)


def test_an_idle_connection_may_stay_after_its_first_request() -> None:
    async def test(connect: Any, seen: dict[str, Any]) -> None:
        reader, writer = await connect()
        for _ in range(2):
            writer.write(GET)
            assert (await answer(reader))[0] == 200
            (connection,) = seen["connections"]
            assert connection._timer is None
            writer.write(b"GET")  # its next request has the same time
            while connection._timer is None:
                await asyncio.sleep(0)
            writer.write(GET.removeprefix(b"GET"))
            assert (await answer(reader))[0] == 200
        writer.write(b"GET")
        while connection._timer is None:
            await asyncio.sleep(0)
        connection._too_slow()
        assert (await refusal(reader))[0] == 408

    serve(test)


def test_a_slow_second_request_does_not_end_the_first() -> None:
    async def test(connect: Any, seen: dict[str, Any]) -> None:
        seen["go"].clear()
        reader, writer = await connect()
        writer.write(GET + b"GET / HTTP/1.1\r\n")
        await seen["began"].wait()
        (connection,) = seen["connections"]
        connection._too_slow()
        assert connection._timer is not None  # again
        seen["go"].set()
        assert await answer(reader) == (200, b"ok")
        connection._too_slow()
        assert (await refusal(reader))[0] == 408

    serve(test)


def test_malformed_http_is_answered_as_any_error() -> None:
    async def test(connect: Any, seen: dict[str, Any]) -> None:
        reader, writer = await connect()
        writer.write(b"nonsense\r\n\r\n")
        assert (await refusal(reader))[0] == 400

    serve(test)


@pytest.mark.parametrize("name", [b"Long: ", b""])
def test_headers_without_end_are_not_kept(name: bytes) -> None:
    async def test(connect: Any, seen: dict[str, Any]) -> None:
        reader, writer = await connect()
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n" + name)
        line = b"a" * 1000 if name else b"Name: value\r\n" * 80
        with contextlib.suppress(ConnectionError):
            for _ in range(20 * MAX_HEAD // len(line)):
                writer.write(line)
                await writer.drain()
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            assert (await answer(reader))[0] == 431
            return
        # the response was lost, as data came after the close; but it was closed
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""

    serve(test)


def test_a_large_body_is_no_large_head() -> None:
    async def test(connect: Any, seen: dict[str, Any]) -> None:
        reader, writer = await connect()
        size = 4 * MAX_HEAD
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % size)
        writer.write(b"x" * size)
        assert await answer(reader) == (200, b"ok")
        writer.write(GET)
        assert await answer(reader) == (200, b"ok")

    serve(test)


def test_connections_beyond_the_limit_are_refused() -> None:
    async def test(connect: Any, seen: dict[str, Any]) -> None:
        held = [await connect() for _ in range(2)]
        for reader, writer in held:
            writer.write(GET)
            assert (await answer(reader))[0] == 200
        reader, _ = await connect()
        assert (await refusal(reader))[0] == 503
        held[0][1].close()
        await held[0][1].wait_closed()
        while True:  # the server may notice the close a moment later
            reader, writer = await connect()
            writer.write(GET)
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                if (await answer(reader))[0] == 200:
                    return

    serve(test, max_connections=2)


def test_a_client_that_goes_is_told_once_to_those_who_asked() -> None:
    client, told = Client(), []
    with client.calling(lambda: told.append("before")):
        pass
    with client.calling(lambda: told.append("while")):
        client.leave()
    with client.calling(lambda: told.append("after")):
        assert told == ["while", "after"]
    assert told == ["while", "after"]
