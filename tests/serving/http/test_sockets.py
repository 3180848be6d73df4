"""A real server on loopback: connections that break anywhere, go on, or carry too much."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from anynest.serving.http import unread
from anynest.serving.telemetry.records import Record, RecordedApp, RecordingObserver

from .asgi import INFER, encode
from .conftest import TIME, Served, listening

Play = Any


def message(path: str = INFER, body: bytes = b"", **headers: Any) -> bytes:
    """A whole request as bytes."""
    given = {"host": "localhost", "content-length": len(body), **headers}
    lines = [f"{name.replace('_', '-')}: {value}" for name, value in given.items()]
    return "\r\n".join([f"POST {path} HTTP/1.1", *lines, "", ""]).encode() + body


def question(**headers: Any) -> bytes:
    """A sound request, a few hundred bytes long."""
    pixels = np.zeros((1, 3, 8, 8), np.uint8)
    body, given = encode({"x": pixels}, parameters=TIME, outputs=[{"name": "stage"}])
    return message(body=body, **given, **headers)


async def response(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.split(": ", 1) for line in head[1:] if line)
    body = await reader.readexactly(int(headers["content-length"]))
    return int(head[0].split()[1]), headers, body


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("reset", [True, False])
def test_a_disconnect_at_each_byte(play: Play, reset: bool, own: bool) -> None:
    sent = question()

    async def scenario(served: Served) -> None:
        async with listening(served, own=own) as port:
            for length in range(len(sent)):
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                writer.write(sent[:length])
                await asyncio.sleep(0)
                if reset:
                    writer.transport.abort()
                else:
                    writer.close()
            await served.until(lambda: not served.service.in_flight)
            served.assert_baseline()
            assert served.session.images == 0, "no request was whole"
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            status, _, body = await response(reader)
            assert (status, json.loads(body)["outputs"][0]["data"]) == (200, [3])
            writer.close()

    play(scenario)


@pytest.mark.parametrize("own", [True, False])
def test_gone_while_it_is_computed(play: Play, own: bool) -> None:
    async def scenario(served: Served) -> None:
        served.session.gates[1].clear()
        async with listening(served, own=own) as port:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(question())
            await asyncio.to_thread(served.session.begun[1].wait)
            assert served.service.in_flight == 1
            writer.close()
            await served.until(lambda: not served.service.in_flight)
            served.session.gates[1].set()
            await served.until(lambda: bool(records))

    records: list[Record] = []

    async def recorded(served: Served) -> None:
        served.service.observers.append(RecordingObserver([records.append]))
        served.app = RecordedApp(served.app, [records.append])
        await scenario(served)

    play(recorded)
    (record,) = records
    assert (record.found["model"], record.found["outcome"]) == ("tiny", "left")


def test_a_connection_goes_on(play: Play) -> None:
    """After an answer, and after refusals whose bodies were not read."""
    refused = message("/v2/models/none/infer", bytes(5000))
    spent = question(anynest_timeout_ms=0)

    async def scenario(served: Served) -> None:
        async with listening(served) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            for sent, wanted in ((question(), 200), (refused, 404), (spent, 504)) * 2:
                writer.write(sent)
                status, headers, _ = await response(reader)
                assert status == wanted
                assert "connection" not in headers
            writer.close()

    play(scenario)


@pytest.mark.parametrize(
    ("path", "headers", "wanted"),
    [(INFER, {}, 413), ("/none", {}, 404), ("/v2", {}, 405), (INFER, {"origin": "null"}, 403)],
)
def test_a_long_refused_body(
    play: Play, path: str, headers: Any, wanted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client reads the error though it sends first; then the connection ends."""
    monkeypatch.setattr(unread, "LINGER", 30.0)
    sent = message(path, bytes(8 << 20), **headers)

    async def scenario(served: Served) -> None:
        async with listening(served) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            await writer.drain()
            status, headers, line = await response(reader)
            assert (status, headers["connection"]) == (wanted, "close")
            assert "error" in json.loads(line)
            assert await reader.read() == b""
            writer.close()

    play(scenario, max_body=1 << 20)


def test_a_body_that_waits_for_permission(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """``Expect: 100-continue``: asked for after the admission, never after a refusal."""
    monkeypatch.setattr(unread, "LINGER", 1e6)

    async def scenario(served: Served) -> None:
        async with listening(served) as port:
            sent = question(expect="100-continue")
            head, _, body = sent.partition(b"\r\n\r\n")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(head + b"\r\n\r\n")
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(body)
            assert (await response(reader))[0] == 200
            refused = question(expect="100-continue", anynest_timeout_ms=0)
            writer.write(refused.partition(b"\r\n\r\n")[0] + b"\r\n\r\n")
            status, headers, _ = await response(reader)
            assert (status, headers["connection"]) == (504, "close")
            assert await reader.read() == b""
            writer.close()

    play(scenario)
