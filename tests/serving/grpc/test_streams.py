"""``ModelStreamInfer``: each stage is a response, and requests are answered side by side."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc import aio

from anynest.serving.grpc import calls
from anynest.serving.protocol.errors import ProtocolError
from anynest.serving.requests.refused import Refused

OnServer = Callable[..., None]


def open_stream(b: Any) -> Any:
    return b.client.call("ModelStreamInfer", "stream_stream")()


def told(response: Any) -> tuple[str, str, int, bool]:
    """The id, the error, the stage (0 for none), and whether the response is the last."""
    found = response.infer_response
    final = found.parameters["triton_final_response"].bool_param
    return found.id, response.error_message, found.parameters["stage"].int64_param, final


def test_each_stage_as_it_comes(on_server: OnServer) -> None:
    async def test(b: Any) -> None:
        stream = open_stream(b)
        await stream.write(b.infer_request(id="a"))
        a = await b.ticket()
        await stream.write(b.infer_request(id="b"))
        b_ticket = await b.ticket()
        # each response is read before the next answer exists: nothing is held back
        a.coming.put_nowait(b.answer(1))
        assert told(await stream.read()) == ("a", "", 1, False)
        b_ticket.coming.put_nowait(b.answer(1))
        assert told(await stream.read()) == ("b", "", 1, False)
        a.coming.put_nowait(b.answer(3, "complete"))
        found = await stream.read()
        assert told(found) == ("a", "", 3, True)
        assert [tensor.name for tensor in found.infer_response.outputs] == ["scores", "label"]
        await asyncio.wait_for(a.released.wait(), b.patience)
        await stream.done_writing()  # what was asked is answered all the same
        b_ticket.coming.put_nowait(b.answer(2))
        assert told(await stream.read()) == ("b", "", 2, False)
        assert not b_ticket.released.is_set()
        b_ticket.coming.put_nowait(b.answer(2, "deadline"))
        assert told(await stream.read()) == ("b", "", 2, True)
        assert await stream.read() is aio.EOF
        assert b_ticket.released.is_set()
        assert await stream.code() == grpc.StatusCode.OK

    on_server(test)


def test_responses_wait_for_one_another(on_server: OnServer) -> None:
    """gRPC writes one message at a time, and no more of them than the client takes."""

    async def test(b: Any) -> None:
        stream, tickets = open_stream(b), []
        for number in range(20):
            await stream.write(b.infer_request(id=str(number)))
            tickets.append(await b.ticket())
        for ticket in tickets:
            ticket.coming.put_nowait(b.answer(1, width=100_000))
            ticket.coming.put_nowait(b.answer(2, "complete", width=100_000))
        await stream.done_writing()
        found = [told(response) async for response in stream]
        assert len(found) == 40
        for number in range(20):
            mine = [response for response in found if response[0] == str(number)]
            assert [stage for _, _, stage, _ in mine] == [1, 2]

    on_server(test)


@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("empty", [False, True])
def test_the_final_response(on_server: OnServer, repeated: bool, empty: bool) -> None:
    """It says that it is; it has outputs unless it repeats them to a client that can do without."""

    async def test(b: Any) -> None:
        stream = open_stream(b)
        request = b.infer_request(id="a")
        request.parameters["triton_enable_empty_final_response"].bool_param = empty
        await stream.write(request)
        await stream.done_writing()
        ticket = await b.ticket()
        ticket.coming.put_nowait(b.answer(1))
        ticket.coming.put_nowait(b.answer(1 if repeated else 2, "deadline"))
        first, last = [response async for response in stream]
        assert told(first) == ("a", "", 1, False)
        assert told(last) == ("a", "", 1 if repeated else 2, True)
        assert last.infer_response.parameters["stop_reason"].string_param == "deadline"
        outputs = 0 if empty and repeated else 2
        assert len(last.infer_response.outputs) == outputs
        assert len(last.infer_response.raw_output_contents) == outputs
        assert len(first.infer_response.outputs) == 2

    on_server(test)


def test_errors_do_not_end_the_stream(
    on_server: OnServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(b: Any) -> None:
        stream = open_stream(b)
        await stream.write(b"\xff\xff")
        line = "the message must be a ModelInferRequest in protobuf"
        assert told(await stream.read()) == ("", line, 0, True)
        await stream.write(b.infer_request(id="a", model_name="nets"))
        found = await stream.read()
        assert told(found) == ("a", "request 'a': there is no model 'nets'", 0, True)
        assert found.infer_response.model_name == "nets"
        b.service.refusal = Refused("come later", retry_after=0.25)
        await stream.write(b.infer_request())
        found = await stream.read()
        assert told(found) == ("", "come later", 0, True)
        assert found.infer_response.parameters["retry-after-ms"].int64_param == 250
        b.service.refusal = RuntimeError("secret")
        await stream.write(b.infer_request())
        assert told(await stream.read())[1] == "the request failed; the server's log says why"
        b.service.refusal = None
        await stream.write(b.infer_request(id="b"))
        ticket = await b.ticket()
        ticket.coming.put_nowait(b.answer(1))
        assert told(await stream.read()) == ("b", "", 1, False)
        ticket.coming.put_nowait(ProtocolError(500, "the computation failed"))
        assert told(await stream.read()) == ("b", "request 'b': the computation failed", 0, True)
        assert ticket.released.is_set()

    with caplog.at_level(logging.ERROR):
        on_server(test)
    assert "RuntimeError: secret" in caplog.text


def test_a_client_that_leaves(on_server: OnServer, caplog: pytest.LogCaptureFixture) -> None:
    """All that it asked for is let go, and the log keeps quiet."""

    async def test(b: Any) -> None:
        stream = open_stream(b)
        tickets = []
        for name in "abc":
            await stream.write(b.infer_request(id=name))
            tickets.append(await b.ticket())
        tickets[0].coming.put_nowait(b.answer(1))
        await stream.read()
        stream.cancel()
        tickets[1].coming.put_nowait(b.answer(1))
        for ticket in tickets:
            await asyncio.wait_for(ticket.released.wait(), b.patience)

    on_server(test)
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]


def test_requests_of_one_stream_are_bounded(
    on_server: OnServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "CONCURRENT", 3)

    async def test(b: Any) -> None:
        stream = open_stream(b)
        for number in range(4):
            await stream.write(b.infer_request(id=str(number)))
        tickets = [await b.ticket() for _ in range(3)]
        other = b.client.call("ServerLive")  # the server goes on, and takes no fourth request
        for _ in range(3):
            await other(b.message("ServerLiveRequest"))
        assert b.service.tickets.empty()
        tickets[1].coming.put_nowait(b.answer(1, "complete"))
        await b.ticket()
        stream.cancel()

    on_server(test)


def test_a_server_that_stops_ends_idle_streams(on_server: OnServer) -> None:
    async def test(b: Any) -> None:
        stream = open_stream(b)
        await stream.write(b.infer_request())
        (await b.ticket()).coming.put_nowait(b.answer(3, "complete"))
        await stream.read()
        await asyncio.wait_for(b.server.stop(0.1), b.patience)
        with pytest.raises((grpc.RpcError, asyncio.CancelledError)):
            await stream.read()

    on_server(test)
