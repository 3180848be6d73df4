"""Streams: each stage when it is there, framed as the client asks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from .asgi import INFER, STREAM, Reply, call, encode
from .conftest import STAGES, TIME, Served, images, logits

Play = Any
NDJSON, EVENTS = "application/x-ndjson", "text/event-stream"


def frames(reply: Reply) -> list[dict[str, Any]]:
    """The JSON of each frame, all of which must be whole."""
    events = reply.headers["content-type"] == EVENTS
    end = b"\n\n" if events else b"\n"
    assert reply.body.endswith(end)
    lines = reply.body.split(end)[:-1]
    if events:
        assert all(line.startswith(b"data: ") for line in lines)
    return [json.loads(line.removeprefix(b"data: ")) for line in lines]


async def ask(
    served: Served, accept: str = NDJSON, parameters: Any = TIME, **options: Any
) -> Reply:
    body, headers = encode({"x": images(2)}, parameters=parameters)
    given = {**headers, "accept": accept, "accept-encoding": "gzip"}
    return await call(served.app, STREAM, body, given, **options)


async def ask_slowly(served: Served, accept: str) -> Reply:
    """A stream in which each stage is sent before the next is computed."""
    for gate in served.session.gates:
        gate.clear()
    replies: list[Reply] = []
    asked = asyncio.create_task(ask(served, accept, into=replies.append))
    await served.until(lambda: bool(replies))
    (reply,) = replies
    for stage in range(STAGES):
        await asyncio.to_thread(served.session.begun[stage].wait)
        assert len(reply.parts) == stage
        assert bool(reply.status) == (stage > 0), "no status before the first answer"
        served.session.gates[stage].set()
        await served.until(lambda sent=stage + 1: len(reply.parts) >= sent)  # type: ignore[misc]
    await asked
    return reply


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        (NDJSON, NDJSON),
        (EVENTS, EVENTS),
        ("", EVENTS),
        ("*/*", EVENTS),
        ("text/html, Application/NDJSON;q=0.5", NDJSON),
        ("application/jsonl", NDJSON),
    ],
)
def test_each_stage(play: Play, accept: str, media_type: str) -> None:
    async def scenario(served: Served) -> None:
        reply = await ask_slowly(served, accept)
        assert reply.status == 200
        assert reply.headers["content-type"] == media_type
        assert "content-encoding" not in reply.headers
        assert "content-length" not in reply.headers
        found = frames(reply)
        assert [frame["parameters"]["stage"] for frame in found] == list(range(1, STAGES + 1))
        for stage, frame in enumerate(found, 1):
            outputs = {tensor["name"]: tensor for tensor in frame["outputs"]}
            values = np.array(outputs["logits"]["data"]).reshape(outputs["logits"]["shape"])
            np.testing.assert_allclose(values, logits(images(2), stage), rtol=1e-6)
        reasons = [frame["parameters"]["stop_reason"] for frame in found]
        assert reasons == ["", "", "complete"]

    play(scenario)


def test_the_deadline_ends_it(play: Play) -> None:
    """The last frame says so, and does not repeat the tensors of the one before."""

    async def scenario(served: Served) -> None:
        served.session.gates[1].clear()
        first, last = frames(await ask(served, parameters={"timeout": 400_000}))
        assert first["parameters"]["stage"] == last["parameters"]["stage"] == 1
        assert first["parameters"]["stop_reason"] == ""
        assert last["parameters"]["stop_reason"] == "deadline"
        assert first["outputs"]
        assert not last["outputs"]
        served.session.gates[1].set()

    play(scenario)


def test_no_stage_in_time_is_an_ordinary_error(play: Play) -> None:
    async def scenario(served: Served) -> None:
        served.session.gates[0].clear()
        reply = await ask(served, parameters={"timeout": 50_000})
        assert (reply.status, reply.error.startswith("no stage")) == (504, True)
        served.session.gates[0].set()

    play(scenario)


@pytest.mark.parametrize("where", ["parameters", "outputs"])
def test_streams_have_no_binary_tensors(play: Play, where: str) -> None:
    wanted = {"name": "logits", "parameters": {"binary_data": True}}
    given: dict[str, Any] = {
        "parameters": {"parameters": {"binary_data_output": True}},
        "outputs": {"outputs": [wanted]},
    }[where]

    async def scenario(served: Served) -> None:
        body, headers = encode({"x": images()}, **given)
        reply = await call(served.app, STREAM, body, headers)
        assert (reply.status, "JSON" in reply.error) == (400, True)
        assert served.session.images == 0

    play(scenario)


def test_chosen_outputs(play: Play) -> None:
    async def scenario(served: Served) -> None:
        for name, status in (("stage", 200), ("nothing", 400)):
            body, headers = encode({"x": images()}, parameters=TIME, outputs=[{"name": name}])
            reply = await call(served.app, STREAM, body, {**headers, "accept": NDJSON})
            assert reply.status == status
            if status == 200:
                last = frames(reply)[-1]["outputs"]
                assert [(tensor["name"], tensor["data"]) for tensor in last] == [("stage", [3])]
            else:
                assert reply.error

    play(scenario)


def test_a_client_that_goes_between_two_stages(play: Play) -> None:
    async def scenario(served: Served) -> None:
        served.session.gates[1].clear()
        gone = asyncio.Event()
        replies: list[Reply] = []
        asked = asyncio.create_task(ask(served, into=replies.append, disconnect=gone))
        await served.until(lambda: bool(replies and replies[0].parts))
        gone.set()
        await served.until(lambda: served.service.in_flight == 0)
        await asked
        assert "error" in frames(replies[0])[-1]
        served.session.gates[1].set()
        body, headers = encode({"x": images()}, parameters=TIME)
        assert (await call(served.app, INFER, body, headers)).status == 200

    play(scenario)
