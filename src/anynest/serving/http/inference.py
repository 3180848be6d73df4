"""The two endpoints that compute: one answer by the deadline, or each stage as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from ..deadlines import duration
from ..models import ServedModel
from ..protocol.errors import ProtocolError
from ..protocol.inference import InferRequest, read_request, write_response
from ..requests.answer import Answer
from ..requests.ticket import Ticket
from ..service import Service
from .bodies import Body, read_length, slow_body, too_large
from .raw import read_raw
from .responses import bytes_response, send_part, send_start
from .scope import ARRIVED, CLIENT, Client
from .streams import stream_format

HEADER_LENGTH = "inference-header-content-length"
BINARY = "application/octet-stream"


@dataclass(frozen=True)
class Accepted:
    """A request that was accepted and is computed.

    Attributes:
        model: that computes.
        request: as the client sent it.
        ticket: of the computation.
    """

    model: ServedModel
    request: InferRequest
    ticket: Ticket

    def response(self, answer: Answer) -> tuple[bytes, int | None]:
        """A response's body and the length of its JSON header, None if it is JSON alone."""
        model = self.model
        return write_response(
            model.name,
            model.version,
            self.request,
            answer.outputs(self.request),
            answer.parameters(),
        )

    def text(self, answer: Answer, before: int) -> bytes:
        """A response of a stream, in JSON.

        Args:
            answer: the next one.
            before: the stage of the one before; an answer of the same stage, which says why no
                other follows, has no outputs.
        """
        if answer.stage > before:
            return self.response(answer)[0]
        model, request = self.model, replace(self.request, outputs={})
        return write_response(model.name, model.version, request, {}, answer.parameters())[0]


class InferenceEndpoint:
    """``infer``, or ``infer_stream`` where ``stream``: an ASGI application behind a route.

    Args:
        service: that computes.
        stream: whether to send each stage.
    """

    def __init__(self, service: Service, *, stream: bool) -> None:
        self._service, self._stream = service, stream

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        if self._stream:
            await self._send_stages(request, send)
        else:
            await self._send_answer(request, send)

    async def _send_answer(self, request: Request, send: Send) -> None:
        async with self._accepted(request) as accepted:
            answer = await accepted.ticket.answer()
            data, header_length = accepted.response(answer)
        media_type, headers = "application/json", {}
        if header_length is not None:
            media_type, headers = BINARY, {HEADER_LENGTH: str(header_length)}
        response = await bytes_response(request, data, media_type, headers)
        accepted.ticket.sending()
        await response(request.scope, request.receive, send)

    async def _send_stages(self, request: Request, send: Send) -> None:
        frames = stream_format(request.headers.get("accept", ""))
        headers = {"content-type": frames.media_type, "x-accel-buffering": "no"}  # of nginx
        async with self._accepted(request) as accepted:
            stage = 0
            try:
                async for answer in accepted.ticket.answers():
                    text = accepted.text(answer, stage)
                    if answer.stop_reason:
                        accepted.ticket.sending()
                    if not stage:
                        await send_start(send, 200, Headers(headers).raw)
                    await send_part(send, frames.answer(text))
                    stage = answer.stage
            except ProtocolError as error:
                if not stage:  # an ordinary response
                    raise
                await send_part(send, frames.error(error.message))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    @asynccontextmanager
    async def _accepted(self, request: Request) -> AsyncIterator[Accepted]:
        """Admit a request by its headers, receive it, and have it computed until the block ends."""
        service, headers, path = self._service, request.headers, request.path_params
        settings, arrived = service.settings, request.scope[ARRIVED]
        header_length = read_length(headers, HEADER_LENGTH)
        content_type = headers.get("content-type", "")
        raw = header_length == 0 or content_type.lower().startswith("image/")
        if header_length is not None and header_length > settings.max_json:
            raise too_large("the JSON of a request", settings.max_json, str(header_length))
        only_json = header_length is None and not raw
        limit = min(settings.max_body, settings.max_json) if only_json else settings.max_body
        body = Body(request.receive, headers, limit)
        body.check()
        model = service.model(path["model"], path.get("version"))
        with service.admit(
            model,
            nbytes=body.length or 0,
            rows=body.least_rows(model, header_length),
            arrived=arrived,
            seconds=duration(
                envoy_ms=headers.get("x-envoy-expected-rq-timeout-ms"),
                anynest_ms=headers.get("anynest-timeout-ms"),
            ),
            client=request.client.host if request.client else "",
        ) as ticket:
            late = arrived + settings.receive_seconds
            try:
                async with ticket.receiving(min(late, ticket.due)):
                    data = await body.read(ticket.hold)
            except TimeoutError:
                if ticket.due < late:
                    raise ProtocolError(504, "the deadline came before the body's end") from None
                raise slow_body(settings.receive_seconds) from None
            if raw:
                found = read_raw(model, data, content_type)
            else:
                found = read_request(data, header_length, max_elements=settings.max_body)
            if self._stream and (found.binary or any(found.outputs.values())):
                raise ProtocolError(400, "infer_stream answers in JSON; ask for no binary output")
            await ticket.begin(found)
            with watched(request, ticket):
                yield Accepted(model, found, ticket)


@contextmanager
def watched(request: Request, ticket: Ticket) -> Iterator[None]:
    """Leave a ticket when its client closes the connection.

    Our own connections call back; with those of other servers a task waits for the message.
    """
    client: Client | None = request.scope.get(CLIENT)
    if client is not None:
        with client.calling(ticket.leave):
            yield
        return

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        ticket.leave()

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()
